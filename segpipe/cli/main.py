"""`segpipe`: one command for each stage; a command's module is imported when the command is called."""

from __future__ import annotations

import importlib
import io
import keyword
import signal
import sys
from collections.abc import Sequence

import click

from segpipe._version import __version__
from segpipe.cli.printing import log_and_tell, tell
from segpipe.core.errors import STOP_SIGNALS, Interrupted, SegpipeError, is_out_of_memory

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("segpipe demo", "segpipe demo -o my-demo --device cpu -j 2"),
    "run": (
        "segpipe run DATA -o WORK",
        "segpipe run DATA -o WORK --time-budget 8h",
        "segpipe run DATA -o WORK --preset resenc_m -f 0 --epochs 100",
    ),
    "check": ("segpipe check DATA", "segpipe check DATA --json > faults.json", "segpipe check DATA --fix REPAIRED"),
    "plan": (
        "segpipe plan DATA -o WORK",
        "segpipe plan DATA -o WORK --preset resenc_m --gpu-memory 12",
        "segpipe plan DATA -o WORK --set configurations.3d_fullres.batch_size=4",
        "segpipe plan --nnunet-fingerprint F.json --nnunet-dataset D.json -o WORK",
    ),
    "prepare": ("segpipe prepare WORK --dry-run", "segpipe prepare WORK -c 3d_fullres -j 4"),
    "train": (
        "segpipe train WORK",
        "segpipe train WORK -f 0 --time-budget 2h",
        "segpipe train WORK -c 2d --epochs 200 --set training.learning_rate=0.003",
        "segpipe train WORK --profile",
    ),
    "select": ("segpipe select WORK", "segpipe select WORK --metric hd95 --ensembles"),
    "predict": (
        "segpipe predict -m WORK -i scan.nii.gz -o MASKS",
        "segpipe predict -m WORK -i IMAGES -o MASKS --device cpu --max-memory 8",
        "segpipe predict -m WORK -i IMAGES -o MASKS -f 0 --no-tta",
        "segpipe predict -m WORK -c 2d,3d_fullres -i IMAGES -o OUT --save-uncertainty",
    ),
    "ensemble": ("segpipe ensemble MASKS_A MASKS_B -o MASKS",),
    "prune": ("segpipe prune WORK -o SMALL --ratio 0.5", "segpipe prune WORK -o SMALL --ratio 0,0.25,0.5,0.5 -f 0"),
    "pack": ("segpipe pack WORK -o liver.segpipe.zip",),
    "import": ("segpipe import nnUNetTrainer__nnUNetPlans__3d_fullres -o WORK",),
    "export": (
        "segpipe export WORK --to nnunet-plans plans.json",
        "segpipe export WORK --to nnunet-model MODEL -c 3d_fullres -f 0",
    ),
    "evaluate": (
        "segpipe evaluate -r LABELS -p MASKS -o scores.csv",
        "segpipe evaluate -r LABELS -p MASKS -l liver=1,tumour=2 --nsd-tolerance 1.5",
        "segpipe evaluate -r LABELS -p MASKS --metric-preset lesions",
    ),
    "compare": (
        "segpipe compare A/scores.csv B/scores.csv",
        "segpipe compare base=A ours=B --margin dice=0.01 -o COMPARISON",
        "segpipe compare A B --cases cases.csv --by site",
    ),
    "pretrain": (
        "segpipe pretrain IMAGES -o PRE --for WORK --iterations 500",
        "segpipe pretrain DATA -o PRE --for SUPCON_WORK --with-labels",
    ),
    "study": ("segpipe study STUDY.yaml -o OUT --dry-run", "segpipe study STUDY.yaml -o OUT"),
    "size": (
        "segpipe size PILOT/scores.csv --half-width 0.02",
        "segpipe size base=A ours=B --difference 0.01 --scans 2",
        "segpipe size STUDY --more 20",
    ),
    "analyse": (
        "segpipe analyse trajectory WORK",
        "segpipe analyse variance WORK -f 0 --json",
        "segpipe analyse pruning WORK -f 0 --ratio 0.5 --combinations 30",
    ),
    "report": ("segpipe report WORK",),
    "view": (
        "segpipe view WORK",
        "segpipe view MASKS -i IMAGES -r LABELS",
        "segpipe view DATA --no-browser --port 8000",
    ),
    "info": ("segpipe info WORK", "segpipe info liver.segpipe.zip --json"),
    "doctor": ("segpipe doctor", "segpipe doctor /data/results --json"),
    "completion": (
        'eval "$(segpipe completion bash)"',
        'eval "$(segpipe completion zsh)"',
        "segpipe completion fish | source",
    ),
}


GROUPS = {  # name: one line of help; the command is `command` in segpipe/cli/<name>.py
    "Get started": {
        "demo": "Make a small phantom dataset and run everything on it.",
        "run": "Check, plan, train all folds, evaluate and report.",
    },
    "Data": {
        "check": "List every fault of every case of a dataset.",
        "plan": "Measure a dataset and decide how to train on it.",
        "prepare": "Crop, normalise and resample the cases (train does this too).",
    },
    "Model": {
        "train": "Train folds, then predict and score their validation cases.",
        "pretrain": "Pre-train a network on images without labels.",
        "select": "Choose configuration, ensemble and postprocessing.",
        "predict": "Segment images with a trained model.",
        "ensemble": "Average probabilities from several prediction folders.",
        "prune": "Remove channels from a trained network, to train on a smaller one.",
        "pack": "Pack a trained model into one file.",
        "import": "Import a trained nnU-Net model.",
        "export": "Export a plan or a model for nnU-Net.",
    },
    "Evaluation": {
        "evaluate": "Score masks against references.",
        "compare": "Test which of several methods is better, and how certain it is.",
        "study": "Train several methods under one budget and compare them.",
        "size": "Compute how many patients a goal needs.",
        "analyse": "Look into the training of a model.",
        "report": "Write one HTML page with curves, scores and pictures.",
        "view": "Show images with references and predictions in the browser.",
    },
    "Inspect": {
        "info": "Describe a work folder or a model.",
        "doctor": "Check that this machine is ready.",
        "completion": "Print the shell completion script.",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}


class Commands(click.Group):
    """Commands by name, imported late, so that `segpipe -h` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"segpipe.cli.{cmd_name}{'_' * keyword.iskeyword(cmd_name)}").command
        assert isinstance(command, click.Command)
        command.epilog = "\n".join(["\b", "Examples:", *(f"  {example}" for example in EXAMPLES.get(cmd_name, ()))])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from segpipe.core.records import did_you_mean

            raise click.UsageError(f"no command {args[0]!r}.{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, COMMANDS))
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    epilog="`segpipe COMMAND -h` explains a command and gives examples.",
)
@click.version_option(__version__, prog_name="segpipe")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an internal error.")
def root() -> None:
    """From a folder of labelled scans to a model you can defend."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with the code of what happened (see core/errors.py)."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background jobs (Ctrl-C) and under nohup
            signal.signal(number, _interrupt)
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a terminal without ² or – shows a question mark, which is no reason to end
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    args = sys.argv[1:] if args is None else args
    if "--debug" not in args:
        sys.excepthook = log_and_tell
    sys.exit(run(args))


_stops: list[BaseException] = []  # what signals raised: libraries raise errors of their own in its place


def _interrupt(number: int, _: object) -> None:
    name = signal.Signals(number).name
    by_hand = number == signal.SIGINT
    _stops.append(
        KeyboardInterrupt() if by_hand else Interrupted(f"stopped by {name}. Rerun the same command to resume.")
    )
    raise _stops[-1]


def run(args: Sequence[str], command: click.Command = root) -> int:
    """Run a command line; return its exit code. An error of the program passes."""
    as_json = "--json" in args
    try:
        result = command.main(list(args), prog_name="segpipe", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as fault:
        click.echo(fault.ctx.get_help())
        return 0
    except (click.ClickException, click.Abort, KeyboardInterrupt, SegpipeError, MemoryError, OSError) as fault:
        return tell(fault, as_json=as_json)
    except BaseException as fault:
        if _stops:
            return tell(_stops[0], as_json=as_json)
        if not is_out_of_memory(fault):
            raise
        return tell(MemoryError(str(fault)), as_json=as_json)
    return result if isinstance(result, int) else 0
