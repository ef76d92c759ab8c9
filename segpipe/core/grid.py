"""Voxel grids, their position in the world, and boxes of voxels. Arrays are (Z, Y, X); the world is RAS+ in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import GeometryError
from segpipe.core.records import Record

MAX_SHEAR = 1e-2  # cosine between two axes; float32 headers show up to 1e-4, a tilted gantry 0.1 and more
_GAP_VOX = 0.1  # grids nearer than this are one: float32 headers and rounded quaternions stay far below
ZYX = tuple[int, int, int]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and position of a volume.

    Args:
        shape_zyx: Voxels along Z, Y, X.
        affine_ras_mm: (4, 4) float64, from index (x, y, z, 1) to RAS mm.

    Raises:
        GeometryError: If the affine is not finite or not invertible, or an axis has no length.
    """

    shape_zyx: ZYX
    affine_ras_mm: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = self.affine_ras_mm
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(
                f"affine has shape {affine.shape} or values that are not finite; expected a finite 4×4."
            )
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if abs(np.linalg.det(affine[:3, :3] / np.where(lengths > 0, lengths, 1))) < 1e-3:
            raise GeometryError(
                f"affine is not invertible (voxel edges {np.round(lengths, 4).tolist()} mm along x, y, z); "
                "expected three independent axes with lengths above 0."
            )
        affine.setflags(write=False)

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge along Z, Y, X in mm; six decimals, since headers hold float32."""
        x, y, z = np.linalg.norm(self.affine_ras_mm[:3, :3], axis=0)
        return (round(float(z), 6), round(float(y), 6), round(float(x), 6))

    @cached_property
    def shear(self) -> float:
        """Largest cosine between two axes, 0 (orthogonal) to 1."""
        axes = self.affine_ras_mm[:3, :3] / np.linalg.norm(self.affine_ras_mm[:3, :3], axis=0)
        return float(np.abs(np.triu(axes.T @ axes, 1)).max())

    @cached_property
    def orientation(self) -> str:
        """Direction in which x, y, z grow, to the nearest anatomical axis, e.g. `RAS` or `LPI`.

        Example:
            >>> Grid((4, 4, 4), np.diag([-1.0, -1.0, 2.0, 1.0])).orientation
            'LPS'
        """
        return "".join("RAS"[axis] if sign > 0 else "LPI"[axis] for axis, sign in self._axes_xyz)

    @cached_property
    def _axes_xyz(self) -> list[tuple[int, int]]:
        """World axis (0 R, 1 A, 2 S) and sign of each index axis x, y, z; every world axis once."""
        directions = self.affine_ras_mm[:3, :3] / np.linalg.norm(self.affine_ras_mm[:3, :3], axis=0)
        free, result = {0, 1, 2}, {}
        for column in np.argsort(-np.abs(directions).max(axis=0), kind="stable"):
            axis = max(sorted(free), key=lambda a, c=column: abs(directions[a, c]))  # type: ignore[misc]
            free.discard(axis)
            result[int(column)] = (axis, 1 if directions[axis, column] >= 0 else -1)
        return [result[column] for column in range(3)]

    @property
    def is_default(self) -> bool:
        """True for voxels of 1 mm along the world's axes at the origin: what a header says that nobody wrote."""
        return bool(np.array_equal(np.abs(self.affine_ras_mm), np.eye(4)))

    def corner_gap_mm(self, other: Grid) -> float:
        """Largest distance between the same corner voxels of two grids in mm; inf if shapes differ."""
        if self.shape_zyx != other.shape_zyx:
            return float("inf")
        z, y, x = (n - 1 for n in self.shape_zyx)
        corners = np.array([[*c, 1.0] for c in product((0, x), (0, y), (0, z))]).T
        return float(np.linalg.norm(((self.affine_ras_mm - other.affine_ras_mm) @ corners)[:3], axis=0).max())


def check_grid(grid: Grid, what: str) -> None:
    """Refuse a sheared grid.

    Raises:
        GeometryError: If two axes are not at right angles.
    """
    if grid.shear > MAX_SHEAR:
        raise GeometryError(
            f"{what}: the grid is sheared (cosine {grid.shear:.3f} between two axes, allowed {MAX_SHEAR}); distances "
            "in voxels would be wrong. Resample it to a rectangular grid, e.g. with `flirt -applyisoxfm` or "
            "SimpleITK's ResampleImageFilter, the mask with nearest neighbour."
        )


def require_same_grid(reference: Grid, other: Grid, what: str) -> None:
    """Refuse two grids of which a corner voxel is more than a tenth of a voxel apart.

    Raises:
        GeometryError: If shape or position differ.
    """
    if reference.shape_zyx != other.shape_zyx:
        shape, expected = (" × ".join(map(str, g.shape_zyx[::-1])) for g in (other, reference))
        remedy = _turn_advice(reference, other) or "Resample one onto the other."
        raise GeometryError(f"{what}: shape {shape} (x, y, z), expected {expected}. {remedy}")
    gap_mm, allowed_mm = reference.corner_gap_mm(other), _GAP_VOX * min(reference.spacing_mm)
    if gap_mm > allowed_mm:
        raise GeometryError(
            f"{what}: same shape, but a corner voxel is {gap_mm:.3f} mm apart (allowed {allowed_mm:.3f} mm). "
            f"{_turn_advice(reference, other) or _header_advice(reference, other)}"
        )


def _turn_advice(reference: Grid, other: Grid) -> str:
    """The remedy for a grid that differs from the other one in the order of its axes alone; empty for others."""
    turned = turned_grid(other, reorientation(other, reference.orientation))
    is_turned = other.orientation != reference.orientation
    if not is_turned or reference.corner_gap_mm(turned) > _GAP_VOX * min(reference.spacing_mm):
        return ""
    return (
        f"Its axes are {other.orientation}, those of the other {reference.orientation}: reorient it, e.g. with "
        "nibabel's `as_reoriented`, which loses nothing."
    )


def _header_advice(reference: Grid, other: Grid) -> str:
    """The remedy for a grid of the same shape at another position, by what is wrong with it."""
    texts = [
        (
            " × ".join(f"{edge:.4g}" for edge in grid.spacing_mm[::-1]),
            ", ".join(f"{value:.4g}" for value in grid.affine_ras_mm[:3, 3]),
            grid.orientation,
        )
        for grid in (other, reference)
    ]
    kinds = zip(("voxel size", "origin", "axes"), (" mm (x, y, z)", " mm (RAS)", ""), *texts, strict=True)
    differences = "; ".join(
        f"{kind} {own}, expected {wanted}{unit}" for kind, unit, own, wanted in kinds if own != wanted
    )
    if other.is_default and not reference.is_default:
        return (
            f"Its header was lost, this is what programs write without one: {differences}. If its voxels lie right, "
            "copy the header of the other file; do not turn the array."
        )
    return f"{differences or 'The axes point elsewhere'}. Find out which header is right."


@dataclass(frozen=True)
class Reorientation:
    """A lossless turn of an array: axes are permuted, then some are flipped.

    Args:
        axes_zyx: Output axis i is input axis `axes_zyx[i]`.
        flips_zyx: True where the output axis runs backwards.
    """

    axes_zyx: ZYX
    flips_zyx: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn the last three axes of `array` (any leading axes); a view."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + a for a in self.axes_zyx))
        return np.flip(turned, self._flipped_axes(lead))

    def undo(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn back; `undo(apply(a))` equals `a`; a view."""
        lead = array.ndim - 3
        flipped = np.flip(array, self._flipped_axes(lead))
        back = np.argsort(self.axes_zyx)
        return flipped.transpose(*range(lead), *(lead + int(a) for a in back))

    def _flipped_axes(self, lead: int) -> tuple[int, ...]:
        return tuple(lead + i for i, flip in enumerate(self.flips_zyx) if flip)

    def permute(self, values_zyx: Sequence[Number]) -> tuple[Number, Number, Number]:
        """Permute a shape or spacing as the array is."""
        first, second, third = self.axes_zyx
        return (values_zyx[first], values_zyx[second], values_zyx[third])


def reorientation(source: Grid, target: str) -> Reorientation:
    """The turn from a grid's orientation to another one, e.g. `RAS`.

    Raises:
        GeometryError: If `target` is not one of the 48 orientations.
    """
    return turn_between(source.orientation, target)


def turn_between(source: str, target: str) -> Reorientation:
    """The turn from one orientation to another, e.g. from `LPS` to `RAS`.

    Raises:
        GeometryError: If one is not among the 48 orientations.
    """
    axes = {letter: i for i, pair in enumerate(("RL", "AP", "SI")) for letter in pair}
    for code in (source, target):
        if len(code) != 3 or sorted(axes.get(letter, -1) for letter in code) != [0, 1, 2]:
            raise GeometryError(f"orientation {code!r} is not one of the 48 orientations such as 'RAS' or 'LPI'.")
    source_axes = [axes[letter] for letter in source]
    order_xyz = [source_axes.index(axes[letter]) for letter in target]
    flips_xyz = [source[i] != letter for i, letter in zip(order_xyz, target, strict=True)]
    z, y, x = (2 - order_xyz[2], 2 - order_xyz[1], 2 - order_xyz[0])
    return Reorientation((z, y, x), (flips_xyz[2], flips_xyz[1], flips_xyz[0]))


def turned_grid(grid: Grid, turn: Reorientation) -> Grid:
    """The grid of a turned array: every voxel keeps its position in the world."""
    shape_zyx = turn.permute(grid.shape_zyx)
    affine = np.eye(4)
    origin_xyz = np.zeros(3)
    for axis_zyx, (source_zyx, is_flipped) in enumerate(zip(turn.axes_zyx, turn.flips_zyx, strict=True)):
        source_xyz, axis_xyz = 2 - source_zyx, 2 - axis_zyx
        column = grid.affine_ras_mm[:3, source_xyz]
        affine[:3, axis_xyz] = -column if is_flipped else column
        origin_xyz[source_xyz] = grid.shape_zyx[source_zyx] - 1 if is_flipped else 0
    affine[:3, 3] = grid.affine_ras_mm[:3, :3] @ origin_xyz + grid.affine_ras_mm[:3, 3]
    return Grid(shape_zyx, affine)


class Box(Record):
    """Voxels from `start_zyx` (inside) to `stop_zyx` (outside)."""

    start_zyx: ZYX
    stop_zyx: ZYX

    @classmethod
    def whole(cls, shape_zyx: ZYX) -> Box:
        """Make the box of a whole array."""
        return cls(start_zyx=(0, 0, 0), stop_zyx=shape_zyx)

    @property
    def shape_zyx(self) -> ZYX:
        """Voxels along each axis."""
        z, y, x = (b - a for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))
        return (z, y, x)

    @property
    def slices(self) -> tuple[Any, ...]:
        """Index of the last three axes of an array."""
        return (..., *(slice(a, b) for a, b in zip(self.start_zyx, self.stop_zyx, strict=True)))


def nonzero_box(voxels_czyx: NDArray[Any]) -> Box:
    """Find the smallest box around the voxels at which any channel is not 0; the whole array if there are none.

    Example:
        >>> image = np.zeros((1, 4, 5, 6)); image[0, 1:3, 2, 3:5] = 7
        >>> nonzero_box(image)
        Box(start_zyx=(1, 2, 3), stop_zyx=(3, 3, 5))
    """
    occupied = (voxels_czyx != 0).any(axis=0)
    ends = []
    for axis in range(3):
        line = np.flatnonzero(occupied.any(axis=tuple(a for a in range(3) if a != axis)))
        ends.append((int(line[0]), int(line[-1]) + 1) if line.size else (0, occupied.shape[axis]))
    (z0, z1), (y0, y1), (x0, x1) = ends
    return Box(start_zyx=(z0, y0, x0), stop_zyx=(z1, y1, x1))
