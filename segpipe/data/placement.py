"""Placement of a label map against its image: on its grid, with other axes, shifted, or apart beyond safe repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.core.grid import ZYX, Grid, Reorientation, turned_grid
from segpipe.core.header import MAX_GAP_VOX, Header

_MAX_TURN = 1e-3  # sine of the angle between axes taken for parallel: cosines rounded to three decimals
_MAX_EDGE_RATIO = 1e-2  # edges that differ less were rounded: 0.7 for 0.703125
_STILL = Reorientation((0, 1, 2), (False, False, False))


@dataclass(frozen=True)
class Placement:
    """The placement of a label map against its image.

    Args:
        kind: `same` position and axes; `turned`: same position, axes in another order or direction; `shifted`: same
            shape, edges and axes at another position; `cropped`: part of the image's voxels; `apart`: anything else.
        turn: The turn of the label map's array onto the image's axes; None if `apart`.
        gap_mm: Largest distance of a corner voxel after the turn; inf if shapes differ.
        offset_zyx: The image's voxel at the first voxel of the label map if `cropped`, else zeros.
    """

    kind: Literal["same", "turned", "shifted", "cropped", "apart"]
    turn: Reorientation | None
    gap_mm: float
    offset_zyx: ZYX = (0, 0, 0)


def placement(image: Header, label: Header) -> Placement:
    """Find the placement of a label map against its image.

    A file without orientation in its header is never called turned or shifted, since its axes are a guess of the
    reader. Nor is one that would be both: either its array or its header is wrong, and the files do not tell which.
    """
    gap_mm = image.grid.corner_gap_mm(label.grid)
    allowed_mm = MAX_GAP_VOX * min(image.grid.spacing_mm)
    if gap_mm <= allowed_mm:
        return Placement("same", _STILL, gap_mm)
    turn = _turn(image.grid, label.grid)
    if turn is None or not (image.has_world and label.has_world):
        return Placement("apart", None, gap_mm)
    turned = turned_grid(label.grid, turn)
    turned_gap_mm = image.grid.corner_gap_mm(turned)
    if turned_gap_mm <= allowed_mm:
        return Placement("turned", turn, turned_gap_mm)
    if turn == _STILL and (offset_zyx := _crop_offset(image.grid, label.grid)) is not None:
        return Placement("cropped", _STILL, gap_mm, offset_zyx)
    edges = np.divide(label.grid.spacing_mm, image.grid.spacing_mm)
    is_shift = np.isfinite(gap_mm) and turn == _STILL and bool((np.abs(edges - 1) <= _MAX_EDGE_RATIO).all())
    return Placement("shifted", turn, gap_mm) if is_shift else Placement("apart", None, gap_mm)


def _crop_offset(image: Grid, label: Grid) -> ZYX | None:
    """Find the voxel of the image at which a smaller grid begins whose voxels are the image's; None for others."""
    if image.shape_zyx == label.shape_zyx:
        return None
    to_index = np.linalg.inv(image.affine_ras_mm) @ label.affine_ras_mm
    last_xyz = np.array(label.shape_zyx[::-1]) - 1
    first = np.rint(to_index[:3, 3])
    gaps_vox = [to_index[:3, 3] - first, (to_index @ [*last_xyz, 1])[:3] - (first + last_xyz)]
    is_inside = (first >= 0).all() and (first + last_xyz < image.shape_zyx[::-1]).all()
    if np.abs(gaps_vox).max() > MAX_GAP_VOX or not is_inside:
        return None
    x, y, z = (int(n) for n in first)
    return z, y, x


def _turn(image: Grid, label: Grid) -> Reorientation | None:
    """Find the turn from the label map's axes to the image's; None if they are not parallel in pairs."""
    cosines = _directions(image).T @ _directions(label)  # image axis (x, y, z), label axis (x, y, z)
    whole = np.rint(cosines)
    is_permutation = (np.abs(whole).sum(0) == 1).all() and (np.abs(whole).sum(1) == 1).all()
    if not is_permutation or np.abs(cosines - whole).max() > _MAX_TURN:
        return None
    source_xyz = np.abs(whole).argmax(1)
    signs = whole.sum(1)
    z, y, x = (2 - int(source_xyz[axis]) for axis in (2, 1, 0))
    return Reorientation((z, y, x), (bool(signs[2] < 0), bool(signs[1] < 0), bool(signs[0] < 0)))


def _directions(grid: Grid) -> NDArray[np.float64]:
    affine = grid.affine_ras_mm[:3, :3]
    return affine / np.linalg.norm(affine, axis=0)
