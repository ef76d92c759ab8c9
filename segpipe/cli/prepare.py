"""`segpipe prepare`: crop, normalise and resample the cases."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from segpipe.cli.options import NO_DEVICE, Command, configuration, dry_run, shared, workers
from segpipe.cli.printing import echo
from segpipe.pipeline.requests import Machine, PrepareRequest

_WIDTH = 80


@click.command("prepare", cls=Command, old=NO_DEVICE)
@click.argument("work", type=click.Path(path_type=Path))
@configuration
@dry_run
@workers
@shared
def command(work: Path, configuration: str | None, dry_run: bool, as_json: bool, n_workers: int) -> None:
    """Prepare the cases of a planned WORK folder; cases that are already prepared are left alone.

    Fewer than -j cases are prepared in parallel if memory is short. Cases that cannot be prepared are listed at the
    end (exit code 3); the others are prepared.
    """
    from segpipe.cli.printing import print_json
    from segpipe.pipeline import prepare

    job = prepare.resolve(PrepareRequest(work, Machine("cpu", n_workers), configuration))
    needs = prepare.estimate(job) if dry_run or as_json else None
    folder = None if dry_run else prepare.run(job)
    if as_json and needs is not None:
        print_json({"prepared": folder and str(folder), **needs.model_dump()})
    else:
        echo(f"Prepared cases: {folder}" if needs is None else textwrap.fill(str(needs), _WIDTH))
