"""Write `report/plan.html` of a planned work folder: the data, the decisions with their reasons, the cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.files import write_text
from segpipe.core.work import Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits, leaks
from segpipe.fingerprint.record import Fingerprint
from segpipe.plan.planned_cost import PlannedCost
from segpipe.plan.schema import Plan
from segpipe.report.page import Decision, Picture, Table, render
from segpipe.report.plan_page_pictures import geometry_picture, intensity_picture, volume_pictures
from segpipe.report.plan_page_samples import sample_pictures
from segpipe.report.plan_page_tables import (
    configuration_table,
    cost_table,
    label_table,
    list_names,
    rare_labels,
    split_tables,
    stage_tables,
)
from segpipe.report.work_report import plan_decisions


@dataclass(frozen=True)
class PlanPage:
    """The content of the page; `alarms` are leaks between folds, `notes` what else needs attention."""

    title: str
    facts: tuple[tuple[str, str], ...]
    alarms: tuple[str, ...]
    notes: tuple[str, ...]
    geometry: Picture
    intensity: Picture | None
    labels: Table
    volumes: tuple[Picture, ...]
    samples: tuple[Picture, ...]
    decisions: tuple[Decision, ...]
    configurations: Table
    stages: tuple[Table, ...]
    costs: Table | None
    splits: tuple[Table, ...]
    plan_text: str


def write_plan_page(folder: Path, costs: Sequence[PlannedCost]) -> Path:
    """Write the page of a plan: one HTML file that needs nothing else.

    Args:
        folder: A work folder that was planned from images.
        costs: What the configurations are predicted to take; empty if it was not predicted.

    Returns:
        `folder/report/plan.html`.

    Raises:
        DataError, PlanError: If the folder lacks a dataset, a fingerprint, splits or a plan.
        ResourceError, SetupError: If the page cannot be written.
    """
    work = Work(folder)
    dataset, fingerprint = Dataset.load(work.dataset), Fingerprint.load(work.fingerprint)
    plan, splits = Plan.load(work.plan), Splits.load(work.splits)
    samples, faults = sample_pictures(dataset, fingerprint, plan)
    page = PlanPage(
        title=f"{dataset.name}: the plan",
        facts=_facts(dataset, fingerprint, plan),
        alarms=leaks(splits.folds, dataset),
        notes=(*rare_labels(fingerprint), *splits.warnings, *faults),
        geometry=geometry_picture(fingerprint, plan),
        intensity=intensity_picture(fingerprint, plan),
        labels=label_table(fingerprint, plan.labels, splits.k),
        volumes=volume_pictures(fingerprint),
        samples=samples,
        decisions=plan_decisions(plan.model_dump(mode="json")),
        configurations=configuration_table(plan),
        stages=stage_tables(plan),
        costs=cost_table(costs, plan) if costs else None,
        splits=split_tables(splits, fingerprint, dataset),
        plan_text=work.plan.read_text(encoding="utf-8"),
    )
    write_text(work.plan_page, render(page, "plan_page.html.jinja"))
    return work.plan_page


def _facts(dataset: Dataset, fingerprint: Fingerprint, plan: Plan) -> tuple[tuple[str, str], ...]:
    n_cases, sites = len(fingerprint.cases), fingerprint.sites
    n_unknown = n_cases - sum(sites.values())
    places = [f"{site} {n}" for site, n in sites.items()] + ([f"unknown {n_unknown}"] if n_unknown else [])
    labels = plan.labels
    facts = [
        ("Cases", str(n_cases)),
        ("Patients", f"{len({case.patient_id for case in dataset.cases})}, {dataset.patients_from}"),
        ("Sites", list_names(places) if sites else "unknown"),
        ("Orientations", list_names(f"{code} {n}" for code, n in fingerprint.orientations.items())),
        ("Channels", list_names(fingerprint.channels)),
        ("Regions" if labels.has_regions else "Labels", list_names(labels.names)),
        ("Kept after cropping to nonzero voxels", f"{fingerprint.median_relative_size_after_cropping:.0%} (median)"),
    ]
    if labels.ignore_value is not None:
        facts.append(("Not annotated", f"voxels of value {labels.ignore_value}; they are ignored everywhere"))
    memory = (
        f"a GPU with {plan.gpu_memory_gib:g} GiB" if plan.gpu_memory_gib else "a GPU" if plan.is_for_gpu else "CPUs"
    )
    return (*facts, ("Planned for", f"{memory}, preset {plan.preset}"))
