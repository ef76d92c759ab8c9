"""Area and middle of the surface in the cell between eight voxels.

A cell is the block of 2×2×2 voxels around a voxel corner. Its code has one bit for each voxel: bit k is the voxel whose
offset along axis a is bit a of k. The surface inside a cell is the marching-cubes patch between the midpoints of the
edges that join a voxel inside to one outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int, int]  # in half voxels, so that midpoints of edges are integers
Triangle = tuple[Point, Point, Point]
Edge = frozenset[int]  # of two corners
_N_CORNERS = 8


@dataclass(frozen=True, eq=False)
class CellPatches:
    """The surface inside a cell, for every code.

    Args:
        areas_mm2: (256,) float64; 0 where all voxels are inside or all outside. A code and its complement have the
            same area.
        centres_vox: (256, 3) float64, area-weighted centre of the patch from the middle of the cell, in voxels along
            Z, Y, X; less than half a voxel, 0 where there is no surface.
    """

    areas_mm2: NDArray[np.float64]
    centres_vox: NDArray[np.float64]


@lru_cache(maxsize=64)
def cell_patches(spacing_mm: tuple[float, float, float]) -> CellPatches:
    """Patches of all codes.

    Args:
        spacing_mm: Voxel edge along each axis. With 1 for an axis along which nothing changes, areas are lengths.

    Source:
        The convention of DeepMind's surface-distance (and so of BraTS), whose table of areas this reproduces; here
        it follows from geometry: where a face is ambiguous, the voxels in the minority (in a tie, those inside) are
        kept apart, and a loop that is not flat is cut into the fewest flat pieces; where several cuts do that, the
        patch is their mean, so that turning an image turns its patches.
    """
    codes, corners, shares = _triangles()
    points_mm = corners * np.array(spacing_mm)
    normals = np.cross(points_mm[:, 1] - points_mm[:, 0], points_mm[:, 2] - points_mm[:, 0])
    areas = 0.5 * np.linalg.norm(normals, axis=1) * shares
    totals, moments = np.zeros(2**_N_CORNERS), np.zeros((2**_N_CORNERS, 3))
    np.add.at(totals, codes, areas)
    np.add.at(moments, codes, areas[:, None] * corners.mean(axis=1))
    centres = np.divide(moments, totals[:, None], out=np.zeros_like(moments), where=totals[:, None] > 0)
    for table in (totals, centres):
        table.flags.writeable = False
    return CellPatches(totals, centres)


@lru_cache(maxsize=1)
def _triangles() -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Code (n,), corners (n, 3, 3) in voxels from the middle of the cell, and share (n,) of every triangle."""
    codes, corners, shares = [], [], []
    for code in range(1, 2**_N_CORNERS - 1):
        minority = code if code.bit_count() <= _N_CORNERS // 2 else 2**_N_CORNERS - 1 - code
        for loop in _loops(minority):
            cuts = _flattest(loop)
            for triangle in (triangle for cut in cuts for triangle in cut):
                codes.append(code)
                corners.append(triangle)
                shares.append(1 / len(cuts))
    return np.array(codes), np.array(corners, np.float64) / 2 - 0.5, np.array(shares)


def _loops(code: int) -> list[list[Point]]:
    """Closed polygons of edge midpoints which part the corners set in `code` from the others."""
    neighbours: dict[Edge, list[Edge]] = {}
    for face in _faces():
        edges = [frozenset((face[i - 1], face[i])) for i in range(4)]  # edge i ends at corner i
        inside = [code >> corner & 1 for corner in face]
        crossed = [i for i in range(4) if inside[i - 1] != inside[i]]
        if len(crossed) == 2:
            joined = [(edges[crossed[0]], edges[crossed[1]])]
        else:  # none, or four: cut off each corner inside
            joined = [(edges[i], edges[(i + 1) % 4]) for i in range(4) if inside[i] and crossed]
        for one, other in joined:
            neighbours.setdefault(one, []).append(other)
            neighbours.setdefault(other, []).append(one)
    return list(_walk(neighbours))


def _walk(neighbours: dict[Edge, list[Edge]]) -> Iterator[list[Point]]:
    """The cycles of a graph in which every node has two neighbours."""
    left = dict(neighbours)
    while left:
        loop = [next(iter(left))]
        while True:
            onward = [edge for edge in left.pop(loop[-1]) if edge in left]
            if not onward:
                break
            loop.append(onward[0])
        yield [_midpoint(edge) for edge in loop]


def _faces() -> Iterator[tuple[int, int, int, int]]:
    """The four corners of each of the six faces, going round."""
    for axis, side in product(range(3), range(2)):
        u, v = (1 << a for a in range(3) if a != axis)
        base = side << axis
        yield (base, base + u, base + u + v, base + v)


def _midpoint(edge: Edge) -> Point:
    one, other = edge
    z, y, x = ((one >> axis & 1) + (other >> axis & 1) for axis in range(3))
    return (z, y, x)


def _flattest(loop: list[Point]) -> list[list[Triangle]]:
    """The ways to cut a loop into triangles that lie in the fewest planes."""
    cuts = [[(loop[i], loop[j], loop[k]) for i, j, k in cut] for cut in _triangulations(0, len(loop) - 1)]
    n_planes = [len({_direction(*triangle) for triangle in cut}) for cut in cuts]
    return [cut for cut, n in zip(cuts, n_planes, strict=True) if n == min(n_planes)]


def _triangulations(first: int, last: int) -> Iterator[list[tuple[int, int, int]]]:
    """Every way to cut the polygon of vertices first…last into triangles."""
    if last - first < 2:
        yield []
        return
    for middle in range(first + 1, last):
        for left, right in product(_triangulations(first, middle), list(_triangulations(middle, last))):
            yield [*left, (first, middle, last), *right]


def _direction(one: Point, two: Point, three: Point) -> Point:
    """Normal of a triangle as the shortest whole vector."""
    (a, b, c), (d, e, f) = (tuple(q - p for p, q in zip(one, other, strict=True)) for other in (two, three))
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    divisor = gcd(*normal) or 1
    z, y, x = (n // divisor for n in normal)
    return (z, y, x)
