"""The loss of a network's outputs, deep supervision included."""

# B batch, C outputs, Z Y X voxels.
from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from torch import Tensor
from torch.nn import functional

from segpipe.core.choices import functions_for
from segpipe.core.errors import package_needed
from segpipe.core.labels import IGNORE_INDEX, LabelSet
from segpipe.plan.loss import TERMS, Loss
from segpipe.train.loss_inputs import LossInputs, Pool, read_outputs, region_masks

_RADIUS_VOX = 2  # steps over faces


@torch.library.custom_op("segpipe::tubes", mutates_args=())
def tubes(indices_BZYX: Tensor) -> Tensor:
    """Mark voxels at most two steps from the centreline of the labelled voxels, all labels taken as one.

    Computed on the CPU, on whatever augmentation made of the labels: an interpolated centreline would have gaps. One
    operation for torch, so that memory can be predicted without labels.

    Args:
        indices_BZYX: Inside labels; background and ignored voxels, at most 0, are no structure.

    Returns:
        bool, same shape and device. Voxels outside the structure may be in a tube.

    Source:
        Kirchhoff et al. 2024, ECCV. They thin with scikit-image, which loses vessels of 2×2 voxels (core/thinning.py).
    """
    masks = (indices_BZYX > 0).cpu().numpy()
    with ThreadPoolExecutor(len(masks)) as pool:  # thinning lets other threads run
        return torch.from_numpy(np.stack(list(pool.map(_tube, masks)))).to(indices_BZYX.device)


def _tube(mask_ZYX: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from segpipe.core.thinning import centreline  # numba is not wanted before it is needed

    line_ZYX = centreline(mask_ZYX)
    return binary_dilation(line_ZYX, iterations=_RADIUS_VOX) if line_ZYX.any() else line_ZYX


@tubes.register_fake
def _(indices_BZYX: Tensor) -> Tensor:
    return torch.empty_like(indices_BZYX, dtype=torch.bool)


_SMOOTH = 1e-5
_LEAST = 1e-6  # a power below 1 has no finite slope at 0


def dice(seen: LossInputs) -> Tensor:
    """Soft Dice, negative: -1 (perfect) to 0; a label that is absent and not predicted counts as perfect.

    Source:
        nnU-Net's MemoryEfficientSoftDiceLoss, without background (with regions, all of them); equal to 1e-6.
    """
    overlap, predicted, reference = _sums(seen)
    return -((2 * overlap + _SMOOTH) / (predicted + reference + _SMOOTH).clamp_min(1e-8)).mean()


def tversky(seen: LossInputs) -> Tensor:
    """1 - Tversky index, mean over labels, 0 (perfect) to 1.

    Source:
        Salehi et al. 2017, MLMI; MONAI's TverskyLoss without background, equal to 1e-6.
    """
    return (1 - _tversky_index(seen)).mean()


def focal_tversky(seen: LossInputs) -> Tensor:
    """(1 - Tversky index) to a power, mean over labels, 0 (perfect) to 1.

    Source:
        Abraham and Khan 2019, ISBI, who take the sum over labels; their code adds 1 to both sides of the fraction, as
        if each label had a voxel more, here 1e-5.
    """
    return (1 - _tversky_index(seen)).clamp_min(_LEAST).pow(seen.loss.focal_tversky_exponent).mean()


def ce(seen: LossInputs) -> Tensor:
    """Cross-entropy, 0 (perfect) upwards; 0 if no voxel counts. With regions binary, mean over them.

    Source:
        torch's, with its label smoothing, as nnU-Net, which smooths no regions. Where regions and an ignore label meet,
        nnU-Net takes the sum over regions in place of their mean; so it is here.
    """
    return _mean(_voxel_losses(seen), seen)


def topk(seen: LossInputs) -> Tensor:
    """Cross-entropy of the worst voxels, of which there is at least one; of each process's part of the batch.

    Source:
        nnU-Net's TopKLoss: the share is of all voxels, ignored ones included, whose loss is 0. Regions, which it
        refuses, are voxels of their own.
    """
    losses = _voxel_losses(seen)
    if seen.counted_B1ZYX is not None:
        losses = losses * seen.counted_B1ZYX
    n_worst = max(1, int(losses.numel() * seen.loss.topk_fraction))
    return losses.flatten().topk(n_worst, sorted=False).values.mean()


def focal(seen: LossInputs) -> Tensor:
    """Cross-entropy in which a voxel weighs (1 - p)^γ, p being the share of the right answer.

    Source:
        Lin et al. 2017, ICCV, without α. MONAI's FocalLoss divides by the number of outputs as well (softmax), so that
        γ = 0 is not cross-entropy; times that number it is equal to 1e-6, and with regions as it is.
    """
    logs = seen.log_right_BKZYX
    return _mean(-logs * (-logs.expm1()).clamp_min(_LEAST).pow(seen.loss.focal_gamma), seen)


def cldice(seen: LossInputs) -> Tensor:
    """1 - soft centreline Dice, mean over the labels named, 0 (perfect) to 1. Takes tens of copies of their outputs.

    Source:
        Shit et al. 2021, CVPR; soft skeleton and constants of MONAI's SoftclDiceLoss, equal to 1e-6 for one label.
        MONAI pools all labels of a sample, so that the large ones decide; here each counts alike.
    """
    with package_needed("monai", "training.loss with the term cldice"):
        from monai.losses.cldice import soft_skel  # here, since MONAI takes seconds to import

    shares, targets = seen.shares_and_targets_BNZYX()
    n_times = seen.loss.cldice_iterations
    with torch.no_grad():
        line = soft_skel(targets, n_times)
    predicted_line = soft_skel(shares, n_times)
    pairs = ((predicted_line * targets, predicted_line), (line * shares, line))
    precision, sensitivity = ((_over(seen, part) + 1) / (_over(seen, whole) + 1) for part, whole in pairs)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity + 1e-4)).mean()


def skeleton_recall(seen: LossInputs) -> Tensor:
    """Mean share of a label inside its tube around the centreline, negative: -1 (perfect) to 0.

    Source:
        Kirchhoff et al. 2024, ECCV, and their SoftSkeletonRecallLoss (smooth 1e-5), equal to 1e-6 for the same tubes.
    """
    tubes_B1ZYX = tubes(seen.indices_BZYX).unsqueeze(1)
    found, there = seen.overlap_BN(tubes_B1ZYX), seen.reference_BN(tubes_B1ZYX)
    if seen.batch_dice:
        found, there = seen.pool(torch.stack([found.sum(0), there.sum(0)]))
    return -((found + _SMOOTH) / (there + _SMOOTH).clamp_min(1e-8)).mean()


_FUNCTIONS: dict[str, Callable[[LossInputs], Tensor]] = {
    "dice": dice,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "ce": ce,
    "topk": topk,
    "focal": focal,
    "cldice": cldice,
    "skeleton_recall": skeleton_recall,
}
_OF_OUTPUTS = {name: row for name, row in TERMS.items() if not row.reads_features}  # the others are in contrast.py
TERM_FUNCTIONS = functions_for(_OF_OUTPUTS, _FUNCTIONS, "TERMS of plan/loss.py that read outputs")


def _sums(seen: LossInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, sum of shares, voxels: (B, N), or (N,) over the batch."""
    sums = seen.overlap_BN(), seen.predicted_BN, seen.reference_BN()
    if not seen.batch_dice:
        return sums
    overlap, predicted, reference = seen.pool(torch.stack([each.sum(0) for each in sums]))
    return overlap, predicted, reference


def _tversky_index(seen: LossInputs) -> Tensor:
    overlap, predicted, reference = _sums(seen)
    wrong = seen.loss.tversky_alpha * (predicted - overlap) + seen.loss.tversky_beta * (reference - overlap)
    return (overlap + _SMOOTH) / (overlap + wrong + _SMOOTH)


def _voxel_losses(seen: LossInputs) -> Tensor:
    """Cross-entropy of each voxel with smoothed targets, (B, K, Z, Y, X)."""
    share = seen.loss.label_smoothing
    if seen.log_mean_BKZYX is None:
        return -seen.log_right_BKZYX
    return -(1 - share) * seen.log_right_BKZYX - share * seen.log_mean_BKZYX


def _mean(losses_BKZYX: Tensor, seen: LossInputs) -> Tensor:
    """Mean over the voxels that count; 0 if none does."""
    if seen.counted_B1ZYX is None:
        return losses_BKZYX.mean()
    total, n_counted = seen.pool(torch.stack([(losses_BKZYX * seen.counted_B1ZYX).sum(), seen.counted_B1ZYX.sum()]))
    return total / n_counted.clamp_min(1)


def _over(seen: LossInputs, values_BNZYX: Tensor) -> Tensor:
    """Sum over the voxels, and over the batch where the plan says so."""
    return seen.pool(values_BNZYX.sum((0, 2, 3, 4))) if seen.batch_dice else values_BNZYX.sum((2, 3, 4))


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
        terms = {t: w for t, w in chosen.terms.items() if not TERMS[t].reads_features}
        terms = {t: w for t, w in terms.items() if level == 0 or not TERMS[t].only_full_resolution}
        if weight and terms:
            seen = read_outputs(
                logits, _downsample(indices_BZYX, logits), labels, chosen, batch_dice=batch_dice, pool=pool
            )
            total = total + weight * sum(w * TERM_FUNCTIONS[term](seen) for term, w in terms.items())
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
        pairs = (logits_BCZYX.argmax(1) * (n_labels + 1) + known_BZYX).flatten()
        table = pairs.new_zeros((n_labels + 1) ** 2)  # bincount and boolean indices would wait for a GPU
        table = table.scatter_add_(0, pairs, counted_BZYX.flatten().long()).view(n_labels + 1, n_labels + 1)
        hits, n_chosen, n_inside = table.diagonal()[1:], table.sum(1)[1:], table.sum(0)[1:]
    return torch.stack([hits, n_chosen - hits, n_inside - hits], 1).double()


def _downsample(indices_BZYX: Tensor, logits_BCZYX: Tensor) -> Tensor:
    """Labels at the resolution of the logits."""
    if logits_BCZYX.shape[2:] == indices_BZYX.shape[1:]:
        return indices_BZYX
    shrunk = functional.interpolate(indices_BZYX.unsqueeze(1).float(), logits_BCZYX.shape[2:], mode="nearest-exact")
    return shrunk.squeeze(1).long()
