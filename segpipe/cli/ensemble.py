"""`segpipe ensemble`: average probabilities from several prediction folders."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import NO_MACHINE, Command, shared
from segpipe.cli.predict import print_outcome


@click.command("ensemble", cls=Command, old=NO_MACHINE)
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the masks.")
@click.option(
    "--postprocess",
    "postprocessing",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Steps for the masks, as YAML.",
)
@shared
def command(
    folders: tuple[Path, ...],
    output: Path,
    postprocessing: Path | None,
    as_json: bool,
) -> int:
    """Average the probabilities in FOLDERS and write one mask for each case.

    The folders come from `segpipe predict --save-probabilities`, nnUNetv2_predict --save_probabilities, or both; labels
    and cases must be the same. `segpipe predict -c 2d,3d_fullres` does this without files. Rerun the same command to
    resume.
    """
    from segpipe.pipeline.predict import average

    return print_outcome(average(folders, output, postprocessing), as_json=as_json)
