"""Write `index.html` of a comparison: verdicts, paired differences, rankings and the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segpipe.compare.align import Aligned
from segpipe.compare.comparison import Question
from segpipe.compare.comparison_records import Comparison, ComparisonRow, Description, MetricComparison, Suitability
from segpipe.compare.comparison_text import fold_text, generalisability_text
from segpipe.compare.learning_curve import LearningCurve, curve_lines
from segpipe.compare.paired import mean_of_numbers
from segpipe.compare.results import Method
from segpipe.compare.verdict_sentences import p_text, quantity
from segpipe.core.figures import CHART_COLOURS
from segpipe.core.files import write_text
from segpipe.core.text import MOST_ROWS, N_ENDS, fold_middle
from segpipe.evaluate.metrics import METRICS, Metric
from segpipe.evaluate.summary import MEAN_LABEL, worst_first
from segpipe.report.charts import (
    Spread,
    aligned_scores,
    axis_limits,
    axis_name,
    difference_of,
    differences_svg,
    distribution_svg,
    learning_curve_svg,
    rank_order,
    rankings_svg,
)
from segpipe.report.methods_text import MethodsText, comparison_methods
from segpipe.report.page import Cell, Picture, Table, failure_rate_text, render

PAGE_FILE = "index.html"
_MAX_PAIRS = 15  # in one picture; beyond, those with the first method
_MAX_PAIRS_BY_LABEL = 4  # pictures of labels
_N_ROWS = 40  # of a picture


@dataclass(frozen=True)
class MetricPart:
    """Everything about one metric; a picture or table that has nothing to show is None."""

    title: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    verdicts: tuple[tuple[str, str], ...]
    differences: tuple[Picture, ...]
    rows: Table
    curve: Picture | None
    rankings: Picture | None
    distribution: Picture
    descriptions: Table


@dataclass(frozen=True)
class ComparePage:
    """The whole page."""

    title: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    parts: tuple[MetricPart, ...]
    methods: MethodsText


def write_compare_page(
    comparison: Comparison,
    methods: Sequence[Method],
    question: Question,
    folder: Path,
    curves: Mapping[str, LearningCurve] | None = None,
) -> Path:
    """Write the page of a comparison: one HTML file that needs nothing else.

    Args:
        comparison: The answer.
        methods: What was compared, for the cases' own differences.
        question: What was asked.
        folder: Where to.
        curves: Learning curves by metric, of a study that has some.

    Returns:
        `folder/index.html`.

    Raises:
        ResourceError, SetupError: If the page cannot be written.
    """
    parts = [
        _part(found, aligned_scores(methods, found.metric, question), (curves or {}).get(found.metric))
        for found in comparison.metrics
    ]
    names = comparison.methods
    page = ComparePage(
        title=" against ".join(names[::-1]) if len(names) == 2 else f"{len(names)} methods compared",
        facts=(("Methods", ", ".join(names)), ("First method", names[0]), ("Empty masks", f"policy {question.policy}")),
        notes=comparison.notes,
        parts=tuple(parts),
        methods=comparison_methods(comparison),
    )
    write_text(folder / PAGE_FILE, render(page, "compare_page.html.jinja"))
    return folder / PAGE_FILE


def _part(found: MetricComparison, aligned: Aligned, curve: LearningCurve | None) -> MetricPart:
    metric = METRICS[found.metric]
    counts = (("Cases", found.n_cases), ("Patients", found.n_patients), ("Folds", found.n_folds))
    direction = "more is better" if metric.kind == "overlap" else "less is better"
    notes = [
        *found.notes,
        *(f"{text[0].upper()}{text[1:]}." for text in dict.fromkeys(r.note for r in found.rows) if text),
    ]
    declared = [row for row in found.rows if row.is_declared]
    if not any(row.methods for row in declared):
        notes.append(f"No verdict on the methods themselves: {declared[0].methods_basis}.")
    shown = _rows_to_show(declared)
    if len(shown) < len(declared):
        notes.append(f"{len(shown)} of {len(declared)} verdicts are shown, on {shown[0].baseline}; the table has all.")
    return MetricPart(
        title=f"{metric.title} ({direction})",
        facts=(
            *((name, str(n)) for name, n in (*counts, ("Seeds", found.n_seeds)) if n),
            *_suitability(found.suitability, metric),
        ),
        notes=tuple(notes),
        verdicts=tuple(
            (v.answer, v.sentence + (f" Differences {fold_text(row)}." if v is row.models and fold_text(row) else ""))
            for row in shown
            for v in (row.models, row.methods)
            if v is not None
        ),
        differences=_difference_pictures(found.rows, shown, aligned, metric),
        rows=_row_table(found.rows, metric),
        curve=None if curve is None else _curve_picture(curve, aligned),
        rankings=_ranking_picture(found),
        distribution=_distribution(aligned, metric),
        descriptions=_description_table(found.descriptions, metric),
    )


def _suitability(found: Suitability | None, metric: Metric) -> tuple[tuple[str, str], ...]:
    if found is None:
        return ()
    ratio = "undefined" if found.ratio is None else f"{100 * found.ratio:.0f} %"
    share = generalisability_text(found)
    return (
        ("SD between methods", quantity(found.between_methods, metric)),
        ("SD within a method over folds", quantity(found.within_method, metric)),
        ("Ratio", ratio),
        ("Generalisability coefficient", share),
    )


def _rows_to_show(declared: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Declared rows of all pairs, or of very many those with the first method."""
    first = declared[0].baseline
    return [row for row in declared if len(declared) <= _MAX_PAIRS or row.baseline == first][:_N_ROWS]


def _difference_pictures(
    rows: Sequence[ComparisonRow], declared: Sequence[ComparisonRow], aligned: Aligned, metric: Metric
) -> tuple[Picture, ...]:
    """The declared rows, then the labels of each pair with the first method."""
    own = [row for row in rows if not row.grouping]
    names = [
        f"{row.method} − {row.baseline}" + ("" if row.label == MEAN_LABEL else f", {row.label}") for row in declared
    ]
    caption = (
        f"Second minus first on the same cases; {'right' if aligned.sign > 0 else 'left'} of 0 the second is better. "
        "Thick bars: trained models, patients vary; thin bars, where there are several seeds: methods. The margin is "
        f"{quantity(own[0].margin, metric)}; the word is the verdict on trained models."
    )
    pictures = [_differences(declared, names, aligned, metric, caption)]
    for method in aligned.methods[1 : 1 + _MAX_PAIRS_BY_LABEL] if len(aligned.labels) > 1 else ():
        every = [row for row in own if (row.baseline, row.method) == (aligned.methods[0], method)]
        is_long = len(every) > MOST_ROWS
        low, high = fold_middle(sorted(every, key=lambda row: row.difference or 0.0) if is_long else every)
        labels = [*low, *high]
        caption = f"{method} − {aligned.methods[0]}, each label."
        if is_long:
            caption += f" Of {len(every)} the {N_ENDS} lowest and the {N_ENDS} highest."
        pictures.append(_differences(labels, [row.label for row in labels], aligned, metric, caption))
    return tuple(pictures)


def _differences(
    rows: Sequence[ComparisonRow], names: Sequence[str], aligned: Aligned, metric: Metric, caption: str
) -> Picture:
    drawn = [difference_of(row, aligned, name) for row, name in zip(rows, names, strict=True)]
    texts = [f"{d.name} {_text(d.mean, metric, signed=True)}{_bounds(d.models, metric)}, {d.answer}" for d in drawn]
    alt = f"Paired differences of {metric.title}: {'; '.join(texts)}."
    return Picture("svg", differences_svg(drawn, axis_name(metric), rows[0].margin), alt, caption)


def _text(value: float | None, metric: Metric, *, signed: bool = False) -> str:
    """A number without its unit; -0.0 is 0."""
    return "–" if value is None else quantity(value + 0.0, metric, signed=signed).split(" ")[0]


def _bounds(interval: tuple[float | None, float | None] | None, metric: Metric, *, signed: bool = True) -> str:
    if interval is None or interval[0] is None or interval[1] is None:
        return ""
    return f" [{_text(interval[0], metric, signed=signed)}, {_text(interval[1], metric, signed=signed)}]"


def _row_table(rows: Sequence[ComparisonRow], metric: Metric) -> Table:
    lines = []
    for row in sorted(rows, key=lambda row: row.difference or 0.0) if len(rows) > MOST_ROWS else rows:
        found = row.models
        place = row.label + (f"\n{row.grouping} {row.group}" if row.grouping else "")
        difference = _text(row.difference, metric, signed=True)
        share = row.probability_of_improvement
        lines.append((
            Cell(row.method), Cell(row.baseline), Cell(place), Cell("yes" if row.is_declared else "no"),
            Cell(str(row.n_cases), row.n_cases),
            Cell(f"{difference}\n{_bounds((found.low, found.high), metric).strip()}".strip(), row.difference),
            Cell(p_text(found.p_adjusted).removeprefix("p "), found.p_adjusted),
            Cell(found.answer), Cell("–" if row.methods is None else row.methods.answer),
            Cell("–" if row.standardised is None else f"{row.standardised:+.2f}", row.standardised),
            Cell("–" if share is None else f"{100 * share:.0f} %", share),
            Cell(_text(found.detectable, metric), found.detectable),
        ))  # fmt: skip
    columns = (
        "second", "first", "label", "declared", "cases", "difference", "p", "trained\nmodels", "methods",
        "stand-\nardised", "patients\nimproved", "can\nshow",
    )  # fmt: skip
    caption = (
        "Every comparison: mean difference with 95 % interval, p of the permutation test corrected within its family, "
        "verdicts, effect sizes, and the smallest difference that four of five such datasets would show."
    )
    return Table(columns, tuple(lines), caption, is_sortable=True, is_folded=True)


def _curve_picture(curve: LearningCurve, aligned: Aligned) -> Picture:
    metric = aligned.metric
    what = metric.title + (" (mean over labels)" if len(aligned.labels) > 1 else "")
    points, gain = curve_lines(what, curve, metric)
    caption = (
        f"{gain} Pale dots are folds, black ones their means; the line is the power law with its 95 % band, dashed "
        "beyond the largest arm (dotted)."
    )
    return Picture("svg", learning_curve_svg(curve, axis_name(metric)), points, caption)


def _ranking_picture(found: MetricComparison) -> Picture | None:
    if not found.rankings:
        return None
    first = found.rankings[0]
    texts = [
        f"{first.methods[m]} {first.ranks[m]:g} ({first.low[m]:g} to {first.high[m]:g})" for m in rank_order(first)
    ]
    caption = (
        "Ranks by all patients (dots) and in 95 % of resamples of patients (bars), ranked by means and by each case's "
        "own ranks. Kendall's tau is 1 if every resample ranks the methods alike."
    )
    alt = f"Ranks of methods, {first.order}: {', '.join(texts)}."
    return Picture("svg", rankings_svg(found.rankings), alt, caption)


def _distribution(aligned: Aligned, metric: Metric) -> Picture:
    spreads = []
    for place, (name, values) in enumerate(zip(aligned.methods, aligned.model_values, strict=True)):
        of_cases = mean_of_numbers(values, 1)
        colour = CHART_COLOURS[place % len(CHART_COLOURS)]
        spreads.append(Spread(name, colour, tuple(of_cases[~np.isnan(of_cases)].tolist())))
    medians = [f"{s.name} {_text(float(np.median(s.values)), metric)}" for s in spreads if s.values]
    alt = f"Distribution of {metric.title} over cases by method. Medians: {', '.join(medians) or 'none'}."
    caption = f"{metric.title} of every case, mean over labels and seeds, empty masks as the policy counts them."
    return Picture("svg", distribution_svg(spreads, axis_name(metric), axis_limits(metric.name)), alt, caption)


def _description_table(rows: Sequence[Description], metric: Metric) -> Table:
    lines = []
    for row in worst_first(rows) if len(rows) > MOST_ROWS else rows:
        place = row.label + (f"\n{row.grouping} {row.group}" if row.grouping else "")
        interval = _bounds((row.low, row.high), metric, signed=False).strip()
        median = _bounds((row.median_low, row.median_high), metric, signed=False).strip()
        lines.append((
            Cell(row.method), Cell(place), Cell(f"{_text(row.mean, metric)}\n{interval}".strip(), row.mean),
            Cell(f"{_text(row.median, metric)}\n{median}".strip(), row.median),
            Cell(_text(row.worst_5_percent, metric), row.worst_5_percent),
            Cell(failure_rate_text(row), row.n_failed_patients, is_bad=row.n_failures > 0),
            Cell(str(row.n_left_out), row.n_left_out),
        ))  # fmt: skip
    columns = ("method", "label", "mean", "median", "worst 5 %", "patients with\na failure", "left out")
    caption = (
        "Each method alone, means and medians with 95 % intervals over patients; failures are structures missed, "
        "invented or with a Dice below 0.1."
    )
    return Table(columns, tuple(lines), caption, is_sortable=True, is_folded=True)
