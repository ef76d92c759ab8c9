"""Transforms of space that a network can be made indifferent to, which go together, and in which coordinates.

Transforms that commute are translations in suitable (canonical) coordinates: a rotation moves the angle, a scale the
logarithm of the radius. What predicts where something lies in these coordinates predicts the transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from segpipe.core.choices import Choice

_AXES = ("z", "y", "x")


@dataclass(frozen=True, kw_only=True)
class Transform(Choice):
    """A family of transforms with one number. Axes are 0 (Z), 1 (Y), 2 (X).

    Args:
        plane: Axes of a rotation.
        scales: Axes that are scaled.
        shifts: Axis that is shifted.
    """

    plane: tuple[int, int] | None = None
    scales: tuple[int, ...] = ()
    shifts: int | None = None

    @property
    def generator(self) -> list[list[float]]:
        """Derivative of the transform by its number at 0, a 4×4 matrix for (z, y, x, 1)."""
        matrix = [[0.0] * 4 for _ in range(4)]
        if self.plane is not None:
            first, second = self.plane
            matrix[first][second], matrix[second][first] = 1.0, -1.0
        for axis in self.scales:
            matrix[axis][axis] = 1.0
        if self.shifts is not None:
            matrix[self.shifts][3] = 1.0
        return matrix


_ETN = "Tai et al. 2019, Equivariant Transformer Networks, arXiv 1901.11399"
TRANSFORMS: dict[str, Transform] = {  # canonical.py computes with them
    "rot_z": Transform(does="rotation in the plane of Y and X", source=_ETN, plane=(1, 2)),
    "rot_y": Transform(does="rotation in the plane of Z and X", source=_ETN, plane=(0, 2)),
    "rot_x": Transform(does="rotation in the plane of Z and Y", source=_ETN, plane=(0, 1)),
    "iso_scale": Transform(does="scale, the same on all axes", source=_ETN, scales=(0, 1, 2)),
    "plane_scale": Transform(does="scale, the same on Y and X", source=_ETN, scales=(1, 2)),
    "scale_z": Transform(does="scale along Z", source=_ETN, scales=(0,)),
    "scale_y": Transform(does="scale along Y", source=_ETN, scales=(1,)),
    "scale_x": Transform(does="scale along X", source=_ETN, scales=(2,)),
    "shift_z": Transform(does="shift along Z", source=_ETN, shifts=0),
    "shift_y": Transform(does="shift along Y", source=_ETN, shifts=1),
    "shift_x": Transform(does="shift along X", source=_ETN, shifts=2),
}
_ALONG_AXES = {name for name in TRANSFORMS if name.startswith(("shift_", "scale_"))}


@dataclass(frozen=True)
class Coordinate:
    """A canonical coordinate and the transform that moves along it.

    Args:
        kind: angle, log_radius, polar (the angle from the axis of a rotation), linear, or log (of the distance from
            the centre along an axis, on either side).
        transform: Name; None if nothing moves along it.
    """

    kind: str
    transform: str | None


@dataclass(frozen=True)
class Coordinates:
    """Coordinates in which transforms are translations.

    Args:
        family: axes, cylinder (3D) or sphere (a circle in 2D).
        axis: Axis of the cylinder or of the sphere's poles; of a circle 0.
        entries: One coordinate for each axis of the image.
    """

    family: str
    axis: int
    entries: tuple[Coordinate, ...]


def commute(first: str, second: str) -> bool:
    """Return whether two transforms give the same in either order.

    Example:
        >>> commute("rot_z", "iso_scale"), commute("rot_z", "rot_x"), commute("iso_scale", "shift_z")
        (True, False, False)
    """
    a, b = TRANSFORMS[first].generator, TRANSFORMS[second].generator
    return _product(a, b) == _product(b, a)


def _product(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    return [[sum(a[i][k] * b[k][j] for k in range(4)) for j in range(4)] for i in range(4)]


def canonical_coordinates(names: Sequence[str], n_axes: int) -> Coordinates:
    """Find coordinates in which all the transforms are translations.

    Args:
        names: Rows of `TRANSFORMS`.
        n_axes: 2 or 3.

    Raises:
        ValueError: If a transform is named twice or needs a third axis, two do not commute, or no coordinates are known
            for all of them.

    Example:
        >>> canonical_coordinates(["rot_z", "iso_scale"], 3).family
        'sphere'
    """
    if len(set(names)) < len(names):
        raise ValueError(f"canonicalise {list(names)} names a transform twice")
    for name in names:
        needs_z = 0 in (*(TRANSFORMS[name].plane or ()), TRANSFORMS[name].shifts) or name in ("scale_z", "plane_scale")
        if n_axes == 2 and needs_z:
            other = "; take iso_scale" if name == "plane_scale" else ""
            raise ValueError(f"canonicalise: {name} is for volumes, and the network sees slices{other}")
    for first, second in combinations(names, 2):
        if not commute(first, second):
            raise ValueError(
                f"canonicalise: {first} and {second} do not commute, so there are no coordinates in which both are "
                "translations. Leave out one of them"
            )
    chosen = set(names)
    if chosen <= _ALONG_AXES:
        return Coordinates("axes", 0, tuple(_along(axis, chosen) for axis in range(3 - n_axes, 3)))
    rotation = next((name for name in names if TRANSFORMS[name].plane is not None), None)
    axis = 0 if rotation is None else next(a for a in range(3) if a not in (TRANSFORMS[rotation].plane or ()))
    angle = Coordinate("angle", rotation)
    if n_axes == 3 and chosen <= {"rot_z", "plane_scale", "shift_z"}:
        radius = Coordinate("log_radius", _of("plane_scale", chosen))
        return Coordinates("cylinder", 0, (angle, radius, Coordinate("linear", _of("shift_z", chosen))))
    if chosen <= {rotation, "iso_scale"}:
        radius, polar = Coordinate("log_radius", _of("iso_scale", chosen)), Coordinate("polar", None)
        return Coordinates("sphere", axis, (angle, radius, polar)[:n_axes])
    raise ValueError(
        f"canonicalise: no coordinates are known in which all of {', '.join(names)} are translations. Known are shifts "
        "or scales along axes; rot_z, plane_scale and shift_z; a rotation and iso_scale. Leave out one"
    )


def _of(name: str, chosen: set[str]) -> str | None:
    return name if name in chosen else None


def _along(axis: int, chosen: set[str]) -> Coordinate:
    scale, shift = f"scale_{_AXES[axis]}", f"shift_{_AXES[axis]}"
    return Coordinate("log", scale) if scale in chosen else Coordinate("linear", _of(shift, chosen))
