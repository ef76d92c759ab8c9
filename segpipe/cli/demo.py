"""`segpipe demo`: the main job on phantom scans."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import Command, Duration, on_machine, seed, shared
from segpipe.pipeline.requests import Machine, RunRequest

_N_FOLDS = 2
_BUDGET_SECONDS = 170.0  # of training; the whole demo takes about half a minute more


@click.command("demo", cls=Command, old={"--cases": "--n-cases"})
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("segpipe-demo"), show_default=True, help="Folder."
)
@click.option("--n-cases", type=click.IntRange(4), default=16, show_default=True, help="Number of scans to make.")
@click.option(
    "--time-budget", type=Duration(), default=_BUDGET_SECONDS, show_default="170s", help="Total training time."
)
@on_machine
@seed
@shared
def command(output: Path, n_cases: int, time_budget: float, machine: Machine, seed: int, as_json: bool) -> None:
    """Make a small phantom dataset and run everything on it: a few minutes on two processors.

    Ends with the table of scores and the path of the report.
    """
    from segpipe.cli.run import run_and_print
    from segpipe.core.progress import say
    from segpipe.data.phantom import make_phantom

    data = make_phantom(output / "data", n_cases, seed)
    say(f"{data}: {n_cases} phantom scans.")
    run_and_print(
        RunRequest(data, output / "work", machine, n_folds=_N_FOLDS, seed=seed, time_budget_seconds=time_budget),
        as_json=as_json,
    )
