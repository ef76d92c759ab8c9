"""`segpipe doctor`: check that this machine is ready."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpipe.cli.options import NO_MACHINE, Command, shared
from segpipe.cli.printing import echo

if TYPE_CHECKING:
    from segpipe.core.machine import Finding

FAULT_EXIT = 4
_MARKS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "fault": ("FAULT", "red")}
_WIDTH = 80
_INDENT = " " * 7


@click.command("doctor", cls=Command, old=NO_MACHINE)
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@shared
def command(folder: Path, as_json: bool) -> int:
    """Check packages, processors, memory, GPUs and the file system of FOLDER, and say what to do.

    FOLDER is the place for results (default: here). The exit code is 4 if something will fail.
    """
    from segpipe.cli.printing import print_json
    from segpipe.core.text import count
    from segpipe.pipeline.doctor import examine

    findings = examine(folder)
    n_faults, n_warnings = (sum(one.state == state for one in findings) for state in ("fault", "warning"))
    if as_json:
        print_json({"findings": [one.model_dump() for one in findings], "n_faults": n_faults, "n_warnings": n_warnings})
    else:
        print_findings(findings)
        verdict = "Not ready" if n_faults else "Ready"
        echo(f"{verdict}: {count(n_faults, 'fault')}, {count(n_warnings, 'warning')}.")
    return FAULT_EXIT if n_faults else 0


def print_findings(findings: Sequence[Finding]) -> None:
    """A line for each, with what to do below; colour on a terminal alone."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=_WIDTH, highlight=False, emoji=False, soft_wrap=True)
    for one in findings:
        mark, colour = _MARKS[one.state]
        head, *more = textwrap.wrap(f"{one.about}: {one.found}", _WIDTH - len(_INDENT), break_on_hyphens=False)
        console.print(Text.assemble((mark.ljust(len(_INDENT)), colour), head))
        more += textwrap.wrap(one.advice, _WIDTH - len(_INDENT), initial_indent="-> ", break_on_hyphens=False)
        for line in more:
            console.print(Text(_INDENT + line))
