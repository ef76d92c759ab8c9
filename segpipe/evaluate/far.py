"""Exact distances to a set of voxels that lies far away, where searching a tree of points gets slow.

A tree must look at every point that is nearly as near as the nearest one: with surfaces 60 voxels apart these are
thousands for each query. Here the cost is a few nanoseconds for each voxel of the box, whatever the distance: steps
to the nearest target along X, then the best row of each slice by a lower envelope, then a search along Z for the
queries alone. Plain Python, compiled by numba on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

NONE = -1  # no target in this row or slice; steps are 0 or more
MAX_LENGTH = 32767  # of an axis: steps and rows are kept in int16


def far_distances_mm(
    target: NDArray[np.bool_], queries_zyx: NDArray[np.intp], spacing_mm: tuple[float, ...]
) -> NDArray[np.float64]:
    """Distance from each query to the nearest True voxel.

    Args:
        target: (Z, Y, X), bool, not empty, no axis longer than MAX_LENGTH.
        queries_zyx: (n, 3) indices in `target`.
        spacing_mm: Voxel edge along Z, Y, X.

    Returns:
        (n,) float64 in mm, exact.

    Source:
        Felzenszwalb and Huttenlocher 2012, Theory of Computing 8, section 2, for the envelope; the last axis is
        searched outwards instead, since only the queries need an answer.
    """
    steps_x, rows_y, search_z = _compiled()
    steps = np.empty(target.shape, np.int16)
    steps_x(target, steps)
    rows = np.empty(target.shape, np.int16)
    rows_y(steps, rows, spacing_mm[1], spacing_mm[2])
    squares_mm2 = np.empty(len(queries_zyx))
    search_z(steps, rows, queries_zyx, np.array(spacing_mm), squares_mm2)
    return np.sqrt(squares_mm2)


@lru_cache(maxsize=1)
def _compiled() -> tuple[Callable[..., None], ...]:
    import numba

    functions = (steps_along_x, nearest_rows, search_along_z)
    try:
        return tuple(numba.njit(cache=True, nogil=True)(function) for function in functions)
    except RuntimeError:  # no folder to keep compiled code in: compile again in each process
        return tuple(numba.njit(nogil=True)(function) for function in functions)


def steps_along_x(target: Any, steps: Any) -> None:
    """Write to `steps` the number of voxels to the nearest target of the same row; NONE where the row has none."""
    n_z, n_y, n_x = target.shape
    for z in range(n_z):
        for y in range(n_y):
            last = NONE
            for x in range(n_x):
                if target[z, y, x]:
                    last = x
                steps[z, y, x] = x - last if last != NONE else NONE
            last = NONE
            for x in range(n_x - 1, -1, -1):
                if target[z, y, x]:
                    last = x
                if last != NONE and (steps[z, y, x] == NONE or last - x < steps[z, y, x]):
                    steps[z, y, x] = last - x


def nearest_rows(steps: Any, rows: Any, spacing_y_mm: float, spacing_x_mm: float) -> None:
    """Write to `rows` the row y that holds the nearest target of the same slice; NONE where the slice has none."""
    n_z, n_y, n_x = steps.shape
    kept = np.empty(n_y, np.int64)  # rows on the lower envelope, and from where on each is the lowest
    start = np.empty(n_y + 1)
    height = np.empty(n_y)
    for z in range(n_z):
        for x in range(n_x):
            n_kept = 0
            for y in range(n_y):
                if steps[z, y, x] == NONE:
                    continue
                height[y] = (steps[z, y, x] * spacing_x_mm / spacing_y_mm) ** 2
                crossing = -np.inf
                while n_kept > 0:
                    other = kept[n_kept - 1]
                    crossing = (height[y] - height[other] + y * y - other * other) / (2.0 * (y - other))
                    if crossing > start[n_kept - 1]:
                        break
                    n_kept -= 1
                    crossing = -np.inf
                kept[n_kept] = y
                start[n_kept] = crossing
                n_kept += 1
            piece = 0
            for y in range(n_y):
                while piece + 1 < n_kept and start[piece + 1] < y:
                    piece += 1
                rows[z, y, x] = kept[piece] if n_kept > 0 else NONE


def search_along_z(steps: Any, rows: Any, queries: Any, spacing_mm: Any, squares_mm2: Any) -> None:
    """Write the squared distance of each query to `squares_mm2`, going outwards until a slice is too far away."""
    n_z = steps.shape[0]
    for n in range(len(queries)):
        z, y, x = queries[n]
        best = np.inf
        for step in range(n_z):
            square_z = (step * spacing_mm[0]) ** 2
            if square_z >= best:
                break
            for side in (z - step, z + step):
                if side < 0 or side >= n_z or rows[side, y, x] == NONE:
                    continue
                row = rows[side, y, x]
                square = square_z + ((row - y) * spacing_mm[1]) ** 2 + (steps[side, row, x] * spacing_mm[2]) ** 2
                best = min(best, square)
        squares_mm2[n] = best
