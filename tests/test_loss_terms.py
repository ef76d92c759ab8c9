"""train/losses.py: by hand, and with MONAI's losses as second opinion where both mean the same."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from monai.losses import FocalLoss, TverskyLoss
from monai.losses.cldice import SoftclDiceLoss
from test_losses import IGNORING, SURE_REGIONS, assert_equal, random_case
from torch import Tensor

from plans import LABELS, REGIONS, small_spec
from segpipe.core.labels import IGNORE_INDEX, Label, LabelSet
from segpipe.core.thinning import centreline
from segpipe.networks.cost import cost
from segpipe.plan.loss import LOSSES, Loss
from segpipe.train.losses import supervised_loss, tubes

TUBE = LabelSet(labels=(Label(name="vessel", values=(1,)),))
TWO_VOXELS = torch.zeros(1, 3, 1, 1, 2), torch.tensor([[[[1, 0]]]])  # label a and background, every share 1/3


def loss_of(case: tuple[Tensor, Tensor], loss: Loss, labels: LabelSet = LABELS, *, batch_dice: bool = False) -> float:
    logits, indices = case
    return float(supervised_loss([logits], indices, labels, batch_dice=batch_dice, loss=loss))


def targets(indices: Tensor, n_outputs: int) -> Tensor:
    return torch.nn.functional.one_hot(indices, n_outputs).movedim(-1, 1).float()


def masks(indices: Tensor) -> Tensor:
    """Of REGIONS: whole and core."""
    return torch.stack([indices > 0, indices == 2], 1).float()


def test_tversky_by_hand():
    loss = Loss(terms={"tversky": 1.0}, tversky_alpha=0.3, tversky_beta=0.7)
    # a: hit 1/3, false positive 1/3 (on background), false negative 2/3: (1/3) / (1/3 + 0.3/3 + 0.7·2/3) = 10/27
    # b: absent, false positive 2/3: 1e-5 / (0.2 + 1e-5) ~ 5e-5
    assert loss_of(TWO_VOXELS, loss) == pytest.approx(1 - (10 / 27 + 5e-5) / 2, abs=2e-5)
    focal = Loss(terms={"focal_tversky": 1.0}, focal_tversky_exponent=0.5)
    assert loss_of(TWO_VOXELS, focal) == pytest.approx((math.sqrt(17 / 27) + math.sqrt(1 - 5e-5)) / 2, abs=2e-5)


def test_tversky_of_equal_halves_is_dice():
    half, case = Loss(terms={"tversky": 1.0}, tversky_alpha=0.5, tversky_beta=0.5), random_case(0)
    assert loss_of(case, half) - 1 == pytest.approx(loss_of(case, Loss(terms={"dice": 1.0})), abs=1e-5)


def test_focal_by_hand():
    # both voxels: share 1/3 of the right answer, so (2/3)^2 ln 3
    assert loss_of(TWO_VOXELS, Loss(terms={"focal": 1.0})) == pytest.approx(4 / 9 * math.log(3), abs=1e-6)


@pytest.mark.parametrize("labels", [LABELS, IGNORING, SURE_REGIONS, REGIONS])
def test_focal_that_does_not_focus_and_topk_of_all_are_cross_entropy(labels):
    case = random_case(1, labels.n_outputs)
    expected = loss_of(case, Loss(terms={"ce": 1.0}), labels)
    assert loss_of(case, Loss(terms={"focal": 1.0}, focal_gamma=0.0), labels) == pytest.approx(expected, abs=1e-6)
    if not (labels.has_regions and labels.ignore_value):  # there cross-entropy is a sum over regions
        assert loss_of(case, Loss(terms={"topk": 1.0}, topk_fraction=1.0), labels) == pytest.approx(expected, abs=1e-6)


def test_topk_takes_the_worst_voxels_and_at_least_one():
    logits, indices = torch.zeros(1, 3, 1, 1, 4), torch.tensor([[[[0, 1, 2, 0]]]])
    logits[0, 0, 0, 0, 0] = 5.0  # sure and right: the others cost ln 3
    half = Loss(terms={"topk": 1.0}, topk_fraction=0.5)
    assert loss_of((logits, indices), half) == pytest.approx(math.log(3), abs=1e-6)
    assert loss_of((logits, indices), Loss.from_name("topk")) == pytest.approx(
        math.log(3), abs=1e-6
    )  # int(0.4) is none


def test_smoothed_targets_by_hand():
    # region: z = 2 inside, t = 0.9 + 0.1/2 = 0.95; 0.95·ln(1+e^-2) + 0.05·ln(1+e^2)
    logits, indices = torch.full((1, 2, 1, 1, 1), 2.0), torch.tensor([[[[2]]]])
    expected = 0.95 * math.log1p(math.exp(-2)) + 0.05 * math.log1p(math.exp(2))
    smooth = Loss(terms={"ce": 1.0}, label_smoothing=0.1)
    assert loss_of((logits, indices), smooth, SURE_REGIONS) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ignored", [0, 2])
def test_smoothed_cross_entropy_equals_torchs(ignored):
    logits, indices = random_case(2, n_ignored_slices=ignored)
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=0.2, ignore_index=IGNORE_INDEX)
    smooth = Loss(terms={"ce": 1.0}, label_smoothing=0.2)
    assert_equal(
        lambda x: supervised_loss([x], indices, IGNORING, batch_dice=False, loss=smooth),
        lambda x: theirs(x, indices),
        logits,
    )


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("has_regions", [False, True])
def test_tversky_equals_monais(has_regions, batch_dice):
    labels = SURE_REGIONS if has_regions else LABELS
    logits, indices = random_case(3, labels.n_outputs)
    theirs = TverskyLoss(
        include_background=has_regions,
        sigmoid=has_regions,
        softmax=not has_regions,
        alpha=0.3,
        beta=0.7,
        batch=batch_dice,
    )
    wanted = masks(indices) if has_regions else targets(indices, 3)
    assert_equal(
        lambda x: supervised_loss([x], indices, labels, batch_dice=batch_dice, loss=Loss.from_name("tversky")),
        lambda x: theirs(x, wanted),
        logits,
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("has_regions", [False, True])
def test_focal_equals_monais(has_regions, gamma):
    labels = SURE_REGIONS if has_regions else LABELS
    logits, indices = random_case(4, labels.n_outputs)
    theirs = FocalLoss(gamma=gamma, use_softmax=not has_regions)
    wanted = masks(indices) if has_regions else targets(indices, 3)
    n_times = 1 if has_regions else 3  # MONAI's mean is over the outputs too
    assert_equal(
        lambda x: supervised_loss(
            [x], indices, labels, batch_dice=False, loss=Loss(terms={"focal": 1.0}, focal_gamma=gamma)
        ),
        lambda x: n_times * theirs(x, wanted),
        logits,
    )


@pytest.mark.parametrize("n_slices", [1, 6])
def test_cldice_equals_monais(n_slices):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 2, n_slices, 9, 10, generator=generator)
    indices = (torch.randn(2, n_slices, 9, 10, generator=generator) > 0.5).long()
    theirs = SoftclDiceLoss(iter_=2, softmax=True, include_background=False)
    ours = Loss(terms={"cldice": 1.0}, cldice_iterations=2)
    assert_equal(
        lambda x: supervised_loss([x], indices, TUBE, batch_dice=False, loss=ours),
        lambda x: theirs(x, targets(indices, 2)),
        logits,
    )


def test_cldice_of_named_labels_is_that_of_a_plan_with_these_alone():
    generator = torch.Generator().manual_seed(6)
    logits, indices = torch.randn(2, 6, 5, 9, 10, generator=generator), torch.randint(0, 6, (2, 5, 9, 10))
    names = tuple(Label(name=f"label {n}", values=(n,)) for n in range(1, 6))
    shares, terms = logits.softmax(1), {"cldice": 1.0}
    each = []
    for place in (4, 2):  # as two answers, this label and the rest, of which the logarithms are the logits
        pair = torch.stack([1 - shares[:, place], shares[:, place]], 1).log()
        mask = (indices == place).long()
        each.append(supervised_loss([pair], mask, TUBE, batch_dice=False, loss=Loss(terms=terms)))
    chosen = Loss(terms=terms, cldice_labels=("label 4", "label 2"))
    found = supervised_loss([logits], indices, LabelSet(labels=names), batch_dice=False, loss=chosen)
    assert float(found) == pytest.approx(float(sum(each) / 2), abs=1e-6)


def vessel(width: int) -> Tensor:
    """A straight vessel along Z, square, in the middle."""
    indices = torch.zeros(1, 9, 12, 12, dtype=torch.int64)
    indices[:, :, 5 : 5 + width, 5 : 5 + width] = 1
    return indices


def test_a_tube_by_hand():
    # thinned to one voxel in each slice; two steps over faces from it are 13 voxels in its slice
    found = tubes(vessel(3))
    assert found.dtype == torch.bool and found[0, 4].sum() == 13 and found[0, 4, 6, 6]
    assert found[0, 4].tolist() == [[abs(y - 6) + abs(x - 6) <= 2 for x in range(12)] for y in range(12)]
    assert tubes(vessel(2))[0, 1:-1, 5:7, 5:7].all(), "a vessel of 2×2 voxels keeps its tube"
    assert not tubes(torch.zeros(2, 3, 4, 5).long()).any() and not tubes(vessel(3) * IGNORE_INDEX).any()


def test_skeleton_recall_by_hand():
    indices = vessel(5)
    logits = torch.zeros(1, 2, 9, 12, 12)
    inside = tubes(indices)[0] & (indices[0] == 1)
    logits[0, 1, inside] = math.log(3)  # share 3/4 in the tube, 1/2 elsewhere
    recall = Loss(terms={"skeleton_recall": 1.0})
    assert loss_of((logits, indices), recall, TUBE) == pytest.approx(-0.75, abs=1e-6)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_skeleton_recall_is_the_soft_recall_in_the_tubes(batch_dice):
    """Second opinion in numpy, with an ignored slice: outside the structure, and not in the sums."""
    generator = torch.Generator().manual_seed(6)
    blobs = torch.randn(2, 1, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(blobs, (9, 12, 12), mode="trilinear", align_corners=False)[:, 0]
    indices = (fine > 0).long() + (fine > 0.5).long()
    indices[1, :3] = IGNORE_INDEX
    logits = torch.randn(2, 3, 9, 12, 12, generator=generator)
    shares, sums = logits.softmax(1).double().numpy(), np.zeros((2, 2, 2))
    for sample, reference in enumerate(indices.numpy()):
        line = np.argwhere(centreline(reference > 0))
        voxels = np.argwhere(reference > 0)
        near = voxels[(np.abs(voxels[:, None] - line[None]).sum(2) <= 2).any(1)]
        for z, y, x in near:
            label = reference[z, y, x]
            sums[:, sample, label - 1] += shares[sample, label, z, y, x], 1
    if batch_dice:
        sums = sums.sum(1, keepdims=True)
    expected = -((sums[0] + 1e-5) / (sums[1] + 1e-5)).mean()
    recall = Loss(terms={"skeleton_recall": 1.0})
    assert loss_of((logits, indices), recall, IGNORING, batch_dice=batch_dice) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [IGNORING, REGIONS])
def test_memory_of_every_loss_can_be_predicted(name, labels):
    """No term looks at a number, which a prediction does not have."""
    loss = partial(supervised_loss, labels=labels, batch_dice=False, loss=Loss.from_name(name))
    assert cost(small_spec(), 1, labels.n_outputs, (8, 8, 8), 1, loss=loss).kept_activation_bytes > 0


def test_skeleton_recall_is_asked_at_full_resolution_alone():
    outputs = [torch.randn(1, 2, 8 // s, 8 // s, 8 // s, requires_grad=True) for s in (1, 2, 4)]
    indices = torch.zeros(1, 8, 8, 8).long()
    indices[:, :, 2:6, 2:6] = 1
    loss = supervised_loss(outputs, indices, TUBE, batch_dice=False, loss=Loss(terms={"skeleton_recall": 1.0}))
    loss.backward()
    assert outputs[0].grad is not None and outputs[1].grad is None and outputs[2].grad is None
    alone = supervised_loss(outputs[:1], indices, TUBE, batch_dice=False, loss=Loss(terms={"skeleton_recall": 1.0}))
    assert float(loss.detach()) == pytest.approx(2 / 3 * float(alone.detach()), abs=1e-6)
