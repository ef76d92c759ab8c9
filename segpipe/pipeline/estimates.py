"""Estimates of the time, disk and memory of a training, for the dry run of every command that trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segpipe.core.foreseen import Foreseen, free_disk_bytes
from segpipe.core.history import History
from segpipe.core.machine import free_bytes
from segpipe.core.text import count
from segpipe.core.work import FoldFolder
from segpipe.networks.device import free_device_bytes
from segpipe.plan.planned_cost import PlannedCost
from segpipe.plan.schema import Plan
from segpipe.plan.training import OPTIMIZERS
from segpipe.prepare.dataset import Needs
from segpipe.train.schedule import Schedule

_FLOAT_BYTES = 4
_STATES = 2  # the newest and the one before


def foreseen_training(
    *,
    command: str,
    todo: str,
    seconds: float | None,
    seconds_from: str,
    written_bytes: int,
    folder: Path,
    needs: Needs,
    cost: PlannedCost,
    device: str,
    notes: Sequence[str],
) -> Foreseen:
    """Put together what a command that prepares cases and then trains will take.

    Args:
        command, todo, seconds, seconds_from, notes: As in `Foreseen`.
        written_bytes: Disk besides prepared cases.
        folder: Where to; it need not exist.
        needs: Of preparing.
        cost: Of training.
        device: As in `Machine`.
    """
    on_gpu = cost.memory == "GPU"
    return Foreseen(
        command=command,
        todo=todo,
        seconds=seconds,
        seconds_from=seconds_from,
        disk_bytes=needs.disk_bytes + written_bytes,
        free_disk_bytes=free_disk_bytes(folder),
        memory_bytes=max(round(cost.training_gib * 2**30), 0 if on_gpu else needs.n_workers * needs.memory_bytes),
        free_memory_bytes=free_device_bytes(device) if on_gpu else free_bytes(),
        memory_of=cost.memory,
        notes=tuple(notes),
    )


def steps_text(plan: Plan, left: Sequence[int]) -> str:
    """Tell how many steps are left, of some trainings with this plan."""
    if plan.training.time_budget_seconds is not None:
        return "until the time budget ends"
    return f"{sum(left)} of {count(Schedule(plan.training).n_iterations * len(left), 'step')} left"


def measured_step(plan: Plan, name: str, folders: Sequence[FoldFolder]) -> tuple[float, str] | None:
    """The seconds of a step with its share of validation, and the name of the fold in which it was measured.

    Args:
        plan, name: The configuration that folds must have been trained with.
        folders: The folds to look in.

    Returns:
        None if no fold has finished an epoch with this configuration.
    """
    for fold in folders:
        if fold.plan.is_file() and fold.history.is_file():
            columns = History.load(fold.history).columns
            trained = Plan.load(fold.plan).configurations.get(name)
            if trained == plan.configurations[name] and columns.get("iteration"):
                return columns["seconds"][-1] / columns["iteration"][-1], fold.path.name
    return None


def seconds_of_steps(
    plan: Plan, name: str, cost: PlannedCost, n_steps: float, folders: Sequence[FoldFolder]
) -> tuple[float | None, str]:
    """Estimate the time of some steps with their share of validation, and say how: the time budget comes first.

    Returns:
        Seconds, None if they are not known; and how they were found, or why they are not known.
    """
    if plan.training.time_budget_seconds is not None:
        return plan.training.time_budget_seconds, "the time budget"
    if (measured := measured_step(plan, name, folders)) is not None:
        return n_steps * measured[0], f"measured in {measured[1]} of this configuration"
    if cost.seconds_per_step is None:
        return None, "the plan is for another kind of device than this one"
    return n_steps * cost.seconds_per_step, (
        "estimated from multiplications at the rate of a small network on this device, so rather too short; "
        "`segpipe train --profile` measures it"
    )


def fold_bytes(plan: Plan, cost: PlannedCost) -> int:
    """Size of a fold: weights for prediction, snapshots, and two states with what the optimizer keeps."""
    kept = max(OPTIMIZERS[plan.training.optimizer].states) + 1 + bool(plan.training.weight_average)
    return (1 + plan.training.snapshots + _STATES * kept) * weights_bytes(cost)


def weights_bytes(cost: PlannedCost) -> int:
    """Size of a file with the weights of a network."""
    return cost.parameters * _FLOAT_BYTES
