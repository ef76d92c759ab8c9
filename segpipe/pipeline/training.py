"""Train folds, one after another or side by side; predict and score their validation cases."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segpipe.core.errors import UsageError
from segpipe.core.files import make_folder
from segpipe.core.machine import rank
from segpipe.core.progress import say
from segpipe.core.work import Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Fold, Splits
from segpipe.evaluate.scores import Origin, ScoreTable
from segpipe.evaluate.scoring import MaskPair, score_folder
from segpipe.fingerprint.record import Fingerprint
from segpipe.networks.device import resolve_device, set_processors
from segpipe.pipeline.devices import devices_for, train_in_processes
from segpipe.pipeline.guided_by import note_guides
from segpipe.pipeline.guiding import guides_for
from segpipe.pipeline.machine import Machine
from segpipe.pipeline.stages import default_configuration
from segpipe.plan.edit import edited, warn_of_sides
from segpipe.plan.schema import Plan
from segpipe.plan.training_stats import TrainingStats
from segpipe.predict.model import load_out_of_fold
from segpipe.predict.options import PredictOptions
from segpipe.predict.outputs import mask_path
from segpipe.predict.run import predict_cases
from segpipe.prepare.dataset import prepare_dataset
from segpipe.prepare.store import open_cases
from segpipe.train.distributed import Group, joined
from segpipe.train.fold import FoldData
from segpipe.train.loop import train_fold
from segpipe.train.tensorboard import wants_tensorboard

_MIN_BUDGET_SECONDS = 5.0


@dataclass(frozen=True)
class _How:
    """What a process trains with: its machine, those it trains with, whether event files are written, and anew."""

    machine: Machine
    group: Group
    tensorboard: bool
    restart: bool


def train(
    folder: Path,
    configuration: str | None,
    folds: Sequence[int] | None,
    machine: Machine,
    *,
    time_budget_seconds: float | None = None,
    edits: Sequence[str] = (),
    tensorboard: bool | None = None,
    devices: str | None = None,
    restart: bool = False,
) -> tuple[str, ScoreTable]:
    """Train folds; then predict and score their validation cases.

    On one device folds are trained one after another. On several devices each trains a fold, side by side, in a process
    of its own; a single fold is trained by all of them together, with the batch of the plan on each. So it is by the
    processes that torchrun starts, whatever the number of folds.

    Args:
        folder: A work folder with a plan.
        configuration: Which; None for the default one.
        folds: Which; None for all.
        machine: What to compute on.
        time_budget_seconds: Wall-clock time of all training, shared evenly by the folds; None: epochs of the plan.
        edits: As for `plan`, for this training alone.
        tensorboard: Whether to write event files as well; None: if tensorboard is installed.
        devices: As for `devices_for`.
        restart: Whether to train anew whatever the folds hold.

    Returns:
        The configuration and the scores of all folds that are trained by now.

    Raises:
        SegpipeError: If a fold could not be trained; side by side, the other ones are.
    """
    work = Work(folder)
    work.require_plan()
    splits = Splits.load(work.splits)
    chosen = splits.select(folds)
    tensorboard = wants_tensorboard(tensorboard)
    at_hand = devices_for(chosen, machine, devices)
    if time_budget_seconds is not None:
        edits = (*edits, f"training.time_budget_seconds={_share(time_budget_seconds, len(chosen), len(at_hand))}")
    planned = Plan.load(work.plan)
    warn_of_sides(planned)
    plan = edited(planned, edits)
    name = default_configuration(plan, configuration)
    set_processors(machine.n_workers)
    if len(at_hand) == 1:
        with joined(resolve_device(at_hand[0])) as group:
            how = _How(replace(machine, device=at_hand[0]), group, tensorboard, restart)
            _train_here(work, plan, name, chosen, splits, how)
    else:
        _prepared(work, Dataset.load(work.dataset), plan, name, splits, machine)  # once, by all processors
        options = [part for edit in edits for part in ("--set", edit)]
        options += ["--tensorboard" if tensorboard else "--no-tensorboard", *["--restart"] * restart]
        train_in_processes(work.run(name), chosen, at_hand, ("train", str(work.path), "-c", name, *options), machine)
    return name, collect_scores(work, name, splits)


def _prepared(
    work: Work, dataset: Dataset, plan: Plan, name: str, splits: Splits, machine: Machine
) -> tuple[Path, Path | None]:
    """The prepared cases, and what guides a cascade in them."""
    prepared = prepare_dataset(work, dataset, plan, name, machine.n_workers)
    return prepared, guides_for(work, dataset, plan, name, splits, machine)


def _train_here(work: Work, plan: Plan, name: str, folds: Sequence[int], splits: Splits, how: _How) -> None:
    """One fold after another, in this process, which may be one of several that train together."""
    dataset = Dataset.load(work.dataset)
    with how.group.in_turn():
        prepared = _prepared(work, dataset, plan, name, splits, how.machine)
    plan = _with_batch_of(how.group, plan, name)
    for fold in folds:
        _train_one(work, plan, name, fold, splits, prepared, how)
        if how.group.is_first:
            _validate_one(work, dataset, name, fold, splits, how.machine)


def _with_batch_of(group: Group, plan: Plan, name: str) -> Plan:
    if group.size > 1:
        each = plan.configurations[name].batch_size
        say(
            f"{group.size} processes train together, {each} patches each: as one with a batch of {each * group.size}. "
            f"The learning rate is left as it is, {plan.training.learning_rate:g}."
        )
    return shared_plan(plan, name, group.size)


def shared_plan(plan: Plan, name: str, n_processes: int) -> Plan:
    """The plan with the batch of all processes together: they do what one with this plan would."""
    if n_processes == 1:
        return plan
    batch_size = plan.configurations[name].batch_size * n_processes
    return edited(plan, [f"configurations.{name}.batch_size={batch_size}"])


def train_in_order(
    folder: Path,
    configuration: str | None,
    folds: Sequence[int] | None,
    machine: Machine,
    *,
    time_budget_seconds: float | None = None,
) -> tuple[str, ScoreTable]:
    """As `train`; before a cascade every fold of the coarser configuration, within the same time budget."""
    work = Work(folder)
    work.require_plan()
    plan, k = Plan.load(work.plan), Splits.load(work.splits).k
    name = default_configuration(plan, configuration)
    previous, left = plan.configurations[name].previous, time_budget_seconds
    if previous is not None:
        share = k / (k + len(folds or range(k)))
        first = None if left is None else left * share
        train(folder, previous, None, machine, time_budget_seconds=first)
        left = None if left is None else left * (1 - share)
    return train(folder, name, folds, machine, time_budget_seconds=left)


def _share(seconds: float, n_folds: int, n_devices: int) -> float:
    """Time for each fold, of which some are trained at a time."""
    share = seconds / math.ceil(n_folds / n_devices)
    if share < _MIN_BUDGET_SECONDS:
        raise UsageError(
            f"--time-budget: {seconds:g} s for {n_folds} folds is {share:.1f} s each, expected "
            f"{_MIN_BUDGET_SECONDS:g} s or more."
        )
    return share


def open_fold(prepared: Path, splits: Splits, fold: int, machine: Machine, guides: Path | None = None) -> FoldData:
    """The prepared cases of a fold, and what guides a cascade in them."""
    split = splits.folds[fold]
    device = resolve_device(machine.device)
    train, validation = (
        open_cases(prepared, case_ids, machine.n_workers, device, guides)
        for case_ids in (split.train, split.validation)
    )
    return FoldData(fold=fold, split=split, train=train, validation=validation)


def _train_one(
    work: Work, plan: Plan, name: str, fold: int, splits: Splits, prepared: tuple[Path, Path | None], how: _How
) -> None:
    started = time.monotonic()
    cases, guides = prepared
    data = open_fold(cases, splits, fold, how.machine, guides)
    folder = work.fold(name, str(fold))
    device = resolve_device(how.machine.device)
    if how.group.is_first:
        begins = how.restart or not (folder.state.is_file() or folder.previous_state.is_file())
        make_folder(folder.path)
        note_guides(folder, plan.configurations[name].previous, begins=begins)
    train_fold(
        plan,
        name,
        data,
        folder,
        device,
        started,
        tensorboard=how.tensorboard,
        group=how.group,
        restart=how.restart,
    )
    if (
        how.group.is_first
        and work.fingerprint.is_file()
        and (trained_on := TrainingStats.of(Fingerprint.load(work.fingerprint), plan, data.split.train))
    ):
        trained_on.save(folder.trained_on)


def _validate_one(work: Work, dataset: Dataset, name: str, fold: int, splits: Splits, machine: Machine) -> None:
    folder = work.fold(name, str(fold))
    model = load_out_of_fold(folder, resolve_device(machine.device))
    cases = [dataset.by_id[case_id] for case_id in splits.folds[fold].validation]
    options = PredictOptions(any_size=True)  # cases of the dataset: their size is no mistake of a header
    predict_cases(model, cases, folder.validation, options).require_all()
    pairs = [
        MaskPair(
            reference=Path(case.label or ""),
            prediction=mask_path(folder.validation, case.case_id),
            origin=Origin(
                case_id=case.case_id, patient_id=case.patient_id, run=name, fold=fold, seed=model.plan.training.seed
            ),
        )
        for case in cases
    ]
    score_folder(pairs, model.plan.labels, machine.n_workers).save(folder.scores)


def collect_scores(work: Work, configuration: str, splits: Splits) -> ScoreTable:
    """Out-of-fold scores of every fold that is scored on the present splits, also written beside the folds."""
    folders = [work.fold(configuration, str(number)) for number in range(splits.k)]
    current = [
        folder
        for folder, split in zip(folders, splits.folds, strict=True)
        if folder.scores.is_file() and folder.split.is_file() and Fold.load(folder.split) == split
    ]
    table = ScoreTable(tuple(row for folder in current for row in ScoreTable.load(folder.scores).rows))
    if rank() == 0:
        table.save(work.scores(configuration))
    return table
