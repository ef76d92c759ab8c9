"""Optimizers, schedules and the average of weights, each a value in the plan."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn, optim

from segpipe.core.choices import functions_for
from segpipe.networks.build import inner_kernels
from segpipe.plan.optimizers import OPTIMIZERS, SCHEDULES
from segpipe.plan.training import Training
from segpipe.train.muon import Muon


def _sgd(network: nn.Module, training: Training) -> optim.Optimizer:
    return optim.SGD(
        network.parameters(),
        lr=training.learning_rate,
        momentum=training.momentum,
        nesterov=training.nesterov and training.momentum > 0,
        weight_decay=training.weight_decay,
    )


def _adamw(network: nn.Module, training: Training) -> optim.Optimizer:
    return optim.AdamW(
        network.parameters(),
        lr=training.learning_rate,
        betas=(training.momentum, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=True,
    )


def _muon(network: nn.Module, training: Training) -> optim.Optimizer:
    kernels = inner_kernels(network)
    taken = {id(kernel) for kernel in kernels}
    return Muon(
        kernels,
        [p for p in network.parameters() if id(p) not in taken],
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.nesterov,
        betas=(training.adam_beta1, training.adam_beta2),
        epsilon=training.adam_epsilon,
    )


_MAKERS: dict[str, Callable[[nn.Module, Training], optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "muon": _muon,
}
MAKE_OPTIMIZER = functions_for(OPTIMIZERS, _MAKERS, "OPTIMIZERS of plan/optimizers.py")

_FACTORS: dict[str, Callable[[float, Training], float]] = {  # from the share of the training that is done, 0 to 1
    "poly": lambda progress, training: (1 - progress) ** training.poly_exponent,
    "cosine": lambda progress, _: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda *_: 1.0,
}
SCHEDULE_FACTORS = functions_for(SCHEDULES, _FACTORS, "SCHEDULES of plan/optimizers.py")


def learning_rate(training: Training, progress: float) -> float:
    """Learning rate after a share of the training, 0 to 1; rises linearly in the warm-up, then follows the schedule.

    Source:
        nnU-Net steps its poly schedule once an epoch; ours follows every step.
    """
    progress = min(max(progress, 0.0), 1.0)
    rise = min(1.0, progress / training.warmup_fraction) if training.warmup_fraction else 1.0
    return training.learning_rate * rise * SCHEDULE_FACTORS[training.schedule](progress, training)


class WeightAverage:
    """Exponential moving average of weights, for prediction; the statistics of batch norms are averaged alike.

    In the first steps the decay is smaller, (1 + n) / (10 + n), so that random weights are forgotten at once.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.n_steps = 0
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after a step; whole numbers, such as a count of batches, are copied."""
        self.n_steps += 1
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([average for average, _ in floats], [value for _, value in floats], 1 - decay)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
