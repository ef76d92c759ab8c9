"""`segpipe predict`: segment images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpipe.cli.options import NO_SEED, Command, configurations, dry_run, finite, model_folds, on_machine, shared
from segpipe.cli.printing import echo
from segpipe.pipeline.requests import Machine, PredictRequest
from segpipe.predict.options import PredictOptions

if TYPE_CHECKING:
    from segpipe.predict.outputs import PredictionResult

_PATH = click.Path(path_type=Path)


@click.command("predict", cls=Command, old=NO_SEED)
@click.option(
    "-m",
    "--model",
    "models",
    type=_PATH,
    required=True,
    multiple=True,
    help="Work folder, runs/<configuration> or .segpipe.zip; several are averaged.",
)
@click.option("-i", "--input", "inputs", type=_PATH, required=True, help="File, folder or dataset.")
@click.option("-o", "--output", type=_PATH, required=True, help="Folder for the masks.")
@click.option(
    "--series",
    default="",
    metavar="TEXT",
    help="Of several DICOM series in a folder, read the one with this in its description or at the end of its UID.",
)
@configurations
@model_folds
@click.option("--tta/--no-tta", "mirror", default=True, show_default=True, help="Average over mirrored copies.")
@click.option("--save-probabilities", "probabilities", is_flag=True, help="Also write <case>_probabilities.npz.")
@click.option(
    "--save-uncertainty",
    "uncertainty",
    is_flag=True,
    help="Also write uncertainty/<case>_entropy.nii.gz and, with several folds, <case>_disagreement.nii.gz; each fold "
    "then needs memory of its own.",
)
@click.option(
    "--calibrated",
    is_flag=True,
    help="Correct saved probabilities and entropy by the temperature fitted on the validation cases.",
)
@click.option(
    "--postprocess",
    "postprocessing",
    type=_PATH,
    metavar="FILE",
    help="Steps for the masks, as YAML.  [default: the choice of `segpipe select`]",
)
@click.option(
    "--no-postprocess",
    "postprocesses",
    flag_value=False,
    default=True,
    help="Leave the masks as the network gives them.",
)
@click.option(
    "--max-memory",
    "max_memory_gib",
    type=click.FloatRange(0, min_open=True),
    callback=finite,
    metavar="GiB",
    help="Maximum memory, on the host and on a GPU each.  [default: what is free]",
)
@click.option(
    "--any-size", is_flag=True, help="Do not refuse images 50 times as large as any training image, or larger."
)
@click.option("--overwrite", is_flag=True, help="Predict images again even if their masks exist.")
@dry_run
@on_machine
@shared
def command(
    models: tuple[Path, ...],
    inputs: Path,
    output: Path,
    machine: Machine,
    dry_run: bool,
    as_json: bool,
    series: str,
    **options: Any,
) -> int:
    """Write one mask for each image, on the image's own grid.

    The logits of the folds of a configuration are averaged, and the probabilities of several configurations.
    Uncertainty ranges from 0 to 1: the entropy of the probabilities, and the share of networks whose own mask differs.
    Rerun the same command to resume.
    """
    from segpipe.cli.printing import print_estimate
    from segpipe.pipeline import predict

    job = predict.resolve(PredictRequest(models, inputs, output, machine, PredictOptions(**options), series))
    if not dry_run:
        return print_outcome(predict.run(job), as_json=as_json)
    found = predict.estimate(job)
    print_estimate(found, as_json=as_json)
    return found.exit_code


def print_outcome(outcome: PredictionResult, *, as_json: bool) -> int:
    """Print where the masks are and what failed; returns the exit code."""
    from segpipe.cli.printing import print_json
    from segpipe.core.text import count

    if as_json:
        print_json(
            {
                "masks": [str(mask) for mask in outcome.masks],
                "cases": [row.to_json() for row in outcome.rows],
                "failed": [{"case_id": fault.case_id, "message": fault.text} for fault in outcome.faults],
            }
        )
    else:
        echo(f"{count(len(outcome.masks), 'mask')}: {outcome.folder}")
    if outcome.faults:
        echo(outcome.summary, err=True)
    return outcome.exit_code
