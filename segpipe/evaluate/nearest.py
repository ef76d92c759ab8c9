"""Exact distances to the nearest element of a surface that is near, by looking at rows in order of their distance.

A row is all elements with the same z and y. What is nearest in it are the bits left and right of a place: one step of
the processor each. Elements whose nearest one is beyond the rows looked at are left to `far.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from segpipe.core.compiled import count_ones, kernel, leading_zeros, trailing_zeros

_N_ROWS = 256  # more find little more; a search that ends in vain takes half as long as the far path
_SIDE = 32  # bits of the window to the left of a place; to its right one less
_LEFT, _ONE, _SIXTY_THREE = np.uint64((1 << _SIDE) - 1), np.uint64(1), np.uint64(63)
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
    words, (n_z, n_y, n_w) = target.ravel(), target.shape
    for i in range(len(places)):
        z, y, start = np.int64(places[i, 0]), np.int64(places[i, 1]), np.int64(places[i, 2]) - _SIDE
        best = limit_mm2
        for k in range(len(least_mm2)):
            if least_mm2[k] >= best:
                break
            row_z, row_y = z + steps[k, 0], y + steps[k, 1]
            if row_z < 0 or row_z >= n_z or row_y < 0 or row_y >= n_y:
                continue
            at = np.uint64((row_z * n_y + row_y) * n_w + (start >> 6))  # unsigned: no check for places from the end
            window = _window(words, at, start)
            if window == 0:
                continue
            to_left = np.int64(leading_zeros(window & _LEFT)) - (_SIDE - 1)
            step = min(np.int64(trailing_zeros(window >> np.uint64(_SIDE))), to_left) * spacing_mm[2]
            best = min(best, least_mm2[k] + step * step)
        squares[i] = best if best < limit_mm2 else UNKNOWN
    return squares


@kernel
def near_point_squares(
    places: Any,
    own_codes: Any,
    target: Any,
    codes: Any,
    centres: Any,
    steps: Any,
    least_mm2: Any,
    limit_mm2: Any,
    spacing_mm: Any,
    slack_vox: Any,
) -> Any:
    """As `near_squares`, but each cell stands for a point in it.

    Args:
        places: (n, 3) of the cells to start from.
        own_codes: (n,) uint8, their codes.
        target: Bits of the other surface.
        codes: (m,) uint8 of its cells, in the order of its bits.
        centres: (256, 3), the point of a cell of each code, in voxels from the middle of the cell.
        steps, least_mm2, limit_mm2: From `rows_near` with `slack_vox`.
        spacing_mm: (3,).
        slack_vox: Twice the most that a point is away from the middle along an axis.
    """
    squares = np.empty(len(places))
    words, first_point, (n_z, n_y, n_w) = target.ravel(), _points_before(target), target.shape
    steps_vox, reach, (mm_z, mm_y, mm_x) = steps.astype(np.float64), 0.5 * slack_vox, spacing_mm
    for i in range(len(places)):
        z, y, start, own = np.int64(places[i, 0]), np.int64(places[i, 1]), np.int64(places[i, 2]) - _SIDE, own_codes[i]
        own_z, own_y, own_x, best = centres[own, 0], centres[own, 1], centres[own, 2], limit_mm2
        for k in range(len(least_mm2)):
            if least_mm2[k] >= best:
                break
            row_z, row_y = z + steps[k, 0], y + steps[k, 1]
            if row_z < 0 or row_z >= n_z or row_y < 0 or row_y >= n_y:
                continue
            to_z, to_y = steps_vox[k, 0] - own_z, steps_vox[k, 1] - own_y
            least = (max(abs(to_z) - reach, 0.0) * mm_z) ** 2 + (max(abs(to_y) - reach, 0.0) * mm_y) ** 2
            at = np.uint64((row_z * n_y + row_y) * n_w + (start >> 6))
            window = _window(words, at, start)
            if least >= best or window == 0:
                continue
            right, left = window >> np.uint64(_SIDE), window & _LEFT
            before = words[at] & ((_ONE << np.uint64(start & 63)) - _ONE)
            middle = np.uint64(first_point[at]) + count_ones(before) + count_ones(left)
            j = middle
            while right:  # the same twice: as a function of both sides it takes half as long again
                to_x = np.float64(np.int64(trailing_zeros(right))) - own_x
                if least + (max(to_x - reach, 0.0) * mm_x) ** 2 >= best:
                    break
                code, right, j = codes[j], right & (right - _ONE), j + _ONE
                d_z, d_y, d_x = to_z + centres[code, 0], to_y + centres[code, 1], to_x + centres[code, 2]
                best = min(best, (d_z * mm_z) ** 2 + (d_y * mm_y) ** 2 + (d_x * mm_x) ** 2)
            j = middle
            while left:
                n_left = np.int64(leading_zeros(left)) - (_SIDE - 1)
                to_x = np.float64(n_left) + own_x
                if least + (max(to_x - reach, 0.0) * mm_x) ** 2 >= best:
                    break
                code, left, j = codes[j - _ONE], left & ~(_ONE << np.uint64(_SIDE - n_left)), j - _ONE
                d_z, d_y, d_x = to_z + centres[code, 0], to_y + centres[code, 1], centres[code, 2] - to_x
                best = min(best, (d_z * mm_z) ** 2 + (d_y * mm_y) ** 2 + (d_x * mm_x) ** 2)
        squares[i] = best if best < limit_mm2 else UNKNOWN
    return squares


@kernel
def _window(words: Any, at: Any, start: Any) -> Any:
    """64 bits from a place on, which lies in word `at`."""
    shift = np.uint64(start & 63)
    return words[at] >> shift | words[at + _ONE] << _ONE << (_SIXTY_THREE - shift)


@kernel
def _points_before(target: Any) -> Any:
    """Number of bits before each word."""
    words = target.ravel()
    first = np.empty(len(words), np.int32)
    n: Any = 0
    for i in range(len(words)):
        first[i] = n
        n += np.int64(count_ones(words[i]))
    return first
