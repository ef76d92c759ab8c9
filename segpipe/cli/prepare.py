"""`segpipe prepare`: crop, normalise and resample the cases."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import configuration, shared


@click.command("prepare")
@click.argument("work", type=click.Path(path_type=Path))
@configuration
@shared
def command(
    work: Path,
    configuration: str | None,
    as_json: bool,
    device: str,
    n_workers: int,
    seed: int,  # noqa: ARG001 (an option of every command)
) -> None:
    """Prepare the cases of a planned WORK folder; cases that are prepared already are left alone."""
    from segpipe.cli.main import print_json
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.stages import prepare

    folder = prepare(work, configuration, Machine(device, n_workers))
    if as_json:
        print_json({"prepared": str(folder)})
        return
    click.echo(f"Prepared cases: {folder}")
