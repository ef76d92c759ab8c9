"""train/sharpness.py"""

from __future__ import annotations

import math

import pytest
import torch
from test_fold import RATE, plan_with, train, training_of, weights_of
from torch import nn

from plans import small_spec
from segpipe.core.errors import PlanError
from segpipe.networks.build import norm_parameters
from segpipe.train.sharpness import SharpnessAware, sharpness_of


def fixed_network() -> nn.Sequential:
    """A layer, a norm and a layer in float64, whose numbers are sines."""
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
    for index, (name, p) in enumerate(network.named_parameters()):
        values = 0.5 * torch.sin(0.37 * torch.arange(p.numel(), dtype=torch.float64) + index) + (name == "1.weight")
        p.data.copy_(values.view(p.shape))
    return network


def final_loss(chosen: str, **about: object) -> float:
    """The loss after three steps of SGD on five fixed points, with norms, the others, or all moved."""
    network = fixed_network()
    inputs = torch.sin(0.61 * torch.arange(15, dtype=torch.float64)).view(5, 3)
    wanted = torch.cos(0.9 * torch.arange(5, dtype=torch.float64))
    norms, every = norm_parameters(network), dict(network.named_parameters())
    moved = {"norms": norms, "all": every, "others": {n: p for n, p in every.items() if n not in norms}, "none": {}}
    second = SharpnessAware(network, moved[chosen], **about) if moved[chosen] else None  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

    def loss() -> torch.Tensor:
        return nn.functional.mse_loss(network(inputs)[:, 0], wanted)

    for _ in range(3):
        optimizer.zero_grad()
        loss().backward()
        if second:
            with second.move():
                optimizer.zero_grad()
                loss().backward()
        optimizer.step()
    return float(loss().detach())


@pytest.mark.parametrize(
    ("chosen", "about", "expected"),
    [
        ("none", {}, 0.5895165181),
        ("all", {"rho": 0.05}, 0.6060314600),
        ("norms", {"rho": 0.5}, 0.6035359529),
        ("others", {"rho": 0.05}, 0.6056666226),
        ("norms", {"rho": 0.5, "eta": 0.01, "adaptive": "scales"}, 0.6045337221),
    ],
)
def test_a_fixed_problem_ends_as_with_other_code(chosen, about, expected):
    # of the optimizers of Foret et al. and Müller et al. in float64, written to ten digits
    assert final_loss(chosen, **about) == pytest.approx(expected, abs=1e-9)


def test_the_largest_number_of_a_move_is_rho_where_its_norm_is_the_maximum():
    # scales 2 and -4 with slopes 3 and -0.5: by 0.1 · sign; adaptively with η = 0: by 0.1 · (2, 4) · sign; a shift of 5
    for adaptive, expected, shift in (
        ("none", (2.1, -4.1), 5.1),
        ("scales", (2.2, -4.4), 5.1),
        ("all", (2.2, -4.4), 5.5),
    ):
        layer = nn.GroupNorm(1, 2)
        layer.weight.data = torch.tensor([2.0, -4.0])
        layer.weight.grad = torch.tensor([3.0, -0.5])
        layer.bias.data, layer.bias.grad = torch.tensor([5.0, 5.0]), torch.tensor([1.0, 1.0])
        second = SharpnessAware(layer, norm_parameters(layer), rho=0.1, p="inf", adaptive=adaptive, eta=0.0)  # type: ignore[arg-type]
        with second.move():
            assert layer.weight.tolist() == pytest.approx(expected)
            assert layer.bias.tolist() == pytest.approx([shift, shift])
        assert layer.weight.tolist() == [2.0, -4.0]


@pytest.mark.parametrize("slope", [0.0, math.inf, math.nan])
def test_a_gradient_that_has_no_direction_moves_nothing(slope):
    layer = nn.GroupNorm(1, 2)
    layer.weight.grad = torch.tensor([0.0, slope])
    with SharpnessAware(layer, norm_parameters(layer), rho=0.1).move():
        assert layer.weight.tolist() == [1.0, 1.0]


def test_the_plans_values_reach_it():
    about = {"sam_rho": 0.3, "sam_p": "inf", "sam_adaptive": "scales", "sam_eta": 0.2}
    found = sharpness_of(nn.GroupNorm(1, 2), plan_with(optimizer="sgd+sam_on", **about).training)
    assert found is not None
    assert (found.rho, found.p, found.eta, found.is_adaptive) == (0.3, "inf", 0.2, [True, False])


def test_norms_are_found_by_their_type():
    network = nn.ModuleDict({"normal_conv": nn.Conv3d(1, 2, 1), "last": nn.BatchNorm3d(2), "sync": nn.SyncBatchNorm(2)})
    assert [*norm_parameters(network)] == ["last.weight", "last.bias", "sync.weight", "sync.bias"]
    assert [*norm_parameters(nn.LayerNorm(3))] == ["weight", "bias"]


def norm_plan(norm: str, **training: object):
    parts = small_spec().parts.model_copy(update={"norm": norm})
    return plan_with(network=small_spec().model_copy(update={"parts": parts}), **training)


@pytest.mark.parametrize("norm", ["batch", "pcnorm"])
def test_running_statistics_follow_the_first_pass_alone(norm):
    once, twice = (training_of(norm_plan(norm, optimizer=name)) for name in ("sgd", "sgd+sam_on"))
    losses = [train(fold, 1) for fold in (once, twice)]
    assert losses[0] == losses[1]  # that of the first pass
    assert all(torch.equal(a, b) for a, b in zip(once.network.buffers(), twice.network.buffers(), strict=True))
    assert (weights_of(once.network) - weights_of(twice.network)).abs().max() > 1e-6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_passes_drop_the_same_channels(precision):
    # where the move is as good as none, the gradients are those of the first pass
    parts = small_spec().parts.model_copy(update={"dropout_fraction": 0.5})
    network = small_spec().model_copy(update={"parts": parts})
    about = {"network": network, "precision": precision, "augmentation": "light", "gradient_accumulation": 2}
    once = training_of(plan_with(**about))
    twice = training_of(plan_with(**about, optimizer="sgd+sam_on", sam_rho=1e-12))
    for fold in (once, twice):
        for name, p in norm_parameters(fold.network).items():
            p.data += 0.1 * name.endswith("bias")  # at 0, where a dropped channel would be, the activation has a kink
    losses = [train(fold, 2) for fold in (once, twice)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert torch.allclose(weights_of(once.network), weights_of(twice.network), atol=1e-7)


def test_in_float16_a_step_that_overflows_is_skipped():
    fold = training_of(plan_with(precision="fp16", optimizer="sgd+sam_on"))
    before, batch = weights_of(fold.network), fold.draw(0, 0)
    batch[0].images.flat[:] = 1e30  # infinite in float16
    assert not math.isfinite(fold.step(batch, RATE))
    assert torch.equal(weights_of(fold.network), before) and fold.scaler.get_scale() == 2**15


def test_a_network_without_norms_is_refused():
    training = plan_with(optimizer="adamw+sam_on").training
    with pytest.raises(PlanError, match=r"adamw\+sam_on moves scales .* --set training\.optimizer=adamw\.$"):
        sharpness_of(nn.Conv3d(1, 1, 1), training)
