"""`segpipe report`: one page with the results of a work folder."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import NO_MACHINE, Command, shared
from segpipe.cli.printing import echo, print_json


@click.command("report", cls=Command, old=NO_MACHINE)
@click.argument("work", type=click.Path(path_type=Path))
@click.option(
    "--by",
    multiple=True,
    metavar="COLUMN",
    help="Column of the manifest to group cases by; repeatable.  [default: site]",
)
@shared
def command(work: Path, by: tuple[str, ...], as_json: bool) -> None:
    """Write WORK/report/index.html: scores, curves, pictures and the plan's reasons, in one file."""
    from segpipe.report.work_report import build_report

    path = build_report(work, by)
    if as_json:
        print_json({"report": str(path), "size_bytes": path.stat().st_size})
    else:
        echo(path)
