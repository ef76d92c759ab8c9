"""`segpipe analyse`: look into the training of a model, one command for each analysis."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from segpipe.cli.options import configuration, model_folds, on_machine, shared
from segpipe.cli.printing import echo
from segpipe.pipeline.requests import Machine

_WIDTH = 80


@click.command("trajectory", short_help="Compare the path through weight space with random motion.")
@click.argument("work", type=click.Path(path_type=Path))
@configuration
@model_folds
@shared
def _trajectory(work: Path, configuration: str | None, folds: tuple[str, ...], as_json: bool) -> None:
    """Compare the path of a training through weight space with random motion.

    Needs snapshots, which training keeps with `--set training.snapshots=50`. Prints principal components beside those
    of a random walk, one with momentum, and an Ornstein–Uhlenbeck motion; writes trajectory.json and trajectory.png
    into each fold's folder.
    """
    from segpipe.cli.printing import print_json
    from segpipe.pipeline import trajectory

    found = trajectory.run(trajectory.resolve(trajectory.TrajectoryRequest(work, configuration, folds)))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    for one, picture in zip(found.trajectories, found.pictures, strict=True):
        echo(trajectory.trajectory_text(one))
        for note in one.notes:
            echo("\n".join(textwrap.wrap(note, _WIDTH, initial_indent="  ", subsequent_indent="  ")))
        echo(f"  Picture: {picture}")


@click.command("variance", short_help="Compare running statistics of norms with real ones.")
@click.argument("work", type=click.Path(path_type=Path))
@configuration
@model_folds
@click.option(
    "--batches", "n_batches", type=click.IntRange(min=2), default=16, show_default=True, help="Batches to see."
)
@on_machine
@shared
def _variance(
    work: Path,
    configuration: str | None,
    folds: tuple[str, ...],
    n_batches: int,
    machine: Machine,
    as_json: bool,
) -> None:
    """Compare the running mean and variance of norms with those of their maps in prediction.

    For networks with norm batch, pcnorm or ccnorm. Runs training patches through the trained network, as in
    prediction, and writes variance.json into each fold's folder.
    """
    from segpipe.cli.printing import print_json
    from segpipe.pipeline import variance

    request = variance.VarianceRequest(work, configuration, folds, n_batches, machine)
    found = variance.run(variance.resolve(request))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    for one in found.folds:
        echo(variance.variance_text(one))
        for note in one.notes:
            echo("\n".join(textwrap.wrap(note, _WIDTH, initial_indent="  ", subsequent_indent="  ")))


@click.command("sites", short_help="Compare sites by what the network sees in their cases.")
@click.argument("work", type=click.Path(path_type=Path))
@configuration
@model_folds
@click.option("--cases", type=click.Path(path_type=Path), help="Table of cases, instead of the dataset's sites.")
@click.option("--by", default="site", show_default=True, help="Its column to compare by.")
@on_machine
@shared
def _sites(
    work: Path,
    configuration: str | None,
    folds: tuple[str, ...],
    cases: Path | None,
    by: str,
    machine: Machine,
    as_json: bool,
) -> None:
    """Compare sites by the features that the network sees in their validation cases.

    Prints the mean cosine between cases of each pair of sites, and writes sites.json and sites.png into the
    configuration's folder.
    """
    from segpipe.cli.printing import print_json
    from segpipe.pipeline import sites

    found = sites.run(sites.resolve(sites.SitesRequest(work, configuration, folds, cases, by, machine)))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    echo(sites.sites_text(found))
    for note in found.notes:
        echo("\n".join(textwrap.wrap(note, _WIDTH, initial_indent="  ", subsequent_indent="  ")))


ANALYSES: dict[str, click.Command] = {  # name: the command; each has a section in docs/analysis.md
    "trajectory": _trajectory,
    "variance": _variance,
    "sites": _sites,
}


@click.group("analyse", commands=ANALYSES)
def command() -> None:
    """Look into the training of a model: `segpipe analyse ANALYSIS -h` explains each."""
