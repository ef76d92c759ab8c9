"""`segpipe size`: how many patients a goal needs."""

from __future__ import annotations

import textwrap

import click

from segpipe.cli.options import Command, seed, shared
from segpipe.cli.printing import echo
from segpipe.pipeline.requests import SizeRequest


@click.command("size", cls=Command, old={"-m": "--metric"})
@click.argument("results", nargs=-1, required=True, metavar="RESULT [RESULT]")
@click.option("--half-width", type=float, help="Wanted half-width of the 95 % interval of the mean, e.g. 0.02.")
@click.option("--difference", type=float, help="Mean difference of two RESULTs to find, e.g. 0.01.")
@click.option("--power", type=float, default=0.8, show_default=True, help="Probability of finding it.")
@click.option("--more", "n_more", type=click.IntRange(1), help="Training patients to add; RESULT is a study's folder.")
@click.option("--metric", default="dice", show_default=True, help="Metric of scores.csv.")
@click.option("--label", help="Structure. Default: the mean over labels.")
@click.option("--scans", type=click.IntRange(1), default=1, show_default=True, help="Planned scans of each patient.")
@click.option("--worst-loss", type=float, help="Most that a failure can cost.  [default: 1 for overlaps]")
@click.option("--policy", default="mr", show_default=True, help="How empty masks count: mr, nnunet, brats or omit.")
@seed
@shared
def command(
    results: tuple[str, ...],
    half_width: float | None,
    difference: float | None,
    power: float,
    n_more: int | None,
    metric: str,
    label: str | None,
    scans: int,
    worst_loss: float | None,
    policy: str,
    as_json: bool,
    seed: int,
) -> None:
    """Compute how many patients a goal needs, from the scores of a pilot.

    RESULT is what `segpipe compare` takes: a table of scores, or a folder with some. Several scans of a patient count
    by their intraclass correlation. With --more, RESULT is the folder of a study whose arms have 25, 50, 75 and 100 %
    of the training patients (`training_patients: 0.25`), and the answer is what more patients would bring.
    """
    from segpipe.cli.printing import print_json
    from segpipe.pipeline import size

    request = SizeRequest(
        results=results,
        metric=metric,
        label=label,
        policy=policy,
        half_width=half_width,
        difference=difference,
        power=power,
        scans_of_patient=scans,
        worst_loss=worst_loss,
        n_more=n_more,
        seed=seed,
    )
    found = size.run(size.resolve(request))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    for line in size.size_lines(found):
        echo("\n".join(textwrap.wrap(line, 80)))
