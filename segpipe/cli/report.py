"""`segpipe report`: the page that shows what a work folder is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segpipe.cli.main import print_json
from segpipe.cli.options import shared


@click.command("report")
@click.argument("work", type=click.Path(path_type=Path))
@shared
def command(work: Path, as_json: bool, **_: Any) -> None:
    """Write WORK/report/index.html: scores, curves, pictures and the plan's reasons, in one file."""
    from segpipe.report.work_report import build_report

    path = build_report(work)
    if as_json:
        print_json({"report": str(path), "size_bytes": path.stat().st_size})
    else:
        click.echo(path)
