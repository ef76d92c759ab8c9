"""`segpipe export`: files for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.bridge.exporters import EXPORTERS, ExportRequest, export
from segpipe.cli.options import NO_MACHINE, Command, configuration, model_folds, shared
from segpipe.cli.printing import echo


@click.command("export", cls=Command, old=NO_MACHINE)
@click.argument("work", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "kind",
    required=True,
    shell_complete=lambda _, __, begun: [name for name in EXPORTERS if name.startswith(begun)],
    help=f"What to write: {' or '.join(EXPORTERS)}.",
)
@click.argument("output", type=click.Path(path_type=Path))
@configuration
@model_folds
@click.option(
    "--any-orientation",
    is_flag=True,
    help="Export a model that nnU-Net predicts rightly only with images stored in the plan's orientation.",
)
@shared
def command(
    work: Path,
    kind: str,
    output: Path,
    configuration: str | None,
    folds: tuple[str, ...],
    any_orientation: bool,
    as_json: bool,
) -> None:
    """Export WORK for nnU-Net: its plan as plans.json, or trained folds as a model folder.

    With such a folder `nnUNetv2_predict_from_modelfolder` predicts the same masks as segpipe.
    """
    from segpipe.cli.printing import print_json

    export(ExportRequest(work, kind, output, configuration, folds, any_orientation))
    if as_json:
        print_json({"written": str(output)})
        return
    echo(f"Written: {output}")
