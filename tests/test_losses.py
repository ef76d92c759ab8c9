"""train/losses.py, with nnU-Net's own losses as second opinion."""

from __future__ import annotations

import pytest
import torch

from plans import LABELS, REGIONS
from segpipe.core.labels import IGNORE_INDEX, Label, LabelSet
from segpipe.train.losses import dice_ce, overlap_counts, supervised_loss, supervision_weights, targets_for

IGNORING = LabelSet(labels=LABELS.labels, ignore_value=9)


def random_case(seed: int, n_outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2, n_outputs, 4, 5, 6) * 2, torch.randint(0, 3, (2, 4, 5, 6))


def test_a_certain_and_right_answer_costs_minus_one():
    indices = torch.randint(0, 3, (1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot(indices, 3).movedim(-1, 1).float() * 100
    assert float(dice_ce(logits, indices, LABELS, batch_dice=False)) == pytest.approx(-1, abs=1e-5)


def test_an_undecided_answer_by_hand():
    # one voxel of label a, one of background; every share is 1/3, so the entropy is ln 3
    logits, indices = torch.zeros(1, 3, 1, 1, 2), torch.tensor([[[[1, 0]]]])
    # Dice a: 2·(1/3) / (2/3 + 1) = 0.4; b: absent, 1e-5 / (2/3 + 1e-5) ~ 0
    expected = 1.0986123 - (0.4 + 1.5e-5) / 2
    assert float(dice_ce(logits, indices, LABELS, batch_dice=False)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_equals_nnunets_dice_and_cross_entropy(batch_dice, seed):
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    settings = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    theirs = DC_and_CE_loss(settings, {}, dice_class=MemoryEfficientSoftDiceLoss)
    logits, indices = random_case(seed)
    ours = dice_ce(logits, indices, LABELS, batch_dice=batch_dice)
    assert float(ours) == pytest.approx(float(theirs(logits, indices[:, None].float())), abs=1e-6)


def test_equals_nnunets_loss_with_ignored_voxels():
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    settings = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    theirs = DC_and_CE_loss(settings, {}, ignore_label=3, dice_class=MemoryEfficientSoftDiceLoss)
    logits, indices = random_case(7)
    indices[:, :2] = 3
    expected = float(theirs(logits, indices[:, None]))
    indices[indices == 3] = IGNORE_INDEX
    assert float(dice_ce(logits, indices, IGNORING, batch_dice=True)) == pytest.approx(expected, abs=1e-6)


def test_regions_equal_nnunets_dice_and_bce():
    from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    settings = {"batch_dice": False, "smooth": 1e-5, "do_bg": True, "ddp": False}
    theirs = DC_and_BCE_loss({}, settings, use_ignore_label=False, dice_class=MemoryEfficientSoftDiceLoss)
    logits, indices = random_case(2, n_outputs=2)
    targets, counted = targets_for(indices, REGIONS)
    assert counted.min() == 1
    assert (targets[:, 0] == (indices > 0)).all() and (targets[:, 1] == (indices == 2)).all()
    ours = dice_ce(logits, indices, REGIONS, batch_dice=False)
    assert float(ours) == pytest.approx(float(theirs(logits, targets)), abs=1e-6)


def test_ignored_voxels_have_no_gradient_and_all_ignored_costs_no_entropy():
    logits, indices = random_case(1)
    indices[0] = IGNORE_INDEX
    logits.requires_grad_()
    dice_ce(logits, indices, IGNORING, batch_dice=True).backward()
    assert logits.grad is not None and (logits.grad[0] == 0).all() and (logits.grad[1] != 0).any()
    nothing = torch.full_like(indices, IGNORE_INDEX)
    assert float(dice_ce(logits.detach(), nothing, IGNORING, batch_dice=True)) == pytest.approx(
        -1, abs=1e-5
    )  # empty Dice


def test_deep_supervision_equals_nnunets_wrapper():
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

    torch.manual_seed(0)
    outputs = [torch.randn(1, 3, 8 // s, 8 // s, 8 // s) for s in (1, 2, 4)]
    indices = torch.randint(0, 3, (1, 8, 8, 8))
    targets = [indices[:, s // 2 :: s, s // 2 :: s, s // 2 :: s] for s in (1, 2, 4)]  # nearest-exact: the upper middle
    wrapped = DeepSupervisionWrapper(lambda o, t: dice_ce(o, t, LABELS, batch_dice=False), supervision_weights(3))
    expected = float(wrapped(outputs, targets))
    assert float(supervised_loss(outputs, indices, LABELS, batch_dice=False)) == pytest.approx(expected, abs=1e-6)
    assert supervision_weights(1) == [1.0]


def test_overlap_counts_by_hand():
    indices = torch.tensor([[[[0, 1, 1, 2, IGNORE_INDEX]]]])
    chosen = torch.tensor([[[[1, 1, 0, 2, 2]]]])
    logits = torch.nn.functional.one_hot(chosen, 3).movedim(-1, 1).float()
    assert overlap_counts(logits, indices, IGNORING).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_label_beyond_the_outputs_is_a_programmers_fault():
    three = LabelSet(labels=(*LABELS.labels, Label(name="c", values=(3,))))
    with pytest.raises(RuntimeError):
        dice_ce(torch.zeros(1, 3, 1, 1, 1), torch.tensor([[[[3]]]]), three, batch_dice=False)
