"""Options that several commands share: each name means the same wherever it stands."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from segpipe.core.machine import default_workers
from segpipe.core.progress import say
from segpipe.pipeline.requests import Machine


class Command(click.Command):
    """A command that still takes the options of the version before, and says how they are spelled now.

    Args:
        old: Former spelling: today's; empty for an option with a value that has no effect any more.
        refused: Option that was never allowed here: what to do instead.
    """

    def __init__(
        self, *args: Any, old: Mapping[str, str] | None = None, refused: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.old, self.refused = dict(old or {}), dict(refused or {})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments after old spellings are replaced."""
        return super().parse_args(ctx, list(self._renew(args)))

    def _renew(self, args: Sequence[str]) -> list[str]:
        renewed: list[str] = []
        left = list(args)
        while left:
            arg = left.pop(0)
            if arg == "--":
                return [*renewed, arg, *left]
            name, _, value = arg.partition("=") if arg.startswith("--") else (arg[:2], "", arg[2:])
            if name in self.refused:
                raise click.UsageError(f"{name}: {self.refused[name]}")
            if name not in self.old:
                renewed.append(arg)
                continue
            new, values = self.old[name], [value] if value else left[:1]
            left = left if value else left[1:]
            say(f"{name} is now {new}." if new else f"{name} has no effect here and will be removed.")
            renewed += [new, *values] if new else []
        return renewed


NO_MACHINE = {"--device": "", "-j": "", "--seed": ""}  # had no effect in commands that took them all the same
NO_DEVICE = {"--device": "", "--seed": ""}
NO_SEED = {"--seed": ""}


def shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json` (argument `as_json`) and `--debug`."""
    options = (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
        click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an internal error."),
    )
    for option in reversed(options):
        command = option(command)
    return command


workers = click.option(
    "-j",
    "n_workers",
    type=click.IntRange(1),
    default=default_workers,
    show_default="OMP_NUM_THREADS, else processors",
    help="Number of parallel workers.",
)
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed.")


def on_machine(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--device` and `-j`, which arrive together as the argument `machine`."""

    @wraps(command)
    def call(*args: Any, device: str, n_workers: int, **kwargs: Any) -> Any:
        return command(*args, machine=Machine(device, n_workers), **kwargs)

    return device(workers(call))


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
            self.fail(f"{value!r} is not a time; expected e.g. 90s, 10m or 1h30m.", param, ctx)
        return seconds


class Edges(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """`3,0.5,0.5` or `0.5,0.5`: lengths in mm."""

    name = "Z,Y,X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            edges = tuple(float(part) for part in value.split(","))
        except ValueError:
            edges = ()
        if len(edges) not in (2, 3) or not all(math.isfinite(edge) and edge > 0 for edge in edges):
            self.fail(f"{value!r} is not a voxel size; expected Z,Y,X in mm, e.g. 3,0.5,0.5, or Y,X.", param, ctx)
        return edges


class Folds(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """`all` (empty) or numbers such as `0` or `0,2`."""

    name = "folds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if value == "all":
            return ()
        if not all(part.isdecimal() for part in value.split(",")):
            self.fail(f"{value!r} does not name folds; expected all, 0 or 0,1,2.", param, ctx)
        return tuple(dict.fromkeys(int(part) for part in value.split(",")))


class ModelFolds(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """Folds of a trained model, by name: as for `predict.folds.choose_folds`."""

    name = "folds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        names = value.split(",")
        if value != "all" and not all(re.fullmatch(r"(fold_)?[0-9]{1,9}|fold_all", name) for name in names):
            self.fail(f"{value!r} does not name folds; expected all, fold_all, 0 or 0,1,2.", param, ctx)
        return tuple(names)


class Ratios(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """Shares of channels: `0.5` or `0,0.25,0.5`."""

    name = "ratio"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no share of channels; expected e.g. 0.5, or 0,0.5 for two stages.", param, ctx)


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """The callback of an option that is a number of GiB: `nan` and `inf` are refused.

    Raises:
        click.BadParameter: If it is one of them.
    """
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number of GiB; expected e.g. 12.", ctx, param)
    return value


def names_in(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG001 (click's signature)
    """The callback of an option that takes several names, repeated or separated by commas."""
    return tuple(name for value in values for name in value.split(",") if name)


preset = click.option(
    "--preset",
    default="auto",
    show_default=True,
    help="auto, cpu, cpu_short, nnunet, resenc_m|l|xl, convnext_s|b|m|l, effnet_b0…b7.",
)
folds_by = click.option(
    "--folds-by",
    type=click.Choice(["patient", "site"]),
    default="patient",
    show_default=True,
    help="Mix the sites in every fold, or leave one site out in each.",
)
splits = click.option("--splits", type=click.Path(path_type=Path), help="Use the folds of nnU-Net's splits_final.json.")
gpu_memory = click.option(
    "--gpu-memory",
    type=click.FloatRange(0, min_open=True),
    callback=finite,
    metavar="GiB",
    help="Plan for a GPU with this much memory.",
)
max_memory = click.option(
    "--max-memory",
    "max_memory_gib",
    type=click.FloatRange(0, min_open=True),
    callback=finite,
    metavar="GiB",
    help="Plan for this much memory on a CPU.  [default: what there is]",
)
folds = click.option("-f", "--folds", type=Folds(), default="all", show_default=True, help="all, or e.g. 0 or 0,1,2.")
model_folds = click.option(
    "-f",
    "--folds",
    type=ModelFolds(),
    default=(),
    show_default="every numbered fold, else fold_all",
    help="all, fold_all (one network trained on every case), or e.g. 0 or 0,1,2.",
)
configuration = click.option("-c", "--configuration", help="2d, 3d_fullres, …; default: 3d_fullres if planned.")
configurations = click.option(
    "-c",
    "--configuration",
    "configurations",
    multiple=True,
    callback=names_in,
    help="2d, 3d_fullres, …, or several (2d,3d_fullres).  [default: the choice of `segpipe select`, else 3d_fullres]",
)
time_budget = click.option("--time-budget", type=Duration(), help="Total training time, e.g. 8h; shared by the folds.")
devices = click.option(
    "--devices",
    metavar="N|all|NAMES",
    help="Use several devices, e.g. 2, all or cuda:0,cuda:2. Each trains a fold, in parallel; a single fold is trained "
    "by all together, each with the plan's batch, so the total batch grows.",
)
epochs = click.option("--epochs", type=click.IntRange(1), help="Number of epochs, instead of the plan's length.")
iterations = click.option("--iterations", type=click.IntRange(1), help="Number of steps, instead of the plan's length.")


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
retraining_rate = click.option(
    "--learning-rate", type=float, help="Of retraining.  [default: that of the trained network]"
)
dry_run = click.option("--dry-run", is_flag=True, help="Estimate remaining work, time, disk and memory; do nothing.")
