"""Labels that a coarser network predicted, as input of a finer one: changed in training, then one channel each.

They are changed so that the finer network does not trust them blindly: on the cases it is trained on they are as good
as on new ones, but not as varied.
"""

# B batch, C channels, Z Y X voxels.
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from segpipe.plan.augmentation import Augmentation

_TOUCHING = np.ones((3, 3, 3))  # voxels that share a corner are connected


@dataclass(frozen=True)
class Reshaping:
    """A label grows, shrinks, loses gaps or loses spurs: one of `OPERATIONS`, by a ball."""

    label: int
    operation: str
    radius_vox: float


@dataclass(frozen=True)
class Removal:
    """A label loses a connected part.

    Args:
        label: Which.
        pick: 0 to 1, which of its parts.
        below_share: Of the patch; parts that cover as much stay.
    """

    label: int
    pick: float
    below_share: float


Change = Reshaping | Removal


def draw_changes(
    augmentation: Augmentation, n_samples: int, n_labels: int, generator: np.random.Generator
) -> tuple[tuple[Change, ...], ...]:
    """Draw what is done to the guide of each sample, in order; `generator` is the source of all randomness.

    Source:
        nnU-Net's augmentation of cascades (nnunetv2 2.8.1). Its balls of a radius that is no whole number have an even
        number of voxels across, so that a label moves by half a voxel; ours are round about a voxel.
    """
    operations, result = list(OPERATIONS), []
    for _ in range(n_samples):
        changes: list[Change] = []
        if generator.random() < augmentation.p_guide_shape:
            for label in _some_labels(augmentation, n_labels, generator):
                operation = operations[int(generator.integers(len(operations)))]
                changes.append(Reshaping(label, operation, float(generator.uniform(*augmentation.guide_radius_vox))))
        if generator.random() < augmentation.p_guide_part:
            for label in _some_labels(augmentation, n_labels, generator):
                changes.append(Removal(label, float(generator.random()), augmentation.guide_part_share))
        result.append(tuple(changes))
    return tuple(result)


def _some_labels(augmentation: Augmentation, n_labels: int, generator: np.random.Generator) -> list[int]:
    """Draw some labels in random order: what one label takes, the next may take back."""
    order = generator.permutation(n_labels) + 1
    return [int(label) for label in order[generator.random(n_labels) < augmentation.p_guide_label]]


def change_guides(guides_BZYX: Tensor, changes: Sequence[Sequence[Change]]) -> Tensor:
    """New guides; a part that is removed is looked for on the CPU, for which a GPU is waited."""
    result = guides_BZYX.clone()
    for guide_ZYX, of_sample in zip(result, changes, strict=True):
        for change in of_sample:
            if isinstance(change, Reshaping):
                _reshape_(guide_ZYX, change)
            else:
                _remove_(guide_ZYX, change)
    return result


def _reshape_(guide_ZYX: Tensor, change: Reshaping) -> None:
    """Change a label: what it gains, others lose; what it loses becomes background."""
    before = guide_ZYX == change.label
    after = OPERATIONS[change.operation](before, change.radius_vox)
    guide_ZYX.masked_fill_(before & ~after, 0).masked_fill_(after, change.label)


def _remove_(guide_ZYX: Tensor, change: Removal) -> None:
    parts, _ = ndimage.label((guide_ZYX == change.label).cpu().numpy(), _TOUCHING)
    sizes = np.bincount(parts.reshape(-1))
    sizes[0] = 0
    small = np.flatnonzero((sizes > 0) & (sizes < change.below_share * parts.size))
    if small.size:
        chosen = small[min(int(change.pick * small.size), small.size - 1)]
        guide_ZYX.masked_fill_(torch.from_numpy(parts == chosen).to(guide_ZYX.device), 0)


def dilate(mask_ZYX: Tensor, radius_vox: float) -> Tensor:
    """Voxels within a distance of a mask, bool; beyond the volume there is nothing.

    Squared distances are added up axis by axis, so the time grows with the radius and not with the ball.
    """
    limit = int(radius_vox**2)
    squared = torch.where(mask_ZYX, 0, limit + 1).to(torch.int16)  # what is farther is not told apart
    for axis, edge in enumerate(mask_ZYX.shape):
        nearest = squared.clone()
        for step in range(1, min(int(radius_vox), edge - 1) + 1):
            first, last = (nearest.narrow(axis, start, edge - step) for start in (0, step))
            torch.minimum(first, squared.narrow(axis, step, edge - step) + step**2, out=first)
            torch.minimum(last, squared.narrow(axis, 0, edge - step) + step**2, out=last)
        squared = nearest
    return squared <= limit


def erode(mask_ZYX: Tensor, radius_vox: float) -> Tensor:
    """Keep voxels deeper in a mask than a distance; the mask continues beyond the volume."""
    return ~dilate(~mask_ZYX, radius_vox)


def open_mask(mask_ZYX: Tensor, radius_vox: float) -> Tensor:
    """Remove spurs and islands that no ball fits into."""
    return dilate(erode(mask_ZYX, radius_vox), radius_vox)


def close_mask(mask_ZYX: Tensor, radius_vox: float) -> Tensor:
    """Fill gaps that no ball fits into."""
    return erode(dilate(mask_ZYX, radius_vox), radius_vox)


OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "dilate": dilate,
    "erode": erode,
    "close": close_mask,
    "open": open_mask,
}


def add_guides(images_BCZYX: Tensor, guides_BZYX: Tensor | None, n_labels: int) -> Tensor:
    """Images with one more channel for each label 1 … n_labels: 1 where the guide has it, else 0.

    Args:
        images_BCZYX: Float.
        guides_BZYX: Inside labels, any type; None: outside a cascade, and the images stay as they are.
        n_labels: Inside labels besides background.

    Source:
        nnU-Net's input of cascades.
    """
    if guides_BZYX is None:
        return images_BCZYX
    labels = torch.arange(1, n_labels + 1, device=guides_BZYX.device).view(1, -1, 1, 1, 1)
    return torch.cat([images_BCZYX, (guides_BZYX[:, None] == labels).to(images_BCZYX.dtype)], dim=1)
