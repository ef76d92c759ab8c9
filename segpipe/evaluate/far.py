"""Exact distances to the nearest of many points where it may be far away.

Points are grouped into small blocks of the image. For a group of queries the nearest and the farthest that a block can
be say which blocks may hold a nearest point; most queries then look at a few of them. A tree of points would be asked
again for each query, and a distance map fills the whole box. Coordinates of points and boxes lie axis by axis, so that
several are worked on in one step of the processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.compiled import kernel, kernel_without_nan

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
