"""`segpipe run`: everything, from a folder of scans to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpipe.cli import options
from segpipe.cli.ahead import dry_run, print_ahead
from segpipe.cli.options import configuration, edits, epochs, folds, iterations, length_edits, shared, time_budget

if TYPE_CHECKING:
    from segpipe.data.check import CheckReport
    from segpipe.evaluate.scores import ScoreTable
    from segpipe.evaluate.summary import SummaryRow
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.planning import Choices


@click.command("run")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", "work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@options.preset
@options.gpu_memory
@options.splits
@configuration
@folds
@time_budget
@epochs
@iterations
@edits
@dry_run
@shared
def command(
    data: Path,
    work: Path,
    preset: str,
    gpu_memory: float | None,
    splits: Path | None,
    configuration: str | None,
    folds: tuple[int, ...],
    time_budget: float | None,
    epochs: int | None,
    iterations: int | None,
    edits: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    device: str,
    n_workers: int,
    seed: int,
) -> None:
    """Check DATA, plan, train, evaluate and report.

    A killed run goes on with the same command.
    """
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.planning import Choices

    edits = (*edits, *length_edits(epochs, iterations, time_budget))
    machine = Machine(device, n_workers)
    choices = Choices(preset=preset, gpu_memory_gb=gpu_memory, splits_file=splits, edits=edits, seed=seed)
    if dry_run:
        from segpipe.pipeline.ahead import run_ahead

        choices = _for_time(choices, folds, time_budget)
        found = run_ahead(data, work, machine, choices, configuration, folds or None, time_budget)
        print_ahead(found, as_json=as_json)
        return
    run_all(
        data,
        work,
        machine,
        choices,
        configuration=configuration,
        folds=folds,
        time_budget=time_budget,
        as_json=as_json,
    )


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
    time_budget: float | None = None,
    quiet: bool = False,
) -> Finished:
    """Every stage in order; unless `quiet`, what was checked and planned is printed.

    Raises:
        DataError: If a fault of the dataset is fatal.
    """
    from segpipe.cli.plan_tables import plan_text
    from segpipe.core.work import Work
    from segpipe.evaluate.summary import summarise
    from segpipe.pipeline.planning import plan_data
    from segpipe.pipeline.training import train_in_order
    from segpipe.report.build import build_report

    checked = _check(data, machine.n_workers, quiet=quiet)
    planned = plan_data(data, work, machine, _for_time(choices, folds, time_budget), keep=True)
    checked.save(Work(work).data_check)
    if not quiet:
        click.echo(plan_text(planned))
    name, table = train_in_order(work, configuration, folds or None, machine, time_budget_seconds=time_budget)
    return Finished(name, table, summarise(table), build_report(work))


def _for_time(choices: Choices, folds: Sequence[int], time_budget: float | None) -> Choices:
    """The choices with the time that each fold has."""
    if time_budget is None:
        return choices
    return replace(choices, fold_seconds=time_budget / (len(folds) or choices.n_folds))


def run_all(
    data: Path,
    work: Path,
    machine: Machine,
    choices: Choices,
    *,
    configuration: str | None = None,
    folds: tuple[int, ...] = (),
    time_budget: float | None = None,
    as_json: bool = False,
) -> None:
    """Every stage in order, then the table of scores and the report's path."""
    from segpipe.cli.main import print_json
    from segpipe.cli.tables import summary_record, summary_text
    from segpipe.evaluate.summary import DEFAULT_POLICY

    limits: dict[str, Any] = {"configuration": configuration, "folds": folds, "time_budget": time_budget}
    done = run_stages(data, work, machine, choices, **limits, quiet=as_json)
    if as_json:
        named = {"configuration": done.configuration, "report": str(done.report)}
        print_json(summary_record(done.summary, DEFAULT_POLICY) | named)
        return
    click.echo(summary_text(done.summary))
    click.echo(f"Report: {done.report}")
    scored = sorted(path.parent.name for path in work.glob("runs/*/scores.csv"))
    if len(scored) > 1:
        click.echo(f"Trained are {', '.join(scored)}: `segpipe select {work} --ensembles` chooses what predicts.")


def _check(data: Path, n_workers: int, *, quiet: bool) -> CheckReport:
    """What is wrong with a dataset; printed unless `quiet`.

    Raises:
        DataError: If a fault is fatal.
    """
    from segpipe.cli.check import print_report
    from segpipe.core.errors import DataError
    from segpipe.data.check import check_dataset
    from segpipe.data.faults import KINDS

    report = check_dataset(data, n_workers)
    if not quiet:
        print_report(report)
    if report.is_fatal:
        fatal = [fault for fault in report.faults if fault.severity == "fatal"]
        first = f"{fatal[0].case_id or data}: {KINDS[fatal[0].kind].title}, found {fatal[0].found}"
        n_fatal = f"{len(fatal)} fatal fault{'s' * (len(fatal) > 1)}"
        raise DataError(f"{data}: {n_fatal} (first: {first}). `segpipe check {data}` lists them.")
    return report
