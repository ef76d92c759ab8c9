"""Trained folds whose network can be pruned, and what it costs to retrain a pruned one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segpipe.core.errors import UsageError
from segpipe.core.foreseen import Foreseen
from segpipe.core.text import count
from segpipe.core.work import FoldFolder
from segpipe.data.splits import Fold
from segpipe.networks.build import build
from segpipe.networks.pruning import require_prunable
from segpipe.pipeline import prepare
from segpipe.pipeline.costs import planned_costs
from segpipe.pipeline.estimates import foreseen_training, measured_step, seconds_of_steps
from segpipe.pipeline.plan import PlannedWork, default_configuration
from segpipe.pipeline.requests import Machine
from segpipe.plan.planned_cost import PlannedCost
from segpipe.plan.schema import Configuration, Plan
from segpipe.predict.folds import find_folds
from segpipe.train.checkpoint import load_weights
from segpipe.train.weights_header import about_weights


@dataclass(frozen=True, eq=False)
class TrainedFold:
    """A trained fold and what it takes to train it on.

    Args:
        folder: Of the fold.
        name: Of the configuration.
        plan: With which it was trained.
        split: Its cases.
    """

    folder: FoldFolder
    name: str
    plan: Plan
    split: Fold

    @property
    def configuration(self) -> Configuration:
        """Configuration with which it was trained."""
        return self.plan.configurations[self.name]

    @property
    def number(self) -> str:
        """Name of the fold."""
        return self.folder.path.name.removeprefix("fold_")

    def weights(self) -> dict[str, Any]:
        """Its state dict."""
        own = self.configuration
        network = build(own.network, self.plan.n_inputs(own), self.plan.labels.n_outputs)
        load_weights(self.folder.weights, network)
        return dict(network.state_dict())


def trained_folds(planned: PlannedWork, configuration: str | None, folds: Sequence[int]) -> list[TrainedFold]:
    """Find the trained folds of a work folder whose network can be pruned.

    Args:
        planned: The work folder.
        configuration: Which; None for the default one.
        folds: Which; empty for all that are trained.

    Raises:
        UsageError: If there is no such fold, one is not trained to the end, or folds have different networks.
        PlanError: If the network cannot be pruned, or is part of a cascade.
    """
    work = planned.work
    name = default_configuration(planned.plan, configuration)
    found = []
    for folder in find_folds(work.path, name, [str(fold) for fold in folds]):
        if about_weights(folder.weights).get("finished") == "0" or not folder.split.is_file():
            raise UsageError(f"{folder.path}: not trained to the end, expected a finished fold. Finish training first.")
        found.append(TrainedFold(folder, name, Plan.load(folder.plan), Fold.load(folder.split)))
    own = found[0].configuration
    where = f"{found[0].folder.plan}: configurations.{name}"
    require_prunable(own.network, f"{where}.network")
    if own.previous is not None:
        raise UsageError(f"{where}.previous {own.previous!r}: a cascade cannot be pruned. Prune a configuration alone.")
    for fold in found:
        if fold.configuration.network != own.network:
            raise UsageError(
                f"{fold.folder.path}: has another network than {found[0].folder.path}. Prune them one by one with -f."
            )
    return found


def foreseen_trials(
    *,
    command: str,
    todo: str,
    n_steps: int,
    planned: PlannedWork,
    fold: TrainedFold,
    own: Configuration,
    written: Callable[[PlannedCost], int],
    folder: Path,
    machine: Machine,
) -> Foreseen:
    """Put together what retraining a pruned network will take.

    Args:
        command, todo: As in `Foreseen`.
        n_steps: Of all trials together.
        planned, fold: What was trained.
        own: The pruned configuration.
        written: Disk besides prepared cases, by the cost of the pruned network.
        folder: Where to; it need not exist.
        machine: What to compute on.
    """
    name = fold.name
    trained = prepare.PrepareJob(replace(planned, plan=fold.plan), name, machine.n_workers)
    needs = prepare.estimate(trained)
    pruned = fold.plan.model_copy(update={"configurations": {name: own}})
    (cost,) = planned_costs(pruned, planned.fingerprint, machine)
    measured = measured_step(fold.plan, name, [fold.folder])
    seconds: float | None
    if measured is not None:
        seconds, source = n_steps * measured[0], f"at most: measured in {measured[1]} before pruning"
    else:
        timeless = pruned.training.model_copy(update={"time_budget_seconds": None})
        seconds, source = seconds_of_steps(pruned.model_copy(update={"training": timeless}), name, cost, n_steps, [])
    return foreseen_training(
        command=command,
        todo=f"{todo}; {count(needs.n_cases, 'case')} to prepare",
        seconds=seconds,
        seconds_from=source,
        written_bytes=written(cost),
        folder=folder,
        needs=needs,
        cost=cost,
        device=machine.device,
        notes=(),
    )
