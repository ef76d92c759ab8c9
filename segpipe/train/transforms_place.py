"""Where the voxels of a patch come from: cut, turned, scaled, deformed, mirrored."""

# B batch, C channels, N moved samples, A axes that move (2 or 3), M control points, Z Y X voxels.
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segpipe.core.grid import ZYX
from segpipe.core.labels import IGNORE_INDEX
from segpipe.train.augment import Draws, Scope

_LABELS_AT_ONCE = 8  # masks that are looked up together: more take more memory, fewer more passes


def placed(images_BCZYX: Tensor, indices_BZYX: Tensor, draws: Draws, scope: Scope) -> tuple[Tensor, Tensor]:
    """New patches and their labels, before anything is done to intensities."""
    images = crop_centre(images_BCZYX, scope.patch_zyx).clone(memory_format=torch.contiguous_format)
    indices = crop_centre(indices_BZYX, scope.patch_zyx).clone(memory_format=torch.contiguous_format)
    moved = np.flatnonzero(draws.is_moved)
    if moved.size:
        reach = _reach(draws, moved, images_BCZYX.shape[-3:], scope)
        chosen, grid = on_device(moved, images.device), _grid(draws, moved, reach, scope, images.device)
        sources = [crop_centre(x, reach).index_select(0, chosen) for x in (images_BCZYX, indices_BZYX)]
        found = _looked_up(sources[0], sources[1], grid, scope.values)
        images.index_copy_(0, chosen, found[0])
        indices.index_copy_(0, chosen, found[1])
    for sample in np.flatnonzero(draws.mirrored.any(1)).tolist():
        axes = [axis - 3 for axis in np.flatnonzero(draws.mirrored[sample]).tolist()]
        images[sample], indices[sample] = images[sample].flip(axes), indices[sample].flip(axes)
    return images, _swapped(indices, draws.mirrored[:, scope.side_axis], scope.swapped)


def crop_centre(x: Tensor, edges_zyx: Sequence[int]) -> Tensor:
    """The middle of the last three axes."""
    for axis, edge in enumerate(edges_zyx, start=-3):
        x = x.narrow(axis, (x.shape[axis] - edge) // 2, edge)
    return x


def on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """A small array on a device, without waiting for it."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _swapped(indices: Tensor, is_mirrored: NDArray[np.bool_], swapped: Sequence[int]) -> Tensor:
    """Labels that change places where left became right."""
    samples = np.flatnonzero(is_mirrored)
    if not samples.size or list(swapped) == list(range(len(swapped))):
        return indices
    chosen = on_device(samples, indices.device)
    table = on_device(np.array([IGNORE_INDEX, *swapped]), indices.device)
    return indices.index_copy_(0, chosen, table[indices.index_select(0, chosen) - IGNORE_INDEX])


def _reach(draws: Draws, moved: NDArray[np.intp], region_zyx: Sequence[int], scope: Scope) -> ZYX:
    """Edges of the part of the regions that the moved samples see; its middle is the regions'."""
    far = np.array(scope.patch_zyx) / 2
    if draws.controls is not None:
        far = far + np.abs(draws.controls[moved]).max(axis=(0, 2, 3, 4))
    needed = np.ceil(2 * (np.abs(draws.turns[moved]) @ far).max(axis=0)).astype(int) + 2  # the voxels on either side
    z, y, x = (n - 2 * max((n - seen) // 2, 0) for n, seen in zip(region_zyx, needed.tolist(), strict=True))
    return (scope.patch_zyx[0] if scope.is_flat else z, y, x)


def _grid(draws: Draws, moved: NDArray[np.intp], reach: ZYX, scope: Scope, device: torch.device) -> Tensor:
    """Where each voxel of a moved patch is looked up, (N, [Z,] Y, X, A): x, y, z from -1 to 1 as grid_sample counts."""
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


def _looked_up(images: Tensor, indices: Tensor, grid: Tensor, values: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Linear for images; of labels the one whose linear mask is strongest, of equals background or else the first.

    What no mask has is background's, beyond the region too.
    """
    if indices.device.type == "cpu":  # elsewhere it would have to be waited for
        counts = torch.bincount(indices.reshape(-1) - IGNORE_INDEX, minlength=max(values, default=0) + 2).tolist()
        values = [value for value in values if counts[value - IGNORE_INDEX]]
    n_channels = images.shape[1]
    found = _sampled(torch.cat([images, *_masks(indices, values[:_LABELS_AT_ONCE])], 1), grid)
    patches, shares = found[:, :n_channels], found[:, n_channels:]
    best, total = torch.zeros_like(patches[:, 0]), torch.zeros_like(patches[:, 0])
    winner = torch.zeros_like(best, dtype=indices.dtype)
    for place, value in enumerate(values):
        if place and place % _LABELS_AT_ONCE == 0:
            shares = _sampled(torch.cat(_masks(indices, values[place : place + _LABELS_AT_ONCE]), 1), grid)
        share = shares[:, place % _LABELS_AT_ONCE]
        winner.masked_fill_(share > best, value)
        best, total = torch.maximum(best, share), total + share
    return patches, winner.masked_fill_(1 - total >= best, 0)


def _masks(indices: Tensor, values: Sequence[int]) -> list[Tensor]:
    return [(indices == value)[:, None].float() for value in values]


def _sampled(sources_NCZYX: Tensor, grid: Tensor) -> Tensor:
    """Linear, 0 beyond; with a grid of two axes the same in every plane."""
    n, channels, planes = sources_NCZYX.shape[:3]
    in_plane = grid.shape[-1] == 2
    sources = sources_NCZYX.flatten(1, 2) if in_plane else sources_NCZYX
    found = functional.grid_sample(sources, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return found.view(n, channels, planes, *found.shape[2:]) if in_plane else found
