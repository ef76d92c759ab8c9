"""Apply the drawn numbers of `augment` to a batch, on its device, which is never waited for."""

# B batch, C channels, Z Y X voxels.
from __future__ import annotations

import torch
from torch import Tensor

from segpipe.train.augmentation.draws import Draws, Scope
from segpipe.train.augmentation.intensity import alter_intensities_
from segpipe.train.augmentation.local import alter_locally_
from segpipe.train.augmentation.placement import place_patches
from segpipe.train.cascade import change_guides


def apply(images_BCZYX: Tensor, indices_BZYX: Tensor, draws: Draws, scope: Scope) -> tuple[Tensor, Tensor]:
    """Augment regions and cut the patches out of their middle.

    Args:
        images_BCZYX: Regions, float32, normalised; at least as large as the patch.
        indices_BZYX: Their inside labels, int64.
        draws: The numbers.
        scope: What the plan fixes.

    Returns:
        New patches (B, C, *patch) float32 and (B, *patch) int64, on the same device. No label is invented; beyond the
        region lie 0 and background.

    Source:
        nnU-Net's transforms in its order, except that mirroring comes first: nothing behind it prefers a direction. In
        masked channels 0 stays 0, where nnU-Net looks into a mask that it stores.
    """
    images, indices = place_patches(images_BCZYX, indices_BZYX, draws, scope)
    outside = [(channel, images[:, channel] == 0) for channel in scope.masked_channels]
    alter_intensities_(images, draws, keep_planes=scope.is_flat)
    alter_locally_(images, draws.local_changes, keep_planes=scope.is_flat)
    for channel, mask in outside:
        images[:, channel].masked_fill_(mask, 0)
    return images, indices


def apply_to_guides(guides_BZYX: Tensor | None, draws: Draws, scope: Scope) -> Tensor | None:
    """Labels that guide a cascade, moved as the images are and then changed; None outside of one."""
    if guides_BZYX is None:
        return None
    no_images_BCZYX = torch.empty((len(guides_BZYX), 0, *guides_BZYX.shape[1:]), device=guides_BZYX.device)
    return change_guides(place_patches(no_images_BCZYX, guides_BZYX, draws, scope)[1], draws.guide_changes)
