"""`segpipe predict`: segment images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpipe.cli.ahead import dry_run, print_ahead
from segpipe.cli.options import finite, folds, shared

if TYPE_CHECKING:
    from segpipe.predict.result import PredictionResult


@click.command("predict")
@click.option(
    "-m", "--model", "models", type=click.Path(path_type=Path), required=True, multiple=True,
    help="Work folder, runs/<configuration> or .segpipe.zip; several are averaged.",
)  # fmt: skip
@click.option(
    "-i", "--input", "inputs", type=click.Path(path_type=Path), required=True, help="File, folder or dataset."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the masks.")
@click.option(
    "-c", "--configuration", "configurations", multiple=True,
    help="2d, 3d_fullres, …; several (2d,3d_fullres) are averaged.  [default: what `segpipe select` chose, else "
    "3d_fullres]",
)  # fmt: skip
@folds
@click.option("--tta/--no-tta", default=True, show_default=True, help="Average over mirrored copies.")
@click.option("--save-probabilities", is_flag=True, help="Also write <case>_probabilities.npz.")
@click.option(
    "--save-uncertainty", is_flag=True,
    help="Also write uncertainty/<case>_entropy.nii.gz, and <case>_disagreement.nii.gz of several folds; every fold "
    "then takes memory of its own.",
)  # fmt: skip
@click.option(
    "--postprocess", "postprocessing", type=click.Path(path_type=Path), metavar="FILE",
    help="Steps for the masks, as YAML.  [default: what `segpipe select` chose for the model]",
)  # fmt: skip
@click.option("--no-postprocess", is_flag=True, help="Leave the masks as the network gives them.")
@click.option(
    "--max-memory", "max_memory_gib", type=click.FloatRange(0, min_open=True), callback=finite, metavar="GiB",
    help="Most memory to take, on the host and on a GPU each.  [default: what is free]",
)  # fmt: skip
@click.option("--any-size", is_flag=True, help="Also predict images 50 times as large as any trained on, or larger.")
@dry_run
@shared
def command(
    models: tuple[Path, ...],
    inputs: Path,
    output: Path,
    configurations: tuple[str, ...],
    folds: tuple[int, ...],
    tta: bool,
    save_probabilities: bool,
    save_uncertainty: bool,
    postprocessing: Path | None,
    no_postprocess: bool,
    max_memory_gib: float | None,
    any_size: bool,
    dry_run: bool,
    as_json: bool,
    device: str,
    n_workers: int,
    seed: int,  # noqa: ARG001 (an option of every command)
) -> int:
    """Write one mask for each image, on the image's own grid.

    Of the folds of a configuration the logits are averaged, of configurations the probabilities. Uncertainty is 0 to
    1: entropy of the probabilities, and the share of networks whose own mask differs. A killed run goes on with the
    same command.
    """
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.predicting import predict
    from segpipe.predict.options import PredictOptions

    options = PredictOptions(
        configurations=tuple(name for given in configurations for name in given.split(",") if name),
        folds=folds,
        mirror=tta,
        probabilities=save_probabilities,
        uncertainty=save_uncertainty,
        postprocessing=postprocessing,
        postprocesses=not no_postprocess,
        max_memory_gib=max_memory_gib,
        any_size=any_size,
    )
    machine = Machine(device, n_workers)
    if dry_run:
        from segpipe.pipeline.ahead_predict import prediction_ahead

        print_ahead(prediction_ahead(models, inputs, output, machine, options), as_json=as_json)
        return 0
    return print_outcome(predict(models, inputs, output, machine, options), as_json=as_json)


def print_outcome(outcome: PredictionResult, *, as_json: bool) -> int:
    """Print where the masks are and what failed; returns the exit code."""
    from segpipe.cli.main import print_json

    if as_json:
        print_json(
            {
                "masks": [str(mask) for mask in outcome.masks],
                "cases": [row.to_json() for row in outcome.rows],
                "failed": [{"case_id": fault.case_id, "message": fault.text} for fault in outcome.faults],
            }
        )
    else:
        click.echo(f"{len(outcome.masks)} masks: {outcome.folder}")
    if outcome.faults:
        click.echo(outcome.summary, err=True)
    return outcome.exit_code
