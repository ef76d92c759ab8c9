"""`segpipe import`: take up models of other tools."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import folds, shared


@click.command("import")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", "work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@folds
@click.option("--checkpoint", default="checkpoint_final.pth", show_default=True, help="File in each fold's folder.")
@shared
def command(
    model: Path,
    work: Path,
    folds: tuple[int, ...],
    checkpoint: str,
    as_json: bool,
    device: str,  # noqa: ARG001 (an option of every command)
    n_workers: int,  # noqa: ARG001
    seed: int,  # noqa: ARG001
) -> None:
    """Make a trained model of nnU-Net one that `segpipe predict -m WORK` predicts with.

    MODEL is nnU-Net's folder of one configuration, such as nnUNetTrainer__nnUNetPlans__3d_fullres.
    """
    from segpipe.bridge.nnunet_model import import_nnunet_model
    from segpipe.cli.main import print_json

    targets = import_nnunet_model(model, work, [str(fold) for fold in folds] or None, checkpoint)
    if as_json:
        print_json({"folds": [str(target.path) for target in targets]})
        return
    click.echo(f"{len(targets)} folds: {targets[0].path.parent}. Next: segpipe predict -m {work} -i IMAGES -o MASKS")
