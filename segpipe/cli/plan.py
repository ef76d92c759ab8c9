"""`segpipe plan`: measure a dataset and decide how to train on it."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli import options
from segpipe.cli.options import edits, shared

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("plan")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", "work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@options.preset
@options.gpu_memory
@options.time_budget
@click.option("--folds", "n_folds", type=click.IntRange(2), default=5, show_default=True, help="Folds to split into.")
@options.splits
@click.option("--nnunet-fingerprint", type=_FILE, help="Plan from nnU-Net's dataset_fingerprint.json, without images.")
@click.option("--nnunet-dataset", type=_FILE, help="The dataset.json that belongs to it.")
@click.option("--nnunet-plans", type=_FILE, help="Take the decisions from nnU-Net's plans.json, also an old one.")
@click.option("--cost/--no-cost", "with_cost", default=True, help="Predict memory, time and disk (some seconds).")
@click.option("--report/--no-report", "with_report", default=True, help="Write a page with pictures, if DATA is given.")
@edits
@shared
def command(
    data: Path | None,
    work: Path,
    preset: str,
    gpu_memory: float | None,
    time_budget: float | None,
    n_folds: int,
    splits: Path | None,
    nnunet_fingerprint: Path | None,
    nnunet_dataset: Path | None,
    nnunet_plans: Path | None,
    with_cost: bool,
    with_report: bool,
    edits: tuple[str, ...],
    as_json: bool,
    device: str,
    n_workers: int,
    seed: int,
) -> None:
    """Measure DATA, split it by patient, and write a plan with its reasons.

    The plan is WORK/plan.yaml, made to be read and edited. What does not fit the memory is refused.
    """
    from segpipe.cli.main import print_json
    from segpipe.cli.plan_tables import plan_text
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.planning import Choices, plan_data, plan_nnunet_files

    if nnunet_plans is not None and (preset != "auto" or gpu_memory is not None):
        raise click.UsageError("--nnunet-plans takes all decisions from the file; leave out --preset and --gpu-memory.")
    machine = Machine(device, n_workers)
    fold_seconds = None if time_budget is None else time_budget / n_folds
    choices = Choices(preset, gpu_memory, edits, n_folds, splits, nnunet_plans, seed, with_cost, fold_seconds)
    if data is not None and nnunet_fingerprint is None and nnunet_dataset is None:
        planned = plan_data(data, work, machine, choices)
    elif data is None and nnunet_fingerprint is not None and nnunet_dataset is not None:
        planned = plan_nnunet_files(nnunet_fingerprint, nnunet_dataset, work, machine, choices)
    else:
        raise click.UsageError("Give either DATA, or both --nnunet-fingerprint and --nnunet-dataset.")
    page = None
    if with_report and data is not None:
        from segpipe.report.plan_page import write_plan_page  # late: pictures take a second to import

        page = write_plan_page(work, planned.costs)
    if as_json:
        costs = [cost.model_dump() for cost in planned.costs]
        paths = {"plan": str(work / "plan.yaml"), "report": None if page is None else str(page)}
        print_json({**paths, **planned.plan.model_dump(mode="json"), "costs": costs})
        return
    click.echo(plan_text(planned))
    if page is not None:
        click.echo(f"Page: {page}")
    following = f" Next: segpipe train {work}" if data is not None else ""
    click.echo(f"Plan: {work / 'plan.yaml'}.{following}")
