"""Everything, from a folder of scans to the report: check, plan, train, evaluate, report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import DataError, UsageError
from segpipe.core.files import private_folder
from segpipe.core.foreseen import Foreseen
from segpipe.core.records import did_you_mean
from segpipe.core.text import command_text, count
from segpipe.core.work import Work
from segpipe.data.check import CheckReport, check_dataset
from segpipe.data.faults import KINDS
from segpipe.data.splits import require_folds
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.summary import SummaryRow, summarise
from segpipe.pipeline import plan, train
from segpipe.pipeline.plan import PlannedWork, default_configuration
from segpipe.pipeline.requests import RunRequest, TrainRequest
from segpipe.pipeline.train_processes import devices_for
from segpipe.plan.schema import CONFIGURATIONS
from segpipe.report.work_report import build_report


@dataclass(frozen=True)
class RunJob:
    """A run whose options were checked."""

    request: RunRequest


@dataclass(frozen=True)
class Finished:
    """Results of a run.

    Args:
        configuration: What was trained last.
        scores: Out-of-fold, of all folds that are trained.
        summary: Their means with 95 % intervals over patients, empty masks by policy `mr`.
        report: The page for people.
        open_folds: Those of the configuration that are not trained and scored yet.
    """

    configuration: str
    scores: ScoreTable
    summary: tuple[SummaryRow, ...]
    report: Path
    open_folds: tuple[str, ...]


def resolve(request: RunRequest) -> RunJob:
    """Check what can be checked without the dataset.

    Raises:
        UsageError: If a fold or configuration cannot exist, or the time budget is too short for any fold.
        SegpipeError: As `plan.check_options`.
    """
    plan.check_options(request.planning)
    work, name = Work(request.folder), request.configuration
    makes_folds = request.folds_by == "patient" and not (request.splits_file or work.splits.is_file())
    if makes_folds and not (request.data / plan.NNUNET_SPLITS).is_file():
        require_folds(request.folds, request.n_folds)
    made = [edit.split("=")[0].removeprefix("configurations.") for edit in request.edits]
    if name is not None and name not in (*CONFIGURATIONS, *made) and not work.plan.is_file():
        raise UsageError(f"-c {name}: the plan will have no such configuration.{did_you_mean(name, [*CONFIGURATIONS])}")
    if request.time_budget_seconds is not None:
        folds = request.folds or range(1)
        devices = devices_for(folds, request.machine, None)
        train.fold_seconds(request.time_budget_seconds, len(folds), len(devices))
    return RunJob(request)


def run(
    job: RunJob,
    *,
    on_checked: Callable[[CheckReport], None] = lambda _: None,
    on_planned: Callable[[plan.Planned], None] = lambda _: None,
) -> Finished:
    """Run every stage in order; a stage that is done already is not repeated.

    Args:
        job: What to run.
        on_checked: Receives what the check found, before a fatal fault is raised.
        on_planned: Receives the plan.

    Raises:
        DataError: If a fault of the dataset is fatal.
        SegpipeError: As for planning and training.
    """
    request = job.request
    report = check_dataset(request.data, request.machine.n_workers)
    on_checked(report)
    _require_usable(request.data, report)
    planned = plan.run(plan.resolve(request.planning))
    work = PlannedWork.load(request.folder)
    report.save(work.work.data_check)
    on_planned(planned)
    _resolve_training(request, work)  # all of it, before the first hour is spent
    for training in _trainings(request, work):
        result = train.train(training)
    summary, page = tuple(summarise(result.scores)), build_report(request.folder)
    return Finished(result.configuration, result.scores, summary, page, result.open_folds)


def estimate(job: RunJob) -> Foreseen:
    """Check and plan as `run` does, and estimate the time, disk and memory that the rest will take.

    Images are read; nothing is written into the work folder.

    Raises:
        SegpipeError: As `run` does before it trains.
    """
    request = job.request
    _require_usable(request.data, check_dataset(request.data, request.machine.n_workers))
    planning = plan.resolve(request.planning)
    with private_folder() as temporary:
        known = planning.work.measured_cases
        measured = temporary / known.name
        if known.is_file():
            shutil.copy(known, measured)
        planned, _ = plan.decide(planning, measured)
    return train.estimate(_resolve_training(request, planned)).model_copy(update={"command": "run"})


def _resolve_training(request: RunRequest, planned: PlannedWork) -> train.TrainJob:
    """The last training, after every one before it was checked too."""
    trained: list[str] = []
    for training in _trainings(request, planned):
        job = train.resolve(training, planned, trained_before=trained)
        trained.append(job.configuration)
    return job


def _trainings(request: RunRequest, planned: PlannedWork) -> list[TrainRequest]:
    """The training; before a cascade one of every fold of the coarser configuration, within the same time budget."""
    name = default_configuration(planned.plan, request.configuration)
    previous, budget, k = planned.plan.configurations[name].previous, request.time_budget_seconds, planned.splits.k
    folds = tuple(planned.splits.select(request.folds or None))
    if previous is None:
        return [_training(request, name, folds, budget)]
    coarse, fine = (None, None) if budget is None else (budget * n / (k + len(folds)) for n in (k, len(folds)))
    return [_training(request, previous, (), coarse), _training(request, name, folds, fine)]


def _training(request: RunRequest, name: str, folds: tuple[int, ...], budget: float | None) -> TrainRequest:
    return TrainRequest(
        folder=request.folder,
        machine=request.machine,
        configuration=name,
        folds=folds,
        time_budget_seconds=budget,
    )


def _require_usable(data: Path, report: CheckReport) -> None:
    """Refuse a dataset with a fatal fault.

    Raises:
        DataError: If there is one.
    """
    if report.is_fatal:
        fatal = [fault for fault in report.faults if fault.severity == "fatal"]
        first = f"{fatal[0].case_id or data}: {KINDS[fatal[0].kind].title}, found {fatal[0].found}"
        raise DataError(
            f"{data}: {count(len(fatal), 'fatal fault')} (first: {first}). "
            f"`{command_text('segpipe', 'check', str(data))}` lists them."
        )
