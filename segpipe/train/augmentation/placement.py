"""Placement of the voxels of a patch: cut, turned, scaled, deformed, mirrored."""

# B batch, C channels, N moved samples, A axes that move (2 or 3), M control points, Z Y X voxels.
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segpipe.core.compiled import kernel
from segpipe.core.grid import ZYX
from segpipe.core.labels import IGNORE_INDEX
from segpipe.train.augmentation.draws import Draws, Scope

_Corners = tuple[float, float, float, float, float, float, float, float]  # z slowest, x fastest


@kernel
def look_up(
    image: NDArray[np.float32],
    labels: NDArray[Any],
    first: NDArray[np.int64],
    turn: NDArray[np.float64],
    moves: NDArray[np.float32],
    patch: NDArray[np.float32],
    winners: NDArray[np.int64],
) -> None:
    """Fill a patch from what was cut around it; their middles are one point.

    Args:
        image: (C, Z, Y, X) what was cut.
        labels: (Z, Y, X) of any signed integers.
        first: (3,) index in the region of the first voxel that was cut: coordinates are rounded as in the region,
            however much of it was cut.
        turn: (3, 3) from offsets in the patch to offsets in the region, voxels.
        moves: (3, z, y, x) displacement of each voxel of the patch before it is turned; (3, 0, 0, 0): none.
        patch: (C, z, y, x) to be filled, linear; 0 beyond what was cut.
        winners: (z, y, x) to be filled with the label that has most of the weight, of equals background; beyond what
            was cut is background.
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
                along_z = turn[0, 0] * a + turn[0, 1] * b + turn[0, 2] * c + ((size_z - 1) / 2 + first[0])
                along_y = turn[1, 0] * a + turn[1, 1] * b + turn[1, 2] * c + ((size_y - 1) / 2 + first[1])
                along_x = turn[2, 0] * a + turn[2, 1] * b + turn[2, 2] * c + ((size_x - 1) / 2 + first[2])
                i, j, k = math.floor(along_z), math.floor(along_y), math.floor(along_x)
                weights = _weights(along_z - i, along_y - j, along_x - k)
                i, j, k = i - first[0], j - first[1], k - first[2]
                is_inside = 0 <= i < size_z - 1 and 0 <= j < size_y - 1 and 0 <= k < size_x - 1
                for channel in range(n_channels):
                    near = image[channel]
                    if is_inside:
                        patch[channel, z, y, x] = _inside(near, i, j, k, weights)
                    else:
                        patch[channel, z, y, x] = _interpolate_at_border(near, i, j, k, weights)
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
def _interpolate_at_border(v: NDArray[np.float32], i: int, j: int, k: int, w: _Corners) -> float:
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


_ALL_PRESENT = 2  # labels that are taken to be in every region: to look for more costs less than to turn them
_LABELS_AT_ONCE = 8  # masks that are looked up together: more take more memory, fewer more passes


def place_patches(
    images_CZYX: Sequence[Tensor], indices_ZYX: Sequence[Tensor], draws: Draws, scope: Scope
) -> tuple[Tensor, Tensor]:
    """New patches and their labels, int64, before anything is done to intensities; of what was cut of each sample."""
    images = images_CZYX[0].new_empty((len(images_CZYX), len(images_CZYX[0]), *scope.patch_zyx))
    indices = indices_ZYX[0].new_empty((len(images), *scope.patch_zyx), dtype=torch.int64)
    moved = np.flatnonzero(draws.is_moved)
    found = dict(zip(moved.tolist(), _move(images_CZYX, indices_ZYX, draws, scope), strict=True))
    for sample, flips in enumerate(draws.mirrored):
        image, labels = found.get(sample) or [
            crop_centre(x[sample], scope.patch_zyx) for x in (images_CZYX, indices_ZYX)
        ]
        axes = [axis - 3 for axis in np.flatnonzero(flips).tolist()]
        images[sample], indices[sample] = (image.flip(axes), labels.flip(axes)) if axes else (image, labels)
    return images, _swap_sides(indices, draws.mirrored[:, scope.side_axis], scope.swapped)


def crop_centre(x: Tensor, edges_zyx: Sequence[int]) -> Tensor:
    """The middle of the last three axes."""
    for axis, edge in enumerate(edges_zyx, start=-3):
        x = x.narrow(axis, (x.shape[axis] - edge) // 2, edge)
    return x


def on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """A small array on a device, without waiting for it."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _swap_sides(indices: Tensor, is_mirrored: NDArray[np.bool_], swapped: Sequence[int]) -> Tensor:
    """Labels that change places where left became right."""
    samples = np.flatnonzero(is_mirrored)
    if not samples.size or list(swapped) == list(range(len(swapped))):
        return indices
    chosen = on_device(samples, indices.device)
    table = on_device(np.array([IGNORE_INDEX, *swapped]), indices.device)
    return indices.index_copy_(0, chosen, table[indices.index_select(0, chosen) - IGNORE_INDEX])


def _move(
    images: Sequence[Tensor], indices: Sequence[Tensor], draws: Draws, scope: Scope
) -> list[tuple[Tensor, Tensor]]:
    """Patch and labels of each moved sample, in their order."""
    if not draws.is_moved.any():
        return []
    # compiled is five times faster on volumes; in flat patches torch looks up several voxels in one step
    way = move_compiled if images[0].device.type == "cpu" and not scope.is_flat else move_by_torch
    return way(images, indices, draws, scope)


def move_compiled(
    images: Sequence[Tensor], indices: Sequence[Tensor], draws: Draws, scope: Scope
) -> list[tuple[Tensor, Tensor]]:
    """On the CPU, of a patch that is not flat."""
    result = []
    for sample in np.flatnonzero(draws.is_moved).tolist():
        image, labels = images[sample].contiguous(), indices[sample].contiguous()
        patch = np.empty((len(image), *scope.patch_zyx), np.float32)
        winners = np.empty(scope.patch_zyx, np.int64)
        moves = np.empty((3, 0, 0, 0), np.float32)
        if draws.controls is not None:
            field = _displacements(draws.controls[sample][None], scope.patch_zyx, image.device)
            moves = field[0].contiguous().numpy()
        first = (np.array(scope.region_zyx) - np.array(labels.shape)) // 2
        look_up(image.numpy(), labels.numpy(), first, draws.turns[sample].astype(np.float64), moves, patch, winners)
        result.append((torch.from_numpy(patch), torch.from_numpy(winners)))
    return result


def move_by_torch(
    images: Sequence[Tensor], indices: Sequence[Tensor], draws: Draws, scope: Scope
) -> list[tuple[Tensor, Tensor]]:
    """On any device, all samples at once."""
    moved = np.flatnonzero(draws.is_moved)
    chosen = [[x[sample] for sample in moved.tolist()] for x in (images, indices)]
    z, y, x = np.max([labels.shape for labels in chosen[1]], axis=0).tolist()
    grid = _grid(draws, moved, (z, y, x), scope, images[0].device)
    return list(zip(*_look_up(chosen[0], chosen[1], grid, (z, y, x), scope.values), strict=True))


def _grid(draws: Draws, moved: NDArray[np.intp], reach: ZYX, scope: Scope, device: torch.device) -> Tensor:
    """Return where voxels of a moved patch are looked up, (N, [Z,] Y, X, A): x, y, z from -1 to 1, for grid_sample."""
    first = 1 if scope.is_flat else 0  # planes stay where they are
    edges = scope.patch_zyx[first:]
    turns = draws.turns[moved, first:, first:] * 2 / np.array(reach[first:])[:, None]
    matrix = on_device(np.ascontiguousarray(turns[:, ::-1], np.float32), device)
    grid = torch.zeros((), device=device)
    for axis, edge in enumerate(edges):
        steps = torch.arange(edge, device=device) - (edge - 1) / 2
        steps = steps.view([edge if other == axis else 1 for other in range(len(edges))] + [1])
        grid = grid + steps * matrix[:, :, axis].view([-1, *[1] * len(edges), len(edges)])
    if draws.controls is not None:
        controls = draws.controls[moved, 1:, 0] if scope.is_flat else draws.controls[moved]
        grid = grid + torch.einsum("nia,na...->n...i", matrix, _displacements(controls, edges, device))
    return grid


def _displacements(controls: NDArray[np.float32], edges: Sequence[int], device: torch.device) -> Tensor:
    """(N, A, [Z,] Y, X) in voxels: cubic B-splines of control points (N, A, [M,] M, M)."""
    field = on_device(controls, device)
    for edge in edges:
        basis = on_device(spline_basis(edge, controls.shape[-1]), device)
        field = torch.tensordot(field, basis, dims=([2], [1]))  # takes the first axis left away, adds one at the end
    return field


def spline_basis(n_voxels: int, n_points: int) -> NDArray[np.float32]:
    """(n_voxels, n_points): weight of each control point at each voxel; rows sum to 1."""
    along = (np.arange(n_voxels) + 0.5) / n_voxels * (n_points - 3)
    cell = along.astype(int)
    t = along - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((n_voxels, n_points), np.float32)
    np.put_along_axis(basis, cell[:, None] + np.arange(4), weights.astype(np.float32), axis=1)
    return basis


def _look_up(
    images: Sequence[Tensor], indices: Sequence[Tensor], grid: Tensor, reach: ZYX, values: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Linear for images; of labels the one whose linear mask is strongest, of equals background or else the first.

    What no mask has is background's, beyond the region too.
    """
    if len(values) > _ALL_PRESENT and grid.device.type == "cpu":  # another device would have to be waited for
        found_in = [torch.bincount(x.reshape(-1) - IGNORE_INDEX, minlength=max(values) + 2) for x in indices]
        counts = torch.stack(found_in).sum(0).tolist()
        values = [value for value in values if counts[value - IGNORE_INDEX]]
    n_channels = len(images[0])
    found = _sample(images, indices, values[:_LABELS_AT_ONCE], grid, reach)
    patches, shares = found[:, :n_channels], found[:, n_channels:]
    best, total = (found.new_zeros((len(found), *found.shape[2:])) for _ in range(2))
    winner = torch.zeros_like(best, dtype=torch.int64)
    for place, value in enumerate(values):
        if place and place % _LABELS_AT_ONCE == 0:
            shares = _sample((), indices, values[place : place + _LABELS_AT_ONCE], grid, reach)
        share = shares[:, place % _LABELS_AT_ONCE]
        winner.masked_fill_(share > best, value)
        best, total = torch.maximum(best, share), total.add_(share)
    return patches, winner.masked_fill_(1 - total >= best, 0)


def _sample(
    images_CZYX: Sequence[Tensor], indices_ZYX: Sequence[Tensor], values: Sequence[int], grid: Tensor, reach: ZYX
) -> Tensor:
    """Images, if any, and masks of labels (N, C + labels, Z, Y, X): linear, 0 beyond; all planes alike by two axes.

    Each is put into the middle of zeros of `reach`, which covers all of them.
    """
    n_channels = len(images_CZYX[0]) if images_CZYX else 0
    sources = grid.new_zeros((len(indices_ZYX), n_channels + len(values), *reach))
    for place, indices in enumerate(indices_ZYX):
        source = crop_centre(sources[place], indices.shape)
        if images_CZYX:
            source[:n_channels] = images_CZYX[place]
        for mask, value in enumerate(values, start=n_channels):
            torch.eq(indices, value, out=source[mask])
    in_plane = grid.shape[-1] == 2
    planes = sources.flatten(1, 2) if in_plane else sources
    found = functional.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return found.view(*sources.shape[:3], *found.shape[2:]) if in_plane else found
