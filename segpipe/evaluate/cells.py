"""How much surface runs through the corner where voxels meet: area in 3D, length in 2D.

A cell is the block of 2×2×2 voxels (2×2 in 2D) around a voxel corner. Its code has one bit for each voxel: bit k is
the voxel whose offset along axis a is bit a of k. The surface inside a cell is the marching-cubes patch between the
midpoints of the edges that join a voxel inside to one outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import gcd

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int, int]  # in half voxels, so that midpoints of edges are integers
Edge = frozenset[int]  # of two corners
_N_CORNERS = 8


def cell_measures(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Surface inside a cell, for every code.

    Args:
        spacing_mm: Voxel edge along each axis; one to three axes.

    Returns:
        (2**(2**n),) float64 over codes: area in mm² for three axes, length in mm for two, 1 for one axis. 0 where
        all voxels are inside or all outside. A code and its complement have the same measure.

    Raises:
        ValueError: If there are no or more than three axes.

    Source:
        The convention of DeepMind's surface-distance (and so of BraTS), whose table of areas this reproduces; here
        it follows from geometry: where a face is ambiguous, the voxels in the minority (in a tie, those inside) are
        kept apart, and a loop that is not flat is cut into the fewest flat pieces.
    """
    if len(spacing_mm) == 1:
        return np.array([0.0, 1.0, 1.0, 0.0])
    if len(spacing_mm) == 2:
        return _lengths(*spacing_mm)
    if len(spacing_mm) != 3:
        raise ValueError(f"spacing {spacing_mm} has {len(spacing_mm)} axes, expected 1 to 3")
    codes, normals = _triangles()
    a, b, c = spacing_mm
    areas = 0.5 * np.linalg.norm(normals * np.array([b * c, a * c, a * b]), axis=1)
    measures = np.zeros(2**_N_CORNERS)
    np.add.at(measures, codes, areas)
    return measures


def _lengths(a_mm: float, b_mm: float) -> NDArray[np.float64]:
    """Contour length for the 16 codes of four pixels; bit k is the pixel at (k & 1, k >> 1)."""
    lengths = np.zeros(16)
    diagonal = 0.5 * np.hypot(a_mm, b_mm)  # between midpoints of neighbouring edges
    for code in range(1, 15):
        first, second, third, fourth = (code >> k & 1 for k in range(4))
        if first == fourth and second == third:  # two opposite pixels, each cut off
            lengths[code] = 2 * diagonal
        elif code.bit_count() != 2:
            lengths[code] = diagonal
        else:
            lengths[code] = a_mm if first == second else b_mm
    return lengths


@lru_cache(maxsize=1)
def _triangles() -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Code (n,) and doubled normal (n, 3) at unit spacing of every triangle of every code."""
    codes, normals = [], []
    for code in range(1, 2**_N_CORNERS - 1):
        minority = code if code.bit_count() <= _N_CORNERS // 2 else 2**_N_CORNERS - 1 - code
        for loop in _loops(minority):
            for normal in _flattest(loop):
                codes.append(code)
                normals.append(normal)
    return np.array(codes), np.array(normals, np.float64) / 4  # half voxels along two axes


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


def _flattest(loop: list[Point]) -> list[Point]:
    """Doubled normals of the triangles of a loop, cut so that they lie in the fewest planes."""
    choices = ([_normal(loop, *t) for t in cut] for cut in _triangulations(0, len(loop) - 1))
    return min(choices, key=lambda normals: len({_direction(normal) for normal in normals}))


def _triangulations(first: int, last: int) -> Iterator[list[tuple[int, int, int]]]:
    """Every way to cut the polygon of vertices first…last into triangles."""
    if last - first < 2:
        yield []
        return
    for middle in range(first + 1, last):
        for left, right in product(_triangulations(first, middle), list(_triangulations(middle, last))):
            yield [*left, (first, middle, last), *right]


def _normal(loop: list[Point], i: int, j: int, k: int) -> Point:
    (a, b, c), (d, e, f) = (tuple(q - p for p, q in zip(loop[i], loop[n], strict=True)) for n in (j, k))
    return (b * f - c * e, c * d - a * f, a * e - b * d)


def _direction(normal: Point) -> Point:
    divisor = gcd(*normal) or 1
    a, b, c = (n // divisor for n in normal)
    return (a, b, c)
