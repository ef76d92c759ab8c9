"""train/spam.py"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_fold import plan_with, train, training_of
from torch import nn

from segpipe.train.spam import Spam

EXPECTED = {  # of the authors' code in float64
    0: (0.9900031613, -2.0099993676, 0.4900315231),
    9: (0.9156738036, -2.0443328126, 0.4100706494),
    10: (0.9076585126, -2.0477218922, 0.4017952769),
    14: (0.8904606182, -2.053622788, 0.3681910009),
    15: (0.8905095308, -2.0535738801, 0.3681421483),
    20: (0.9121594838, -2.0675525685, 0.3457127329),
    26: (0.930092102, -2.0784249362, 0.2893759553),
    31: (0.917002158, -2.0917625219, 0.2491077939),
    39: (0.9604298673, -2.0752496568, 0.1890951291),
}


def moves(n_steps: int, **about: Any) -> list[float]:
    """Sizes of the updates of one number whose gradient is always 1, at a rate of 1."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Spam([parameter], lr=1.0, **about)
    found = []
    for _ in range(n_steps):
        before, parameter.grad = parameter.item(), torch.ones(1, dtype=torch.float64)
        optimizer.step()
        found.append(abs(parameter.item() - before))
    return found


def test_forty_steps_are_those_of_the_authors():
    parameter = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    optimizer = Spam([parameter], lr=0.01, threshold=50, reset_steps=16, warmup_steps=5, quiet_steps=4)
    for t in range(40):
        gradient = [math.sin(0.3 * t) + 0.1, 0.5 * math.cos(0.7 * t), 0.01 * (1 + 0.1 * t)]
        parameter.grad = torch.tensor(gradient, dtype=torch.float64) * (1000 if t in (10, 25) else 1)
        optimizer.step()
        if t in EXPECTED:
            assert parameter.tolist() == pytest.approx(EXPECTED[t], abs=1e-9), t


def test_updates_after_a_reset_rise_from_a_hundredth():
    # the counter of the correction goes on: the tenth update is 0.4845 · 0.01
    after = [0.00484, 0.06773, 0.26531, 0.54572, 0.88651, 0.93085, 0.96597, 0.99417, 1.01702]
    found = moves(18, epsilon=1e-9, reset_steps=10, warmup_steps=4, quiet_steps=100)
    assert found[:9] == pytest.approx([1.0] * 9, abs=1e-4) and found[9:] == pytest.approx(after, abs=1e-5)


def test_spikes_are_counted_by_hand():
    # at the second step the mean square is 0.001 for all four numbers, so that what exceeds √(4 · 0.001) is clipped
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimizer = Spam([parameter], lr=1e-3, threshold=4.0, quiet_steps=2)
    for gradient in ([[1.0, 1.0], [1.0, 1.0]], [[0.01, -3.0], [0.06, 0.05]]):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    assert parameter.grad is not None and parameter.grad[0, 1].item() == pytest.approx(-math.sqrt(0.004))
    shift = nn.Parameter(torch.zeros(2))
    optimizer.state[shift] = dict(optimizer.state[parameter])
    assert optimizer.spike_rates([("layer.weight", parameter), ("layer.bias", shift)]) == {"layer": 0.25}
    assert math.isnan(optimizer.spike_rates([("layer.weight", parameter)])["layer"])  # none since


def test_a_share_of_a_kernels_channels_learns_until_the_next_reset():
    kernel = nn.Parameter(torch.zeros(4, 5, 3, 3, 3))
    optimizer = Spam([kernel], lr=0.1, reset_steps=4, warmup_steps=0, density=0.3, seed=1)
    learnt = []
    for _ in range(8):
        kernel.grad, before = torch.ones_like(kernel), kernel.detach().clone()
        optimizer.step()
        moves = (kernel.detach() != before).flatten(2)
        assert (moves.all(2) == moves.any(2)).all() and moves.any(2).sum() == 6  # 0.3 of 20 pairs, all their voxels
        learnt.append(moves.any(2))
    assert optimizer.state[kernel]["mean"].shape == (6, 3, 3, 3)
    assert all(torch.equal(learnt[0], other) for other in learnt[:3])
    assert all(torch.equal(learnt[3], other) for other in learnt[3:7]) and not torch.equal(learnt[0], learnt[3])


def test_weights_decay_by_hand():
    parameter = nn.Parameter(torch.tensor([2.0]))
    parameter.grad = torch.zeros(1)
    Spam([parameter], lr=0.1, weight_decay=0.5).step()
    assert parameter.item() == pytest.approx(1.9)  # 2 · (1 - 0.1 · 0.5)


def test_kernels_and_seeds_draw_pairs_of_their_own():
    drawn = set()
    for seed in (1, 2):
        kernels = [nn.Parameter(torch.zeros(6, 6, 3)) for _ in range(2)]
        optimizer = Spam(kernels, lr=0.1, density=0.3, seed=seed)
        for kernel in kernels:
            kernel.grad = torch.ones_like(kernel)
        optimizer.step()
        drawn |= {tuple((kernel != 0).flatten().tolist()) for kernel in kernels}
    assert len(drawn) == 4


def test_the_plans_values_reach_it():
    about = {"spam_threshold": 7.0, "spam_reset_steps": 30, "spam_warmup_steps": 9, "spam_quiet_steps": 8}
    values = {"momentum": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-5, "weight_decay": 0.25, "seed": 3}
    found = training_of(plan_with(optimizer="spam", spam_density=0.5, **about, **values)).optimizer
    assert isinstance(found, Spam)
    assert (found.threshold, found.reset_steps, found.warmup_steps, found.quiet_steps) == (7.0, 30, 9, 8)
    assert (found.betas, found.epsilon, found.density, found.seed) == ((0.8, 0.95), 1e-5, 0.5, 3)
    assert found.param_groups[0]["weight_decay"] == 0.25


def test_the_history_has_a_column_for_each_layer():
    fold = training_of(plan_with(optimizer="spam", spam_threshold=1e-3, spam_quiet_steps=1))
    assert fold.spike_rates() == {}
    train(fold, 2)
    rates = fold.spike_rates()
    assert "spikes_encoder.stages.0.0.convs.0.conv" in rates and all(0 < rate <= 1 for rate in rates.values())
    assert training_of(plan_with()).spike_rates() == {}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"spam_density": 0.5, "spam_reset_steps": 0}, "the other weights would never learn"),
        ({"spam_reset_steps": 150}, "must be more than spam_warmup_steps"),
    ],
)
def test_contradicting_values_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        plan_with(optimizer="spam", **changes)
