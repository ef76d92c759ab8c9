"""Optimizers, schedules and the average of weights, each a value in the plan."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn, optim

from segpipe.plan.training import Training


def _sgd(parameters: Iterable[nn.Parameter], training: Training) -> optim.Optimizer:
    return optim.SGD(
        parameters,
        lr=training.learning_rate,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        weight_decay=training.weight_decay,
    )


def _adamw(parameters: Iterable[nn.Parameter], training: Training) -> optim.Optimizer:
    return optim.AdamW(
        parameters,
        lr=training.learning_rate,
        betas=(training.momentum, 0.99),
        weight_decay=training.weight_decay,
        fused=True,
    )


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], Training], optim.Optimizer]] = {"sgd": _sgd, "adamw": _adamw}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "poly": lambda progress: (1 - progress) ** 0.9,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


def learning_rate(training: Training, progress: float) -> float:
    """Learning rate after a share of the training, 0 to 1; rises linearly in the warm-up, then follows the schedule.

    Source:
        nnU-Net steps its poly schedule once an epoch; ours follows every step.
    """
    progress = min(max(progress, 0.0), 1.0)
    rise = min(1.0, progress / training.warmup_fraction) if training.warmup_fraction else 1.0
    return training.learning_rate * rise * SCHEDULES[training.schedule](progress)


class WeightAverage:
    """Exponential moving average of weights, for prediction.

    In the first steps the decay is smaller, (1 + n) / (10 + n), so that random weights are forgotten at once.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.n_steps = 0
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after a step."""
        self.n_steps += 1
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        averages: list[Tensor] = list(self.network.parameters())
        current: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averages, current, 1 - decay)
