"""train/losses.py, with nnU-Net's own losses as second opinion."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nnunetv2.training.loss import compound_losses, dice, robust_ce_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor

from plans import LABELS, REGIONS
from segpipe.core.labels import IGNORE_INDEX, Label, LabelSet
from segpipe.plan.loss import LOSSES, Loss
from segpipe.train.losses import overlap_counts, supervised_loss, supervision_weights

IGNORING = LabelSet(labels=LABELS.labels, ignore_value=9)
SURE_REGIONS = LabelSet(labels=REGIONS.labels, paint_values=REGIONS.paint_values)
ALL_SETS = pytest.mark.parametrize("labels", [LABELS, IGNORING, SURE_REGIONS, REGIONS])


def random_case(seed: int, n_outputs: int = 3, n_ignored_slices: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, n_outputs, 4, 5, 6, generator=generator) * 2
    indices = torch.randint(0, 3, (2, 4, 5, 6), generator=generator)
    indices[:, :n_ignored_slices] = IGNORE_INDEX
    return logits, indices


def value_and_gradient(function: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[float, Tensor]:
    logits = logits.clone().requires_grad_()
    value = function(logits)
    value.backward()
    assert logits.grad is not None
    return value.item(), logits.grad


def assert_equal(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], logits: Tensor) -> None:
    """The same value and gradient, the latter to 1e-6 of its largest number."""
    (value, gradient), (expected, wanted) = value_and_gradient(ours, logits), value_and_gradient(theirs, logits)
    assert value == pytest.approx(expected, abs=1e-6)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6 * wanted.abs().max().item())


def test_a_certain_and_right_answer_costs_minus_one():
    indices = torch.randint(0, 3, (1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot(indices, 3).movedim(-1, 1).float() * 100
    assert float(supervised_loss([logits], indices, LABELS, batch_dice=False)) == pytest.approx(-1, abs=1e-5)


def test_an_undecided_answer_by_hand():
    # one voxel of label a, one of background; every share is 1/3, so the entropy is ln 3
    logits, indices = torch.zeros(1, 3, 1, 1, 2), torch.tensor([[[[1, 0]]]])
    # Dice a: 2·(1/3) / (2/3 + 1) = 0.4; b: absent, 1e-5 / (2/3 + 1e-5) ~ 0
    expected = 1.0986123 - (0.4 + 1.5e-5) / 2
    assert float(supervised_loss([logits], indices, LABELS, batch_dice=False)) == pytest.approx(expected, abs=1e-5)


def nnunets(name: str, *, batch_dice: bool, ignore: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    """nnU-Net's loss of a name of ours; its labels are (B, 1, Z, Y, X), regions one-hot."""
    own = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    regions = own | {"do_bg": True}
    masked = -100 if ignore is None else ignore
    small = dice.MemoryEfficientSoftDiceLoss
    made: dict[str, Callable[[], torch.nn.Module]] = {
        "dice_ce": lambda: compound_losses.DC_and_CE_loss(own, {}, ignore_label=ignore, dice_class=small),
        "dice_topk": lambda: compound_losses.DC_and_topk_loss(own, {"k": 10}, ignore_label=ignore),
        "dice": lambda: small(apply_nonlin=softmax_helper_dim1, **own),
        "ce": lambda: robust_ce_loss.RobustCrossEntropyLoss(ignore_index=masked),
        "topk": lambda: robust_ce_loss.TopKLoss(ignore_index=masked, k=10),
        "smooth topk": lambda: robust_ce_loss.TopKLoss(ignore_index=masked, k=10, label_smoothing=0.1),
        "regions": lambda: compound_losses.DC_and_BCE_loss({}, regions, use_ignore_label=ignore is not None),
    }
    return made[name]()


@pytest.mark.filterwarnings("ignore:size_average:UserWarning")  # nnU-Net's TopKLoss says `reduce=False`
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("n_ignored_slices", [None, 0, 1, 3])
@pytest.mark.parametrize("name", ["dice_ce", "dice_topk", "dice", "ce", "topk", "smooth topk"])
def test_equals_nnunets(name, n_ignored_slices, batch_dice):
    if name == "dice" and n_ignored_slices:
        return  # its Dice alone takes the ignore label for a label
    theirs = nnunets(name, batch_dice=batch_dice, ignore=None if n_ignored_slices is None else 3)
    logits, indices = random_case(11, n_ignored_slices=n_ignored_slices or 0)
    loss = Loss.model_validate({"preset": "topk", "label_smoothing": 0.1} if name == "smooth topk" else name)
    labels = LABELS if n_ignored_slices is None else IGNORING
    targets = torch.where(indices == IGNORE_INDEX, 3, indices).unsqueeze(1)
    assert_equal(
        lambda x: supervised_loss([x], indices, labels, batch_dice=batch_dice, loss=loss),
        lambda x: theirs(x, targets),
        logits,
    )


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("n_ignored_slices", [None, 0, 1, 3])
def test_regions_equal_nnunets(n_ignored_slices, batch_dice):
    theirs = nnunets("regions", batch_dice=batch_dice, ignore=None if n_ignored_slices is None else 9)
    logits, indices = random_case(2, n_outputs=2, n_ignored_slices=n_ignored_slices or 0)
    masks = [indices > 0, indices == 2]  # whole, core
    if n_ignored_slices is not None:
        masks.append(indices == IGNORE_INDEX)
    targets = torch.stack(masks, 1).float()
    labels = SURE_REGIONS if n_ignored_slices is None else REGIONS
    assert_equal(
        lambda x: supervised_loss([x], indices, labels, batch_dice=batch_dice),
        lambda x: theirs(x, targets),
        logits,
    )


@pytest.mark.parametrize("n_outputs", [2, 3, 4])
def test_deep_supervision_equals_nnunets(n_outputs):
    torch.manual_seed(0)
    steps = [2**level for level in range(n_outputs)]
    outputs = [torch.randn(1, 3, 16 // s, 16 // s, 16 // s) for s in steps]
    indices = torch.randint(0, 3, (1, 16, 16, 16))
    targets = [indices[:, None, s // 2 :: s, s // 2 :: s, s // 2 :: s] for s in steps]  # nearest: the upper middle
    weights = [0.5**level for level in range(n_outputs - 1)] + [0.0]  # nnUNetTrainer._build_loss
    theirs = DeepSupervisionWrapper(
        nnunets("dice_ce", batch_dice=False, ignore=None), [w / sum(weights) for w in weights]
    )
    ours = float(supervised_loss(outputs, indices, LABELS, batch_dice=False))
    assert ours == pytest.approx(float(theirs(outputs, targets)), abs=1e-6)


def test_weights_of_deep_supervision_by_hand():
    assert supervision_weights(1) == [1.0]
    assert supervision_weights(2) == [1.0, 0.0]
    assert supervision_weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])
    assert supervision_weights(2, coarsest=1e-6) == pytest.approx([1 / 1.000001, 1e-6 / 1.000001])
    outputs = [torch.randn(1, 3, 4, 4, 4, requires_grad=True), torch.randn(1, 3, 2, 2, 2, requires_grad=True)]
    supervised_loss(outputs, torch.ones(1, 4, 4, 4).long(), LABELS, batch_dice=False, coarsest=1e-6).backward()
    assert outputs[1].grad is not None and 0 < outputs[1].grad.abs().max() < 1e-6


@pytest.mark.parametrize("n_outputs", [2, 40])
def test_many_voxels_and_labels_equal_nnunets(n_outputs):
    """More voxels than are read at once, and gradients in outputs that no voxel has."""
    labels = LabelSet(labels=tuple(Label(name=f"l{i}", values=(i,)) for i in range(1, n_outputs)))
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, n_outputs, 48, 56, 64, generator=generator) * 3
    indices = torch.randint(0, max(2, n_outputs - 5), (2, 48, 56, 64), generator=generator)
    assert_equal(
        lambda x: supervised_loss([x], indices, labels, batch_dice=True),
        lambda x: nnunets("dice_ce", batch_dice=True, ignore=None)(x, indices.unsqueeze(1)),
        logits,
    )


def test_channels_that_lie_side_by_side_give_the_same():
    logits, indices = random_case(3)
    aside = logits.contiguous(memory_format=torch.channels_last_3d)
    results = [
        value_and_gradient(lambda x: supervised_loss([x], indices, LABELS, batch_dice=False), x)
        for x in (logits, aside)
    ]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-7)
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("name", LOSSES)
@ALL_SETS
def test_gradients_are_the_slopes(name, labels):
    """Second opinion for every loss: the change of the value along a random direction."""
    logits, indices = random_case(5, labels.n_outputs, n_ignored_slices=labels.ignore_value is not None)
    loss = Loss.from_name(name)
    function = lambda x: supervised_loss([x], indices, labels, batch_dice=True, loss=loss)  # noqa: E731
    _, gradient = value_and_gradient(function, logits)
    assert gradient.isfinite().all()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(6))
    step = 1e-3  # topk bends where another voxel becomes one of the worst
    slope = float(function(logits + step * direction) - function(logits - step * direction)) / (2 * step)
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=0.02, abs=2e-3)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [IGNORING, REGIONS])
def test_ignored_voxels_have_no_gradient_and_what_they_hold_means_nothing(name, labels):
    logits, indices = random_case(1, labels.n_outputs, n_ignored_slices=2)
    other = torch.where((indices == IGNORE_INDEX).unsqueeze(1), 5 * logits.flip(1), logits)
    loss = Loss.from_name(name)
    results = [
        value_and_gradient(lambda x: supervised_loss([x], indices, labels, batch_dice=False, loss=loss), x)
        for x in (logits, other)
    ]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-7)
    assert (results[0][1][:, :, :2] == 0).all() and (results[0][1][:, :, 2:] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
@ALL_SETS
def test_no_loss_is_nan(name, labels, dtype):
    """Without foreground, everything ignored, a sample ignored, one voxel ignored, and the surest right and wrong."""
    loss = Loss.model_validate(name)
    background, full = torch.zeros(2, 4, 4, 4).long(), torch.ones(2, 4, 4, 4).long()
    cases = [background, full]
    if labels.ignore_value is not None:
        half, nothing = full.clone(), torch.full_like(full, IGNORE_INDEX)
        half[0] = IGNORE_INDEX
        cases += [half, nothing]
    for indices in cases:
        for scale in (0.0, 1.0, 1e4, -1e4):
            logits = scale * torch.ones(2, labels.n_outputs, 4, 4, 4, dtype=dtype)
            logits[:, 0] *= -1
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
                value, gradient = value_and_gradient(
                    lambda x: supervised_loss([x], indices, labels, batch_dice=False, loss=loss),  # noqa: B023
                    logits,
                )
            assert torch.tensor(value).isfinite() and gradient.isfinite().all() and gradient.dtype == dtype
            if (indices == IGNORE_INDEX).all():
                assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@ALL_SETS
def test_short_floats_give_the_loss_of_their_values(name, labels):
    """Nothing is computed in bfloat16, inside autocast either."""
    logits, indices = random_case(8, labels.n_outputs)
    rounded, loss = logits.bfloat16(), Loss.from_name(name)
    with torch.autocast("cpu", torch.bfloat16):
        short = supervised_loss([rounded], indices, labels, batch_dice=False, loss=loss)
    long = supervised_loss([rounded.float()], indices, labels, batch_dice=False, loss=loss)
    assert short.dtype == torch.float32 and float(short) == pytest.approx(float(long), abs=1e-6)


def test_a_weighted_loss_is_the_weighted_sum_of_its_terms():
    logits, indices = random_case(9)
    both = Loss(terms={"dice": 0.5, "focal": 2.0}, focal_gamma=1.5)
    parts = Loss(terms={"dice": 1.0}), Loss(terms={"focal": 1.0}, focal_gamma=1.5)
    whole, first, second = (
        float(supervised_loss([logits], indices, LABELS, batch_dice=False, loss=loss)) for loss in (both, *parts)
    )
    assert whole == pytest.approx(0.5 * first + 2 * second, abs=1e-6)


def test_overlap_counts_by_hand():
    indices = torch.tensor([[[[0, 1, 1, 2, IGNORE_INDEX]]]])
    chosen = torch.tensor([[[[1, 1, 0, 2, 2]]]])
    logits = torch.nn.functional.one_hot(chosen, 3).movedim(-1, 1).float()
    assert overlap_counts(logits, indices, IGNORING).tolist() == [[1, 1, 1], [1, 0, 0]]
    # regions: whole (1 and 2) is said of the first three voxels, core (2) of the second
    said = torch.tensor([[1.0, 1, 1, -1, 1], [-1, 1, -1, -1, 1]]).view(1, 2, 1, 1, 5)
    assert overlap_counts(said, indices, REGIONS).tolist() == [[2, 1, 1], [0, 1, 1]]


def test_a_label_beyond_the_outputs_is_a_programmers_fault():
    three = LabelSet(labels=(*LABELS.labels, Label(name="c", values=(3,))))
    with pytest.raises(RuntimeError):
        supervised_loss([torch.zeros(1, 3, 1, 1, 1)], torch.tensor([[[[3]]]]), three, batch_dice=False)
