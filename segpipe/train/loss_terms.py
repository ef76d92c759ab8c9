"""The terms of a loss, each by its name in the plan. All compute in float32 and leave ignored voxels out."""

# B batch, K answers for each voxel (1, or the regions), N labels without background, Z Y X voxels.
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segpipe.plan.loss import Term
from segpipe.train.loss_view import View
from segpipe.train.skeleton import tubes

_SMOOTH = 1e-5
_LEAST = 1e-6  # a power below 1 has no finite slope at 0


def dice(view: View) -> Tensor:
    """Soft Dice, negative: -1 (perfect) to 0; a label that is absent and not predicted counts as perfect.

    Source:
        nnU-Net's MemoryEfficientSoftDiceLoss, without background (with regions, all of them); equal to 1e-6.
    """
    overlap, predicted, reference = _sums(view)
    return -((2 * overlap + _SMOOTH) / (predicted + reference + _SMOOTH).clamp_min(1e-8)).mean()


def tversky(view: View) -> Tensor:
    """1 - Tversky index, mean over labels, 0 (perfect) to 1.

    Source:
        Salehi et al. 2017, MLMI; MONAI's TverskyLoss without background, equal to 1e-6.
    """
    return (1 - _tversky_index(view)).mean()


def focal_tversky(view: View) -> Tensor:
    """(1 - Tversky index) to a power, mean over labels, 0 (perfect) to 1.

    Source:
        Abraham and Khan 2019, ISBI, who take the sum over labels; their code adds 1 to both sides of the fraction, as
        if each label had a voxel more, here 1e-5.
    """
    return (1 - _tversky_index(view)).clamp_min(_LEAST).pow(view.loss.focal_tversky_exponent).mean()


def ce(view: View) -> Tensor:
    """Cross-entropy, 0 (perfect) upwards; 0 if no voxel counts. With regions binary, mean over them.

    Source:
        torch's, with its label smoothing, as nnU-Net, which smooths no regions. Where regions and an ignore label meet,
        nnU-Net takes the sum over regions in place of their mean; so it is here.
    """
    return _mean(_voxel_losses(view), view)


def topk(view: View) -> Tensor:
    """Cross-entropy of the worst voxels, of which there is at least one; of each process's part of the batch.

    Source:
        nnU-Net's TopKLoss: the share is of all voxels, ignored ones included, whose loss is 0. Regions, which it
        refuses, are voxels of their own.
    """
    losses = _voxel_losses(view)
    if view.counted_B1ZYX is not None:
        losses = losses * view.counted_B1ZYX
    n_worst = max(1, int(losses.numel() * view.loss.topk_fraction))
    return losses.flatten().topk(n_worst, sorted=False).values.mean()


def focal(view: View) -> Tensor:
    """Cross-entropy in which a voxel weighs (1 - p)^γ, p being the share of the right answer.

    Source:
        Lin et al. 2017, ICCV, without α. MONAI's FocalLoss divides by the number of outputs as well (softmax), so that
        γ = 0 is not cross-entropy; times that number it is equal to 1e-6, and with regions as it is.
    """
    logs = view.log_right_BKZYX
    return _mean(-logs * (-logs.expm1()).clamp_min(_LEAST).pow(view.loss.focal_gamma), view)


def cldice(view: View) -> Tensor:
    """1 - soft centreline Dice, mean over the labels named, 0 (perfect) to 1. Takes tens of copies of their outputs.

    Source:
        Shit et al. 2021, CVPR; soft skeleton and constants of MONAI's SoftclDiceLoss, equal to 1e-6 for one label.
        MONAI pools all labels of a sample, so that the large ones decide; here each counts alike.
    """
    from monai.losses.cldice import soft_skel  # MONAI takes seconds to import

    shares, targets = view.shares_and_targets_BNZYX()
    n_times = view.loss.cldice_iterations
    with torch.no_grad():
        line = soft_skel(targets, n_times)
    predicted_line = soft_skel(shares, n_times)
    pairs = ((predicted_line * targets, predicted_line), (line * shares, line))
    precision, sensitivity = ((_over(view, part) + 1) / (_over(view, whole) + 1) for part, whole in pairs)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity + 1e-4)).mean()


def skeleton_recall(view: View) -> Tensor:
    """Mean share of a label inside its tube around the centreline, negative: -1 (perfect) to 0.

    Source:
        Kirchhoff et al. 2024, ECCV, and their SoftSkeletonRecallLoss (smooth 1e-5), equal to 1e-6 for the same tubes.
    """
    tubes_B1ZYX = tubes(view.indices_BZYX).unsqueeze(1)
    found, there = view.overlap_BN(tubes_B1ZYX), view.reference_BN(tubes_B1ZYX)
    if view.batch_dice:
        found, there = view.pool(torch.stack([found.sum(0), there.sum(0)]))
    return -((found + _SMOOTH) / (there + _SMOOTH).clamp_min(1e-8)).mean()


TERMS: dict[Term, Callable[[View], Tensor]] = {
    "dice": dice,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "ce": ce,
    "topk": topk,
    "focal": focal,
    "cldice": cldice,
    "skeleton_recall": skeleton_recall,
}


def _sums(view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, sum of shares, voxels: (B, N), or (N,) over the batch."""
    sums = view.overlap_BN(), view.predicted_BN, view.reference_BN()
    if not view.batch_dice:
        return sums
    overlap, predicted, reference = view.pool(torch.stack([each.sum(0) for each in sums]))
    return overlap, predicted, reference


def _tversky_index(view: View) -> Tensor:
    overlap, predicted, reference = _sums(view)
    wrong = view.loss.tversky_alpha * (predicted - overlap) + view.loss.tversky_beta * (reference - overlap)
    return (overlap + _SMOOTH) / (overlap + wrong + _SMOOTH)


def _voxel_losses(view: View) -> Tensor:
    """Cross-entropy of each voxel with smoothed targets, (B, K, Z, Y, X)."""
    share = view.loss.label_smoothing
    if view.log_mean_BKZYX is None:
        return -view.log_right_BKZYX
    return -(1 - share) * view.log_right_BKZYX - share * view.log_mean_BKZYX


def _mean(losses_BKZYX: Tensor, view: View) -> Tensor:
    """Mean over the voxels that count; 0 if none does."""
    if view.counted_B1ZYX is None:
        return losses_BKZYX.mean()
    total, n_counted = view.pool(torch.stack([(losses_BKZYX * view.counted_B1ZYX).sum(), view.counted_B1ZYX.sum()]))
    return total / n_counted.clamp_min(1)


def _over(view: View, values_BNZYX: Tensor) -> Tensor:
    """Sum over the voxels, and over the batch where the plan says so."""
    return view.pool(values_BNZYX.sum((0, 2, 3, 4))) if view.batch_dice else values_BNZYX.sum((2, 3, 4))
