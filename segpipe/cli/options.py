"""Options that every command shares."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from segpipe.core.machine import cpu_count


def shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json`, `--device`, `-j`, `--seed` (arguments `as_json`, `device`, `n_workers`, `seed`) and `--debug`."""
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
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random."),
        click.option(
            "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error of the program."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """`90s`, `10m`, `1h30m` or plain seconds, as seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
        parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", str(value).lower())
        if parts and "".join(n + u for n, u in parts) == str(value).lower():
            return float(sum(float(n) * units[u] for n, u in parts))
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds > 0):
            self.fail(f"{value!r} is no time; expected e.g. 90s, 10m or 1h30m.", param, ctx)
        return seconds


class Folds(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """`all` (None) or numbers such as `0` or `0,2`."""

    name = "folds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if value == "all":
            return ()
        if not all(part.isdecimal() for part in value.split(",")):
            self.fail(f"{value!r} are no folds; expected all, 0 or 0,1,2.", param, ctx)
        return tuple(dict.fromkeys(int(part) for part in value.split(",")))


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """The callback of an option that is a number of gigabytes: `nan` and `inf` are none.

    Raises:
        click.BadParameter: If it is one of them.
    """
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of gigabytes; expected e.g. 12.", ctx, param)
    return value


preset = click.option(
    "--preset",
    default="auto",
    show_default=True,
    help="auto, cpu, cpu_short, nnunet, resenc_m|l|xl, convnext_s|b|m|l, effnet_b0…b7.",
)
splits = click.option("--splits", type=click.Path(path_type=Path), help="nnU-Net's splits_final.json to use instead.")
gpu_memory = click.option(
    "--gpu-memory", type=click.FloatRange(0, min_open=True), callback=finite, metavar="GB",
    help="Plan for a GPU with this much memory.",
)  # fmt: skip
folds = click.option("-f", "--folds", type=Folds(), default="all", show_default=True, help="all, or e.g. 0 or 0,1,2.")
configuration = click.option("-c", "--configuration", help="2d, 3d_fullres, …; default: 3d_fullres if planned.")
time_budget = click.option(
    "--time-budget", type=Duration(), help="Time for all training of this command, e.g. 8h; shared by the folds."
)
devices = click.option(
    "--devices",
    metavar="N|all|NAMES",
    help="Several devices, e.g. 2, all or cuda:0,cuda:2. Folds are trained side by side, one on each; a single fold by "
    "all together, each with the plan's batch, so that the whole batch grows.",
)
epochs = click.option("--epochs", type=click.IntRange(1), help="Length of training; instead of the plan's.")
iterations = click.option("--iterations", type=click.IntRange(1), help="Length of training in steps, likewise.")


def length_edits(epochs: int | None, iterations: int | None, time_budget: float | None) -> tuple[str, ...]:
    """The edits of the plan that `--epochs` and `--iterations` stand for; the other limits of the plan end.

    Raises:
        click.UsageError: If more than one length is given.
    """
    given = {"--epochs": epochs, "--iterations": iterations, "--time-budget": time_budget}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise click.UsageError(f"{' and '.join(names)}: each is the length of training. Give one of them.")
    if epochs is not None:
        limits = {"epochs": epochs, "iterations": "null", "time_budget_seconds": "null"}
    elif iterations is not None:
        limits = {"iterations": iterations, "time_budget_seconds": "null"}
    else:
        limits = {}
    return tuple(f"training.{name}={value}" for name, value in limits.items())


def _complete_edit(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from segpipe.plan.edit import completions  # pydantic and numpy are not wanted before a shell asks

    return [CompletionItem(text, help=does) for text, does in completions(incomplete)]


edits = click.option(
    "--set",
    "edits",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the plan; repeatable.",
    shell_complete=_complete_edit,
)
