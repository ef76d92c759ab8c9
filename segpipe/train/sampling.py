"""Which patches a step sees. A batch is a function of (seed, fold, iteration) alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segpipe.core.choices import functions_for
from segpipe.core.grid import ZYX
from segpipe.plan.training import SAMPLERS
from segpipe.prepare.places import ANNOTATED, LabelPlaces
from segpipe.prepare.store import PatchCase

PAD_LABEL = 0  # beyond the image there is background


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches, where the cases lie: in memory, or on the training device.

    Args:
        images: (B, C, Z, Y, X) float32, 0 beyond the image.
        indices: (B, Z, Y, X) signed integers, background beyond the image.
        case_ids: Of which case each patch is.
        guides: (B, Z, Y, X) inside labels that guide a cascade, background beyond the image; None outside of one.
    """

    images: Tensor
    indices: Tensor
    case_ids: tuple[str, ...]
    guides: Tensor | None = None

    def pin(self) -> Batch:
        """Put it into page-locked memory, from where copies to a GPU overlap with computing; itself if it is there."""
        return self if self.images.is_cuda else self._each(Tensor.pin_memory, self.case_ids)

    def part(self, number: int, n_parts: int) -> Batch:
        """Every `n_parts`-th patch from `number` on: those centred on labels, the last ones, are spread."""
        chosen = slice(number, None, n_parts)
        return self._each(lambda tensor: tensor[chosen], self.case_ids[chosen])

    def to(self, device: torch.device) -> Batch:
        """On a device; the copy may still run."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True), self.case_ids)

    def _each(self, change: Callable[[Tensor], Tensor], case_ids: tuple[str, ...]) -> Batch:
        guides = None if self.guides is None else change(self.guides)
        return Batch(change(self.images), change(self.indices), case_ids, guides)


@dataclass(frozen=True)
class Sampling:
    """The way in which patches are drawn.

    Args:
        patch_zyx: What the network sees.
        region_zyx: What is cut, the patch in its middle; larger than the patch if augmentation turns it.
        batch_size: Regions.
        foreground_fraction: Share of patches centred on a labelled voxel, 0 to 1.
        foreground_unit: What such a patch is centred on, a row of `plan.training.SAMPLERS`.
    """

    patch_zyx: ZYX
    region_zyx: ZYX
    batch_size: int
    foreground_fraction: float
    foreground_unit: str = "label"


_DRAWERS: dict[str, Callable[[LabelPlaces, np.random.Generator], int]] = {  # a flat index into the case
    "label": lambda places, generator: places.draw(generator, by_component=False),
    "component": lambda places, generator: places.draw(generator, by_component=True),
}
DRAW_VOXEL = functions_for(SAMPLERS, _DRAWERS, "SAMPLERS of plan/training.py")


def draw_batch(
    cases: Sequence[PatchCase],
    sampling: Sampling,
    generator: np.random.Generator,
    wanted: Collection[int] | None = None,
) -> Batch:
    """Draw cases with replacement and a region of each; cut those of the `wanted` places in the batch, or all.

    The last patches of a batch (`n_on_label`) are centred on a voxel of a label drawn evenly among those present in the
    case. The others lie anywhere; in a dataset with an ignore label, and where a case has no label, they are centred on
    a voxel that somebody annotated, if there is one. No patch reaches beyond the image more than it must: one larger
    than the image has it in its middle. The margin around it, from which turned voxels come, may. Beyond the image
    there are 0 and background.

    Raises:
        DataError: If a case on disk is damaged, with its name.

    Source:
        nnU-Net's data loader. It bounds the place on the lower side only; here both sides are bounded.
    """
    n_any = sampling.batch_size - n_on_label(sampling.batch_size, sampling.foreground_fraction, generator)
    margin = [(r - p) // 2 for r, p in zip(sampling.region_zyx, sampling.patch_zyx, strict=True)]
    images, indices, guides, case_ids = [], [], [], []
    for place in range(sampling.batch_size):
        case = cases[int(generator.integers(len(cases)))]
        patch_start = _start(case, sampling, generator, on_label=place >= n_any)
        if wanted is not None and place not in wanted:
            continue
        start = [s - m for s, m in zip(patch_start, margin, strict=True)]
        images.append(cut(case.image, start, sampling.region_zyx, 0))
        indices.append(cut(case.indices, start, sampling.region_zyx, PAD_LABEL))
        if case.guide is not None:
            guides.append(cut(case.guide, start, sampling.region_zyx, PAD_LABEL))
        case_ids.append(case.case_id)
    return Batch(torch.stack(images), torch.stack(indices), tuple(case_ids), torch.stack(guides) if guides else None)


def n_on_label(batch_size: int, fraction: float, generator: np.random.Generator) -> int:
    """Return how many patches of a batch are centred on a label.

    Returns:
        batch_size × fraction, rounded, as nnU-Net does: 1 of 2 at a third. Where that would be none or all of every
        batch although the fraction is neither, chance rounds up or down, so that the mean is the fraction: a batch of
        one at a third has a label in every third batch, and not never.
    """
    wanted = batch_size * fraction
    rounded = batch_size - round(batch_size * (1 - fraction))
    if 0 < rounded < batch_size or fraction in (0, 1):
        return rounded
    return int(wanted) + int(generator.random() < wanted - int(wanted))


def _start(case: PatchCase, sampling: Sampling, generator: np.random.Generator, *, on_label: bool) -> list[int]:
    """First voxel of a patch; negative where the patch is larger than the image."""
    limits = [_limits(n, p) for n, p in zip(case.shape_zyx, sampling.patch_zyx, strict=True)]
    labels = sorted(label for label in case.places if label != ANNOTATED)
    label = labels[int(generator.integers(len(labels)))] if on_label and labels else ANNOTATED
    if label not in case.places:
        return [int(generator.integers(low, high + 1)) for low, high in limits]
    voxel = DRAW_VOXEL[sampling.foreground_unit](case.places[label], generator)
    wanted = [int(c) - p // 2 for c, p in zip(np.unravel_index(voxel, case.shape_zyx), sampling.patch_zyx, strict=True)]
    return [min(max(w, low), high) for w, (low, high) in zip(wanted, limits, strict=True)]


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
