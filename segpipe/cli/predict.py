"""`segpipe predict`: segment images with a trained model."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import configuration, folds, shared


@click.command("predict")
@click.option(
    "-m", "--model", type=click.Path(path_type=Path), required=True, help="Work folder or runs/<configuration>."
)
@click.option(
    "-i", "--input", "inputs", type=click.Path(path_type=Path), required=True, help="File, folder or dataset."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the masks.")
@configuration
@folds
@click.option("--tta/--no-tta", default=True, show_default=True, help="Average over mirrored copies.")
@click.option("--save-probabilities", is_flag=True, help="Also write <case>_probabilities.npz.")
@click.option(
    "--postprocess", "postprocessing", type=click.Path(path_type=Path), metavar="FILE",
    help="Steps for the masks, as YAML.  [default: what `segpipe select` chose for the model]",
)  # fmt: skip
@click.option("--no-postprocess", is_flag=True, help="Leave the masks as the network gives them.")
@click.option(
    "--max-memory", "max_memory_gb", type=click.FloatRange(0, min_open=True), metavar="GB",
    help="Most memory to take, on the host and on a GPU each.  [default: what is free]",
)  # fmt: skip
@shared
def command(
    model: Path,
    inputs: Path,
    output: Path,
    configuration: str | None,
    folds: tuple[int, ...],
    tta: bool,
    save_probabilities: bool,
    postprocessing: Path | None,
    no_postprocess: bool,
    max_memory_gb: float | None,
    as_json: bool,
    device: str,
    n_workers: int,
    seed: int,  # noqa: ARG001 (an option of every command)
) -> int:
    """Write one mask for each image, on the image's own grid.

    Folds are averaged. A killed run goes on with the same command.
    """
    from segpipe.cli.main import print_json
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.predicting import predict

    if postprocessing is not None and no_postprocess:
        raise click.UsageError("--postprocess and --no-postprocess: give one of them.")
    outcome = predict(
        model,
        inputs,
        output,
        Machine(device, n_workers),
        configuration=configuration,
        folds=[str(fold) for fold in folds] or None,
        mirror=tta,
        probabilities=save_probabilities,
        postprocessing=postprocessing,
        postprocesses=not no_postprocess,
        max_memory_gb=max_memory_gb,
    )
    if as_json:
        print_json(
            {
                "masks": [str(mask) for mask in outcome.masks],
                "cases": [row.to_json() for row in outcome.rows],
                "failed": [{"case_id": fault.case_id, "message": fault.text} for fault in outcome.faults],
            }
        )
    else:
        click.echo(f"{len(outcome.masks)} masks: {output}")
    if outcome.faults:
        click.echo(outcome.summary, err=True)
    return outcome.exit_code
