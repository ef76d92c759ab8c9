"""Apply the drawn numbers of `augment` to a batch, on its device."""

# B batch, C channels, Z Y X voxels.
from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segpipe.core.grid import ZYX
from segpipe.core.labels import IGNORE_INDEX
from segpipe.train.augment import Draws, is_flat


def crop_centre(x: Tensor, patch_zyx: ZYX) -> Tensor:
    """The middle of the last three axes."""
    starts = [(n - p) // 2 for n, p in zip(x.shape[-3:], patch_zyx, strict=True)]
    for axis, (start, edge) in enumerate(zip(starts, patch_zyx, strict=True)):
        x = x.narrow(axis - 3, start, edge)
    return x


def apply(images_BCZYX: Tensor, indices_BZYX: Tensor, draws: Draws, patch_zyx: ZYX) -> tuple[Tensor, Tensor]:
    """Augment regions and cut the patches out of them.

    Args:
        images_BCZYX: Regions, float32, normalised.
        indices_BZYX: Their labels, int64.
        draws: The numbers.
        patch_zyx: Voxels of the result.

    Returns:
        Patches (B, C, *patch) float32 and (B, *patch) int64, on the same device. No label is invented.
    """
    images = crop_centre(images_BCZYX, patch_zyx).clone()
    indices = crop_centre(indices_BZYX, patch_zyx).clone()
    for sample in np.flatnonzero(draws.is_turned).tolist():
        turn = torch.from_numpy(draws.turns[sample])
        images[sample], indices[sample] = _turned(images_BCZYX[sample], indices_BZYX[sample], turn, patch_zyx)
    for sample, flips in enumerate(draws.mirrored):
        if axes := [int(a) for a in np.flatnonzero(flips)]:
            images[sample] = images[sample].flip([a + 1 for a in axes])
            indices[sample] = indices[sample].flip(axes)
    return _intensities(images, draws), indices


def _turned(image_CZYX: Tensor, indices_ZYX: Tensor, turn: Tensor, patch_zyx: ZYX) -> tuple[Tensor, Tensor]:
    """Rotated and scaled about the centre; linear for the image, the strongest of linear masks for labels."""
    region = torch.tensor(image_CZYX.shape[1:], dtype=torch.float32)
    steps = [torch.arange(p, dtype=torch.float32) - (p - 1) / 2 for p in patch_zyx]
    offsets = torch.stack(torch.meshgrid(*steps, indexing="ij"), -1) @ turn.T
    grid = (offsets * 2 / region).flip(-1)[None].to(image_CZYX.device)  # grid_sample counts x, y, z from -1 to 1
    labels = _labels_in(indices_ZYX)
    masks = (indices_ZYX[None] == labels[:, None, None, None]).float()
    both = functional.grid_sample(
        torch.cat([image_CZYX, masks])[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )[0]
    n_channels = len(image_CZYX)
    shares = both[n_channels:]
    turned = labels[shares.argmax(0)]
    return both[:n_channels], torch.where(shares.sum(0) < 0.5, torch.zeros_like(turned), turned)


def _labels_in(indices: Tensor) -> Tensor:
    """Labels that occur, ascending; counting is many times faster than sorting."""
    counts = torch.bincount((indices - IGNORE_INDEX).reshape(-1))
    return torch.nonzero(counts)[:, 0] + IGNORE_INDEX


def _intensities(images: Tensor, draws: Draws) -> Tensor:
    """Noise, blur, brightness, contrast, low resolution and gamma, in this order."""
    if draws.noise_std.any():
        source = torch.Generator(images.device).manual_seed(draws.noise_seed)
        noise = torch.randn(images.shape, generator=source, device=images.device)
        images = images + noise * _column(draws.noise_std[:, None], images)
    for b, c in np.argwhere(draws.blur_vox > 0):
        images[b, c] = _blurred(images[b, c], float(draws.blur_vox[b, c]))
    if (draws.brightness != 1).any():
        images = images * _column(draws.brightness, images)
    for b, c in np.argwhere(draws.contrast != 1):
        channel = images[b, c]
        mean = channel.mean()
        changed = (channel - mean) * float(draws.contrast[b, c]) + mean
        images[b, c] = changed.clamp(channel.min(), channel.max())
    for b, c in np.argwhere(draws.lowres_zoom != 1):
        images[b, c] = _lowres(images[b, c], float(draws.lowres_zoom[b, c]))
    for b, c in np.argwhere(draws.gamma_inverted != 1):
        images[b, c] = -_gamma(-images[b, c], float(draws.gamma_inverted[b, c]))
    for b, c in np.argwhere(draws.gamma != 1):
        images[b, c] = _gamma(images[b, c], float(draws.gamma[b, c]))
    return images


def _column(values: NDArray[np.float32], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)[..., None, None, None]


def _blurred(channel: Tensor, std_vox: float) -> Tensor:
    """Gaussian along each axis that is longer than one voxel; edges repeated."""
    radius = max(1, round(3 * std_vox))
    places = torch.arange(-radius, radius + 1, dtype=torch.float32, device=channel.device)
    kernel = torch.exp(-0.5 * (places / std_vox) ** 2)
    kernel = kernel / kernel.sum()
    result = channel[None, None]
    for axis in range(3):
        if channel.shape[axis] > 1:
            shape, padding = [1, 1, 1], [0] * 6
            shape[axis] = 2 * radius + 1
            padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
            result = functional.conv3d(functional.pad(result, padding, mode="replicate"), kernel.view(1, 1, *shape))
    return result[0, 0]


def _lowres(channel: Tensor, zoom: float) -> Tensor:
    """Down by nearest neighbour, up linearly (nnU-Net: cubic); a flat axis keeps its voxels."""
    keep_z = is_flat((channel.shape[0], channel.shape[1], channel.shape[2]))
    small = [n if keep_z and axis == 0 else max(1, round(n * zoom)) for axis, n in enumerate(channel.shape)]
    down = functional.interpolate(channel[None, None], small, mode="nearest-exact")
    return functional.interpolate(down, channel.shape, mode="trilinear", align_corners=False)[0, 0]


def _gamma(channel: Tensor, gamma: float) -> Tensor:
    """x^gamma on the channel's range, mean and SD kept."""
    low, mean, std = channel.min(), channel.mean(), channel.std()
    extent = (channel.max() - low).clamp_min(1e-7)
    changed = ((channel - low) / extent).pow(gamma) * extent + low
    return (changed - changed.mean()) / changed.std().clamp_min(1e-8) * std + mean
