"""Moved patches on the CPU: image and labels in one pass over the voxels, without masks of labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.compiled import kernel

_Corners = tuple[float, float, float, float, float, float, float, float]  # z slowest, x fastest


@kernel
def look_up(
    image: NDArray[np.float32],
    labels: NDArray[Any],
    turn: NDArray[np.float64],
    moves: NDArray[np.float32],
    patch: NDArray[np.float32],
    winners: NDArray[np.int64],
) -> None:
    """Fill a patch from a region; their middles are one point.

    Args:
        image: (C, Z, Y, X) region.
        labels: (Z, Y, X) of any signed integers.
        turn: (3, 3) from offsets in the patch to offsets in the region, voxels.
        moves: (3, z, y, x) displacement of each voxel of the patch before it is turned; (3, 0, 0, 0): none.
        patch: (C, z, y, x) to be filled, linear; 0 beyond the region.
        winners: (z, y, x) to be filled with the label that has most of the weight, of equals background; beyond the
            region is background.
    """
    n_channels, n_z, n_y, n_x = patch.shape
    _, size_z, size_y, size_x = image.shape
    found = np.zeros(8, np.int64)
    for z in range(n_z):
        for y in range(n_y):
            for x in range(n_x):
                a, b, c = z - (n_z - 1) / 2, y - (n_y - 1) / 2, x - (n_x - 1) / 2
                if moves.size:
                    a, b, c = a + moves[0, z, y, x], b + moves[1, z, y, x], c + moves[2, z, y, x]
                along_z = turn[0, 0] * a + turn[0, 1] * b + turn[0, 2] * c + (size_z - 1) / 2
                along_y = turn[1, 0] * a + turn[1, 1] * b + turn[1, 2] * c + (size_y - 1) / 2
                along_x = turn[2, 0] * a + turn[2, 1] * b + turn[2, 2] * c + (size_x - 1) / 2
                i, j, k = math.floor(along_z), math.floor(along_y), math.floor(along_x)
                weights = _weights(along_z - i, along_y - j, along_x - k)
                is_inside = 0 <= i < size_z - 1 and 0 <= j < size_y - 1 and 0 <= k < size_x - 1
                for channel in range(n_channels):
                    near = image[channel]
                    if is_inside:
                        patch[channel, z, y, x] = _inside(near, i, j, k, weights)
                    else:
                        patch[channel, z, y, x] = _bordering(near, i, j, k, weights)
                if is_inside and _is_uniform(labels, i, j, k):
                    winners[z, y, x] = labels[i, j, k]
                else:
                    winners[z, y, x] = _heaviest(labels, i, j, k, weights, found)


@kernel
def _weights(z: float, y: float, x: float) -> _Corners:
    low, high = (1 - z) * (1 - y), (1 - z) * y
    far_low, far_high = z * (1 - y), z * y
    return (
        low * (1 - x), low * x, high * (1 - x), high * x,
        far_low * (1 - x), far_low * x, far_high * (1 - x), far_high * x,
    )  # fmt: skip


@kernel
def _inside(v: NDArray[np.float32], i: int, j: int, k: int, w: _Corners) -> float:
    near = w[0] * v[i, j, k] + w[1] * v[i, j, k + 1] + w[2] * v[i, j + 1, k] + w[3] * v[i, j + 1, k + 1]
    far = w[4] * v[i + 1, j, k] + w[5] * v[i + 1, j, k + 1]
    return near + far + w[6] * v[i + 1, j + 1, k] + w[7] * v[i + 1, j + 1, k + 1]


@kernel
def _bordering(v: NDArray[np.float32], i: int, j: int, k: int, w: _Corners) -> float:
    total = 0.0
    for corner in range(8):
        z, y, x = i + (corner >> 2), j + (corner >> 1 & 1), k + (corner & 1)
        if 0 <= z < v.shape[0] and 0 <= y < v.shape[1] and 0 <= x < v.shape[2]:
            total += w[corner] * v[z, y, x]
    return total


@kernel
def _is_uniform(v: NDArray[Any], i: int, j: int, k: int) -> bool:
    one = v[i, j, k]
    near = one == v[i, j, k + 1] and one == v[i, j + 1, k] and one == v[i, j + 1, k + 1]
    far = one == v[i + 1, j, k] and one == v[i + 1, j, k + 1] and one == v[i + 1, j + 1, k]
    return near and far and one == v[i + 1, j + 1, k + 1]


@kernel
def _heaviest(v: NDArray[Any], i: int, j: int, k: int, w: _Corners, found: NDArray[np.int64]) -> int:
    for corner in range(8):
        z, y, x = i + (corner >> 2), j + (corner >> 1 & 1), k + (corner & 1)
        is_there = 0 <= z < v.shape[0] and 0 <= y < v.shape[1] and 0 <= x < v.shape[2]
        found[corner] = v[z, y, x] if is_there else 0
    winner, best = 0, 0.0
    for label in found:
        total = 0.0
        for corner in range(8):
            if found[corner] == label:
                total += w[corner]
        if total > best or (total == best and label == 0):
            winner, best = label, total
    return winner
