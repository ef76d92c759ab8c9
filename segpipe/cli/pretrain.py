"""`segpipe pretrain`: teach the network of a plan to restore hidden parts of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segpipe.cli.options import Command, Duration, configuration, dry_run, edits, epochs, iterations, on_machine, shared
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
    help="The planned work folder whose network to pre-train.",
)
@configuration
@click.option("--time-budget", type=Duration(), help="Training time, e.g. 8h, once the images are prepared.")
@epochs
@iterations
@edits
@click.option("--with-labels", is_flag=True, help="Also learn from the labels that lie beside images (supcon_voxel).")
@click.option("--restart", is_flag=True, help="Discard existing training and start over. Omit to resume.")
@dry_run
@on_machine
@shared
def command(data: Path, dry_run: bool, as_json: bool, machine: Machine, time_budget: float | None, **more: Any) -> None:
    """Pre-train the network of a plan on images, labelled or not. Rerun the same command to resume.

    DATA is a file, a folder or a dataset, as for `segpipe predict`. Blocks of each image are hidden, and the network
    learns to restore them. The weights remember which images they have seen: training warns if validation cases are
    among them.
    """
    from segpipe.cli.printing import print_estimate, print_json
    from segpipe.core.text import command_text
    from segpipe.pipeline import pretrain

    job = pretrain.resolve(PretrainRequest(data, machine=machine, time_budget_seconds=time_budget, **more))
    if dry_run:
        print_estimate(pretrain.estimate(job), as_json=as_json)
        return
    done = pretrain.run(job)
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
