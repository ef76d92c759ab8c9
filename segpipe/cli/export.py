"""`segpipe export`: files that other tools read."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import configuration, folds, shared


@click.command("export")
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--to", "kind", type=click.Choice(["nnunet-plans", "nnunet-model"]), required=True, help="What to write.")
@click.argument("output", type=click.Path(path_type=Path))
@configuration
@folds
@shared
def command(
    work: Path,
    kind: str,
    output: Path,
    configuration: str | None,
    folds: tuple[int, ...],
    as_json: bool,
    device: str,  # noqa: ARG001 (an option of every command)
    n_workers: int,  # noqa: ARG001
    seed: int,  # noqa: ARG001
) -> None:
    """Write what nnU-Net reads: WORK's plan as plans.json, or trained folds as the folder of a model.

    With such a folder `nnUNetv2_predict_from_modelfolder` gives the masks that segpipe gives.
    """
    from segpipe.cli.main import print_json

    if kind == "nnunet-model":
        from segpipe.bridge.nnunet_model import export_nnunet_model

        export_nnunet_model(work, output, configuration, [str(fold) for fold in folds] or None)
    elif configuration is not None or folds:
        raise click.UsageError("-c and -f choose a model; a plan is written whole.")
    else:
        from segpipe.bridge.nnunet_plans import export_nnunet_plans

        export_nnunet_plans(work, output)
    if as_json:
        print_json({"written": str(output)})
        return
    click.echo(f"Written: {output}")
