"""`segpipe select`: choose configuration, ensemble and postprocessing, and say what the choice is worth."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import Command, dry_run, on_machine, shared
from segpipe.cli.printing import echo
from segpipe.pipeline.requests import SELECTION_METRICS, Machine, SelectRequest


@click.command("select", cls=Command, old={"-m": "--metric", "--seed": ""})
@click.argument("work", type=click.Path(path_type=Path))
@click.option(
    "--metric",
    type=click.Choice(SELECTION_METRICS),
    default="dice",
    show_default=True,
    help="Metric to choose by, mean over labels; empty masks by policy mr.",
)
@click.option("--ensembles", is_flag=True, help="Predict the probabilities that ensembles of configurations need.")
@dry_run
@on_machine
@shared
def command(work: Path, metric: str, ensembles: bool, dry_run: bool, machine: Machine, as_json: bool) -> None:
    """Choose by the out-of-fold masks of WORK; print both the naive and the nested score.

    Candidates are the configurations whose folds are trained, ensembles of those with probabilities, and for each label
    keeping the largest component, dropping small ones and filling holes. The choice is written to WORK/selection, and
    `segpipe predict -m WORK` uses it until one of its folds is trained again. Rerun the same command to resume.
    """
    from segpipe.cli.printing import print_estimate, print_json
    from segpipe.pipeline import select

    job = select.resolve(SelectRequest(work, machine, metric, ensembles))
    if dry_run:
        print_estimate(select.estimate(job), as_json=as_json)
        return
    report = select.run(job)
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    echo(select.selection_text(report))
