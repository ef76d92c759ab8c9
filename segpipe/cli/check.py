"""`segpipe check`: what a dataset is, and everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpipe.cli.options import shared

if TYPE_CHECKING:
    from rich.table import Table

    from segpipe.data.check import CheckReport
    from segpipe.data.faults import Fault

FATAL_EXIT = 3
_FIRST_CASES = 3  # named in the table; `--json` lists all
_FIRST_REPAIRS = 20  # told on the screen
_WIDTH = 80  # where the output is no terminal


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--fix", "out", type=click.Path(path_type=Path), help="Write a repaired copy into this new folder.")
@shared
def command(data: Path, out: Path | None, as_json: bool, n_workers: int, **_: object) -> int:
    """List every fault of every case of a dataset.

    DATA is a dataset (nnU-Net v2, MSD, images/ and labels/, a CSV manifest, BIDS), any folder of images, or
    one image. Ends with exit code 3 if a fault is fatal.
    """
    from segpipe.cli.main import print_json
    from segpipe.core.progress import say
    from segpipe.data.check import check_dataset
    from segpipe.data.fix import REPAIRS_FILE, fix_dataset

    repairs = None
    if out is None:
        report = check_dataset(data, n_workers)
    else:
        repairs = fix_dataset(data, out, n_workers)
        for repair in repairs[:_FIRST_REPAIRS]:
            say(repair.text)
        n_repaired = len({repair.file for repair in repairs if repair.is_repaired})
        say(
            f"{n_repaired} file(s) repaired in the copy {out} ({REPAIRS_FILE} lists all {len(repairs)} entries), all "
            "others copied as they are; now checking the copy"
        )
        report = check_dataset(out if data.is_dir() else out / data.name, n_workers)
    if as_json:
        extra = {} if repairs is None else {"repairs": [repair.model_dump(mode="json") for repair in repairs]}
        print_json(report.model_dump(mode="json") | {"is_fatal": report.is_fatal} | extra)
    else:
        print_report(report)
    return FATAL_EXIT if report.is_fatal else 0


def print_report(report: CheckReport) -> None:
    """Print what was understood, the faults in groups, and the verdict."""
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, highlight=False, emoji=False)
    lines = Table.grid(padding=(0, 2))
    lines.add_column(justify="right")
    for heading, text in report.understood.items():
        lines.add_row(heading, Text(text))
    console.print(lines)
    groups = fault_groups(report.faults)
    if groups:
        console.print(fault_table(groups))
    n_fatal = sum(one.severity == "fatal" for one in report.faults)
    counted = f"Fatal: {n_fatal}, warnings: {len(report.faults) - n_fatal}"
    verdict, style = ("Not ready for training", "bold red") if n_fatal else ("Ready for training", "bold green")
    console.print(f"{counted}. {verdict}.", style=style)


def fault_groups(faults: tuple[Fault, ...]) -> list[list[Fault]]:
    """Faults of one kind together, fatal kinds first, in the order of the table of kinds."""
    from segpipe.data.faults import KINDS

    by_kind = {kind: [one for one in faults if one.kind == kind] for kind in KINDS}
    groups = [group for group in by_kind.values() if group]
    return sorted(groups, key=lambda group: group[0].severity)


def fault_table(groups: list[list[Fault]]) -> Table:
    """One row for each kind of fault, at most 80 columns wide."""
    from rich.markup import escape
    from rich.table import Table

    from segpipe.data.faults import KINDS

    table = Table(show_lines=True, expand=False)
    table.add_column("", width=5)
    table.add_column("n", justify="right", min_width=1)
    table.add_column("what", ratio=3, overflow="fold")
    table.add_column("what to do", ratio=2, overflow="fold")
    for group in groups:
        first = group[0]
        colour = "red" if first.severity == "fatal" else "yellow"
        lines = [f"[bold]{escape(KINDS[first.kind].title)}[/bold]", *map(escape, _details(group))]
        mark = "fatal" if first.severity == "fatal" else "warn"
        table.add_row(f"[{colour}]{mark}[/{colour}]", str(len(group)), "\n".join(lines), escape(first.remedy))
    return table


def _details(group: list[Fault]) -> list[str]:
    """The first cases or files, and what was found and expected in the first of them."""
    first = group[0]
    if first.kind == "description":
        return [one.found for one in group]
    places = list(dict.fromkeys(_place(one) for one in group if _place(one)))
    if not places:  # of no case: what was found differs
        return [_first([one.found for one in group]), f"expected {first.expected}"]
    return [_first(places), f"{first.found}; expected {first.expected}"]


def _first(texts: list[str]) -> str:
    return ", ".join(texts[:_FIRST_CASES]) + (f", … ({len(texts)})" if len(texts) > _FIRST_CASES else "")


def _place(one: Fault) -> str:
    from segpipe.core.header import stem_of

    name = Path(one.file).name if one.file else ""
    if one.case_id is None:
        return name
    is_told = not name or name.startswith(one.case_id) or stem_of(Path(name)) in one.case_id
    return one.case_id if is_told else f"{one.case_id} ({name})"
