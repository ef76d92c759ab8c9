"""Exact distances to the nearest element of a surface that is near, by looking at rows in order of their distance.

A row is all elements with the same z and y. What is nearest in it are the bits left and right of a place: one step of
the processor each. Elements whose nearest one is beyond the rows looked at are left to `far.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from segpipe.evaluate.bits import code_at
from segpipe.evaluate.compiled import kernel, leading_zeros, trailing_zeros

_N_ROWS = 512  # a search that ends in vain costs about as much as the far path then takes
_SIDE = 32  # bits of the window to the left of a place; to its right one less
_LOW, _SIXTY_FOUR, _ONE = np.uint64((1 << _SIDE) - 1), np.uint64(64), np.uint64(1)
UNKNOWN = np.inf  # squared distance of an element whose nearest one was not found


def rows_near(spacing_mm: tuple[float, float, float], slack_vox: float) -> tuple[Any, Any, float]:
    """Rows around a place in order of the least distance of a point in them.

    Args:
        spacing_mm: Voxel edge along Z, Y, X.
        slack_vox: How much nearer along an axis two points may be than their places, in voxels.

    Returns:
        Steps (n, 2) int64 along Z and Y, least squared distances (n,) in mm², ascending, and the squared distance in
        mm² below which no element lies outside these rows or beyond their window.
    """
    reach = int(np.ceil(np.sqrt(_N_ROWS)))
    ratio = min(max(spacing_mm[0] / spacing_mm[1], 1 / _N_ROWS), _N_ROWS)
    reach_z, reach_y = int(reach / np.sqrt(ratio)) + 1, int(reach * np.sqrt(ratio)) + 1
    z, y = (m.ravel() for m in np.meshgrid(*(np.arange(-r, r + 1) for r in (reach_z, reach_y)), indexing="ij"))
    least = [_least_mm(steps, mm, slack_vox) for steps, mm in ((z, spacing_mm[0]), (y, spacing_mm[1]))]
    squares = least[0] ** 2 + least[1] ** 2
    order = np.argsort(squares, kind="stable")[: _N_ROWS + 1]
    beyond = (
        _least_mm(np.array(n), mm, slack_vox)
        for n, mm in zip((reach_z + 1, reach_y + 1, _SIDE), spacing_mm, strict=True)
    )
    limit_mm2 = min(float(squares[order[-1]]), *(float(mm) ** 2 for mm in beyond))
    order = order[:-1]
    return np.stack([z[order], y[order]], axis=1), squares[order], limit_mm2


def _least_mm(steps: Any, mm: float, slack_vox: float) -> Any:
    return np.maximum(np.abs(steps) - slack_vox, 0) * mm


@kernel
def near_squares(places: Any, target: Any, steps: Any, least_mm2: Any, limit_mm2: Any, spacing_mm: Any) -> Any:
    """Squared distance of each place to the nearest bit of a surface.

    Args:
        places: (n, 3), z, y, bit.
        target: Bits of the surface.
        steps, least_mm2, limit_mm2: From `rows_near` without slack.
        spacing_mm: (3,).

    Returns:
        (n,) float64 in mm²; UNKNOWN where it is not below `limit_mm2`.
    """
    squares = np.empty(len(places))
    n_z, n_y, _ = target.shape
    for i in range(len(places)):
        z, y, bit = places[i]
        start = bit - _SIDE
        w, b = start >> 6, np.uint64(start & 63)
        best = limit_mm2
        for k in range(len(steps)):
            if least_mm2[k] >= best:
                break
            row_z, row_y = z + steps[k, 0], y + steps[k, 1]
            if not (0 <= row_z < n_z and 0 <= row_y < n_y):
                continue
            window = target[row_z, row_y, w] >> b
            if b:
                window |= target[row_z, row_y, w + 1] << (_SIXTY_FOUR - b)
            if window == 0:
                continue
            right, left = window >> np.uint64(_SIDE), window & _LOW
            step: Any = _SIDE
            if right:
                step = np.int64(trailing_zeros(right))
            if left:
                step = min(step, np.int64(leading_zeros(left)) - (_SIDE - 1))
            best = min(best, least_mm2[k] + (step * spacing_mm[2]) ** 2)
        squares[i] = best if best < limit_mm2 else UNKNOWN
    return squares


@kernel
def near_point_squares(
    places: Any,
    codes: Any,
    target: Any,
    mask: Any,
    steps: Any,
    least_mm2: Any,
    limit_mm2: Any,
    spacing_mm: Any,
    points_vox: Any,
    slack_vox: Any,
) -> Any:
    """As `near_squares`, but each cell stands for the point of its code.

    Args:
        places, codes: (n, 3) and (n,) of the cells to start from.
        target, mask: Cells of the other surface, and the mask that they are of.
        steps, least_mm2, limit_mm2: From `rows_near` with `slack_vox`.
        spacing_mm: (3,).
        points_vox: (256, 3), from the cell's centre, by code.
        slack_vox: Twice the largest step in `points_vox` along an axis.
    """
    squares = np.empty(len(places))
    n_z, n_y, _ = target.shape
    for i in range(len(places)):
        z, y, bit = places[i]
        own = points_vox[codes[i]]
        start = bit - _SIDE
        w, b = start >> 6, np.uint64(start & 63)
        best = limit_mm2
        for k in range(len(steps)):
            if least_mm2[k] >= best:
                break
            row_z, row_y = z + steps[k, 0], y + steps[k, 1]
            if not (0 <= row_z < n_z and 0 <= row_y < n_y):
                continue
            window = target[row_z, row_y, w] >> b
            if b:
                window |= target[row_z, row_y, w + 1] << (_SIXTY_FOUR - b)
            right, left = window >> np.uint64(_SIDE), window & _LOW
            while right:
                step = np.int64(trailing_zeros(right))
                if least_mm2[k] + (max(step - slack_vox, 0.0) * spacing_mm[2]) ** 2 >= best:
                    break
                right &= right - _ONE
                other = points_vox[code_at(mask, row_z, row_y, bit + step)]
                best = min(best, _square(steps[k, 0], steps[k, 1], step, own, other, spacing_mm))
            while left:
                step = np.int64(leading_zeros(left)) - (_SIDE - 1)
                if least_mm2[k] + (max(step - slack_vox, 0.0) * spacing_mm[2]) ** 2 >= best:
                    break
                left &= ~(_ONE << np.uint64(_SIDE - step))
                other = points_vox[code_at(mask, row_z, row_y, bit - step)]
                best = min(best, _square(steps[k, 0], steps[k, 1], -step, own, other, spacing_mm))
        squares[i] = best if best < limit_mm2 else UNKNOWN
    return squares


@kernel
def _square(step_z: Any, step_y: Any, step_x: Any, own: Any, other: Any, spacing_mm: Any) -> Any:
    z = (step_z + other[0] - own[0]) * spacing_mm[0]
    y = (step_y + other[1] - own[1]) * spacing_mm[1]
    x = (step_x + other[2] - own[2]) * spacing_mm[2]
    return z * z + y * y + x * x
