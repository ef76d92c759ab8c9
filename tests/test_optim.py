"""train/optim.py"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segpipe.plan.schema import Training
from segpipe.train.optim import OPTIMIZERS, WeightAverage, learning_rate


def test_poly_schedule_by_hand():
    training = Training(learning_rate=0.01)
    assert learning_rate(training, 0) == 0.01
    assert learning_rate(training, 0.5) == pytest.approx(0.01 * 0.5**0.9)
    assert learning_rate(training, 1) == 0 and learning_rate(training, 1.2) == 0  # time ran over


def test_equals_nnunets_schedule_at_the_epochs():
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.01)
    schedule = PolyLRScheduler(optimizer, 0.01, 10)
    for epoch in range(10):
        schedule.step(epoch)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(learning_rate(Training(learning_rate=0.01), epoch / 10))


def test_warm_up_rises_in_a_line_and_cosine_ends_at_zero():
    training = Training(learning_rate=1.0, warmup_fraction=0.1, schedule="cosine")
    assert learning_rate(training, 0) == 0
    assert learning_rate(training, 0.05) == pytest.approx(0.5 * 0.99384417)  # cos(π·0.05) = 0.98768834
    assert learning_rate(training, 0.5) == pytest.approx(0.5)
    assert learning_rate(training, 1) == pytest.approx(0)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_goes_downhill(name):
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = OPTIMIZERS[name]([weight], Training(optimizer=name, learning_rate=0.05, momentum=0.9))
    for _ in range(60):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert abs(float(weight.detach())) < 1


def test_the_average_forgets_the_first_weights_by_hand():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    average = WeightAverage(network, 0.9)
    nn.init.constant_(network.weight, 11.0)
    average.update(network)  # decay (1 + 1) / (10 + 1) = 2/11, so 0·2/11 + 11·9/11
    assert average.network.weight.item() == pytest.approx(9)
    average.n_steps = 1000
    average.update(network)  # decay 0.9: 9·0.9 + 11·0.1
    assert average.network.weight.item() == pytest.approx(9.2)
    assert network.weight.item() == 11
