"""The loss of a network's outputs, deep supervision included."""

# B batch, C outputs, Z Y X voxels.
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from segpipe.core.labels import IGNORE_INDEX, LabelSet
from segpipe.plan.loss import Loss, Term
from segpipe.train.loss_terms import TERMS
from segpipe.train.loss_view import Pool, region_masks, view

_AT_FULL_RESOLUTION: tuple[Term, ...] = ("skeleton_recall",)  # a thin line does not survive being brought down


def supervision_weights(n_outputs: int, coarsest: float = 0.0) -> list[float]:
    """1, ½, ¼, …, then normalised to sum 1; the coarsest of several gets `coarsest` instead.

    nnU-Net takes 1e-6 for the coarsest where distributed training wants every weight used. Of a single output it makes
    NaN when deep supervision is on; here its weight is 1.

    Example:
        >>> [round(w, 3) for w in supervision_weights(3)]
        [0.667, 0.333, 0.0]
    """
    weights = [0.5**i for i in range(n_outputs)]
    if n_outputs > 1:
        weights[-1] = coarsest
    return [w / sum(weights) for w in weights]


def supervised_loss(
    outputs: Sequence[Tensor],
    indices_BZYX: Tensor,
    labels: LabelSet,
    *,
    batch_dice: bool,
    loss: Loss | None = None,
    coarsest: float = 0.0,
    pool: Pool = lambda value: value,
) -> Tensor:
    """The loss of every resolution, weighted.

    Args:
        outputs: Logits (B, C, Z, Y, X) of any float type, full resolution first.
        indices_BZYX: Inside labels, int64, of the first output's shape; `IGNORE_INDEX` where nothing counts, if
            `labels` has an ignore value. For coarser outputs they are brought down by nearest neighbour.
        labels: The structures.
        batch_dice: Overlaps are summed over the whole batch before dividing.
        loss: What is summed; None: Dice and cross-entropy.
        coarsest: Weight of the coarsest of several outputs.
        pool: Sums over all parts of the batch, where several processes compute one each; the loss of the whole batch is
            then the mean of theirs.

    Returns:
        A float32 scalar. 0 with gradient 0 if no voxel counts; nnU-Net's Dice is then -1, as of a perfect batch.
    """
    chosen, total = loss or Loss(), torch.zeros((), device=indices_BZYX.device)
    for level, (weight, logits) in enumerate(zip(supervision_weights(len(outputs), coarsest), outputs, strict=True)):
        terms = {t: w for t, w in chosen.terms.items() if level == 0 or t not in _AT_FULL_RESOLUTION}
        if weight and terms:
            seen = view(logits, _brought_down(indices_BZYX, logits), labels, chosen, batch_dice=batch_dice, pool=pool)
            total = total + weight * sum(w * TERMS[term](seen) for term, w in terms.items())
    if labels.ignore_value is None:
        return total
    return total * (pool((indices_BZYX != IGNORE_INDEX).any().float()) > 0)


def overlap_counts(logits_BCZYX: Tensor, indices_BZYX: Tensor, labels: LabelSet) -> Tensor:
    """(labels, 3) float64: true positives, false positives, false negatives of each label, over the batch."""
    counted_BZYX = indices_BZYX != IGNORE_INDEX
    known_BZYX, n_labels = indices_BZYX.clamp_min(0), len(labels.labels)
    if labels.has_regions:
        chosen_BNZYX, axes = (logits_BCZYX > 0) & counted_BZYX.unsqueeze(1), (0, 2, 3, 4)
        inside_BNZYX = region_masks(known_BZYX, labels) & counted_BZYX.unsqueeze(1)
        hits, n_chosen, n_inside = (
            masks.sum(axes) for masks in (chosen_BNZYX & inside_BNZYX, chosen_BNZYX, inside_BNZYX)
        )
    else:
        pairs = (logits_BCZYX.argmax(1) * (n_labels + 1) + known_BZYX)[counted_BZYX]
        table = torch.bincount(pairs, minlength=(n_labels + 1) ** 2).view(n_labels + 1, n_labels + 1)
        hits, n_chosen, n_inside = table.diagonal()[1:], table.sum(1)[1:], table.sum(0)[1:]
    return torch.stack([hits, n_chosen - hits, n_inside - hits], 1).double()


def _brought_down(indices_BZYX: Tensor, logits_BCZYX: Tensor) -> Tensor:
    """Labels at the resolution of the logits."""
    if logits_BCZYX.shape[2:] == indices_BZYX.shape[1:]:
        return indices_BZYX
    shrunk = functional.interpolate(indices_BZYX.unsqueeze(1).float(), logits_BCZYX.shape[2:], mode="nearest-exact")
    return shrunk.squeeze(1).long()
