"""What training would take: time from steps that were measured or predicted, disk, memory. Nothing is written."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from segpipe.core.errors import SegpipeError
from segpipe.core.foreseen import Foreseen, free_disk_bytes
from segpipe.core.history import History
from segpipe.core.machine import free_bytes, n_processes
from segpipe.core.work import FoldFolder, Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Fold, Splits
from segpipe.fingerprint.record import Fingerprint
from segpipe.networks.doctor import free_device_bytes
from segpipe.pipeline.costs import planned_costs
from segpipe.pipeline.devices import devices_for
from segpipe.pipeline.machine import Machine
from segpipe.pipeline.planning import Choices, plan_data, refuse_foreign
from segpipe.pipeline.stages import default_configuration
from segpipe.pipeline.training import shared_plan
from segpipe.plan.edit import edited
from segpipe.plan.optimizers import OPTIMIZERS
from segpipe.plan.planned_cost import PlannedCost
from segpipe.plan.schema import Plan
from segpipe.prepare.current import states_of
from segpipe.prepare.dataset import Needs, needs_of, prepared_folder
from segpipe.train.checkpoint import about_weights
from segpipe.train.resume import has_other_length, require_same_training
from segpipe.train.schedule import Schedule

_FLOAT_BYTES = 4
_STATES = 2  # the newest and the one before


def training_ahead(
    folder: Path,
    configuration: str | None,
    folds: Sequence[int] | None,
    machine: Machine,
    *,
    time_budget_seconds: float | None = None,
    edits: Sequence[str] = (),
    devices: str | None = None,
    restart: bool = False,
) -> Foreseen:
    """What `train` with the same arguments would take.

    Args:
        folder, configuration, folds, machine, time_budget_seconds, edits, devices, restart: As for `train`.

    Raises:
        UsageError, PlanError, DataError: As `train` does before it begins.
    """
    work = Work(folder)
    work.require_plan()
    splits = Splits.load(work.splits)
    chosen = splits.select(folds)
    n_devices = len(devices_for(chosen, machine, devices))
    if time_budget_seconds is not None:
        edits = (*edits, f"training.time_budget_seconds={time_budget_seconds / math.ceil(len(chosen) / n_devices)}")
    plan = edited(Plan.load(work.plan), edits)
    name = default_configuration(plan, configuration)
    needs = _preparing(work, plan, name, machine)
    (cost,) = planned_costs(plan.model_copy(update={"configurations": {name: plan.configurations[name]}}),
                            Fingerprint.load(work.fingerprint), machine)  # fmt: skip
    together = max(n_devices if len(chosen) == 1 else 1, n_processes())
    trained = shared_plan(plan, name, together)
    folders = {fold: work.fold(name, str(fold)) for fold in chosen}
    left = [
        Schedule(plan.training).n_iterations if restart else _steps_left(trained, splits.folds[fold], held, together)
        for fold, held in folders.items()
    ]
    n_left = sum(steps > 0 for steps in left)
    seconds, source = _seconds_of_fold(work, plan, name, cost, sum(left) / max(1, n_left))
    on_gpu, guide = cost.memory == "GPU", plan.configurations[name].previous
    return Foreseen(
        command="train",
        todo=f"{name}, {n_left} of {len(left)} folds, {_steps_text(plan, left)}; {needs.n_cases} cases to prepare",
        seconds=None if seconds is None else seconds * math.ceil(n_left / n_devices),
        seconds_from=source,
        disk_bytes=needs.disk_bytes + n_left * _fold_bytes(plan, cost),
        free_disk_bytes=free_disk_bytes(folder),
        memory_bytes=max(round(cost.training_gib * 2**30), 0 if on_gpu else needs.n_workers * needs.memory_bytes),
        free_memory_bytes=free_device_bytes(machine.device) if on_gpu else free_bytes(),
        memory_of=cost.memory,
        notes=(
            "preparing, predicting and scoring the validation cases take time besides",
            *([f"a cascade: all folds of {guide} are trained before it"] if guide else []),
        ),
    )


def run_ahead(
    data: Path,
    folder: Path,
    machine: Machine,
    choices: Choices,
    configuration: str | None,
    folds: Sequence[int] | None,
    time_budget_seconds: float | None,
) -> Foreseen:
    """What `run` would take. The plan is made in a temporary folder, for which the images are read once.

    Raises:
        UsageError, PlanError, DataError: As `run` does before it trains.
    """
    refuse_foreign(Work(folder), data)
    with tempfile.TemporaryDirectory(prefix="segpipe-") as temporary:
        trial = Path(temporary) / "work"
        trial.mkdir()
        for part in folder.iterdir() if folder.is_dir() else ():
            if part.is_dir():
                (trial / part.name).symlink_to(part.resolve())  # what is prepared and trained counts; it is only read
            elif part.is_file():
                shutil.copy(part, trial / part.name)
        try:
            plan_data(data, trial, machine, choices, keep=True)
            found = training_ahead(trial, configuration, folds, machine, time_budget_seconds=time_budget_seconds)
        except SegpipeError as fault:
            raise type(fault)(str(fault).replace(str(trial), str(folder))) from None
    return found.model_copy(update={"command": "run", "free_disk_bytes": free_disk_bytes(folder)})


def _preparing(work: Work, plan: Plan, name: str, machine: Machine) -> Needs:
    configuration = plan.configurations[name]
    states = states_of(work, Dataset.load(work.dataset), prepared_folder(work, plan, configuration), machine.n_workers)
    missing = [state for state in states if not state.is_current]
    return needs_of(work, missing, plan, configuration, machine.n_workers)


def _steps_left(plan: Plan, split: Fold, folder: FoldFolder, n_devices: int) -> int:
    """Steps of a fold's training from where its last epoch ended.

    Raises:
        UsageError: If the folder holds another training.
    """
    n_steps = Schedule(plan.training).n_iterations
    if not folder.state.is_file() and not folder.previous_state.is_file():
        return n_steps
    is_finished = folder.weights.is_file() and about_weights(folder.weights).get("finished") == "1"
    require_same_training(plan, split, folder, is_finished=is_finished, n_processes=n_devices)
    done = History.load(folder.history).columns.get("iteration", ()) if folder.history.is_file() else ()
    if is_finished and not has_other_length(Plan.load(folder.plan), plan):
        return 0
    return max(0 if is_finished else 1, n_steps - int(done[-1])) if done else n_steps


def _steps_text(plan: Plan, left: Sequence[int]) -> str:
    if plan.training.time_budget_seconds is not None:
        return "by the clock"
    return f"{sum(left)} steps of {Schedule(plan.training).n_iterations * len(left)} left"


def _seconds_of_fold(work: Work, plan: Plan, name: str, cost: PlannedCost, n_steps: float) -> tuple[float | None, str]:
    """Of so many steps with their share of validation, and where that is from."""
    if plan.training.time_budget_seconds is not None:
        return plan.training.time_budget_seconds, "the time budget"
    for path in sorted(work.run(name).glob("fold_*")):
        fold = FoldFolder(path)
        if fold.plan.is_file() and fold.history.is_file():
            columns = History.load(fold.history).columns
            trained = Plan.load(fold.plan).configurations.get(name)
            if trained == plan.configurations[name] and columns.get("iteration"):
                each = columns["seconds"][-1] / columns["iteration"][-1]
                return n_steps * each, f"measured in {path.name} of this configuration"
    if cost.seconds_per_step is None:
        return None, "the plan is for another device than this one"
    return n_steps * cost.seconds_per_step, (
        "multiplications at the rate of a small network on this device, rather too short; `segpipe train --profile` "
        "measures"
    )


def _fold_bytes(plan: Plan, cost: PlannedCost) -> int:
    """Of a fold: weights for prediction, and two states with what the optimizer keeps."""
    kept = max(OPTIMIZERS[plan.training.optimizer].states) + 1 + bool(plan.training.weight_average)
    return (1 + _STATES * kept) * cost.parameters * _FLOAT_BYTES
