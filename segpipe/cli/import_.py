"""`segpipe import`: import models of other tools."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import NO_MACHINE, Command, model_folds, shared
from segpipe.cli.printing import echo


@click.command("import", cls=Command, old=NO_MACHINE)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", "work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@model_folds
@click.option("--checkpoint", default="checkpoint_final.pth", show_default=True, help="File in each fold's folder.")
@shared
def command(
    model: Path,
    work: Path,
    folds: tuple[str, ...],
    checkpoint: str,
    as_json: bool,
) -> None:
    """Import a trained nnU-Net model, for `segpipe predict -m WORK`.

    MODEL is nnU-Net's folder for one configuration, such as nnUNetTrainer__nnUNetPlans__3d_fullres.
    """
    from segpipe.bridge.nnunet_model import import_nnunet_model
    from segpipe.cli.printing import print_json
    from segpipe.core.text import command_text, count

    targets = import_nnunet_model(model, work, folds, checkpoint)
    if as_json:
        print_json({"folds": [str(target.path) for target in targets]})
        return
    following = command_text("segpipe", "predict", "-m", str(work), "-i", "IMAGES", "-o", "MASKS")
    echo(f"{count(len(targets), 'fold')}: {targets[0].path.parent}. Next: {following}")
