"""Compiled loops of surface distances: the nearest element near by, the nearest far away, a weighted percentile.

Near by, rows are looked at in order of their distance. A row is all elements with the same z and y; what is nearest in
it are the bits left and right of a place, one step of the processor each. An element whose nearest one is beyond these
rows is left to the far search.

Far away, points are grouped into small blocks of the image. The nearest and the farthest that a block can be from a
group of queries say which blocks may hold a nearest point; most queries then look at a few of them. A tree of points
would be asked again for each query, and a distance map fills the whole box. Coordinates of points and boxes are stored
axis by axis, so that the processor works on several in one step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.compiled import count_ones, kernel, kernel_without_nan, leading_zeros, trailing_zeros

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
    """Do as `near_squares`, with a point in each cell.

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


_QUERY_EDGE, _POINT_EDGE = 12.0, 8.0  # of blocks, in voxels of the middle spacing
_MIN_BLOCKS = 4096  # may there be at least, however few points; beyond four for each point they are made larger
_ROUNDING = 1e-9  # relative; an upper bound must not fall below what it bounds


def far_squares(
    queries_vox: NDArray[np.float64], points_vox: NDArray[np.float64], spacing_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Squared distance of each query to the nearest point.

    Args:
        queries_vox: (n, 3), Z, Y, X in voxels, whole or not; not empty.
        points_vox: (m, 3), not empty.
        spacing_mm: (3,) voxel edge along Z, Y, X.

    Returns:
        (n,) float64 in mm², exact.
    """
    edges_vox = np.sort(spacing_mm)[1] / spacing_mm
    order, query_starts, queries = in_blocks(queries_vox, np.maximum(_QUERY_EDGE * edges_vox, 1.0))
    _, point_starts, points = in_blocks(points_vox, np.maximum(_POINT_EDGE * edges_vox, 1.0))
    squares = np.empty(len(queries_vox))
    squares[order] = block_squares(queries, query_starts, points, point_starts, spacing_mm)
    return squares


@kernel
def in_blocks(points: Any, edges: Any) -> Any:
    """Indices (n,) of points in order of their blocks, where each block that has one starts, with the end, and the
    points (3, n) in this order."""
    low, n_blocks, n = np.empty(3), np.empty(3, np.int64), len(points)
    edges = edges.copy()
    for a in range(3):
        low[a] = points[:, a].min()
        n_blocks[a] = np.int64((points[:, a].max() - low[a]) / edges[a]) + 1
    while n_blocks[0] * n_blocks[1] * n_blocks[2] > max(4 * n, _MIN_BLOCKS):
        edges *= 2
        n_blocks = (n_blocks + 1) // 2
    keys, ends = np.empty(n, np.int64), np.zeros(n_blocks.prod() + 1, np.int64)
    for i in range(n):
        key: Any = 0
        for a in range(3):
            key = key * n_blocks[a] + np.int64((points[i, a] - low[a]) / edges[a])
        keys[i] = key
        ends[key + 1] += 1
    filled = np.flatnonzero(ends) - 1
    ends = np.cumsum(ends)
    starts = np.append(ends[filled], n)
    order, ordered = np.empty(n, np.int64), np.empty((3, n))
    for i in range(n):
        place = ends[keys[i]]
        order[place] = i
        for a in range(3):
            ordered[a, place] = points[i, a]
        ends[keys[i]] += 1
    return order, starts, ordered


@kernel
def block_squares(queries: Any, query_starts: Any, points: Any, point_starts: Any, spacing_mm: Any) -> Any:
    """Squared distance of each query to the nearest point; both (3, n) and in order of blocks."""
    squares = np.empty(queries.shape[1])
    low, high = _boxes(points, point_starts, spacing_mm)
    own_low, own_high = _boxes(queries, query_starts, spacing_mm)
    for g in range(own_low.shape[1]):
        least, most = _gaps(low, high, own_low[:, g], own_high[:, g])
        chosen = np.flatnonzero(least <= most.min())
        chosen = chosen[np.argsort(least[chosen])]
        first, stop = query_starts[g], query_starts[g + 1]
        _search(
            queries[:, first:stop],
            squares[first:stop],
            points,
            point_starts[chosen],
            point_starts[chosen + 1],
            least[chosen],
            low[:, chosen],
            high[:, chosen],
            spacing_mm,
        )
    return squares


@kernel_without_nan
def _gaps(low: Any, high: Any, own_low: Any, own_high: Any) -> Any:
    """Squared distances (n,) of the nearest and of the farthest points of one box and of n others."""
    least, most = np.empty(low.shape[1]), np.empty(low.shape[1])
    for j in range(low.shape[1]):
        near, far = 0.0, 0.0
        for a in range(3):
            gap = max(low[a, j] - own_high[a], own_low[a] - high[a, j], 0.0)
            span = max(high[a, j] - own_low[a], own_high[a] - low[a, j])
            near += gap * gap
            far += span * span
        least[j], most[j] = near, far
    return least, most


@kernel_without_nan
def _search(
    queries: Any, squares: Any, points: Any, starts: Any, stops: Any, least: Any, low: Any, high: Any, spacing_mm: Any
) -> None:
    """Write the squared distances of the queries of one block to the points of some, in order of `least`."""
    mm_z, mm_y, mm_x = spacing_mm[0], spacing_mm[1], spacing_mm[2]
    near, n = np.empty(len(least)), len(least)
    q_z = q_y = q_x = 0.0
    best = np.inf
    for i in range(queries.shape[1]):
        if i > 0:  # as far as from the query before, and from there on
            z, y, x = (queries[0, i] - q_z) * mm_z, (queries[1, i] - q_y) * mm_y, (queries[2, i] - q_x) * mm_x
            best = (np.sqrt(best) + np.sqrt(z * z + y * y + x * x)) ** 2 * (1 + _ROUNDING) + _ROUNDING
            n = np.searchsorted(least, best)
        q_z, q_y, q_x = queries[0, i], queries[1, i], queries[2, i]
        at_z, at_y, at_x = q_z * mm_z, q_y * mm_y, q_x * mm_x
        for j in range(n):
            z = max(low[0, j] - at_z, at_z - high[0, j], 0.0)
            y = max(low[1, j] - at_y, at_y - high[1, j], 0.0)
            x = max(low[2, j] - at_x, at_x - high[2, j], 0.0)
            near[j] = z * z + y * y + x * x
        for j in range(n):
            if near[j] < best:
                for k in range(starts[j], stops[j]):
                    z, y, x = (points[0, k] - q_z) * mm_z, (points[1, k] - q_y) * mm_y, (points[2, k] - q_x) * mm_x
                    best = min(best, z * z + y * y + x * x)
        squares[i] = best


@kernel
def _boxes(points: Any, starts: Any, spacing_mm: Any) -> Any:
    """Lowest and highest corners in mm of the blocks, each (3, n)."""
    low, high = np.empty((3, len(starts) - 1)), np.empty((3, len(starts) - 1))
    for a in range(3):
        for j in range(len(starts) - 1):
            block = points[a, starts[j] : starts[j + 1]]
            low[a, j], high[a, j] = block.min() * spacing_mm[a], block.max() * spacing_mm[a]
    return low, high


_MAX_BINS = 4096  # of weights stay in the nearest cache of a processor


@kernel
def least_reaching(values: Any, weights: Any, wanted: Any) -> Any:
    """Least value such that what is not larger weighs so much.

    Args:
        values: (n,) float64, not empty, none of them NaN; finite or all inf.
        weights: (n,) float64, 0 or more.
        wanted: Weight to reach. Where all together do not, the largest value that weighs something is returned.
    """
    low, high, before = values.min(), values.max(), 0.0
    n_bins = min(len(values), _MAX_BINS)  # two or more where values differ, so that each round leaves fewer of them
    while low < high:
        scale = (n_bins - 1) / (high - low)
        bins = np.zeros(n_bins)
        for i in range(len(values)):
            if low <= values[i] <= high:
                bins[np.int64((values[i] - low) * scale)] += weights[i]
        chosen, total = 0, before
        for k in range(n_bins):
            if bins[k] > 0:
                chosen, before = k, total
                total += bins[k]
                if total >= wanted:
                    break
        least, most = high, low
        for i in range(len(values)):
            if low <= values[i] <= high and np.int64((values[i] - low) * scale) == chosen:
                least, most = min(least, values[i]), max(most, values[i])
        low, high = least, most
    return low
