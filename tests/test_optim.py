"""train/optim.py"""

from __future__ import annotations

import copy
import io

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from plans import small_plan
from segpipe.plan.schema import Plan, Training
from segpipe.train.optim import MAKE_OPTIMIZER, WeightAverage, learning_rate, make_optimizer, set_rates


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


def test_a_constant_schedule_stays_after_its_warm_up():
    training = Training(learning_rate=1.0, warmup_fraction=0.5, schedule="constant")
    assert [learning_rate(training, share) for share in (0.25, 0.5, 1.0)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("name", list(MAKE_OPTIMIZER))
def test_every_optimizer_goes_downhill(name):
    network = nn.Linear(3, 2)
    optimizer = MAKE_OPTIMIZER[name](network, Training(optimizer=name, learning_rate=0.05, momentum=0.9))
    first = sum(float(p.detach().square().sum()) for p in network.parameters())
    for _ in range(60):
        optimizer.zero_grad()
        sum(p.square().sum() for p in network.parameters()).backward()
        optimizer.step()
    assert sum(float(p.detach().square().sum()) for p in network.parameters()) < first / 10


@pytest.mark.parametrize("name", list(MAKE_OPTIMIZER))
def test_restored_optimizers_go_on_bit_for_bit(name):
    def steps(network, optimizer, numbers):
        for number in numbers:
            optimizer.zero_grad()
            (network(torch.full((1, 3), number + 1.0)) ** 2).sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole, training = nn.Linear(3, 2), Training(optimizer=name, learning_rate=0.05, momentum=0.9)
    first, second = copy.deepcopy(whole), nn.Linear(3, 2)
    steps(whole, MAKE_OPTIMIZER[name](whole, training), range(5))
    optimizer = MAKE_OPTIMIZER[name](first, training)
    steps(first, optimizer, range(2))
    saved = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict()], saved)
    saved.seek(0)
    weights, state = torch.load(saved, weights_only=True)
    restored = MAKE_OPTIMIZER[name](second, training)
    second.load_state_dict(weights)
    restored.load_state_dict(state)
    steps(second, restored, range(2, 5))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))


def test_batch_norm_statistics_are_averaged_and_counts_copied_by_hand():
    network = nn.BatchNorm1d(1)
    average = WeightAverage(network, 0.5)
    average.n_steps = 1000
    network.running_mean.fill_(4.0)
    network.num_batches_tracked.fill_(7)
    average.update(network)
    assert average.network.running_mean.item() == 2  # 0·0.5 + 4·0.5
    assert average.network.num_batches_tracked.item() == 7


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


@pytest.mark.parametrize("name", list(MAKE_OPTIMIZER))
def test_pretrained_parameters_have_a_rate_of_their_own(name):
    """Frozen they keep their bits while the others learn; afterwards a tenth of the rate moves them a tenth as far."""
    training = Training(optimizer=name, learning_rate=1e-3, momentum=0.0, weight_decay=0.0, pretrained_rate_factor=0.1)
    torch.manual_seed(0)
    whole, split = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double() for _ in range(2))
    split.load_state_dict(whole.state_dict())
    before = [p.detach().clone() for p in whole.parameters()]
    moved = []
    for network, pretrained in ((whole, ()), (split, ("0.weight", "0.bias"))):
        optimizer = make_optimizer(network, training, pretrained)
        network(torch.ones(2, 4, dtype=torch.double)).square().sum().backward()
        if pretrained:
            set_rates(optimizer, 1e-3, 0.0)
            gradients = [p.grad.clone() for p in network.parameters()]
            optimizer.step()
            now = list(network.parameters())
            assert all(torch.equal(a, b) for a, b in zip(now[:2], before[:2], strict=True))
            assert not torch.equal(now[2], before[2])
            for p, old, gradient in zip(now, before, gradients, strict=True):
                p.data.copy_(old)
                p.grad = gradient
            optimizer = make_optimizer(network, training, pretrained)
        set_rates(optimizer, 1e-3, 0.1)
        optimizer.step()
        moved.append([p.detach() - old for p, old in zip(network.parameters(), before, strict=True)])
    for index, (full, own) in enumerate(zip(*moved, strict=True)):
        torch.testing.assert_close(own, full * (0.1 if index < 2 else 1.0), rtol=1e-6, atol=1e-12)


def test_a_rate_for_pretrained_parts_needs_some():
    with pytest.raises(ValidationError, match=r"network\.weights loads; found none"):
        Plan.model_validate(small_plan().model_dump() | {"training": Training(pretrained_rate_factor=0.1).model_dump()})
    assert "pretrained_rate_factor" not in Training().model_dump()
