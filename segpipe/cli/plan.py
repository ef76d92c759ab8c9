"""`segpipe plan`: measure a dataset and decide how to train on it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpipe.cli import options
from segpipe.cli.options import Command, edits, on_machine, seed, shared
from segpipe.cli.printing import echo
from segpipe.core.text import command_text, count, size_text
from segpipe.pipeline.requests import Machine, PlanRequest

if TYPE_CHECKING:
    from segpipe.data.splits import FoldRow
    from segpipe.pipeline.plan import Planned
    from segpipe.plan.planned_cost import PlannedCost
    from segpipe.plan.schema import Configuration

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_WIDTH = 80
_GIB = 2**30
_MAX_LABELS, _MAX_SITES = 5, 5  # in the table of folds
_EXPLAINED = ("preset", "spacing", "normalisation", "mirror_axes")  # plan.yaml has the other reasons


@click.command("plan", cls=Command, old={"--folds": "--n-folds"})
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", "work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@options.preset
@options.gpu_memory
@options.max_memory
@options.time_budget
@click.option("--n-folds", type=click.IntRange(2), default=5, show_default=True, help="Number of folds to split into.")
@options.folds_by
@options.splits
@click.option("--nnunet-fingerprint", type=_FILE, help="Plan from nnU-Net's dataset_fingerprint.json, without images.")
@click.option("--nnunet-dataset", type=_FILE, help="The dataset.json that belongs to it.")
@click.option("--nnunet-plans", type=_FILE, help="Take the decisions from nnU-Net's plans.json, old or new.")
@click.option("--cost/--no-cost", "predicts_costs", default=True, help="Predict memory, time and disk (some seconds).")
@click.option("--report/--no-report", "with_report", default=True, help="Write a page with pictures, if DATA is given.")
@edits
@on_machine
@seed
@shared
def command(
    data: Path | None,
    work: Path,
    machine: Machine,
    gpu_memory: float | None,
    time_budget: float | None,
    n_folds: int,
    splits: Path | None,
    with_report: bool,
    as_json: bool,
    **more: Any,
) -> None:
    """Measure DATA, split it by patient, and write a plan with its reasons.

    The plan is WORK/plan.yaml, made to be read and edited. A plan that does not fit into memory is refused.
    """
    from segpipe.cli.printing import print_json
    from segpipe.pipeline import plan

    request = PlanRequest(
        work,
        machine,
        data,
        gpu_memory_gib=gpu_memory,
        n_folds=n_folds,
        splits_file=splits,
        time_budget_seconds=time_budget,
        **more,
    )
    planned = plan.run(plan.resolve(request))
    page = None
    if with_report and data is not None:
        from segpipe.report.plan_page import write_plan_page  # late: pictures take a second to import

        page = write_plan_page(work, planned.costs)
    if as_json:
        costs = [cost.model_dump() for cost in planned.costs]
        paths = {"plan": str(work / "plan.yaml"), "report": None if page is None else str(page)}
        folds = [row.model_dump() for row in planned.folds]
        print_json({**paths, **planned.plan.model_dump(mode="json"), "costs": costs, "folds": folds})
        return
    echo(plan_text(planned))
    if page is not None:
        echo(f"Page: {page}")
    following = f" Next: {command_text('segpipe', 'train', str(work))}" if data is not None else ""
    echo(f"Plan: {work / 'plan.yaml'}.{following}")


def plan_text(planned: Planned) -> str:
    """Return the decisions, their reasons and what they will take, for people."""
    plan = planned.plan
    lines = textwrap.wrap(f"Plan {plan.preset} for {plan.dataset}", _WIDTH, subsequent_indent="  ")
    lines += [
        piece
        for key in _EXPLAINED
        if key in plan.reasons
        for piece in textwrap.wrap(f"{key}: {plan.reasons[key]}", _WIDTH, initial_indent="  ", subsequent_indent="    ")
    ]
    for name, configuration in plan.configurations.items():
        lines.append(f"  {name}: {_configuration_text(name, configuration)}")
    if planned.folds:
        lines += ["", *_fold_table(planned.folds, planned.folds_source)]
    if planned.costs:
        lines += ["", *_cost_table(planned.costs)]
    return "\n".join(lines)


def _configuration_text(name: str, own: Configuration) -> str:
    if own.previous is not None:
        return f"like {own.inherits}, guided by {own.previous}"
    n_axes = own.network.n_axes
    spacing = " × ".join(f"{s:.3g}" for s in own.spacing_mm[-n_axes:] if s is not None)
    patch = " × ".join(map(str, own.patch_zyx[-n_axes:]))
    network, indent = own.network, " " * (len(name) + 4)
    lines = [
        f"{spacing} mm, patch {patch}, batch {own.batch_size},",
        f"{indent}{network.kind} U-Net, {len(network.features)} stages, "
        f"{network.features[0]}–{network.features[-1]} features",
    ]
    if network.parts_text:
        lines += textwrap.wrap(f"with {network.parts_text}", _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


def _fold_table(rows: Sequence[FoldRow], source: str) -> list[str]:
    """Patients that each fold validates, with each label and at each site; of many labels and sites the rarest."""
    whole = [row for row in rows if row.site is None]
    n_with = {label: sum(row.n_with_label[label] for row in whole) for label in whole[0].n_with_label}
    rarest = sorted(n_with, key=n_with.__getitem__)[:_MAX_LABELS]
    shown = [label for label in n_with if label in rarest]
    n_at = {row.site: 0 for row in rows if row.site is not None}
    for row in rows:
        if row.site is not None:
            n_at[row.site] += row.n_patients
    sites = sorted(n_at, key=lambda site: (n_at[site], site))[:_MAX_SITES]
    lines = textwrap.wrap(f"Folds: {source}", _WIDTH, subsequent_indent="  ")
    lines.append(f"  {'validated':<18}{'patients':>9}{'cases':>7}" + "".join(f"{_short(one):>9}" for one in shown))
    for row in rows:
        own = [one.site for one in rows if one.fold == row.fold and one.site is not None and one.n_patients]
        if row.site is None:
            name = f"fold {row.fold}" + (f", {own[0]}" if len(own) == 1 else "")
        elif row.site in sites and row.site in own and len(own) > 1:
            name = f"  {row.site}"
        else:
            continue
        cells = "".join(f"{row.n_with_label[label]:>9}" for label in shown)
        lines.append(f"  {name:<18.17}{row.n_patients:>9}{row.n_cases:>7}{cells}")
    if hidden := len(n_with) - len(shown):
        lines.append(f"  Not shown: {count(hidden, 'label')} of more patients.")
    if hidden := len(n_at) - len(sites):
        lines.append(f"  Not shown: {count(hidden, 'site')} of more patients.")
    return lines


def _short(name: str) -> str:
    return name if len(name) <= 8 else f"{name[:7]}…"


def _cost_table(costs: Sequence[PlannedCost]) -> list[str]:
    """Predicted costs, one line for each configuration."""
    memory = costs[0].memory
    head = (
        f"  {'predicted':<12}{memory + ' memory':>12}{'parameters':>13}{'TMAC/step':>11}{'time/step':>11}{'disk':>11}"
    )
    return [head, *(_cost_line(taken) for taken in costs)]


def _cost_line(taken: PlannedCost) -> str:
    seconds = "–" if taken.seconds_per_step is None else f"~{taken.seconds_per_step:.2g} s"
    return (
        f"  {taken.configuration:<12}{size_text(taken.training_gib * _GIB):>12}{f'{taken.parameters / 1e6:.1f} M':>13}"
        f"{taken.tera_macs_per_step:>11.3g}{seconds:>11}{'~' + size_text(taken.prepared_gib * _GIB):>11}"
    )
