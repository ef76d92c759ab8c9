"""Thin a mask to its centreline: a curve one voxel wide with the pieces, loops and ends of the mask.

Thinning is written here because scikit-image's (0.26) loses whole structures in three dimensions: of a vessel of 2×2
voxels across nothing is left, whatever its length, and a metric of centrelines would not see that it was missed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.compiled import kernel, say_first_use


def _neighbours(max_steps: int, reach: int) -> NDArray[np.int64]:
    """Bit masks of the neighbours of each of the 27 places of a 3×3×3 cube, the centre left out.

    Args:
        max_steps: Axes along which two neighbours may differ: 1 for faces, 3 for corners too.
        reach: The same for places that take part at all, as seen from the centre.
    """
    places = [(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    masks = np.zeros(27, np.int64)
    for i, one in enumerate(places):
        for j, other in enumerate(places):
            steps = [abs(a - b) for a, b in zip(one, other, strict=True)]
            is_near = 0 < sum(steps) <= max_steps and max(steps) == 1
            if is_near and all(0 < sum(map(abs, place)) <= reach for place in (one, other)):
                masks[i] |= 1 << j
    return masks


_BY_CORNER, _BY_FACE = _neighbours(3, 3), _neighbours(1, 2)
_FACES = (4, 10, 12, 14, 16, 22)  # places of the cube that share a face with its centre


def centreline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Thin a mask.

    Args:
        mask: (Z, Y, X), bool.

    Returns:
        A part of the mask with as many connected pieces (corners join), tunnels and hollows; the end of a branch is
        kept once it is one voxel wide. A mask of one slice gives a line in its plane.

    Source:
        Directional thinning by simple voxels, six sides in turn, as Lee et al. 1994, CVGIP 56(6); simple as in Bertrand
        and Malandain 1994, Pattern Recognition Letters 15(2). Within a side they take voxel after voxel, so that a row
        of two may lose both; here every second along each axis in turn (subfields), none of which are neighbours.
    """
    padded = np.pad(mask, 1).view(np.uint8)
    shape = padded.shape
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    offsets = np.array([np.dot(strides, (z, y, x)) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    values = np.ascontiguousarray(padded).ravel()
    places = np.flatnonzero(values)
    z, y, x = ((axis - axis.min(initial=len(values))) % 2 for axis in np.unravel_index(places, shape))
    say_first_use(_thin)
    _thin(values, places, 4 * z + 2 * y + x, offsets, _BY_CORNER, _BY_FACE, np.array(_FACES))
    return values.reshape(shape)[1:-1, 1:-1, 1:-1].astype(bool)


@kernel
def _thin(values: Any, places: Any, fields: Any, offsets: Any, by_corner: Any, by_face: Any, faces: Any) -> None:
    """Set to 0 what is not on the line; `places` are the voxels of the mask."""
    is_changing = True
    while is_changing:
        is_changing = False
        for face in faces:
            is_side = values[places + offsets[face]] == 0
            for field in range(8):
                for i in np.flatnonzero(is_side & (fields == field)):
                    if _is_simple(values, places[i], 2, offsets, by_corner, by_face, faces):
                        values[places[i]] = 0
                        is_changing = True
            is_left = values[places] > 0
            places, fields = places[is_left], fields[is_left]


@kernel
def _is_simple(values: Any, place: Any, n_least: int, offsets: Any, by_corner: Any, by_face: Any, faces: Any) -> Any:
    """True if a voxel has `n_least` neighbours, and removing it adds or removes no piece, tunnel or hollow."""
    inside, n_inside = 0, 0
    for i in range(27):
        if i != 13 and values[place + offsets[i]]:
            inside |= 1 << i
            n_inside += 1
    if n_inside < n_least:
        return False
    outside = ~inside
    wanted = 0
    for face in faces:
        wanted |= outside & (1 << face)
    return _reaches(inside, inside, by_corner) and _reaches(wanted, outside, by_face)


@kernel
def _reaches(wanted: Any, allowed: Any, neighbours: Any) -> Any:
    """True if all wanted places of the cube are joined to the first of them through allowed places."""
    reached, fresh = 0, wanted & -wanted
    while fresh:
        reached |= fresh
        near = 0
        for i in range(27):
            if fresh & (1 << i):
                near |= neighbours[i]
        fresh = near & allowed & ~reached
    return wanted & ~reached == 0
