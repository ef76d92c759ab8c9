"""Where two label maps of a case differ most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects, label

from segpipe.core.grid import Grid

_CORNERS_TOUCH = np.ones((3, 3, 3), bool)
_SAME_DEPTH = 1e-6  # relative; distances that are equal on paper differ by rounding


@dataclass(frozen=True)
class LargestError:
    """The largest connected piece of wrong voxels.

    Args:
        point_ras_mm: Its centre in the world: the voxel deepest inside, so that the point is wrong itself.
        volume_mm3: Its volume.
        wrong_mm3: Volume of all pieces.
        n_pieces: How many there are.
    """

    point_ras_mm: tuple[float, float, float]
    volume_mm3: float
    wrong_mm3: float
    n_pieces: int


def largest_error(wrong_zyx: NDArray[np.bool_], grid: Grid) -> LargestError | None:
    """Find the largest piece of wrong voxels and its centre.

    The thin rim of wrong voxels around a structure is often one piece with the true fault at one side of it; its
    centre of mass would lie in the middle of the structure, where nothing is wrong. So the centre is the voxel
    farthest from all that is right; of several such the one nearest to the centre of mass.

    Args:
        wrong_zyx: Where reference and prediction differ, bool (Z, Y, X). Voxels that touch at a corner are one piece.
        grid: Their place.

    Returns:
        None if nothing is wrong. Of pieces of one size the first in the order of the array.
    """
    voxel_mm3 = float(np.prod(grid.spacing_mm))
    pieces, n_pieces = label(wrong_zyx, _CORNERS_TOUCH)
    if n_pieces == 0:
        return None
    sizes_vox = np.bincount(pieces.ravel())[1:]
    number = int(sizes_vox.argmax()) + 1
    place = find_objects(pieces, number)[number - 1]
    piece = pieces[place] == number
    start_zyx = np.array([one.start for one in place])
    index_zyx = start_zyx + _deepest(piece, grid.spacing_mm)
    x_mm, y_mm, z_mm = (grid.affine_ras_mm @ [*index_zyx[::-1], 1.0])[:3].tolist()
    return LargestError(
        point_ras_mm=(x_mm, y_mm, z_mm),
        volume_mm3=float(sizes_vox[number - 1]) * voxel_mm3,
        wrong_mm3=float(sizes_vox.sum()) * voxel_mm3,
        n_pieces=n_pieces,
    )


def _deepest(piece_zyx: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[Any]:
    """Index of the voxel of a piece that is farthest from outside in mm; across a single slice there is no outside."""
    margins = [int(n > 1 or piece_zyx.size == 1) for n in piece_zyx.shape]
    padded_mm = distance_transform_edt(np.pad(piece_zyx, [(n, n) for n in margins]), sampling=spacing_mm)
    depth_mm = padded_mm[tuple(slice(n, n + size) for n, size in zip(margins, piece_zyx.shape, strict=True))]
    candidates = np.argwhere(depth_mm >= depth_mm.max() * (1 - _SAME_DEPTH))
    centre = np.argwhere(piece_zyx).mean(axis=0)
    nearest = np.linalg.norm((candidates - centre) * spacing_mm, axis=1).argmin()
    return candidates[int(nearest)]
