"""`segpipe pack`: a trained model as one file."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import folds, shared


@click.command("pack")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The file, e.g. liver.segpipe.zip."
)
@click.option(
    "-c", "--configuration", "configurations", multiple=True,
    help="2d, 3d_fullres, …, or several (2d,3d_fullres).  [default: what `segpipe select` chose, else 3d_fullres]",
)  # fmt: skip
@folds
@click.option("--licence", metavar="TEXT", help="Under which terms the model may be used, e.g. CC-BY-4.0.")
@shared
def command(
    model: Path,
    output: Path,
    configurations: tuple[str, ...],
    folds: tuple[int, ...],
    licence: str | None,
    as_json: bool,
    device: str,  # noqa: ARG001 (an option of every command)
    n_workers: int,  # noqa: ARG001
    seed: int,  # noqa: ARG001
) -> None:
    """Write MODEL (a work folder or runs/<configuration>) as one file that `segpipe predict -m` takes.

    It holds weights, plan, postprocessing, scores and a model card, no image and no case's name, each part with its
    SHA-256.
    """
    from segpipe.cli.main import print_json
    from segpipe.pipeline.packing import pack

    names = [name for value in configurations for name in value.split(",") if name]
    numbers = [str(fold) for fold in folds] or None
    manifest = pack(model, output, configurations=names, folds=numbers, licence=licence)
    if as_json:
        print_json({"written": str(output)} | manifest.model_dump(mode="json"))
        return
    click.echo(f"Written: {output}")
