"""Which patches a step sees. A batch is a function of (seed, fold, iteration) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segpipe.core.grid import ZYX
from segpipe.prepare.store import PatchCase

PAD_LABEL = 0  # beyond the image there is background


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches, where the cases lie: in memory, or on the training device.

    Args:
        images: (B, C, Z, Y, X) float32, 0 beyond the image.
        indices: (B, Z, Y, X) signed integers, background beyond the image.
    """

    images: Tensor
    indices: Tensor

    def pinned(self) -> Batch:
        """In page-locked memory if there is CUDA, from where copies run beside computing; itself elsewhere."""
        if not torch.cuda.is_available() or self.images.is_cuda:
            return self
        return Batch(self.images.pin_memory(), self.indices.pin_memory())

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and int64 indices on a device, of which the copy may still run."""
        images, indices = (t.to(device, non_blocking=True) for t in (self.images, self.indices))
        return images, indices.long()


@dataclass(frozen=True)
class Sampling:
    """How patches are drawn.

    Args:
        patch_zyx: What the network sees.
        region_zyx: What is cut, the patch in its middle; larger than the patch if augmentation turns it.
        batch_size: Regions.
        foreground_fraction: Share of patches centred on a labelled voxel, 0 to 1.
    """

    patch_zyx: ZYX
    region_zyx: ZYX
    batch_size: int
    foreground_fraction: float


def draw_batch(cases: Sequence[PatchCase], sampling: Sampling, generator: np.random.Generator) -> Batch:
    """Draw cases with replacement and a region of each.

    The last round(batch_size × foreground_fraction) patches are centred on a voxel of a label drawn evenly among
    those present in the case; the others lie anywhere. No patch reaches beyond the image more than it must; the margin
    around it, from which turned voxels come, may.

    Source:
        nnU-Net's data loader. It bounds the place on the lower side only; here both sides are bounded.
    """
    n_any = sampling.batch_size - round(sampling.batch_size * sampling.foreground_fraction)
    margin = [(r - p) // 2 for r, p in zip(sampling.region_zyx, sampling.patch_zyx, strict=True)]
    images, indices = [], []
    for place in range(sampling.batch_size):
        case = cases[int(generator.integers(len(cases)))]
        patch_start = _start(case, sampling.patch_zyx, generator, on_label=place >= n_any)
        start = [s - m for s, m in zip(patch_start, margin, strict=True)]
        images.append(cut(case.image, start, sampling.region_zyx, 0))
        indices.append(cut(case.indices, start, sampling.region_zyx, PAD_LABEL))
    return Batch(torch.stack(images), torch.stack(indices))


def _start(case: PatchCase, patch_zyx: ZYX, generator: np.random.Generator, *, on_label: bool) -> list[int]:
    """First voxel of a patch; negative where the patch is larger than the image."""
    limits = [_limits(n, p) for n, p in zip(case.shape_zyx, patch_zyx, strict=True)]
    if on_label and case.locations:
        names = sorted(case.locations)
        voxels = case.locations[names[int(generator.integers(len(names)))]]
        centre = voxels[int(generator.integers(len(voxels)))]
        wanted = [int(c) - p // 2 for c, p in zip(centre, patch_zyx, strict=True)]
        return [min(max(w, low), high) for w, (low, high) in zip(wanted, limits, strict=True)]
    return [int(generator.integers(low, high + 1)) for low, high in limits]


def _limits(n_voxels: int, patch: int) -> tuple[int, int]:
    """Lowest and highest start along an axis; a patch larger than the image is centred on it."""
    if patch >= n_voxels:
        start = -((patch - n_voxels) // 2)
        return start, start
    return 0, n_voxels - patch


def cut(array: Any, start: Sequence[int], region_zyx: ZYX, fill: int) -> Tensor:
    """A region of the last three axes of a numpy, blosc2 or torch array, filled where it leaves the array.

    Example:
        >>> cut(np.ones((1, 1, 3)), (0, 0, -1), (1, 1, 4), 0).tolist()
        [[[0.0, 1.0, 1.0, 1.0]]]
    """
    lead = array.ndim - 3
    inside, place = [], []
    for n_voxels, first, edge in zip(array.shape[lead:], start, region_zyx, strict=True):
        low, high = max(first, 0), min(first + edge, n_voxels)
        inside.append(slice(low, high))
        place.append(slice(low - first, high - first))
    found = torch.as_tensor(array[(*(slice(None),) * lead, *inside)])
    if found.shape[lead:] == tuple(region_zyx):
        return found
    result = found.new_full((*found.shape[:lead], *region_zyx), fill)
    z, y, x = place
    result[..., z, y, x] = found
    return result
