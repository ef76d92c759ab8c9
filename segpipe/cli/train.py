"""`segpipe train`: train folds, then predict and score their validation cases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpipe.cli.ahead import dry_run, print_ahead
from segpipe.cli.options import (
    configuration,
    devices,
    edits,
    epochs,
    folds,
    iterations,
    length_edits,
    shared,
    time_budget,
)

if TYPE_CHECKING:
    from segpipe.pipeline.machine import Machine


@click.command("train")
@click.argument("work", type=click.Path(path_type=Path))
@configuration
@folds
@time_budget
@epochs
@iterations
@edits
@devices
@click.option(
    "--tensorboard/--no-tensorboard",
    default=None,
    help="Write event files with pictures of patches; default: if tensorboard is installed.",
)
@click.option("--restart", is_flag=True, help="Train anew whatever the folds hold; leave it out to go on after a stop.")
@dry_run
@click.option(
    "--profile",
    "profiles",
    is_flag=True,
    help="Only say where the time of training a fold (-f, else 0) goes; keep nothing.",
)
@shared
def command(
    work: Path,
    configuration: str | None,
    folds: tuple[int, ...],
    time_budget: float | None,
    epochs: int | None,
    iterations: int | None,
    edits: tuple[str, ...],
    devices: str | None,
    tensorboard: bool | None,
    restart: bool,
    dry_run: bool,
    profiles: bool,
    as_json: bool,
    device: str,
    n_workers: int,
    seed: int,
) -> None:
    """Train folds of a planned WORK folder; a killed run goes on with the same command.

    A finished fold can be trained longer (--epochs, --iterations, --time-budget) where the learning rate does not
    follow the length: --set training.schedule=constant. Any other change of its plan is refused; --restart takes it.
    """
    from segpipe.cli.main import print_json
    from segpipe.cli.tables import summary_record, summary_text
    from segpipe.core.machine import rank
    from segpipe.evaluate.summary import DEFAULT_POLICY, summarise
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.training import train

    if seed:
        raise click.UsageError(f"--seed: the plan holds the seed of a training; use --set training.seed={seed}.")
    machine = Machine(device, n_workers)
    edits = (*edits, *length_edits(epochs, iterations, time_budget))
    if profiles:
        _profile(work, configuration, folds, machine, edits, time_budget, devices, as_json=as_json)
        return
    asked: dict[str, Any] = {"time_budget_seconds": time_budget, "edits": edits, "devices": devices, "restart": restart}
    if dry_run:
        from segpipe.pipeline.ahead import training_ahead

        print_ahead(training_ahead(work, configuration, folds or None, machine, **asked), as_json=as_json)
        return
    name, table = train(work, configuration, folds or None, machine, tensorboard=tensorboard, **asked)
    if rank():  # of processes that train together, the first one answers
        return
    rows = summarise(table)
    if as_json:
        print_json(summary_record(rows, DEFAULT_POLICY) | {"configuration": name})
        return
    click.echo(summary_text(rows))
    click.echo(f"Scores: {work / 'runs' / name / 'scores.csv'}. Next: segpipe report {work}")


def _profile(
    work: Path,
    configuration: str | None,
    folds: tuple[int, ...],
    machine: Machine,
    edits: tuple[str, ...],
    time_budget: float | None,
    devices: str | None,
    *,
    as_json: bool,
) -> None:
    from segpipe.cli.main import print_json
    from segpipe.cli.profile_table import profile_record, profile_text
    from segpipe.pipeline.profiling import profile

    if devices is not None:
        raise click.UsageError(f"--devices {devices}: --profile measures one process; name its device with --device.")
    if len(folds) > 1:
        raise click.UsageError("-f: --profile measures one fold; name one.")
    budget = () if time_budget is None else (f"training.time_budget_seconds={time_budget}",)
    found = profile(work, configuration, machine, (*edits, *budget), folds[0] if folds else 0)
    if as_json:
        print_json(profile_record(found))
        return
    click.echo(profile_text(found))
