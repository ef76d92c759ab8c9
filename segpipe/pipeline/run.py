"""Everything, from a folder of scans to the report: check, plan, train, evaluate, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.work import Work
from segpipe.data.check import CheckReport, check_dataset
from segpipe.data.faults import KINDS
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.summary import SummaryRow, summarise
from segpipe.pipeline.machine import Machine
from segpipe.pipeline.planning import Choices, Planned, plan_data
from segpipe.pipeline.training import train_in_order
from segpipe.report.work_report import build_report


@dataclass(frozen=True)
class Finished:
    """What a run leaves behind.

    Args:
        configuration: What was trained last.
        scores: Out-of-fold, of all folds that are trained.
        summary: Their means with 95 % intervals over patients, empty masks by policy `mr`.
        report: The page for people.
    """

    configuration: str
    scores: ScoreTable
    summary: tuple[SummaryRow, ...]
    report: Path


def run_stages(
    data: Path,
    work: Path,
    machine: Machine,
    choices: Choices,
    *,
    configuration: str | None = None,
    folds: Sequence[int] = (),
    time_budget_seconds: float | None = None,
    on_checked: Callable[[CheckReport], None] = lambda _: None,
    on_planned: Callable[[Planned], None] = lambda _: None,
) -> Finished:
    """Run every stage in order; a stage that is done already is not repeated.

    Args:
        data: The dataset.
        work: Folder of all results.
        machine: What to compute on.
        choices: How to plan.
        configuration: Which to train; None for the default one.
        folds: Which; none for all.
        time_budget_seconds: Of all training; None: as long as the plan says.
        on_checked: Receives what the check found, before a fatal fault is raised.
        on_planned: Receives the plan.

    Raises:
        DataError: If a fault of the dataset is fatal.
    """
    report = check_dataset(data, machine.n_workers)
    on_checked(report)
    _require_usable(data, report)
    planned = plan_data(data, work, machine, with_fold_time(choices, folds, time_budget_seconds), keep=True)
    report.save(Work(work).data_check)
    on_planned(planned)
    name, table = train_in_order(work, configuration, folds or None, machine, time_budget_seconds=time_budget_seconds)
    return Finished(name, table, tuple(summarise(table)), build_report(work))


def with_fold_time(choices: Choices, folds: Sequence[int], time_budget_seconds: float | None) -> Choices:
    """The choices with the time that each fold has."""
    if time_budget_seconds is None:
        return choices
    return replace(choices, fold_seconds=time_budget_seconds / (len(folds) or choices.n_folds))


def _require_usable(data: Path, report: CheckReport) -> None:
    """Refuse a dataset with a fatal fault.

    Raises:
        DataError: If there is one.
    """
    if report.is_fatal:
        fatal = [fault for fault in report.faults if fault.severity == "fatal"]
        first = f"{fatal[0].case_id or data}: {KINDS[fatal[0].kind].title}, found {fatal[0].found}"
        n_fatal = f"{len(fatal)} fatal fault{'s' * (len(fatal) > 1)}"
        raise DataError(f"{data}: {n_fatal} (first: {first}). `segpipe check {data}` lists them.")
