"""`segpipe ensemble`: average probabilities that were written to files."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import shared
from segpipe.cli.predict import print_outcome


@click.command("ensemble")
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the masks.")
@click.option(
    "--postprocess", "postprocessing", type=click.Path(path_type=Path), metavar="FILE",
    help="Steps for the masks, as YAML.",
)  # fmt: skip
@shared
def command(
    folders: tuple[Path, ...],
    output: Path,
    postprocessing: Path | None,
    as_json: bool,
    device: str,  # noqa: ARG001 (an option of every command, as the next two)
    n_workers: int,  # noqa: ARG001
    seed: int,  # noqa: ARG001
) -> int:
    """Average the probabilities in FOLDERS and write one mask for each case.

    The folders are those of `segpipe predict --save-probabilities`, of nnUNetv2_predict --save_probabilities, or both;
    labels and cases must be the same. `segpipe predict -c 2d,3d_fullres` does it without files. A killed run goes on
    with the same command.
    """
    from segpipe.pipeline.predicting import average

    return print_outcome(average(folders, output, postprocessing), as_json=as_json)
