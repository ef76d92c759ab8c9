"""Options that every command shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from segpipe.core.progress import cpu_count


def shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json`, `--device`, `-j` and `--seed` (arguments `as_json`, `device`, `n_workers`, `seed`)."""
    options = (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="auto, cpu, cuda, cuda:N or mps.",
        ),
        click.option(
            "-j",
            "n_workers",
            type=click.IntRange(1),
            default=cpu_count,
            show_default="processors",
            help="Cases worked on side by side.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random."),
    )
    for option in reversed(options):
        command = option(command)
    return command
