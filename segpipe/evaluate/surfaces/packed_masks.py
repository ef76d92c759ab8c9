"""Masks and surfaces with one bit for each voxel or cell, 64 of them in a step.

A box of n voxels along an axis is stored with one layer more on either side: background, or along an axis on which the
image has a single voxel, that voxel again, so that no surface runs across it. Along X voxel x is bit FIRST + x of its
row. A cell (see `cell_patches.py`) has the place of its first voxel: cell (z, y, b) joins rows z and z + 1, y and
y + 1, bits b and b + 1. Rows end in an empty word, so that 64 bits can be read from any place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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
            before = _differing(one, other, z, y, 0)
            for w in range(n_words - 1):
                after = _differing(one, other, z, y, w + 1)
                cells[z, y, w] = ~(before | before >> _ONE | after << _TOP)
                before = after
    return cells


@kernel
def _differing(one: Any, other: Any, z: Any, y: Any, w: Any) -> Any:
    above = (one[z, y, w] ^ other[z, y, w]) | (one[z, y + 1, w] ^ other[z, y + 1, w])
    return above | (one[z + 1, y, w] ^ other[z + 1, y, w]) | (one[z + 1, y + 1, w] ^ other[z + 1, y + 1, w])
