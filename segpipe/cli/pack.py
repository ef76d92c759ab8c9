"""`segpipe pack`: a trained model as one file."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import NO_MACHINE, Command, configurations, model_folds, shared
from segpipe.cli.printing import echo


@click.command("pack", cls=Command, old=NO_MACHINE)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The file, e.g. liver.segpipe.zip."
)
@configurations
@model_folds
@click.option("--licence", metavar="TEXT", help="Licence of the model, e.g. CC-BY-4.0.")
@shared
def command(
    model: Path,
    output: Path,
    configurations: tuple[str, ...],
    folds: tuple[str, ...],
    licence: str | None,
    as_json: bool,
) -> None:
    """Write MODEL (a work folder or runs/<configuration>) as one file that `segpipe predict -m` takes.

    It holds weights, plan, postprocessing, scores and a model card, each with its SHA-256; no images and no case names.
    """
    from segpipe.cli.printing import print_json
    from segpipe.pipeline.packing import pack

    manifest = pack(model, output, configurations=configurations, folds=folds, licence=licence)
    if as_json:
        print_json({"written": str(output)} | manifest.model_dump(mode="json"))
        return
    echo(f"Written: {output}")
