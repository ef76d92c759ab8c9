"""`segpipe check`: what a dataset is, and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpipe.cli.options import NO_DEVICE, Command, Edges, shared, workers
from segpipe.core.text import printable

if TYPE_CHECKING:
    from rich.table import Table

    from segpipe.data.check import CheckReport
    from segpipe.data.faults import FaultGroup
    from segpipe.data.fix import Repair

FATAL_EXIT = 3
_FIRST_REPAIRS = 20  # on the screen
_WIDTH = 80  # where the output is no terminal


@click.command("check", cls=Command, old=NO_DEVICE)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--fix", "out", type=click.Path(path_type=Path), help="Write a repaired copy to this new folder.")
@click.option(
    "--spacing",
    "spacing_mm",
    type=Edges(),
    help="With --fix: voxel edges in mm of pictures (PNG, TIFF, JPEG), which become NIfTI; Y,X for 2D images.",
)
@click.option(
    "-o",
    "--output",
    "work",
    type=click.Path(path_type=Path),
    help="Also store the result in this work folder's report.",
)
@workers
@shared
def command(
    data: Path, out: Path | None, spacing_mm: tuple[float, ...] | None, work: Path | None, n_workers: int, as_json: bool
) -> int:
    """List every fault of every case of a dataset.

    DATA is a dataset (nnU-Net v2, MSD, images/ and labels/, a CSV manifest, BIDS), any folder of images, or one image.
    Images without any label map are checked for prediction. The exit code is 3 if a fault is fatal.
    """
    from segpipe.cli.printing import print_json
    from segpipe.core.errors import UsageError
    from segpipe.core.work import Work
    from segpipe.data.check import check_dataset

    if work is not None:
        Work(work).require_plan()
    if out is None and spacing_mm is not None:
        raise UsageError("--spacing is for --fix, which writes pictures as NIfTI. Add --fix OUT.")
    repairs = None
    if out is None:
        report = check_dataset(data, n_workers)
    else:
        repairs, copy = _write_copy(data, out, spacing_mm, n_workers)
        report = check_dataset(copy, n_workers)
    if work is not None:
        report.save(Work(work).data_check)
    if as_json:
        extra = {} if repairs is None else {"repairs": [repair.model_dump(mode="json") for repair in repairs]}
        print_json(report.model_dump(mode="json") | {"is_fatal": report.is_fatal} | extra)
    else:
        print_report(report)
    return FATAL_EXIT if report.is_fatal else 0


def _write_copy(
    data: Path, out: Path, spacing_mm: tuple[float, ...] | None, n_workers: int
) -> tuple[tuple[Repair, ...], Path]:
    """Write the repaired copy, or pictures as NIfTI; what was done, and what to check."""
    from segpipe.core.errors import UsageError
    from segpipe.core.progress import say
    from segpipe.core.text import count
    from segpipe.data.fix import REPAIRS_FILE, fix_dataset
    from segpipe.data.picture_conversion import convert_pictures, holds_pictures

    of_pictures = holds_pictures(data)
    if spacing_mm is not None and not of_pictures:
        raise UsageError(
            f"{data}: --spacing is for pictures, but its images are none, or there are other images too. Leave it out, "
            "or give the folder of the pictures."
        )
    repairs = convert_pictures(data, out, spacing_mm, n_workers) if of_pictures else fix_dataset(data, out, n_workers)
    for repair in repairs[:_FIRST_REPAIRS]:
        say(repair.text)
    n_files = count(len({repair.file for repair in repairs if repair.is_repaired}), "file")
    if of_pictures:
        say(f"{n_files} converted to NIfTI in {out} (details in {REPAIRS_FILE}). Checking the result.")
        return repairs, out
    say(
        f"{n_files} repaired in the copy {out} (details in {REPAIRS_FILE}), all others copied unchanged. Checking the "
        "copy."
    )
    return repairs, out if data.is_dir() else out / data.name


def print_report(report: CheckReport) -> None:
    """Print the dataset as it was understood, its faults in groups, and the verdict."""
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from segpipe.data.faults import fault_groups

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, highlight=False, emoji=False)
    lines = Table.grid(padding=(0, 2))
    lines.add_column(justify="right")
    for heading, text in report.understood.items():
        lines.add_row(heading, Text(printable(text)))
    console.print(lines)
    groups = fault_groups(report.faults)
    if groups:
        console.print(fault_table(groups))
    n_fatal = sum(one.severity == "fatal" for one in report.faults)
    counted = f"Fatal: {n_fatal}, warnings: {len(report.faults) - n_fatal}"
    what = "prediction" if report.is_for_prediction else "training"
    verdict, style = (f"Not ready for {what}", "bold red") if n_fatal else (f"Ready for {what}", "bold green")
    console.print(f"{counted}. {verdict}.", style=style)


def fault_table(groups: Sequence[FaultGroup]) -> Table:
    """One row for each kind of fault, at most 80 columns wide."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_lines=True, expand=False)
    table.add_column("", width=5)
    table.add_column("n", justify="right", min_width=1)
    table.add_column("what", ratio=3, overflow="fold")
    table.add_column("what to do", ratio=2, overflow="fold")
    for group in groups:
        mark, colour = ("fatal", "red") if group.severity == "fatal" else ("warn", "yellow")
        title, remedy, *details = (escape(printable(text)) for text in (group.title, group.remedy, *group.details))
        what = "\n".join([f"[bold]{title}[/bold]", *details])
        table.add_row(f"[{colour}]{mark}[/{colour}]", str(group.n_faults), what, remedy)
    return table
