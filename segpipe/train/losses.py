"""Dice + cross-entropy with deep supervision, as nnU-Net; regions and the ignore label included."""

# B batch, C outputs, Z Y X voxels.
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from segpipe.core.labels import IGNORE_INDEX, LabelSet

_SMOOTH = 1e-5
_SPACE = (2, 3, 4)


def targets_for(indices_BZYX: Tensor, labels: LabelSet) -> tuple[Tensor, Tensor]:
    """What the outputs should be, and where it counts.

    Args:
        indices_BZYX: Inside labels, int64.
        labels: The structures.

    Returns:
        (B, C, Z, Y, X) float of 0 and 1 (one-hot with background, or one mask for each region) and
        (B, 1, Z, Y, X) float, 0 at ignored voxels.
    """
    counted_B1ZYX = (indices_BZYX != IGNORE_INDEX).unsqueeze(1).float()
    known_BZYX = indices_BZYX.clamp_min(0)
    if labels.has_regions:
        masks = [
            torch.isin(known_BZYX, torch.tensor(labels.indices_of(label), device=known_BZYX.device))
            for label in labels.labels
        ]
        return torch.stack(masks, 1).float(), counted_B1ZYX
    onehot = functional.one_hot(known_BZYX, labels.n_outputs).movedim(-1, 1)
    return onehot.float(), counted_B1ZYX


def dice_ce(logits_BCZYX: Tensor, indices_BZYX: Tensor, labels: LabelSet, *, batch_dice: bool) -> Tensor:
    """Soft Dice (negative) plus cross-entropy at one resolution.

    Args:
        logits_BCZYX: Any float type; computed in float32.
        indices_BZYX: Inside labels, int64, `IGNORE_INDEX` where nothing counts.
        labels: The structures.
        batch_dice: Sums over the whole batch before dividing.

    Returns:
        A scalar, -1 (perfect) upwards. The cross-entropy of a batch without a counted voxel is 0.

    Source:
        nnU-Net's DC_and_CE_loss and DC_and_BCE_loss (background is not part of Dice; smooth 1e-5), equal to 1e-6.
    """
    logits = logits_BCZYX.float()
    targets_BCZYX, counted_B1ZYX = targets_for(indices_BZYX, labels)
    n_counted = counted_B1ZYX.sum().clamp_min(1)
    if labels.has_regions:
        shares = logits.sigmoid()
        losses = functional.binary_cross_entropy_with_logits(logits, targets_BCZYX, reduction="none")
        entropy = (losses * counted_B1ZYX).sum() / (n_counted * logits.shape[1])
    else:
        logs = logits.log_softmax(1)
        shares, targets_BCZYX = logs.exp()[:, 1:], targets_BCZYX[:, 1:]
        picked = logs.gather(1, indices_BZYX.clamp_min(0).unsqueeze(1))
        entropy = -(picked * counted_B1ZYX).sum() / n_counted
    axes = (0, *_SPACE) if batch_dice else _SPACE
    overlap = (shares * targets_BCZYX * counted_B1ZYX).sum(axes)
    total = (shares * counted_B1ZYX).sum(axes) + (targets_BCZYX * counted_B1ZYX).sum(axes)
    dice = (2 * overlap + _SMOOTH) / (total + _SMOOTH).clamp_min(1e-8)
    return entropy - dice.mean()


def supervision_weights(n_outputs: int) -> list[float]:
    """1, ½, ¼, … with the coarsest set to 0, then normalised to sum 1.

    Example:
        >>> [round(w, 3) for w in supervision_weights(3)]
        [0.667, 0.333, 0.0]
    """
    weights = [0.5**i for i in range(n_outputs)]
    if n_outputs > 1:
        weights[-1] = 0.0
    return [w / sum(weights) for w in weights]


def supervised_loss(outputs: Sequence[Tensor], indices_BZYX: Tensor, labels: LabelSet, *, batch_dice: bool) -> Tensor:
    """`dice_ce` of every resolution, weighted; labels are brought down by nearest neighbour."""
    total = torch.zeros((), device=indices_BZYX.device)
    for weight, logits in zip(supervision_weights(len(outputs)), outputs, strict=True):
        if weight:
            target = indices_BZYX
            if logits.shape[2:] != indices_BZYX.shape[1:]:
                shrunk = functional.interpolate(
                    indices_BZYX.unsqueeze(1).float(), logits.shape[2:], mode="nearest-exact"
                )
                target = shrunk.squeeze(1).long()
            total = total + weight * dice_ce(logits, target, labels, batch_dice=batch_dice)
    return total


def overlap_counts(logits_BCZYX: Tensor, indices_BZYX: Tensor, labels: LabelSet) -> Tensor:
    """(labels, 3) float64: true positives, false positives, false negatives of each label, over the batch."""
    targets_BCZYX, counted_B1ZYX = targets_for(indices_BZYX, labels)
    if labels.has_regions:
        chosen = (logits_BCZYX > 0).float()
    else:
        chosen = functional.one_hot(logits_BCZYX.argmax(1), labels.n_outputs).movedim(-1, 1).float()[:, 1:]
        targets_BCZYX = targets_BCZYX[:, 1:]
    chosen, axes = chosen * counted_B1ZYX, (0, *_SPACE)
    targets_BCZYX = targets_BCZYX * counted_B1ZYX
    hits = (chosen * targets_BCZYX).sum(axes)
    return torch.stack([hits, chosen.sum(axes) - hits, targets_BCZYX.sum(axes) - hits], 1).double()
