"""`segpipe run`: everything, from a folder of scans to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segpipe.cli import options
from segpipe.cli.options import (
    Command,
    configuration,
    dry_run,
    edits,
    epochs,
    folds,
    iterations,
    on_machine,
    seed,
    shared,
    time_budget,
)
from segpipe.cli.printing import echo
from segpipe.pipeline.requests import Machine, RunRequest


@click.command("run", cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", "work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@options.preset
@options.gpu_memory
@options.max_memory
@options.folds_by
@options.splits
@configuration
@folds
@time_budget
@epochs
@iterations
@edits
@dry_run
@on_machine
@seed
@shared
def command(
    data: Path,
    work: Path,
    machine: Machine,
    gpu_memory: float | None,
    splits: Path | None,
    time_budget: float | None,
    dry_run: bool,
    as_json: bool,
    **more: Any,
) -> None:
    """Check DATA, plan, train, evaluate and report.

    Rerun the same command to resume.
    """
    from segpipe.cli.printing import print_estimate
    from segpipe.pipeline import run

    request = RunRequest(
        data,
        work,
        machine,
        gpu_memory_gib=gpu_memory,
        splits_file=splits,
        time_budget_seconds=time_budget,
        **more,
    )
    if dry_run:
        print_estimate(run.estimate(run.resolve(request)), as_json=as_json)
    else:
        run_and_print(request, as_json=as_json)


def run_and_print(request: RunRequest, *, as_json: bool) -> None:
    """Run every stage in order; print the table of scores and the report's path."""
    from segpipe.cli.check import print_report
    from segpipe.cli.plan import plan_text
    from segpipe.cli.printing import print_json
    from segpipe.cli.tables import open_folds_text, summary_record, summary_text
    from segpipe.core.text import command_text
    from segpipe.core.work import Work
    from segpipe.evaluate.summary import DEFAULT_POLICY
    from segpipe.pipeline import run

    done = run.run(
        run.resolve(request),
        on_checked=lambda report: None if as_json else print_report(report),
        on_planned=lambda planned: None if as_json else echo(plan_text(planned)),
    )
    if as_json:
        named = {"configuration": done.configuration, "report": str(done.report)}
        print_json(summary_record(done.summary, DEFAULT_POLICY) | named)
        return
    echo(summary_text(done.summary))
    echo(f"Report: {done.report}")
    if done.open_folds:
        echo(open_folds_text(Work(request.folder), done.configuration, done.open_folds))
    scored = sorted(path.parent.name for path in request.folder.glob("runs/*/scores.csv"))
    if len(scored) > 1:
        following = command_text("segpipe", "select", str(request.folder), "--ensembles")
        echo(f"Trained: {', '.join(scored)}. Run `{following}` to choose the model used for prediction.")
