"""networks/sparse_ift.py and train/rigl.py"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from specs import VARIANTS
from test_fold import expect_to_go_on, plan_with, train, training_of
from torch import nn

from plans import small_spec
from segpipe.networks.build import build
from segpipe.networks.parts import SparseKernels
from segpipe.networks.sparse_ift import inner_features, n_branches, rank, rewrite, sparse_kernels, widen
from segpipe.networks.spec import NetworkSpec
from segpipe.train.rigl import RigL, kept_counts


class Block(nn.Module):
    """The basic block of a ResNet; only its parameters matter here."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, bias=False), nn.BatchNorm2d(n_out)
        if n_in != n_out:
            self.skip = nn.Sequential(nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out))


def resnet18(width: int = 64) -> nn.Module:
    """ResNet-18 for 100 classes of small photographs."""
    widths = [width * 2**stage for stage in range(4)]
    stages = [m for a, b in zip([width, *widths], widths, strict=False) for m in (Block(a, b), Block(b, b))]
    stem = [nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width)]
    return nn.Sequential(*stem, *stages, nn.Linear(widths[-1], 100))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("wide", (22_152_430, 44_755_172, 111_347_550)),
        ("parallel", (22_220_964, 44_207_268, 110_166_180)),
        ("factorised", (22_232_206, 44_222_632, 110_190_216)),
        ("doped", (16_698_276, 19_440_804, 21_087_524)),
    ],
)
def test_parameters_of_resnet18_are_as_many_as_the_authors(family, expected):
    assert count(resnet18()) == 11_220_132
    with torch.device("meta"):
        for sparsity, n in zip((0.5, 0.75, 0.9), expected, strict=True):
            sparse = SparseKernels(family=family, sparsity=sparsity)
            spec = small_spec().model_copy(update={"features": (64, 128), "sparse": sparse})
            network = resnet18(widen(spec).features[0])
            assert count(rewrite(network, sparse, nn.BatchNorm2d, lambda _: nn.ReLU())) == n


def test_a_kernel_of_three_axes_by_hand():
    # 64 channels, 27 voxels: 27·64·64 / (0.25 · (27·64 + 64)) = 246.9; 0.75 · 27·64·64 / (27·64 + 64) = 46.3
    assert (n_branches(0.75), inner_features(64, 64, 27, 0.75), rank(64, 64, 27, 0.75)) == (4, 247, 46)
    spec = small_spec().model_copy(update={"sparse": SparseKernels(family="wide", sparsity=0.75)})
    assert widen(spec).features == (8, 16)


@pytest.mark.parametrize("family", ["wide", "parallel", "factorised", "doped"])
def test_what_is_not_masked_multiplies_as_often_as_the_dense_network(family):
    def n_numbers(sparse: SparseKernels | None) -> float:
        features = (96, 192)  # so many that rounding is little
        with torch.device("meta"):
            network = build(small_spec().model_copy(update={"features": features, "sparse": sparse}), 1, 3)
        masked = {id(p) for p in sparse_kernels(network).values()}
        convolutions = list(network.encoder.modules())[1:]
        layers = [m for m in convolutions if isinstance(m, nn.Conv3d) and m.in_channels > 1]
        return sum(m.weight.numel() * (0.25 if id(m.weight) in masked else 1) for m in layers)

    assert n_numbers(SparseKernels(family=family)) == pytest.approx(n_numbers(None), rel=0.01)


def test_small_kernels_keep_more_with_erk():
    shapes = {"small": (4, 2, 3, 3, 3), "large": (32, 32, 3, 3, 3)}
    uniform, erk = (kept_counts(shapes, SparseKernels(family="wide", distribution=d)) for d in ("uniform", "erk"))
    assert uniform == {"small": 54, "large": 6912}
    assert erk["small"] == 216 and sum(erk.values()) == sum(uniform.values())  # all of the small one


def sparse_plan(family: str = "wide", **about: Any):
    sparse = SparseKernels(family=family, sparsity=0.75, update_steps=2, stop_fraction=1.0)
    return plan_with(network=small_spec().model_copy(update={"sparse": sparse}), **about)


@pytest.mark.parametrize("about", [{}, {"optimizer": "adamw", "weight_average": 0.5}, {"precision": "fp16"}], ids=str)
@pytest.mark.parametrize("family", ["wide", "factorised", "doped"])
def test_masks_move_and_keep_their_count_and_what_is_masked_stays_0(family, about):
    fold = training_of(sparse_plan(family, epochs=4, **about))
    assert fold.rigl is not None
    seen = []
    for _ in range(7):
        train(fold, 1)
        for name, mask in fold.rigl.masks.items():
            assert int(mask.sum()) == round(0.25 * mask.numel())
            for network in (fold.network, fold.predictor):
                assert not sparse_kernels(network)[name][~mask].any(), name
            for value in fold.optimizer.state[sparse_kernels(fold.network)[name]].values():
                assert value.shape != mask.shape or not value[~mask].any()
        seen.append(torch.cat([mask.flatten() for mask in fold.rigl.masks.values()]))
    moves = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert moves == [False, True, False, True, False, True]


@pytest.mark.parametrize("family", ["wide", "parallel", "factorised", "doped"])
def test_a_sparse_fold_goes_on_bit_for_bit(family):
    expect_to_go_on(sparse_plan(family, precision="bf16", weight_average=0.9))


def test_the_smallest_are_dropped_and_the_steepest_grow_by_hand():
    # 2 of 4 are kept; at the start 0.5 of them move: of 3 and 1 the 1 goes, of the slopes 5 and 7 the 7 comes
    network = nn.Sequential(nn.Identity(), nn.Sequential())
    network[1].sparse = nn.Conv2d(1, 1, 2, bias=False)
    rigl = RigL(network, SparseKernels(family="wide", sparsity=0.5, update_steps=1, drop_fraction=0.5), 0)
    kernel = network[1].sparse.weight
    rigl.restore({"1.sparse.weight": torch.tensor([[[[True, True], [False, False]]]])})
    kernel.data = torch.tensor([[[[3.0, 1.0], [0.0, 0.0]]]])
    kernel.grad = torch.tensor([[[[1.0, 9.0], [5.0, -7.0]]]])
    rigl.mask_gradients(torch.optim.SGD([kernel], 0.1), 1, 0.0)
    assert kernel.flatten().tolist() == [3, 0, 0, 0] and kernel.grad.flatten().tolist() == [1, 0, 0, -7]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"optimizer": "muon"}, "muon makes the update of a kernel orthogonal"),
        ({"optimizer": "spam", "spam_density": 0.5}, "both choose which numbers"),
    ],
)
def test_optimizers_that_need_whole_kernels_are_refused(changes, text):
    plan = sparse_plan()
    with pytest.raises(ValueError, match=text):
        type(plan).model_validate(plan.model_dump() | {"training": plan.training.model_dump() | changes})


def test_kinds_without_dense_kernels_and_bound_widths_are_refused():
    sparse = SparseKernels(family="wide")
    for spec, text in (
        (small_spec("convnext"), "has few dense kernels"),
        (VARIANTS["regulated_gru"]("3d"), "without a regulator"),
        (VARIANTS["convmixer"]("3d"), "changes the width of the deepest stage"),
    ):
        values = {name: getattr(spec, name) for name in type(spec).model_fields} | {"sparse": sparse}
        with pytest.raises(ValueError, match=text):
            NetworkSpec(**values)
