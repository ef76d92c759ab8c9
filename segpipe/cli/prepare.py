"""`segpipe prepare`: crop, normalise and resample the cases."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from segpipe.cli.options import configuration, shared

_WIDTH = 80


@click.command("prepare")
@click.argument("work", type=click.Path(path_type=Path))
@configuration
@click.option("--dry-run", is_flag=True, help="Only say how many cases are missing, and the disk and memory they take.")
@shared
def command(
    work: Path,
    configuration: str | None,
    dry_run: bool,
    as_json: bool,
    device: str,
    n_workers: int,
    seed: int,  # noqa: ARG001 (an option of every command)
) -> None:
    """Prepare the cases of a planned WORK folder; cases that are prepared already are left alone.

    Fewer than -j cases are prepared side by side where memory is short. Cases that cannot be prepared are listed at
    the end (exit code 3); the others are prepared.
    """
    from dataclasses import asdict

    from segpipe.cli.main import print_json
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.preparing import preparing_needs
    from segpipe.pipeline.stages import prepare

    machine = Machine(device, n_workers)
    needs = preparing_needs(work, configuration, machine) if dry_run or as_json else None
    folder = None if dry_run else prepare(work, configuration, machine)
    if as_json and needs is not None:
        print_json({"prepared": folder and str(folder), **asdict(needs)})
    else:
        click.echo(f"Prepared cases: {folder}" if needs is None else textwrap.fill(str(needs), _WIDTH))
