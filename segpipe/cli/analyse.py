"""`segpipe analyse`: look into the training of a model, one command for each analysis."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

import click

from segpipe.cli.options import configuration, dry_run, model_folds, on_machine, retraining_rate, seed, shared
from segpipe.cli.printing import echo
from segpipe.pipeline.requests import Machine

_WIDTH = 80


def _echo_notes(notes: Iterable[str]) -> None:
    for note in notes:
        echo("\n".join(textwrap.wrap(note, _WIDTH, initial_indent="  ", subsequent_indent="  ")))


@click.command("trajectory", short_help="Compare the path through weight space with random motion.")
@click.argument("work", type=click.Path(path_type=Path))
@configuration
@model_folds
@shared
def _analyse_trajectory(work: Path, configuration: str | None, folds: tuple[str, ...], as_json: bool) -> None:
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
        _echo_notes(one.notes)
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
def _analyse_variance(
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
        _echo_notes(one.notes)


@click.command("sites", short_help="Compare sites by what the network sees in their cases.")
@click.argument("work", type=click.Path(path_type=Path))
@configuration
@model_folds
@click.option("--cases", type=click.Path(path_type=Path), help="Table of cases, instead of the dataset's sites.")
@click.option("--by", default="site", show_default=True, help="Its column to compare by.")
@on_machine
@shared
def _analyse_sites(
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
    _echo_notes(found.notes)


@click.command("pruning", short_help="Measure whether the loss just after pruning tells how good a network becomes.")
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--ratio", type=float, default=0.5, show_default=True, help="Share of channels to remove in each stage.")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.IntRange(0),
    help="Prune this stage, 0 the largest; repeatable.  [default: all]",
)
@configuration
@click.option("-f", "--fold", type=click.IntRange(0), help="Which fold.  [default: the first that is trained]")
@click.option("--combinations", type=click.IntRange(2), default=20, show_default=True, help="Sets of channels to try.")
@click.option(
    "--trial-iterations", type=click.IntRange(1), default=100, show_default=True, help="Steps to retrain each choice."
)
@retraining_rate
@seed
@dry_run
@on_machine
@shared
def _analyse_pruning(
    work: Path,
    ratio: float,
    stages: tuple[int, ...],
    configuration: str | None,
    fold: int | None,
    combinations: int,
    trial_iterations: int,
    learning_rate: float | None,
    seed: int,
    dry_run: bool,
    machine: Machine,
    as_json: bool,
) -> None:
    """Measure whether the loss just after pruning tells how good a network becomes.

    Removes random sets of channels from a trained fold, and notes each network's loss on training patches as pruned and
    its Dice on validation patches after some steps of retraining. Prints Kendall's correlation of the two orders. Rerun
    the same command to resume, or with more --combinations to continue.
    """
    from segpipe.cli.printing import print_estimate, print_json
    from segpipe.pipeline import pruning_oracle

    request = pruning_oracle.PruningRequest(
        folder=work,
        machine=machine,
        ratio=ratio,
        stages=stages,
        configuration=configuration,
        fold=fold,
        n_combinations=combinations,
        iterations=trial_iterations,
        learning_rate=learning_rate,
        seed=seed,
    )
    job = pruning_oracle.resolve(request)
    if dry_run:
        print_estimate(pruning_oracle.estimate(job), as_json=as_json)
        return
    found = pruning_oracle.run(job)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    echo(pruning_oracle.report_text(found))
    echo("\n".join(textwrap.wrap(found.verdict, _WIDTH)))
    echo(f"Measurements: {found.file}")


ANALYSES: dict[str, click.Command] = {  # name: the command; each has a section in docs/analysis.md
    "trajectory": _analyse_trajectory,
    "variance": _analyse_variance,
    "sites": _analyse_sites,
    "pruning": _analyse_pruning,
}


@click.group("analyse", commands=ANALYSES)
def command() -> None:
    """Look into the training of a model: `segpipe analyse ANALYSIS -h` explains each."""
