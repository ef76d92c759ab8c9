"""`segpipe train`: train folds, then predict and score their validation cases."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import configuration, edits, folds, shared, time_budget


@click.command("train")
@click.argument("work", type=click.Path(path_type=Path))
@configuration
@folds
@time_budget
@edits
@shared
def command(
    work: Path,
    configuration: str | None,
    folds: tuple[int, ...],
    time_budget: float | None,
    edits: tuple[str, ...],
    as_json: bool,
    device: str,
    n_workers: int,
    seed: int,
) -> None:
    """Train folds of a planned WORK folder; a killed run goes on with the same command."""
    from segpipe.cli.main import print_json
    from segpipe.cli.tables import summary_record, summary_text
    from segpipe.evaluate.summary import DEFAULT_POLICY, summarise
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.stages import train

    if seed:
        raise click.UsageError(f"--seed: the plan holds the seed of a training; use --set training.seed={seed}.")
    machine = Machine(device, n_workers)
    name, table = train(work, configuration, folds or None, machine, time_budget_seconds=time_budget, edits=edits)
    rows = summarise(table)
    if as_json:
        print_json(summary_record(rows, DEFAULT_POLICY) | {"configuration": name})
        return
    click.echo(summary_text(rows))
    click.echo(f"Scores: {work / 'runs' / name / 'scores.csv'}. Next: segpipe report {work}")
