"""Train folds, one after another or in parallel; predict and score their validation cases."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from segpipe.core.errors import UsageError
from segpipe.core.files import make_folder
from segpipe.core.foreseen import Foreseen
from segpipe.core.history import History
from segpipe.core.machine import n_processes, rank
from segpipe.core.progress import say
from segpipe.core.text import command_text, count
from segpipe.core.work import FoldFolder, Work
from segpipe.data.splits import Fold, Splits
from segpipe.evaluate.ledger import append_scoring, file_digest, scoring_of
from segpipe.evaluate.scores import Origin, ScoreTable
from segpipe.evaluate.scoring import MaskPair, score_folder
from segpipe.networks.device import memory_faults, resolve_device, set_processors
from segpipe.pipeline import prepare
from segpipe.pipeline.calibration import CalibrationCounting, collect_calibration, scored_folds
from segpipe.pipeline.cascade import guides_for, note_guides, require_trained_guides
from segpipe.pipeline.costs import planned_costs
from segpipe.pipeline.estimates import fold_bytes, foreseen_training, seconds_of_steps, steps_text
from segpipe.pipeline.plan import PlannedWork, default_configuration
from segpipe.pipeline.requests import Machine, TrainRequest
from segpipe.pipeline.train_processes import devices_for, train_in_processes
from segpipe.plan.edit import edit_plan, warn_of_sides
from segpipe.plan.schema import Plan
from segpipe.plan.training_stats import TrainingStats
from segpipe.predict.folds import choose_folds
from segpipe.predict.model import load_out_of_fold
from segpipe.predict.options import PredictOptions
from segpipe.predict.outputs import mask_path
from segpipe.predict.run import predict_cases
from segpipe.prepare.dataset import prepare_dataset
from segpipe.prepare.store import open_cases
from segpipe.train.checkpoint import with_own_start
from segpipe.train.distributed import Group, join_group
from segpipe.train.fold import FoldData, FoldTraining
from segpipe.train.loop import train_fold
from segpipe.train.profile import MakeFold, Profile, processor_seconds, profile_fold
from segpipe.train.resume import has_other_length, require_same_training
from segpipe.train.schedule import Schedule
from segpipe.train.tensorboard import wants_tensorboard
from segpipe.train.weights_header import about_weights

Result = TypeVar("Result")
_MIN_BUDGET_SECONDS = 5.0


@dataclass(frozen=True)
class TrainJob:
    """A training that was checked.

    Args:
        request: As it was asked.
        planned: The work folder; its plan has the edits and the time budget of a fold.
        configuration: Name of the one to train.
        folds: Which.
        devices: What to train on; one: in this process.
        edits: Of the plan, for other processes.
        tensorboard: Whether to write event files.
        steps_left: Of each fold, from the end of its last epoch.
    """

    request: TrainRequest
    planned: PlannedWork
    configuration: str
    folds: tuple[int, ...]
    devices: tuple[str, ...]
    edits: tuple[str, ...]
    tensorboard: bool
    steps_left: tuple[int, ...]


@dataclass(frozen=True)
class TrainResult:
    """The configuration that was trained, the scores of all its trained folds, and which folds have none yet."""

    configuration: str
    scores: ScoreTable
    open_folds: tuple[str, ...]


def resolve(
    request: TrainRequest, planned: PlannedWork | None = None, *, trained_before: Sequence[str] = ()
) -> TrainJob:
    """Check a training against the work folder.

    Args:
        request: What to train.
        planned: The work folder as it will be; None to read it.
        trained_before: Configurations that are trained before this one: as a cascade's guides they may be missing.

    Raises:
        UsageError: If the folder holds no plan, there is no such configuration, fold or device, the time budget is too
            short, a fold holds another training, or a cascade's guides are not trained.
        PlanError: If an edit is wrong.
        DataError: If a file of the folder is damaged.
        SetupError: If there is no such device, or tensorboard is requested and not installed.
    """
    planned = planned or PlannedWork.load(request.folder)
    folds = tuple(planned.splits.select(request.folds or None))
    tensorboard = wants_tensorboard(request.tensorboard)
    devices = tuple(devices_for(folds, request.machine, request.devices))
    edits = request.all_edits
    if request.time_budget_seconds is not None:
        share = fold_seconds(request.time_budget_seconds, len(folds), len(devices))
        edits = (*edits, f"training.time_budget_seconds={share}")
    planned = replace(planned, plan=edit_plan(planned.plan.decisions, edits))
    name = default_configuration(planned.plan, request.configuration)
    for device in devices:
        resolve_device(device)
    if planned.plan.configurations[name].previous not in trained_before:
        require_trained_guides(planned, name)
    together = max(len(devices) if len(folds) == 1 else 1, n_processes())
    trained = shared_plan(planned.plan, name, together)
    n_steps = Schedule(trained.training).n_iterations
    steps_left = tuple(
        n_steps
        if request.restart
        else count_steps_left(trained, planned.splits.folds[fold], planned.work.fold(name, str(fold)), together)
        for fold in folds
    )
    return TrainJob(request, planned, name, folds, devices, edits, tensorboard, steps_left)


def fold_seconds(seconds: float, n_folds: int, n_devices: int) -> float:
    """Time for each fold, of which some are trained at a time.

    Raises:
        UsageError: If it is too short to train in.
    """
    share = seconds / math.ceil(n_folds / n_devices)
    if share < _MIN_BUDGET_SECONDS:
        raise UsageError(
            f"--time-budget: {seconds:g} s across {count(n_folds, 'fold')} leaves {share:.1f} s per fold; the minimum "
            f"is {_MIN_BUDGET_SECONDS:g} s."
        )
    return share


def run(job: TrainJob) -> TrainResult:
    """Train folds; then predict and score their validation cases.

    On one device folds are trained one after another. On several devices each trains a fold in a process of its own, in
    parallel; a single fold is trained by all of them together, with the batch of the plan on each. Processes that
    torchrun starts train together in any case.

    Raises:
        SegpipeError: If a fold could not be trained; in parallel, the other ones are.
    """
    request, planned, name = job.request, job.planned, job.configuration
    set_processors(request.machine.n_workers)
    warn_of_sides(planned.plan)
    if len(job.devices) == 1:
        with join_group(resolve_device(job.devices[0])) as group:
            _train_here(replace(job, request=replace(request, machine=_only(job))), group)
    else:
        prepared_cases(planned, name, request.machine)  # once, by all processors
        options = [part for edit in job.edits for part in ("--set", edit)]
        options += ["--tensorboard" if job.tensorboard else "--no-tensorboard", *["--restart"] * request.restart]
        arguments = ("train", str(planned.work.path), "-c", name, *options)
        train_in_processes(planned.work.run(name), job.folds, job.devices, arguments, request.machine)
    scores = collect_scores(planned.work, name, planned.splits)
    collect_calibration(planned, name)
    scored = {row.fold for row in scores.rows}
    return TrainResult(name, scores, tuple(str(fold) for fold in range(planned.splits.k) if fold not in scored))


def train(request: TrainRequest) -> TrainResult:
    """Check a training and run it; see `resolve` and `run`."""
    return run(resolve(request))


def estimate(job: TrainJob) -> Foreseen:
    """Estimate the time, disk and memory that a training will take; nothing is written.

    Time is from steps that were measured, or else predicted.

    Raises:
        DataError: If the data are not those that were planned for.
    """
    planned, name, machine = job.planned, job.configuration, job.request.machine
    plan, own = planned.plan, planned.plan.configurations[name]
    needs = prepare.estimate(prepare.PrepareJob(planned, name, machine.n_workers))
    (cost,) = planned_costs(plan.model_copy(update={"configurations": {name: own}}), planned.fingerprint, machine)
    n_left = sum(steps > 0 for steps in job.steps_left)
    folders = [FoldFolder(path) for path in sorted(planned.work.run(name).glob("fold_*"))]
    each, source = seconds_of_steps(plan, name, cost, sum(job.steps_left) / max(1, n_left), folders)
    return foreseen_training(
        command="train",
        todo=f"{name}, {n_left} of {count(len(job.folds), 'fold')}, {steps_text(plan, job.steps_left)}; "
        f"{count(needs.n_cases, 'case')} to prepare",
        seconds=None if each is None else each * math.ceil(n_left / len(job.devices)),
        seconds_from=source,
        written_bytes=n_left * fold_bytes(plan, cost),
        folder=planned.work.path,
        needs=needs,
        cost=cost,
        device=machine.device,
        notes=(
            "preparing cases, and predicting and scoring the validation cases take additional time",
            *([f"a cascade: all folds of {own.previous} are trained before it"] if own.previous else []),
        ),
    )


def profile(request: TrainRequest) -> Profile:
    """Prepare the cases, as training does, and measure some steps of a fold; existing training is not touched.

    Args:
        request: With one fold, or none for the first.

    Raises:
        UsageError: If several folds or devices are requested, the folder holds no plan, or no such configuration.
        ResourceError: If memory or disk runs out.
    """
    if request.devices is not None:
        raise UsageError(
            f"--devices {request.devices}: --profile measures one process. Choose its device with --device."
        )
    if len(request.folds) > 1:
        raise UsageError("-f: --profile measures one fold. Choose one.")
    return _measure(request, profile_fold)


def processor_seconds_of_step(request: TrainRequest) -> float:
    """Processor time of a step on a CPU, all cores added up; existing training is not touched. Raises as `profile`."""
    return _measure(request, lambda make_fold, _name, _folder: processor_seconds(make_fold))


def _measure(request: TrainRequest, measure: Callable[[MakeFold, str, Path], Result]) -> Result:
    """Result of measuring a new fold, of its maker, configuration, and folder."""
    planned, budget = PlannedWork.load(request.folder), request.time_budget_seconds
    (fold,) = planned.splits.select(request.folds or [0])
    edits = (*request.all_edits, *(() if budget is None else (f"training.time_budget_seconds={budget}",)))
    planned = replace(planned, plan=edit_plan(planned.plan, edits))
    name = default_configuration(planned.plan, request.configuration)
    device = resolve_device(request.machine.device)
    set_processors(request.machine.n_workers)
    prepared, guides = prepared_cases(planned, name, request.machine)
    data = open_fold(prepared, planned.splits, fold, request.machine, guides)
    with memory_faults(f"training {name}", "Use a smaller batch_size or patch_zyx (--set)."):
        configuration = with_own_start(planned.plan.configurations[name], planned.work.fold(name, str(fold)))
        make_fold = partial(FoldTraining, planned.plan, configuration, data, device, is_new=True)
        return measure(lambda hooks: make_fold(hooks=hooks), name, request.folder)


def shared_plan(plan: Plan, name: str, n_processes: int) -> Plan:
    """The plan with the batch of all processes together: they do what one with this plan would."""
    if n_processes == 1:
        return plan
    batch_size = plan.configurations[name].batch_size * n_processes
    return edit_plan(plan, [f"configurations.{name}.batch_size={batch_size}"])


def open_fold(prepared: Path, splits: Splits, fold: int, machine: Machine, guides: Path | None = None) -> FoldData:
    """The prepared cases of a fold, and what guides a cascade in them."""
    split = splits.folds[fold]
    device = resolve_device(machine.device)
    train, validation = (
        open_cases(prepared, case_ids, machine.n_workers, device, guides)
        for case_ids in (split.train, split.validation)
    )
    return FoldData(fold=fold, split=split, train=train, validation=validation)


def numbered_folds(work: Work, configuration: str, asked: Sequence[str]) -> dict[str, FoldFolder]:
    """Folds that have weights, trained to the end or not, by number; without the one trained on every case.

    Raises:
        UsageError: If there is none, or not one that is asked for.
    """
    run = work.run(configuration)
    found = [path.parent.name.removeprefix("fold_") for path in run.glob("fold_*/checkpoint.safetensors")]
    numbers = [name for name in found if name.isdecimal()]
    if not numbers:
        train = command_text("segpipe", "train", str(work.path), "-c", configuration)
        raise UsageError(f"{run}: no trained fold. Train one first: `{train}`.")
    return {fold: work.fold(configuration, fold) for fold in choose_folds(run, numbers, asked)[0]}


def collect_scores(work: Work, configuration: str, splits: Splits) -> ScoreTable:
    """Out-of-fold scores of every fold that is scored on the present splits, also written beside the folds."""
    folders = scored_folds(work, configuration, splits).values()
    table = ScoreTable(tuple(row for folder in folders for row in ScoreTable.load(folder.scores).rows))
    if rank() == 0:
        table.save(work.scores(configuration))
    return table


def _only(job: TrainJob) -> Machine:
    """The machine with the one device of a job."""
    return replace(job.request.machine, device=job.devices[0])


def prepared_cases(planned: PlannedWork, name: str, machine: Machine) -> tuple[Path, Path | None]:
    """The prepared cases, and what guides a cascade in them."""
    prepared = prepare_dataset(planned.work, planned.dataset, planned.plan, name, machine.n_workers)
    return prepared, guides_for(planned, name, machine)


def _train_here(job: TrainJob, group: Group) -> None:
    """Train one fold after another, in this process, which may be one of several that train together."""
    with group.in_turn():
        prepared = prepared_cases(job.planned, job.configuration, job.request.machine)
    plan = _with_batch_of(group, job.planned.plan, job.configuration)
    job = replace(job, planned=replace(job.planned, plan=plan))
    for fold in job.folds:
        _train_one(job, fold, prepared, group)
        if group.is_first:
            _validate_one(job, fold)


def _with_batch_of(group: Group, plan: Plan, name: str) -> Plan:
    if group.size > 1:
        each = plan.configurations[name].batch_size
        say(
            f"{group.size} processes train together, {each} patches each: as one with a batch of {each * group.size}. "
            f"The learning rate stays {plan.training.learning_rate:g}."
        )
    return shared_plan(plan, name, group.size)


def _train_one(job: TrainJob, fold: int, prepared: tuple[Path, Path | None], group: Group) -> None:
    started = time.monotonic()
    planned, name, restart = job.planned, job.configuration, job.request.restart
    cases, guides = prepared
    data = open_fold(cases, planned.splits, fold, job.request.machine, guides)
    folder = planned.work.fold(name, str(fold))
    if group.is_first:
        begins = restart or not (folder.state.is_file() or folder.previous_state.is_file())
        make_folder(folder.path)
        note_guides(folder, planned.plan.configurations[name].previous, begins=begins)
    train_fold(
        planned.plan,
        name,
        data,
        folder,
        resolve_device(job.request.machine.device),
        started,
        tensorboard=job.tensorboard,
        group=group,
        restart=restart,
    )
    if group.is_first and (stats := TrainingStats.of(planned.fingerprint, planned.plan, data.split.train)):
        stats.save(folder.trained_on)


def _validate_one(job: TrainJob, fold: int) -> None:
    planned, name, machine = job.planned, job.configuration, job.request.machine
    folder = planned.work.fold(name, str(fold))
    model = load_out_of_fold(folder, resolve_device(machine.device))
    cases = [planned.dataset.by_id[case_id] for case_id in planned.splits.folds[fold].validation]
    options = PredictOptions(any_size=True)  # cases of the dataset: their size is no mistake of a header
    counting = CalibrationCounting(folder.calibration, model.plan.labels)
    predict_cases(model, cases, folder.validation, options, observer=counting).require_all()
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
    table = score_folder(pairs, model.plan.labels, machine.n_workers)
    weights, plan = file_digest(folder.weights), model.plan.decisions.digest()
    # before the scores are there, so that none is without its line
    append_scoring(planned.work.path, scoring_of("fold", f"{name} fold {fold}", pairs, table, model=weights, plan=plan))
    table.save(folder.scores)


def count_steps_left(plan: Plan, split: Fold, folder: FoldFolder, n_devices: int) -> int:
    """Count the steps of a fold's training from where its last epoch ended.

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
