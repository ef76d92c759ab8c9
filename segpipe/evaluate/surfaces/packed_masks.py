"""Masks and surfaces with one bit for each voxel or cell, 64 of them in a step.

A box of n voxels along an axis is stored with one layer more on either side: background, or along an axis on which the
image has a single voxel, that voxel again, so that no surface runs across it. Along X voxel x is bit FIRST + x of its
row. A cell (see `cell_patches`) has the place of its first voxel: cell (z, y, b) joins rows z and z + 1, y and
y + 1, bits b and b + 1. Rows end in an empty word, so that 64 bits can be read from any place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.compiled import count_ones, kernel, trailing_zeros

FIRST = 64  # bit of voxel 0: a window of 64 bits around any cell lies in the row
_ONE, _TOP = np.uint64(1), np.uint64(63)
_GATHER, _BYTE_TOP = np.uint64(0x0102040810204080), np.uint64(56)  # eight bytes 0 or 1, times it: bits in the top byte


@kernel
def mask_bits(labels: Any, wanted: Any, low_zyx: Any, size_zyx: Any, is_flat_zyx: Any) -> Any:
    """Bits of where a map has one of some values.

    Args:
        labels: (Z, Y, X) integers.
        wanted: The values.
        low_zyx, size_zyx: The box to look at.
        is_flat_zyx: Along which axes the image has a single voxel.

    Returns:
        (z + 2, y + 2, words) uint64.
    """
    n_z, n_y, n_x = size_zyx
    n_words = n_x // 64 + 3
    bits = np.zeros((n_z + 2, n_y + 2, n_words), np.uint64)
    is_in = np.zeros((n_words - 1) * 64, np.uint8)
    eights = is_in.view(np.uint64)
    for z in range(n_z):
        for y in range(n_y):
            row = labels[low_zyx[0] + z, low_zyx[1] + y, low_zyx[2] : low_zyx[2] + n_x]
            for x in range(n_x):
                is_in[x] = row[x] == wanted[0]
            for value in wanted[1:]:
                for x in range(n_x):
                    is_in[x] |= row[x] == value
            for i in range(len(eights)):
                packed = (eights[i] * _GATHER) >> _BYTE_TOP
                bits[z + 1, y + 1, 1 + i // 8] |= packed << np.uint64(8 * (i % 8))
    if is_flat_zyx[2]:
        for z in range(n_z):
            for y in range(n_y):
                if bits[z + 1, y + 1, 1] & _ONE:
                    bits[z + 1, y + 1, 0] = _ONE << _TOP
                    bits[z + 1, y + 1, 1] = np.uint64(3)
    if is_flat_zyx[1]:
        bits[:, 0] = bits[:, 2] = bits[:, 1]
    if is_flat_zyx[0]:
        bits[0] = bits[2] = bits[1]
    return bits


@kernel
def mixed_cells(mask: Any, is_flat_zyx: Any) -> Any:
    """Bits of the cells whose voxels are not all alike; of equal layers only the first cell."""
    n_z = 1 if is_flat_zyx[0] else mask.shape[0] - 1
    n_y = 1 if is_flat_zyx[1] else mask.shape[1] - 1
    n_words = mask.shape[2]
    cells = np.zeros((n_z, n_y, n_words), np.uint64)
    for z in range(n_z):
        for y in range(n_y):
            a, b, c, d = mask[z, y], mask[z, y + 1], mask[z + 1, y], mask[z + 1, y + 1]
            for w in range(n_words - 1):
                some, every = a[w] | b[w] | c[w] | d[w], a[w] & b[w] & c[w] & d[w]
                v = w + 1
                next_some, next_every = a[v] | b[v] | c[v] | d[v], a[v] & b[v] & c[v] & d[v]
                some |= some >> _ONE | next_some << _TOP
                every &= every >> _ONE | next_every << _TOP
                cells[z, y, w] = some & ~every
            if is_flat_zyx[2]:
                cells[z, y, 0] &= _ONE << _TOP
                cells[z, y, 1] = 0
    return cells


@kernel
def rim_voxels(mask: Any, is_flat_zyx: Any) -> Any:
    """Bits of the voxels of a mask that have a neighbour across a face outside it."""
    rim = np.zeros_like(mask)
    n_z, n_y, n_words = mask.shape
    for z in range(1, n_z - 1):
        for y in range(1, n_y - 1):
            row = mask[z, y]
            for w in range(1, n_words - 1):
                inner = mask[z - 1, y, w] & mask[z + 1, y, w] & mask[z, y - 1, w] & mask[z, y + 1, w]
                inner &= row[w] << _ONE | row[w - 1] >> _TOP
                inner &= row[w] >> _ONE | row[w + 1] << _TOP
                rim[z, y, w] = row[w] & ~inner
            if is_flat_zyx[2]:
                rim[z, y, 1] &= _ONE
    return rim


@kernel
def count_both(own: Any, other: Any) -> Any:
    """Number of bits of `own`, and of those that `other` has too."""
    n_own, n_both = np.uint64(0), np.uint64(0)
    one, two = own.ravel(), other.ravel()
    for i in range(len(one)):
        n_own += count_ones(one[i])
        n_both += count_ones(one[i] & two[i])
    return n_own, n_both


@kernel
def places_of(own: Any, without: Any, n: Any) -> Any:
    """Places (n, 3) int32 (z, y, bit) of the bits of `own` that `without` has not."""
    places = np.empty((n, 3), np.int32)
    k = 0
    for z in range(own.shape[0]):
        for y in range(own.shape[1]):
            for w in range(own.shape[2]):
                word = own[z, y, w] & ~without[z, y, w]
                while word:
                    places[k, 0], places[k, 1] = z, y
                    places[k, 2] = 64 * w + np.int64(trailing_zeros(word))
                    word &= word - _ONE
                    k += 1
    return places


@kernel
def code_at(mask: Any, z: Any, y: Any, bit: Any) -> Any:
    """Code of a cell of a mask."""
    w, b = bit >> 6, np.uint64(bit & 63)
    code = np.uint64(0)
    for k in range(4):  # bit 0 of k along Z, bit 1 along Y
        row = mask[z + (k & 1), y + (k >> 1)]
        pair = row[w] >> b
        if b == _TOP:
            pair |= row[w + 1] << _ONE
        code |= (pair & _ONE) << np.uint64(k) | (pair >> _ONE & _ONE) << np.uint64(k + 4)
    return np.int64(code)


@kernel
def codes_of(mask: Any, places: Any) -> Any:
    """Codes (n,) uint8 of the cells at some places."""
    codes = np.empty(len(places), np.uint8)
    for i in range(len(places)):
        codes[i] = code_at(mask, places[i, 0], places[i, 1], places[i, 2])
    return codes


@kernel
def codes_in(cells: Any, mask: Any, n: Any) -> Any:
    """Codes (n,) uint8 of the cells of a mask, in the order of their bits."""
    codes = np.empty(n, np.uint8)
    k = 0
    for z in range(cells.shape[0]):
        for y in range(cells.shape[1]):
            for w in range(cells.shape[2]):
                word = cells[z, y, w]
                while word:
                    codes[k] = code_at(mask, z, y, 64 * w + np.int64(trailing_zeros(word)))
                    word &= word - _ONE
                    k += 1
    return codes


@kernel
def code_counts(own: Any, within: Any, mask: Any) -> Any:
    """Counts of the 256 codes in a mask, over the cells of `own` that `within` has too."""
    counts = np.zeros(256, np.int64)
    for z in range(own.shape[0]):
        for y in range(own.shape[1]):
            for w in range(own.shape[2]):
                word = own[z, y, w] & within[z, y, w]
                while word:
                    counts[code_at(mask, z, y, 64 * w + np.int64(trailing_zeros(word)))] += 1
                    word &= word - _ONE
    return counts


@kernel
def equal_cells(one: Any, other: Any, like: Any) -> Any:
    """Bits of the cells, in the shape of `like`, all of whose voxels are the same in two masks."""
    cells = np.zeros_like(like)
    n_z, n_y, n_words = like.shape
    for z in range(n_z):
        for y in range(n_y):
            before = _differing_cells(one, other, z, y, 0)
            for w in range(n_words - 1):
                after = _differing_cells(one, other, z, y, w + 1)
                cells[z, y, w] = ~(before | before >> _ONE | after << _TOP)
                before = after
    return cells


@kernel
def _differing_cells(one: Any, other: Any, z: Any, y: Any, w: Any) -> Any:
    above = (one[z, y, w] ^ other[z, y, w]) | (one[z, y + 1, w] ^ other[z, y + 1, w])
    return above | (one[z + 1, y, w] ^ other[z + 1, y, w]) | (one[z + 1, y + 1, w] ^ other[z + 1, y + 1, w])


# A cell is the block of 2×2×2 voxels around a voxel corner. Its code has one bit for each voxel: bit k is the voxel
# whose offset along axis a is bit a of k. The surface inside a cell is the marching-cubes patch between the midpoints
# of the edges that join a voxel inside to one outside.

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
