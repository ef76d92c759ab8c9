"""`segpipe pretrain`: teach the network of a plan to restore hidden parts of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segpipe.cli.options import Command, configuration, edits, epochs, iterations, on_machine, shared, time_budget
from segpipe.cli.printing import echo
from segpipe.pipeline.requests import Machine, PretrainRequest


@click.command("pretrain", cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the weights.")
@click.option(
    "--for",
    "plan_of",
    required=True,
    metavar="WORK",
    type=click.Path(path_type=Path),
    help="The work folder whose network is pre-trained, by its plan.",
)
@configuration
@time_budget
@epochs
@iterations
@edits
@click.option("--with-labels", is_flag=True, help="Also learn from the labels that lie beside images (supcon_voxel).")
@click.option("--restart", is_flag=True, help="Discard existing training and start over. Omit to resume.")
@on_machine
@shared
def command(data: Path, as_json: bool, machine: Machine, time_budget: float | None, **more: Any) -> None:
    """Pre-train the network of a planned WORK folder on images, labelled or not. Rerun the same command to resume.

    DATA is a file, a folder or a dataset, as for `segpipe predict`. Blocks of each image are hidden, and the network
    learns to restore them. The weights remember which images they have seen: training warns if validation cases are
    among them.
    """
    from segpipe.cli.printing import print_json
    from segpipe.core.text import command_text
    from segpipe.pipeline import pretrain

    done = pretrain.pretrain(PretrainRequest(data, machine=machine, time_budget_seconds=time_budget, **more))
    if as_json:
        print_json(
            {
                "weights": str(done.weights),
                "configuration": done.configuration,
                "n_images": done.n_images,
                "n_held_out": done.n_held_out,
            }
        )
        return
    source = f"configurations.{done.configuration}.network.weights={{source: {done.weights.absolute()}}}"
    echo(f"Weights: {done.weights}. Next: {command_text('segpipe', 'train', str(more['plan_of']), '--set', source)}")
