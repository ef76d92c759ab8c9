"""Sliding-window prediction: overlapping patches, weighted by a Gaussian, mirrored, averaged over networks."""

# B batch, O outputs, C channels, Z Y X voxels.
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from segpipe.core.grid import ZYX

_STEP = 0.5  # of a patch, at most
_SIGMA = 1 / 8  # of a patch


def window_starts(n_voxels: int, patch: int) -> list[int]:
    """Starts of windows along an axis: evenly spread, at most half a patch apart, the last one touching the end.

    Example:
        >>> window_starts(100, 40)
        [0, 20, 40, 60]

    Source:
        nnU-Net's compute_steps_for_sliding_window.
    """
    if n_voxels <= patch:
        return [0]
    n_windows = int(np.ceil((n_voxels - patch) / (patch * _STEP))) + 1
    return [round(i * (n_voxels - patch) / (n_windows - 1)) for i in range(n_windows)]


@lru_cache(maxsize=4)
def gaussian_weights(patch_zyx: ZYX) -> NDArray[np.float32]:
    """Weight of each voxel of a window: a Gaussian of an eighth of the patch about its centre, at most 1, above 0.

    Source:
        nnU-Net's compute_gaussian.
    """
    lines = []
    for edge in patch_zyx:
        line = np.zeros(edge)
        line[edge // 2] = 1
        lines.append(ndimage.gaussian_filter1d(line, edge * _SIGMA, mode="constant"))
    weights = np.einsum("z,y,x->zyx", *lines)
    weights /= weights.max()
    return np.maximum(weights, weights[weights > 0].min()).astype(np.float32)


def mirrors_of(mirror_axes: Sequence[int], patch_zyx: ZYX) -> list[tuple[int, ...]]:
    """Every set of axes to flip, the empty one first; axes of one voxel are left out.

    Example:
        >>> mirrors_of((0, 2), (8, 8, 8))
        [(), (0,), (2,), (0, 2)]
    """
    axes = [a for a in mirror_axes if patch_zyx[a] > 1]
    return [chosen for n in range(len(axes) + 1) for chosen in combinations(axes, n)]


def mirrored_mean(network: nn.Module, x_BCZYX: Tensor, mirrors: Sequence[tuple[int, ...]]) -> Tensor:
    """Mean logits (B, O, Z, Y, X) over mirrored copies of a patch; `mirrors` are axes of (Z, Y, X)."""
    total = torch.zeros(())
    for axes in mirrors:
        dims = [a + 2 for a in axes]
        logits = network(x_BCZYX.flip(dims) if dims else x_BCZYX)[0].float()
        total = total.to(logits.device) + (logits.flip(dims) if dims else logits)
    return total / len(mirrors)


@torch.inference_mode()
def sliding_logits(
    networks: Sequence[nn.Module],
    image_czyx: NDArray[np.float32],
    patch_zyx: ZYX,
    mirrors: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    n_batch: int = 1,
) -> NDArray[np.float32]:
    """Logits of a whole image, averaged over networks.

    Args:
        networks: In evaluation mode, on one device.
        image_czyx: (C, Z, Y, X) prepared; smaller than the patch is padded with 0.
        patch_zyx: Window.
        mirrors: Sets of axes to flip.
        dtype: For autocast; float32 for none.
        n_batch: Windows in one forward pass.

    Returns:
        (O, Z, Y, X) float32 on the CPU. A constant network gives a constant volume, whatever the window.
    """
    device = next(networks[0].parameters()).device
    size = image_czyx.shape[1:]
    spare = [max(p - n, 0) for p, n in zip(patch_zyx, size, strict=True)]
    padding = [(0, 0), *((s // 2, s - s // 2) for s in spare)]
    image = torch.from_numpy(np.pad(image_czyx, padding)).to(device)
    starts = list(product(*(window_starts(n, p) for n, p in zip(image.shape[1:], patch_zyx, strict=True))))
    weights = torch.from_numpy(gaussian_weights(patch_zyx)).to(device)
    total, weight = None, torch.zeros(image.shape[1:], device=device)
    for first in range(0, len(starts), n_batch):
        boxes = [
            (slice(None), *(slice(s, s + p) for s, p in zip(start, patch_zyx, strict=True)))
            for start in starts[first : first + n_batch]
        ]
        windows = torch.stack([image[box] for box in boxes])
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = sum(mirrored_mean(network, windows, mirrors) for network in networks)
        assert isinstance(logits, Tensor)
        if total is None:
            total = torch.zeros((logits.shape[1], *image.shape[1:]), device=device)
        for box, window in zip(boxes, logits, strict=True):
            total[box] += window * weights
            weight[box[1:]] += weights
    assert total is not None
    total /= weight * len(networks)
    kept = tuple(slice(low, low + n) for (low, _), n in zip(padding[1:], size, strict=True))
    return total[(slice(None), *kept)].cpu().numpy()
