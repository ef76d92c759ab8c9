"""`segpipe demo`: the main job on made-up scans."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import Duration, shared

_N_FOLDS = 2
_BUDGET_SECONDS = 170.0  # of training; the whole demo takes about half a minute more


@click.command("demo")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("segpipe-demo"), show_default=True, help="Folder."
)
@click.option("--cases", "n_cases", type=click.IntRange(4), default=16, show_default=True, help="Scans to make.")
@click.option(
    "--time-budget", type=Duration(), default=_BUDGET_SECONDS, show_default="170s", help="Time for all training."
)
@shared
def command(
    output: Path, n_cases: int, time_budget: float, as_json: bool, device: str, n_workers: int, seed: int
) -> None:
    """Make a small phantom dataset and run everything on it: a few minutes on two processors.

    Ends with the table of scores and the path of the report.
    """
    from segpipe.cli.run import run_all
    from segpipe.core.progress import say
    from segpipe.data.phantom import make_phantom
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.planning import Choices

    data = make_phantom(output / "data", n_cases, seed)
    say(f"{data}: {n_cases} made-up scans.")
    run_all(
        data,
        output / "work",
        Machine(device, n_workers),
        Choices(n_folds=_N_FOLDS, seed=seed),
        time_budget=time_budget,
        as_json=as_json,
    )
