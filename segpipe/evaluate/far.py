"""Exact distances to the nearest of many points where it may be far away.

Points are grouped into small blocks of the image. For a group of queries the nearest and the farthest that a block can
be say which blocks may hold a nearest point; most queries then look at a few of them. A tree of points would be asked
again for each query, and a distance map fills the whole box.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.evaluate.compiled import kernel

_QUERY_EDGE, _POINT_EDGE = 12.0, 8.0  # of blocks, in voxels of the middle spacing


def far_squares(
    queries_vox: NDArray[np.float64], points_vox: NDArray[np.float64], spacing_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Squared distance of each query to the nearest point.

    Args:
        queries_vox: (n, 3), Z, Y, X in voxels, whole or not.
        points_vox: (m, 3), not empty.
        spacing_mm: (3,) voxel edge along Z, Y, X.

    Returns:
        (n,) float64 in mm², exact.
    """
    query_order, query_starts = _blocks(queries_vox, spacing_mm, _QUERY_EDGE)
    point_order, point_starts = _blocks(points_vox, spacing_mm, _POINT_EDGE)
    squares = np.empty(len(queries_vox))
    squares[query_order] = block_squares(
        queries_vox[query_order], query_starts, points_vox[point_order], point_starts, spacing_mm
    )
    return squares


def _blocks(
    points_vox: NDArray[np.float64], spacing_mm: NDArray[np.float64], edge: float
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Order of points by block, and where each block starts, with the end."""
    edges_vox = edge * np.median(spacing_mm) / spacing_mm
    place = ((points_vox - points_vox.min(axis=0)) / np.maximum(edges_vox, 1.0)).astype(np.int64)
    key = np.ravel_multi_index(tuple(place.T), tuple(place.max(axis=0) + 1))
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    return order, np.append(starts, len(key))


@kernel
def block_squares(queries: Any, query_starts: Any, points: Any, point_starts: Any, spacing_mm: Any) -> Any:
    """Squared distance of each query to the nearest point; both lie in order of blocks."""
    squares = np.empty(len(queries))
    boxes = _boxes(points, point_starts, spacing_mm)
    own = _boxes(queries, query_starts, spacing_mm)
    least = np.empty(len(boxes))
    for g in range(len(own)):
        limit = np.inf
        for j in range(len(boxes)):
            near, far = 0.0, 0.0
            for a in range(3):
                gap = max(boxes[j, 0, a] - own[g, 1, a], own[g, 0, a] - boxes[j, 1, a], 0.0)
                span = max(boxes[j, 1, a] - own[g, 0, a], own[g, 1, a] - boxes[j, 0, a])
                near += gap * gap
                far += span * span
            least[j] = near
            limit = min(limit, far)
        chosen = np.flatnonzero(least <= limit)
        chosen = chosen[np.argsort(least[chosen])]
        for i in range(query_starts[g], query_starts[g + 1]):
            squares[i] = _nearest(queries[i], chosen, least, boxes, points, point_starts, spacing_mm)
    return squares


@kernel
def _nearest(query: Any, chosen: Any, least: Any, boxes: Any, points: Any, point_starts: Any, spacing_mm: Any) -> Any:
    best = np.inf
    for j in chosen:
        if least[j] >= best:
            break
        near = 0.0
        for a in range(3):
            at = query[a] * spacing_mm[a]
            gap = max(boxes[j, 0, a] - at, at - boxes[j, 1, a], 0.0)
            near += gap * gap
        if near >= best:
            continue
        for i in range(point_starts[j], point_starts[j + 1]):
            z = (points[i, 0] - query[0]) * spacing_mm[0]
            y = (points[i, 1] - query[1]) * spacing_mm[1]
            x = (points[i, 2] - query[2]) * spacing_mm[2]
            best = min(best, z * z + y * y + x * x)
    return best


@kernel
def _boxes(points: Any, starts: Any, spacing_mm: Any) -> Any:
    """Lowest and highest corner in mm of each block, (n, 2, 3)."""
    boxes = np.empty((len(starts) - 1, 2, 3))
    for j in range(len(starts) - 1):
        for a in range(3):
            boxes[j, 0, a], boxes[j, 1, a] = np.inf, -np.inf
            for i in range(starts[j], starts[j + 1]):
                boxes[j, 0, a] = min(boxes[j, 0, a], points[i, a] * spacing_mm[a])
                boxes[j, 1, a] = max(boxes[j, 1, a], points[i, a] * spacing_mm[a])
    return boxes
