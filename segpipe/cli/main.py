"""`segpipe`: one command for each stage; a command's module is imported when the command is called."""

from __future__ import annotations

import importlib
import json
import signal
import sys
from typing import Any

import click

from segpipe import __version__
from segpipe.core.errors import Interrupted, SegpipeError

COMMANDS = {  # name: one line of help; the command is `command` in segpipe/cli/<name>.py
    "demo": "Make a small phantom dataset and run everything on it.",
    "check": "List every fault of every case of a dataset.",
    "plan": "Measure a dataset and decide how to train on it.",
    "prepare": "Crop, normalise and resample the cases (train does it too).",
    "train": "Train folds, then predict and score their validation cases.",
    "predict": "Segment images with a trained model.",
    "evaluate": "Score masks against references.",
    "compare": "Tell which of several methods is better, and how sure that is.",
    "select": "Choose configuration, ensemble and postprocessing, scored nested.",
    "study": "Train several methods under one budget and compare them.",
    "report": "Write one HTML page with curves, scores and pictures.",
    "export": "Write files that other tools read: nnU-Net's plans.json.",
    "run": "Check, plan, train all folds, evaluate and report.",
}


class Commands(click.Group):
    """Commands by name, imported late, so that `segpipe -h` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"segpipe.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from segpipe.core.records import did_you_mean

            raise click.UsageError(f"no command {args[0]!r}.{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="segpipe")
def root() -> None:
    """From a folder of labelled scans to a model whose worth you can defend."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with the code of what happened (see core/errors.py)."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _interrupt)
    sys.exit(run(sys.argv[1:] if args is None else args))


def _interrupt(number: int, _: object) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}. The same command goes on.")


def run(args: list[str], command: click.Command = root) -> int:
    """Run a command line; return its exit code."""
    try:
        result = command.main(args, prog_name="segpipe", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as fault:
        click.echo(fault.ctx.get_help())
        return 0
    except click.ClickException as fault:
        fault.show()
        return fault.exit_code
    except (click.Abort, KeyboardInterrupt):  # click turns Ctrl-C inside a command into Abort
        click.echo("Stopped; the same command goes on.", err=True)
        return 130
    except SegpipeError as fault:
        if "--json" in args:
            click.echo(json.dumps({"error": type(fault).__name__, "message": str(fault), "exit_code": fault.exit_code}))
        click.echo(f"{_headline(fault)}: {fault}", err=True)
        return fault.exit_code
    except MemoryError:
        click.echo("Memory: ran out of memory. Use fewer workers (-j) or a smaller patch and batch.", err=True)
        return 5
    except OSError as fault:
        from pathlib import Path

        from segpipe.core.files import disk_fault

        known = disk_fault(fault, Path(fault.filename or "."))
        click.echo(f"{_headline(known)}: {known}", err=True)
        return known.exit_code
    return result if isinstance(result, int) else 0


def _headline(fault: SegpipeError) -> str:
    return {
        2: "Not possible",
        3: "Data",
        4: "Setup",
        5: "Memory or disk",
        75: "Interrupted",
    }.get(fault.exit_code, "Error")


def print_json(value: Any) -> None:
    """The machine-readable result of a command, alone on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False))
