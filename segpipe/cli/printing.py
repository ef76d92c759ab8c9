"""Print results on stdout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from segpipe.core.foreseen import Foreseen


def print_json(value: Any) -> None:
    """Print the machine-readable result of a command, alone on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_estimate(found: Foreseen, *, as_json: bool) -> None:
    """Print what a dry run found."""
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        click.echo(found.text())
