"""`segpipe plan`: measure a dataset and decide how to train on it."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import edits, shared


@click.command("plan")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", "work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option("--preset", default="auto", show_default=True, help="auto, nnunet, resenc_m, resenc_l, resenc_xl, cpu.")
@click.option("--folds", "n_folds", type=click.IntRange(2), default=5, show_default=True, help="Folds to split into.")
@click.option("--splits", type=click.Path(path_type=Path), help="nnU-Net's splits_final.json to use instead.")
@edits
@shared
def command(
    data: Path,
    work: Path,
    preset: str,
    n_folds: int,
    splits: Path | None,
    edits: tuple[str, ...],
    as_json: bool,
    device: str,
    n_workers: int,
    seed: int,
) -> None:
    """Measure DATA, split it by patient, and write a plan with its reasons.

    The plan is WORK/plan.yaml, made to be read and edited.
    """
    from segpipe.cli.main import print_json
    from segpipe.cli.tables import plan_text
    from segpipe.pipeline import Machine, plan_data

    machine = Machine(device, n_workers)
    plan = plan_data(data, work, machine, preset=preset, edits=edits, n_folds=n_folds, splits_file=splits, seed=seed)
    if as_json:
        print_json({"plan": str(work / "plan.yaml"), **plan.model_dump(mode="json")})
        return
    click.echo(plan_text(plan))
    click.echo(f"Plan: {work / 'plan.yaml'}. Next: segpipe train {work}")
