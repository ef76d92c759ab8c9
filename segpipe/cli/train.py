"""`segpipe train`: train folds, then predict and score their validation cases."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpipe.cli.options import (
    Command,
    configuration,
    devices,
    dry_run,
    edits,
    epochs,
    folds,
    iterations,
    on_machine,
    shared,
    time_budget,
)
from segpipe.cli.printing import echo
from segpipe.pipeline.requests import Machine, TrainRequest

if TYPE_CHECKING:
    from segpipe.train.profile import Profile

_WIDTH = 80
_BAR = 30


@click.command(
    "train",
    cls=Command,
    refused={"--seed": "the plan holds the seed of a training. Use --set training.seed=N."},
)
@click.argument("work", type=click.Path(path_type=Path))
@configuration
@folds
@time_budget
@epochs
@iterations
@edits
@devices
@click.option(
    "--tensorboard/--no-tensorboard",
    default=None,
    help="Write event files with pictures of patches; default: if tensorboard is installed.",
)
@click.option("--restart", is_flag=True, help="Discard existing training and start over. Omit to resume.")
@dry_run
@click.option(
    "--profile", "profiles", is_flag=True, help="Measure where the time of training a fold goes; keep nothing."
)
@on_machine
@shared
def command(
    work: Path, dry_run: bool, profiles: bool, as_json: bool, machine: Machine, time_budget: float | None, **more: Any
) -> None:
    """Train folds of a planned WORK folder. Rerun the same command to resume.

    A finished fold can be trained for longer (--epochs, --iterations, --time-budget) if its learning rate does not
    depend on the length: --set training.schedule=constant. Other plan changes require --restart.
    """
    from segpipe.cli.printing import print_estimate, print_json
    from segpipe.cli.tables import open_folds_text, summary_record, summary_text
    from segpipe.core.machine import rank
    from segpipe.core.text import command_text
    from segpipe.core.work import Work
    from segpipe.evaluate.summary import DEFAULT_POLICY, summarise
    from segpipe.pipeline import train

    if dry_run and profiles:
        raise click.UsageError("--dry-run and --profile: give one of them.")
    request = TrainRequest(work, machine, time_budget_seconds=time_budget, **more)
    if profiles:
        profile = train.profile(request)
        if as_json:
            print_json(profile.model_dump(mode="json"))
        else:
            echo(profile_text(profile))
        return
    job = train.resolve(request)
    if dry_run:
        print_estimate(train.estimate(job), as_json=as_json)
        return
    result = train.run(job)
    if rank():  # of processes that train together, the first one answers
        return
    rows = summarise(result.scores)
    if as_json:
        print_json(summary_record(rows, DEFAULT_POLICY) | {"configuration": result.configuration})
        return
    echo(summary_text(rows))
    if result.open_folds:
        echo(open_folds_text(Work(work), result.configuration, result.open_folds))
    scores = work / "runs" / result.configuration / "scores.csv"
    echo(f"Scores: {scores}. Next: {command_text('segpipe', 'report', str(work))}")


def profile_text(profile: Profile) -> str:
    """A line for each part of a step with its share, and what to do about the largest."""
    about = f"{profile.configuration} on {profile.device}, {profile.precision}, mean of {profile.n_steps} steps"
    lines = [about, f"  {'part of a step':<18}{'ms':>10}{'share':>8}"]
    for phase, seconds in profile.seconds.items():
        bar = "█" * round(_BAR * profile.shares[phase])
        lines.append(f"  {phase:<18}{1000 * seconds:>10.2f}{profile.shares[phase]:>8.1%}  {bar}".rstrip())
    total = profile.step_seconds
    lines.append(f"  {'all':<18}{1000 * total:>10.2f}{1:>8.1%}  {1 / total:.3g} it/s")
    threads = "1 thread" if profile.n_threads == 1 else f"{profile.n_threads} threads"
    lines.append(f"  Meanwhile {threads} drew batches: {1000 * profile.draw_seconds:.2f} ms per batch and thread.")
    return "\n".join([*lines, *textwrap.wrap(f"{profile.bottleneck}: {profile.advice}", _WIDTH)])
