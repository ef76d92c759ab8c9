"""Apply the numbers of `draws` to a batch, on its device, which is never waited for."""

# B batch, C channels, R rows, each a channel of a sample, Z Y X voxels.
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segpipe.train.augmentation.draws import Draws, Scope
from segpipe.train.augmentation.local import alter_locally_
from segpipe.train.augmentation.placement import on_device, place_patches
from segpipe.train.cascade import change_guides

_MIN_EXTENT = 1e-7  # of a channel that is divided by it: a constant one stays constant
_Numbers = NDArray[np.float32]


def alter_intensities_(images_BCZYX: Tensor, draws: Draws, *, keep_planes: bool) -> None:
    """Alter images in place, in nnU-Net's order.

    Args:
        images_BCZYX: Patches, float32, contiguous.
        draws: The numbers.
        keep_planes: Whether low resolution spares the first axis.
    """
    rows = images_BCZYX.flatten(0, 1)
    for sample in np.flatnonzero(draws.noise_std).tolist():
        image, noise = images_BCZYX[sample], torch.Generator(rows.device).manual_seed(int(draws.noise_seeds[sample]))
        field = torch.randn(image.shape, generator=noise, device=rows.device)
        image.add_(field, alpha=float(draws.noise_std[sample]))
    std_vox_R3 = draws.blur_vox.reshape(-1, 3)
    for run in _runs(std_vox_R3.max(1) > 0):
        rows[run] = blur(rows[run], std_vox_R3[run])
    _alter_(rows, draws.brightness, 1, Tensor.mul_)
    _alter_(rows, draws.contrast, 1, _contrast_)
    for place in np.flatnonzero(draws.lowres_zoom != 1).tolist():
        rows[place] = _coarsen(rows[place], float(draws.lowres_zoom.flat[place]), keep_planes=keep_planes)
    _alter_(rows, draws.gamma_inverted, 1, lambda x, gamma: _gamma_(x.neg_(), gamma).neg_())
    _alter_(rows, draws.gamma, 1, _gamma_)


def _alter_(rows: Tensor, values_BC: _Numbers, neutral: float, change_: Callable[[Tensor, Tensor], object]) -> None:
    """Change the rows whose value is not neutral; `change_` gets neighbours at once and their values (R, 1, 1, 1)."""
    values = values_BC.reshape(-1)
    for run in _runs(values != neutral):
        change_(rows[run], on_device(values[run], rows.device).view(-1, 1, 1, 1))


def _runs(is_chosen: NDArray[np.bool_]) -> list[slice]:
    """Chosen rows as slices, which need no copies."""
    places = np.flatnonzero(is_chosen)
    parts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if places.size else []
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]


def blur(x_RZYX: Tensor, std_vox_R3: _Numbers) -> Tensor:
    """Gaussian along each axis, the image continued by its mirror image; an axis of one voxel stays.

    Source:
        batchgeneratorsv2's blur_dimension, of which this has the widths.
    """
    for axis in (1, 2, 3):
        std = std_vox_R3[:, axis - 1 : axis]
        radii = (3 * std + 0.25).astype(int)  # the odd number nearest to 6 SD + 0.5 is 2 radii + 1
        edge = x_RZYX.shape[axis]
        reach = min(int(radii.max()), edge - 1)
        if reach == 0:
            continue
        steps = np.arange(reach + 1)
        weights = np.exp(-0.5 * (steps / std) ** 2) * (steps <= radii)
        weights /= weights[:, :1] + 2 * weights[:, 1:].sum(1, keepdims=True)
        taps = on_device(weights.astype(np.float32), x_RZYX.device).view(-1, reach + 1, 1, 1, 1)
        padding = [0] * 6
        padding[6 - 2 * axis : 8 - 2 * axis] = [reach, reach]  # pad counts axes from the last
        wide = functional.pad(x_RZYX[None], padding, mode="reflect")[0]
        x_RZYX = wide.narrow(axis, reach, edge) * taps[:, 0]
        for step in range(1, reach + 1):
            for start in (reach - step, reach + step):
                x_RZYX.addcmul_(wide.narrow(axis, start, edge), taps[:, step])
    return x_RZYX


def _contrast_(x_RZYX: Tensor, factor: Tensor) -> None:
    """Move values away from the mean, or towards it, within the range."""
    voxels = (1, 2, 3)
    low, mean, high = (of(x_RZYX, voxels, keepdim=True) for of in (torch.amin, torch.mean, torch.amax))
    x_RZYX.sub_(mean).mul_(factor).add_(mean).clamp_(low, high)


def _coarsen(channel_ZYX: Tensor, zoom: float, *, keep_planes: bool) -> Tensor:
    """Resample down to the nearest voxel and up linearly, as nnU-Net."""
    n_kept = 1 if keep_planes else 0
    edges = channel_ZYX.shape[n_kept:]
    source, mode = (channel_ZYX[None], "bilinear") if keep_planes else (channel_ZYX[None, None], "trilinear")
    small = functional.interpolate(source, [max(1, round(n * zoom)) for n in edges], mode="nearest-exact")
    return functional.interpolate(small, edges, mode=mode, align_corners=False).view(channel_ZYX.shape)


def _gamma_(x_RZYX: Tensor, gamma: Tensor) -> Tensor:
    """x^gamma on each row's range, its mean and SD kept."""
    voxels = (1, 2, 3)
    low, mean, high = (of(x_RZYX, voxels, keepdim=True) for of in (torch.amin, torch.mean, torch.amax))
    before = _norm(x_RZYX - mean)
    x_RZYX.sub_(low).div_((high - low).clamp_min(_MIN_EXTENT)).pow_(gamma)
    x_RZYX.sub_(x_RZYX.mean(voxels, keepdim=True))
    return x_RZYX.mul_(before / _norm(x_RZYX).clamp_min(_MIN_EXTENT)).add_(mean)


def _norm(x_RZYX: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_RZYX, dim=(1, 2, 3), keepdim=True)


def apply(
    images_CZYX: Sequence[Tensor], indices_ZYX: Sequence[Tensor], draws: Draws, scope: Scope
) -> tuple[Tensor, Tensor]:
    """Augment what was cut of each sample (`edges_to_cut`): move it, take the patch out of its middle, alter that.

    Args:
        images_CZYX: Of each sample, float32, normalised; what is not moved is at least as large as the patch.
        indices_ZYX: Their inside labels, any signed integers.
        draws: The numbers.
        scope: What the plan fixes.

    Returns:
        New patches (B, C, *patch) float32 and (B, *patch) int64, on the same device. No label is invented; beyond what
        was cut lie 0 and background.

    Source:
        nnU-Net's transforms in its order, except that mirroring comes first: nothing behind it prefers a direction. In
        masked channels 0 stays 0, where nnU-Net looks into a mask that it stores.
    """
    images, indices = place_patches(images_CZYX, indices_ZYX, draws, scope)
    outside = [(channel, images[:, channel] == 0) for channel in scope.masked_channels]
    alter_intensities_(images, draws, keep_planes=scope.is_flat)
    alter_locally_(images, draws.local_changes, keep_planes=scope.is_flat)
    for channel, mask in outside:
        images[:, channel].masked_fill_(mask, 0)
    return images, indices


def apply_to_guides(guides_ZYX: Sequence[Tensor], draws: Draws, scope: Scope) -> Tensor:
    """Labels that guide a cascade, (B, *patch), moved as the images are and then changed."""
    no_images_CZYX = [guide.new_empty((0, *guide.shape), dtype=torch.float32) for guide in guides_ZYX]
    return change_guides(place_patches(no_images_CZYX, guides_ZYX, draws, scope)[1], draws.guide_changes)
