"""Values that the terms of a loss read from the outputs at one resolution."""

# B batch, C outputs, K answers for each voxel (1, or the regions), N labels without background, Z Y X or V voxels.
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from segpipe.core.labels import IGNORE_INDEX, LabelSet
from segpipe.plan.loss import Loss

_PARTS = 32  # outputs are read in so many pieces: copies of a piece are small, and on a CPU stay in its cache
_MIN_PART = {"cpu": 1 << 18, "cuda": 1 << 24}  # numbers; with smaller pieces, starting the operations takes the time


Pool = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LossInputs:
    """Outputs beside labels at one resolution, for the terms of a loss to read.

    Args:
        logits_BCZYX: The outputs, any float type.
        indices_BZYX: Inside labels, int64, 0 where ignored.
        counted_B1ZYX: False where ignored; None: every voxel counts.
        masks_BNZYX: Regions: whether a voxel is inside, bool; None without regions.
        log_right_BKZYX: float32, logarithm of the share that the right answer got.
        log_mean_BKZYX: The mean over all answers, for label smoothing; None without.
        predicted_BN: float32, sum of each label's shares over the voxels that count.
        loss: What the terms take.
        batch_dice: Whether overlaps are summed over the batch before dividing.
        pool: Sums what was summed over this process's part of the batch over all parts.
        lines: Places of the labels whose centrelines count.
    """

    logits_BCZYX: Tensor
    indices_BZYX: Tensor
    counted_B1ZYX: Tensor | None
    masks_BNZYX: Tensor | None
    log_right_BKZYX: Tensor
    log_mean_BKZYX: Tensor | None
    predicted_BN: Tensor
    loss: Loss
    batch_dice: bool
    pool: Pool
    lines: tuple[int, ...] = ()

    def overlap_BN(self, weights_B1ZYX: Tensor | None = None) -> Tensor:
        """Sum of each label's shares inside the label, over the voxels that count, weighted."""
        return self._sum_inside(self.log_right_BKZYX.exp(), weights_B1ZYX)

    def reference_BN(self, weights_B1ZYX: Tensor | None = None) -> Tensor:
        """Voxels of each label that count, weighted; float32."""
        ones = self.logits_BCZYX.new_ones((), dtype=torch.float32).expand_as(self.log_right_BKZYX)
        return self._sum_inside(ones, weights_B1ZYX)

    def shares_and_targets_BNZYX(self) -> tuple[Tensor, Tensor]:
        """Shares and masks of the labels of `lines`, float32, 0 where ignored."""
        logits, lines = self.logits_BCZYX.float(), self.lines
        if self.masks_BNZYX is None:
            shares = _channels(logits.softmax(1), [place + 1 for place in lines])
            targets = torch.stack([self.indices_BZYX == place + 1 for place in lines], 1)
        else:
            shares, targets = _channels(logits, lines).sigmoid(), _channels(self.masks_BNZYX, lines)
        if self.counted_B1ZYX is None:
            return shares, targets.float()
        return shares * self.counted_B1ZYX, (targets * self.counted_B1ZYX).float()

    def _sum_inside(self, values_BKZYX: Tensor, weights_B1ZYX: Tensor | None) -> Tensor:
        for factor in (weights_B1ZYX, self.counted_B1ZYX):
            values_BKZYX = values_BKZYX if factor is None else values_BKZYX * factor
        if self.masks_BNZYX is not None:
            return (values_BKZYX * self.masks_BNZYX).sum((2, 3, 4))
        # rows of voxels are summed by themselves: a float32 that takes up millions of voxels one by one is not exact
        values, indices = values_BKZYX[:, 0].flatten(1, 2), self.indices_BZYX.flatten(1, 2)
        sums = values.new_zeros((*values.shape[:2], self.logits_BCZYX.shape[1]))
        return sums.scatter_add(2, indices, values).sum(1)[:, 1:]


def read_outputs(
    logits_BCZYX: Tensor, indices_BZYX: Tensor, labels: LabelSet, loss: Loss, *, batch_dice: bool, pool: Pool
) -> LossInputs:
    """Read what the terms need from the outputs of one resolution.

    Args:
        logits_BCZYX: Any float type; computed in float32.
        indices_BZYX: Inside labels, int64; `IGNORE_INDEX` where nothing counts, if the labels know ignored voxels.
        labels: The structures.
        loss: What the terms take.
        batch_dice: Whether overlaps are summed over the batch before dividing.
        pool: Sums over all parts of the batch.
    """
    counted = masks = log_mean = None
    if labels.ignore_value is not None:
        counted = (indices_BZYX != IGNORE_INDEX).unsqueeze(1)
        indices_BZYX = indices_BZYX.clamp_min(0)
    if labels.has_regions:
        masks = region_masks(indices_BZYX, labels)
        signed = torch.where(masks, logits_BCZYX.float(), -logits_BCZYX.float())
        log_right = functional.logsigmoid(signed)
        log_mean = log_right - signed / 2 if loss.label_smoothing else None  # log σ(-x) = log σ(x) - x
        shares = logits_BCZYX.float().sigmoid()
        predicted = (shares if counted is None else shares * counted).sum((2, 3, 4))
    else:
        flat = None if counted is None else counted.flatten(2)
        right, mean, sums = _Softmax.apply(
            logits_BCZYX.flatten(2), indices_BZYX.flatten(1).unsqueeze(1), flat, bool(loss.label_smoothing)
        )
        shape = (logits_BCZYX.shape[0], 1, *logits_BCZYX.shape[2:])
        log_right, predicted = right.view(shape), sums[:, 1:]
        log_mean = mean.view(shape) if loss.label_smoothing else None
    lines = loss.labels_with_lines(labels.names)
    return LossInputs(
        logits_BCZYX, indices_BZYX, counted, masks, log_right, log_mean, predicted, loss, batch_dice, pool, lines
    )


def region_masks(indices_BZYX: Tensor, labels: LabelSet) -> Tensor:
    """(B, N, Z, Y, X) bool: the voxels of each region."""
    return torch.stack([_lies_in(indices_BZYX, sorted(labels.indices_of(label))) for label in labels.labels], 1)


def _lies_in(indices: Tensor, wanted: Sequence[int]) -> Tensor:
    """True where it is one of some ascending numbers. Compared run by run: a table would be copied to a GPU."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(wanted), lambda pair: pair[1] - pair[0])]
    return reduce(torch.logical_or, [(indices >= run[0]) & (indices <= run[-1]) for run in runs])


class _Softmax(torch.autograd.Function):
    """Logarithms of the right answers' shares, of the mean, and the sum of shares, without keeping the shares.

    Written by hand because autograd keeps several copies of the outputs, which with 100 labels is most of the memory.
    """

    @staticmethod
    def forward(
        context: Any, logits_BCV: Tensor, indices_B1V: Tensor, counted_B1V: Tensor | None, wants_mean: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        context.save_for_backward(logits_BCV, indices_B1V, counted_B1V)
        right_B1V = logits_BCV.new_empty(indices_B1V.shape, dtype=torch.float32)
        mean_B1V = torch.zeros_like(right_B1V) if wants_mean else right_B1V.new_zeros(())
        sums_BC = right_B1V.new_zeros(logits_BCV.shape[:2])
        for part in _parts(logits_BCV):
            logs = logits_BCV[..., part].log_softmax(1, dtype=torch.float32)
            right_B1V[..., part] = logs.gather(1, indices_B1V[..., part])
            if wants_mean:
                mean_B1V[..., part] = logs.mean(1, keepdim=True)
            shares = logs.exp_()
            if counted_B1V is not None:
                shares.mul_(counted_B1V[..., part])
            sums_BC += shares.sum(2)
        return right_B1V, mean_B1V, sums_BC

    @staticmethod
    @once_differentiable
    def backward(
        context: Any, to_right_B1V: Tensor, to_mean_B1V: Tensor, to_sums_BC: Tensor
    ) -> tuple[Tensor | None, ...]:
        logits_BCV, indices_B1V, counted_B1V = context.saved_tensors
        result = torch.empty_like(logits_BCV)
        to_sums_BC1 = to_sums_BC.unsqueeze(2)
        for part in _parts(logits_BCV):
            shares = logits_BCV[..., part].softmax(1, dtype=torch.float32)
            pull = to_sums_BC1 - (shares * to_sums_BC1).sum(1, keepdim=True)
            if counted_B1V is not None:
                pull = pull.mul_(counted_B1V[..., part])
            pull = pull.sub_(to_right_B1V[..., part])
            if to_mean_B1V.dim():
                pull = pull.sub_(to_mean_B1V[..., part])
            slopes = pull.mul_(shares).scatter_add_(1, indices_B1V[..., part], to_right_B1V[..., part])
            if to_mean_B1V.dim():
                slopes = slopes.add_(to_mean_B1V[..., part] / logits_BCV.shape[1])
            result[..., part] = slopes
        return result, None, None, None


def _channels(values_BCZYX: Tensor, places: Sequence[int]) -> Tensor:
    """Some channels in this order, new. A list as an index would be copied to a GPU, which waits for it."""
    return torch.stack([values_BCZYX[:, place] for place in places], 1)


def _parts(logits_BCV: Tensor) -> Iterator[slice]:
    n_vox = logits_BCV.shape[2]
    least = _MIN_PART.get(logits_BCV.device.type, _MIN_PART["cuda"]) // (logits_BCV.shape[0] * logits_BCV.shape[1])
    size = max(-(-n_vox // _PARTS), least, 1)
    for start in range(0, n_vox, size):
        yield slice(start, start + size)
