"""`--dry-run`: what a long command would take, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from segpipe.core.foreseen import Foreseen

dry_run = click.option("--dry-run", is_flag=True, help="Only say what is left to do, and the time, disk and memory.")


def print_ahead(found: Foreseen, *, as_json: bool) -> None:
    """Print what was foreseen."""
    from segpipe.cli.main import print_json

    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        click.echo(found.text())
