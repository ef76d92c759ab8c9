"""`segpipe prune`: a smaller network from a trained one."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import Ratios, configuration, dry_run, folds, on_machine, retraining_rate, seed, shared
from segpipe.cli.printing import echo
from segpipe.pipeline.requests import Machine


@click.command("prune")
@click.argument("work", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="New work folder.")
@click.option(
    "--ratio",
    "ratios",
    type=Ratios(),
    required=True,
    help="Share of channels to remove, e.g. 0.5; or one for each stage, e.g. 0,0.25,0.5,0.5.",
)
@configuration
@folds
@click.option(
    "--candidates",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Choices of channels to try in a fold.",
)
@click.option(
    "--trial-iterations",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Steps to retrain each choice.",
)
@retraining_rate
@seed
@dry_run
@on_machine
@shared
def command(
    work: Path,
    output: Path,
    ratios: tuple[float, ...],
    configuration: str | None,
    folds: tuple[int, ...],
    candidates: int,
    trial_iterations: int,
    learning_rate: float | None,
    seed: int,
    dry_run: bool,
    machine: Machine,
    as_json: bool,
) -> None:
    """Remove channels from trained folds of WORK into a new work folder, where `segpipe train` trains on.

    Several choices of channels are each retrained for some steps, and the best by the Dice of held-out training cases
    is taken: how good a network is just after pruning says little about how good it becomes.
    """
    from segpipe.cli.printing import print_estimate, print_json
    from segpipe.core.text import command_text
    from segpipe.pipeline import prune

    request = prune.PruneRequest(
        folder=work,
        output=output,
        machine=machine,
        ratios=ratios,
        configuration=configuration,
        folds=folds,
        n_candidates=candidates,
        trial_iterations=trial_iterations,
        learning_rate=learning_rate,
        seed=seed,
    )
    job = prune.resolve(request)
    if dry_run:
        print_estimate(prune.estimate(job), as_json=as_json)
        return
    report = prune.run(job)
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    echo(prune.prune_text(report))
    names = ",".join(fold.fold for fold in report.folds)
    echo(f"Next: {command_text('segpipe', 'train', str(output), '-c', report.configuration, '-f', names)}")
