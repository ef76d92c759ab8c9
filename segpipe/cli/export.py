"""`segpipe export`: files for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import NO_MACHINE, Command, configuration, model_folds, shared
from segpipe.cli.printing import echo


@click.command("export", cls=Command, old=NO_MACHINE)
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--to", "kind", type=click.Choice(["nnunet-plans", "nnunet-model"]), required=True, help="What to write.")
@click.argument("output", type=click.Path(path_type=Path))
@configuration
@model_folds
@shared
def command(
    work: Path,
    kind: str,
    output: Path,
    configuration: str | None,
    folds: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export WORK for nnU-Net: its plan as plans.json, or trained folds as a model folder.

    With such a folder `nnUNetv2_predict_from_modelfolder` predicts the same masks as segpipe.
    """
    from segpipe.cli.printing import print_json

    if kind == "nnunet-model":
        from segpipe.bridge.nnunet_model import export_nnunet_model

        export_nnunet_model(work, output, configuration, folds)
    elif configuration is not None or folds:
        raise click.UsageError("-c and -f choose a model; a plan is exported as a whole. Leave them out.")
    else:
        from segpipe.bridge.nnunet_plans import export_nnunet_plans

        export_nnunet_plans(work, output)
    if as_json:
        print_json({"written": str(output)})
        return
    echo(f"Written: {output}")
