"""Train given weights for a few steps, and measure them before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segpipe.core.errors import UsageError
from segpipe.plan.schema import Configuration, Plan
from segpipe.prepare.store import PatchCase
from segpipe.train.checkpoint import cpu_copy
from segpipe.train.fold import TRAIN, FoldData, FoldTraining
from segpipe.train.optim import learning_rate
from segpipe.train.schedule import Schedule
from segpipe.train.show import mean_dice


@dataclass(frozen=True, eq=False)
class Retrained:
    """Weights after a few steps, and what was measured on fixed patches.

    Args:
        loss_before: On patches of the training cases, before the first step.
        loss_after: The same after the last one.
        score_before, score: Mean Dice over labels on patches of the validation cases, before and after.
        seconds: Of the whole trial.
        weights: State dict after the last step.
    """

    loss_before: float
    loss_after: float
    score_before: float
    score: float
    seconds: float
    weights: dict[str, Tensor]


def retrain(
    plan: Plan,
    configuration: Configuration,
    data: FoldData,
    device: torch.device,
    weights: Mapping[str, Tensor] | None,
    n_steps: int,
) -> Retrained:
    """Train for `n_steps` with the plan's recipe and its learning rate laid over these steps.

    Every call draws the same patches, so that differences are those of the weights.

    Args:
        plan: The recipe.
        configuration: The network that the weights are of.
        data: Cases to train and to score on.
        device: Where to compute.
        weights: State dict, not changed; None for new weights.
        n_steps: 1 or more.

    Raises:
        UsageError: If no label of the patches can be scored.
        PlanError: If the loss is not finite.
    """
    begun = time.monotonic()
    changed = {"iterations": n_steps, "time_budget_seconds": None, "weight_average": 0.0, "compiled": False}
    plan = plan.model_copy(update={"training": plan.training.model_copy(update=changed)})
    fold = FoldTraining(plan, configuration, data, device, is_new=False)
    if weights is not None:
        fold.network.load_state_dict(weights)
    schedule = Schedule(plan.training)
    loss_before, _ = _measure(fold, data.train)
    _, score_before = _measure(fold, data.validation)
    fold.network.train()
    for iteration in range(n_steps):
        fold.step(fold.draw(TRAIN, iteration), learning_rate(plan.training, schedule.progress(fold.at)))
    loss_after, _ = _measure(fold, data.train)
    _, score = _measure(fold, data.validation)
    if score != score:
        raise UsageError(
            f"fold {data.fold}: no label is in {plan.training.validation_iterations} batches of validation patches, so "
            "nothing can be scored. Train with a larger training.validation_iterations."
        )
    kept = cpu_copy(fold.network.state_dict())
    return Retrained(loss_before, loss_after, score_before, score, time.monotonic() - begun, kept)


def _measure(fold: FoldTraining, cases: Sequence[PatchCase]) -> tuple[float, float]:
    """Loss and mean Dice on patches of some cases, always the same."""
    watched = fold.data
    fold.data = replace(watched, validation=cases)
    loss, dice = fold.validate(max(1, fold.plan.training.validation_iterations))
    fold.data = watched
    return loss, mean_dice(list(dice.values()))
