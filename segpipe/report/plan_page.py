"""Write `report/plan.html` of a planned work folder: the data, the decisions with their reasons, the cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segpipe.core.figures import CHART_COLOURS, drawn_name, figure_bytes, label_colours, new_figure, tidy
from segpipe.core.files import write_text
from segpipe.core.labels import LabelSet
from segpipe.core.text import MOST_ROWS, N_ENDS, fold_middle, list_names
from segpipe.core.work import Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits, leaks
from segpipe.fingerprint.record import Fingerprint, Histogram, Intensities
from segpipe.plan.planned_cost import PlannedCost
from segpipe.plan.schema import Normalisation, Plan
from segpipe.report.charts import draw_box, draw_dots, label_rows
from segpipe.report.page import Decision, Picture, Table, render
from segpipe.report.plan_page_samples import sample_pictures
from segpipe.report.plan_page_tables import (
    axis_names,
    configuration_table,
    cost_table,
    label_table,
    rare_labels,
    scheme_text,
    short,
    split_tables,
    stage_tables,
)
from segpipe.report.work_report import plan_decisions

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_BARS, _MARK = CHART_COLOURS[0], CHART_COLOURS[1]
_N_BINS = 24
_SAME = 1e-3  # edges that differ by less were rounded
_PEAK_SHARE = 0.5  # of the voxels in one bar: the others would not be seen beside it
_MAX_COLUMNS = 3
_MAX_DOTS = 2000  # of all pictures; beyond, boxes say enough and the file stays small
_LOG_RATIO = 100.0  # two decades between the smallest and the largest value ask for a logarithmic axis


def geometry_picture(fingerprint: Fingerprint, plan: Plan) -> Picture:
    """Voxel edges and shapes of all cases along the plan's axes; target edges are marked."""
    order = list(plan.axes_of(fingerprint.orientation))
    edges = np.array([case.spacing_mm for case in fingerprint.cases])[:, order]
    shapes = np.array([case.shape_zyx or case.cropped_shape_zyx for case in fingerprint.cases])[:, order]
    names = axis_names(plan)
    figure = new_figure(9.6, 4.6)
    panels = figure.subplots(2, 3, gridspec_kw={"hspace": 0.08})
    for axis in range(3):
        _bars(panels[0][axis], edges[:, axis].tolist(), f"voxel {names[axis]}, mm")
        targets = {c.spacing_mm[axis] for c in plan.configurations.values()} - {None}
        for target in sorted(t for t in targets if t is not None):
            panels[0][axis].axvline(target, color=_MARK, linestyle="--", linewidth=1.5)
        _bars(panels[1][axis], shapes[:, axis].tolist(), f"image {names[axis]}, voxels", step=1)
    for row in panels:
        row[0].set_ylabel("cases", fontsize=9)
    medians = ", ".join(
        f"{name} {short(edge)} mm and {short(n)} voxels"
        for name, edge, n in zip(names, np.median(edges, axis=0), np.median(shapes, axis=0), strict=True)
    )
    alt = f"Histograms of voxel edges and image shapes over {len(edges)} cases. Medians: {medians}."
    caption = "Dashed: the voxel edges of the plan's configurations, to which every case is resampled."
    return Picture("svg", figure_bytes(figure, "svg"), alt, caption)


def _bars(panel: Axes, values: Sequence[float], title: str, step: float | None = None) -> None:
    """A histogram.

    Args:
        values: At least one; above 0.
        step: What values are multiples of; None: of nothing. Bins then hold equally many of them.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    if high <= low * (1 + _SAME):
        panel.bar([low], [len(values)], width=0.02 * low, color=_BARS)
        panel.set_xlim(0.8 * low, 1.2 * low)
    elif step is None:
        panel.hist(values, _N_BINS, color=_BARS)
    else:
        width = step * math.ceil((high - low + step) / step / _N_BINS)
        panel.hist(values, np.arange(low - step / 2, high + width, width).tolist(), rwidth=0.9, color=_BARS)
    panel.set_title(title, fontsize=9.5, loc="left")
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=step == 1))
    panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    tidy(panel)


def intensity_picture(fingerprint: Fingerprint, plan: Plan) -> Picture | None:
    """For each channel the histogram inside the labels, and how the plan normalises it; None if it is not known."""
    known = [
        (name, found, found.histogram, normalisation)
        for name, found, normalisation in zip(
            fingerprint.channels, fingerprint.intensities, plan.normalisation, strict=False
        )
        if found.histogram is not None
    ]
    if not known:
        return None
    n_rows = math.ceil(len(known) / _MAX_COLUMNS)
    n_columns = max(2, math.ceil(len(known) / n_rows))
    figure = new_figure(9.6, 2.5 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel in panels[len(known) :]:
        panel.set_axis_off()
    for panel, (name, found, histogram, normalisation) in zip(panels, known, strict=False):
        _draw_intensity(panel, name, found, histogram, normalisation)
    texts = [f"{n}: median {short(f.median)}, {scheme_text(how)}" for n, f, _, how in known]
    caption = (
        "Voxels inside the labels, every case with the same weight, from percentile 0.5 to 99.5; dotted: the median. "
        "Grey: what is clipped. The axis is logarithmic where one bar holds more than half of them."
    )
    alt = f"Histograms of intensities inside the labels. {'; '.join(texts)}."
    return Picture("svg", figure_bytes(figure, "svg"), alt, caption)


def _draw_intensity(
    panel: Axes, name: str, found: Intensities, histogram: Histogram, normalisation: Normalisation
) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = histogram.low, histogram.high
    width = (high - low) / len(histogram.shares) or max(abs(low), 1.0) * 0.02
    ends = [low, high, *(end for end in (normalisation.low, normalisation.high) if end is not None)]
    margin = 0.08 * (max(ends) - min(ends)) or 10 * width
    left, right = min(ends) - margin, max(ends) + margin
    starts = low + width * np.arange(len(histogram.shares))
    panel.bar(starts, np.array(histogram.shares) * 100, width, align="edge", color=_BARS)
    panel.axvline(found.median, color="black", linestyle=":", linewidth=1.2)
    if normalisation.low is not None and normalisation.high is not None:
        for start, end, edge in (
            (left, normalisation.low, normalisation.low),
            (normalisation.high, right, normalisation.high),
        ):
            panel.axvspan(start, end, color="0.82", zorder=0)
            panel.axvline(edge, color=_MARK, linestyle="--", linewidth=1.5)
    if max(histogram.shares) > _PEAK_SHARE and np.count_nonzero(histogram.shares) > 1:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda value, _: short(value))
    panel.set_xlim(left, right)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.set_title(f"{drawn_name(name)}\n{scheme_text(normalisation)}", fontsize=9, loc="left")
    panel.set_ylabel("% of voxels", fontsize=8.5)
    tidy(panel)


def volume_pictures(fingerprint: Fingerprint, labels: LabelSet) -> tuple[Picture, ...]:
    """Volume of each label over the cases in which it occurs; of very many labels the smallest and the largest ones."""
    values = {
        name: [c.labels[name].volume_mm3 / 1000 for c in fingerprint.cases if name in c.present]
        for name in labels.names
    }
    every = [volume for volumes in values.values() for volume in volumes]
    if not every:
        return ()
    has_dots = len(every) <= _MAX_DOTS
    is_log = max(every) > _LOG_RATIO * min(every)
    limits = (min(every) / 1.3, max(every) * 1.3) if is_log else (0.0, 1.05 * max(every))
    medians = {name: float(np.median(found)) if found else 0.0 for name, found in values.items()}
    names = list(values) if len(values) <= MOST_ROWS else sorted(values, key=lambda name: medians[name])
    first, last = fold_middle(names)
    shown = {name: values[name] for name in (*first, *last)}
    colours = label_colours(labels.names)
    content = _volumes_svg(shown, colours, limits, is_log, has_dots)
    texts = list_names(f"{name} {short(medians[name])} mL" for name, found in shown.items() if found)
    caption = "Volume of each label over cases; boxes show median and quartiles, lines the smallest and the largest."
    if last:
        caption += f" Of {len(values)} labels the {N_ENDS} smallest and the {N_ENDS} largest by their median."
    alt = f"Distribution of the volume of labels over cases. Medians: {texts}."
    return (Picture("svg", content, alt, caption),)


def _volumes_svg(
    values: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    limits: tuple[float, float],
    is_log: bool,
    has_dots: bool,
) -> bytes:
    figure = new_figure(9.6, 0.9 + 0.3 * max(2, len(values)))
    panel = figure.subplots()
    for row, (name, found) in enumerate(values.items()):
        if not found:
            panel.text(0.01, row, "in no case", transform=panel.get_yaxis_transform(), fontsize=8, va="center")
            continue
        draw_box(panel, found, row, colours[name], whiskers=(0, 100))
        if has_dots:
            draw_dots(panel, found, row, colours[name], is_dense=False)
    label_rows(panel, list(values))
    if is_log:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda value, _: short(value))
    panel.set_xlim(*limits)
    panel.set_xlabel("volume, mL", fontsize=9)
    return figure_bytes(figure, "svg")


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
        volumes=volume_pictures(fingerprint, plan.labels),
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
