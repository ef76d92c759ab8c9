"""`segpipe select`: choose configuration, ensemble and postprocessing, and say what the choice is worth."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.ahead import dry_run, print_ahead
from segpipe.cli.options import shared


@click.command("select")
@click.argument("work", type=click.Path(path_type=Path))
@click.option("-m", "--metric", type=click.Choice(["dice", "iou", "hd95", "assd"]), default="dice", show_default=True,
              help="What to choose by, mean over labels; empty masks by policy mr.")  # fmt: skip
@click.option("--ensembles", is_flag=True, help="Predict the probabilities that ensembles of configurations need.")
@dry_run
@shared
def command(
    work: Path,
    metric: str,
    ensembles: bool,
    dry_run: bool,
    as_json: bool,
    device: str,
    n_workers: int,
    seed: int,  # noqa: ARG001 (an option of every command)
) -> None:
    """Choose by the out-of-fold masks of WORK; both the naive and the nested score are printed.

    Candidates are the configurations whose folds are trained, ensembles of those with probabilities, and for each label
    keeping the largest part, dropping small ones and filling holes. What is chosen stands in WORK/selection, and
    `segpipe predict -m WORK` predicts with it until one of its folds is trained again. A killed run goes on with the
    same command.
    """
    from segpipe.cli.main import print_json
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.selection import select_model, selection_text

    if dry_run:
        from segpipe.pipeline.ahead_predict import selection_ahead

        found = selection_ahead(work, metric, Machine(device, n_workers), ensembles=ensembles)
        print_ahead(found, as_json=as_json)
        return
    report = select_model(work, metric, Machine(device, n_workers), ensembles=ensembles)
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    click.echo(selection_text(report))
