"""`segpipe run`: everything, from a folder of scans to the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpipe.cli import options
from segpipe.cli.ahead import dry_run, print_ahead
from segpipe.cli.options import configuration, edits, epochs, folds, iterations, length_edits, shared, time_budget

if TYPE_CHECKING:
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
        from segpipe.pipeline.run import with_fold_time

        choices = with_fold_time(choices, folds, time_budget)
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
    from segpipe.cli.check import print_report
    from segpipe.cli.main import print_json
    from segpipe.cli.plan_tables import plan_text
    from segpipe.cli.tables import summary_record, summary_text
    from segpipe.evaluate.summary import DEFAULT_POLICY
    from segpipe.pipeline.run import run_stages

    done = run_stages(
        data,
        work,
        machine,
        choices,
        configuration=configuration,
        folds=folds,
        time_budget_seconds=time_budget,
        on_checked=lambda report: None if as_json else print_report(report),
        on_planned=lambda planned: None if as_json else click.echo(plan_text(planned)),
    )
    if as_json:
        named = {"configuration": done.configuration, "report": str(done.report)}
        print_json(summary_record(done.summary, DEFAULT_POLICY) | named)
        return
    click.echo(summary_text(done.summary))
    click.echo(f"Report: {done.report}")
    scored = sorted(path.parent.name for path in work.glob("runs/*/scores.csv"))
    if len(scored) > 1:
        click.echo(f"Trained are {', '.join(scored)}: `segpipe select {work} --ensembles` chooses what predicts.")
