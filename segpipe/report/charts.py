"""Charts as SVG, with their numbers: distributions, agreement of volumes, paired differences, ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from segpipe.compare.align import Aligned, align
from segpipe.compare.comparison import Question
from segpipe.compare.comparison_records import ComparisonRow, Ranking
from segpipe.compare.learning_curve import LearningCurve
from segpipe.compare.paired import mean_of_numbers
from segpipe.compare.results import Method
from segpipe.core.figures import CHART_COLOURS, EDGE_COLOUR, drawn_name, figure_bytes, new_figure, tidy
from segpipe.core.text import MOST_ROWS, N_ENDS, fold_middle
from segpipe.evaluate.metrics import METRICS, SHOWN_UNITS, Metric, number_text
from segpipe.evaluate.scores import IMAGE_LABEL, Score, ScoreTable
from segpipe.evaluate.summary import MEAN_LABEL
from segpipe.report.page import STATUS_TEXT, Cell, Picture, Table
from segpipe.report.volume_agreement import VolumeAgreement, VolumeEstimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MAX_VECTOR_DOTS = 400  # of a picture; more are drawn as pixels, since each costs 150 bytes and there are many pictures
_COLUMNS = 3
_ROUNDING = 1e-9  # of volumes: differences below it are 0
WIDTH_INCHES = 9.6


@dataclass(frozen=True)
class Spread:
    """A row of a distribution: its colour, its finite values, and what stands at its end, e.g. `2 missed`."""

    name: str
    colour: str
    values: tuple[float, ...]
    remark: str = ""


def distribution_svg(rows: Sequence[Spread], name: str, limits: tuple[float | None, float | None]) -> bytes:
    """Every case as a dot beside a box (median, quartiles, whiskers to 1.5 quartile ranges), a row for each spread.

    Args:
        rows: From above; one without values keeps its place.
        name: What is measured, with the unit.
        limits: Ends of the axis; None leaves one free.
    """
    figure = new_figure(WIDTH_INCHES, 0.9 + 0.42 * max(2, len(rows)))
    panel = figure.subplots()
    is_dense = sum(len(row.values) for row in rows) > MAX_VECTOR_DOTS
    for place, row in enumerate(rows):
        if row.values:
            draw_box(panel, row.values, place, row.colour)
            draw_dots(panel, row.values, place, row.colour, is_dense)
        else:
            panel.text(0.01, place, "no value", transform=panel.get_yaxis_transform(), fontsize=8, va="center")
        panel.text(1.01, place, row.remark, transform=panel.get_yaxis_transform(), fontsize=8, va="center")
    label_rows(panel, [row.name for row in rows])
    panel.set_xlim(*limits)
    panel.set_xlabel(name, fontsize=9)
    return figure_bytes(figure, "svg")


def draw_box(
    panel: Axes, values: Sequence[float], place: int, colour: str, whiskers: float | tuple[int, int] = 1.5
) -> None:
    """Box of the quartiles with the median; its whiskers reach so many quartile ranges, or to these percentiles."""
    box = panel.boxplot(
        [values], positions=[place], orientation="horizontal", widths=0.6, showfliers=False, whis=whiskers,
        patch_artist=True,
    )  # fmt: skip
    for line in (line for lines in box.values() for line in lines):
        line.set(color=EDGE_COLOUR, linewidth=1.1)
    for patch in box["boxes"]:
        patch.set(facecolor=(colour, 0.35))
    for median in box["medians"]:
        median.set(linewidth=2)


def draw_dots(panel: Axes, values: Sequence[float], place: int, colour: str, is_dense: bool) -> None:
    """Values along a row; equal ones are kept apart, the same way every time."""
    height = place + 0.18 * np.sin(2.4 * np.arange(len(values)))
    panel.plot(
        values, height, "o", color=colour, markersize=4, alpha=0.8, markeredgewidth=0.5, markeredgecolor=EDGE_COLOUR,
        clip_on=False, rasterized=is_dense,
    )  # fmt: skip


def label_rows(panel: Axes, names: Sequence[str]) -> None:
    """Names of rows at the left, the first above."""
    panel.set_yticks(range(len(names)), [drawn_name(name) for name in names], fontsize=9)
    panel.set_ylim(len(names) - 0.5, -0.5)
    tidy(panel)


def agreement_svg(found: Sequence[VolumeAgreement], colours: Mapping[str, str], unit: str, unit_mm3: float) -> bytes:
    """Difference over mean of the volumes, a panel for each label; lines are bias and limits, bands their intervals.

    Args:
        found: One or more.
        colours: Of the labels.
        unit: In which volumes are shown.
        unit_mm3: Its size.
    """
    n_columns = min(_COLUMNS, len(found))
    n_rows = -(-len(found) // n_columns)
    figure = new_figure(WIDTH_INCHES, 2.9 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    is_dense = sum(len(one.means_mm3) for one in found) > MAX_VECTOR_DOTS
    for panel, one in zip(panels, found, strict=False):
        for estimate, style in ((one.bias, "-"), (one.lower, "--"), (one.upper, "--")):
            if estimate is not None:
                _draw_estimate(panel, estimate, unit_mm3, style)
        means, differences = (np.array(values) / unit_mm3 for values in (one.means_mm3, one.differences_mm3))
        panel.plot(
            means, differences, "o", color=colours.get(one.label, EDGE_COLOUR), markersize=4.5, alpha=0.8,
            markeredgewidth=0.5, markeredgecolor=EDGE_COLOUR, rasterized=is_dense,
        )  # fmt: skip
        if not np.ptp([0.0, *differences]) > _ROUNDING * np.max(np.abs(means), initial=0.0):
            panel.set_ylim(-1, 1)  # an axis for rounding alone would show a spread that is none
        panel.axhline(0, color="black", linewidth=0.7)
        panel.set_title(drawn_name(one.label), fontsize=10, loc="left")
        panel.set_xlabel(f"mean of both, {unit}", fontsize=8.5)
        panel.set_ylabel(f"prediction − reference, {unit}", fontsize=8.5)
        panel.locator_params(nbins=5)
        tidy(panel)
    for panel in panels[len(found) :]:
        panel.set_axis_off()
    return figure_bytes(figure, "svg")


def _draw_estimate(panel: Axes, estimate: VolumeEstimate, unit_mm3: float, style: str) -> None:
    panel.axhline(estimate.value / unit_mm3, color=EDGE_COLOUR, linestyle=style, linewidth=1.3)
    if estimate.low is not None and estimate.high is not None:
        panel.axhspan(estimate.low / unit_mm3, estimate.high / unit_mm3, color=EDGE_COLOUR, alpha=0.13, linewidth=0)


_MAX_NAMED = 6  # cases without value in a caption
_MAX_PANELS = 12  # more would be taller than a page
_UNITS_MM3 = {"mL": 1000.0, "mm³": 1.0}


def distributions(table: ScoreTable, metrics: Iterable[str], colours: Mapping[str, str]) -> tuple[Picture, ...]:
    """A picture for each of the metrics that the table has, a row for each label, a dot for each score.

    Args:
        table: Scores of one run.
        metrics: In this order.
        colours: Of the labels.
    """
    rows_of: dict[str, list[Score]] = {}
    for row in table.rows:
        if row.label != IMAGE_LABEL:
            rows_of.setdefault(row.metric, []).append(row)
    return tuple(
        _distribution(metric, rows_of[metric], colours) for metric in metrics if metric in rows_of and metric in METRICS
    )


def _distribution(metric: str, rows: Sequence[Score], colours: Mapping[str, str]) -> Picture:
    spreads = []
    scale = 1000 if METRICS[metric].unit == "mm3" else 1  # volumes are shown in mL
    names = list(dict.fromkeys(row.label for row in rows))
    labels = _ends_by_mean(rows) if len(names) > MOST_ROWS else names
    for label in labels:
        own = [row for row in rows if row.label == label]
        missing = Counter(STATUS_TEXT[row.status] for row in own if not isfinite(row.value))
        remark = ", ".join(f"{n} {status}" for status, n in missing.items())
        colour = colours.get(label, EDGE_COLOUR)
        spreads.append(Spread(label, colour, tuple(row.value / scale for row in own if isfinite(row.value)), remark))
    title, unit = METRICS[metric].title, METRICS[metric].unit
    hidden = [f"{row.label} in {row.case_id} ({STATUS_TEXT[row.status]})" for row in rows if not isfinite(row.value)]
    caption = f"{title} of every case; boxes show median and quartiles."
    if len(labels) < len(names):
        caption += f" Of {len(names)} labels those with the {N_ENDS} lowest and the {N_ENDS} highest means."
    if hidden:
        more = f" and {len(hidden) - _MAX_NAMED} more" if len(hidden) > _MAX_NAMED else ""
        caption += f" Without a value: {', '.join(hidden[:_MAX_NAMED])}{more}."
    medians = [f"{s.name} {number_text(float(np.median(s.values)) * scale, unit)}" for s in spreads if s.values]
    alt = f"Distribution of {title} over cases by label. Medians: {', '.join(medians) or 'none'}."
    return Picture("svg", distribution_svg(spreads, axis_name(METRICS[metric]), axis_limits(metric)), alt, caption)


def _ends_by_mean(rows: Sequence[Score]) -> list[str]:
    """The labels with the lowest and the highest means; what has no value at all comes first."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row.label, []).extend([row.value] if isfinite(row.value) else [])
    low, high = fold_middle(sorted(values, key=lambda name: float(np.mean(values[name])) if values[name] else -np.inf))
    return [*low, *high]


def axis_name(metric: Metric) -> str:
    """Title of an axis, with the unit if there is one."""
    unit = SHOWN_UNITS[metric.unit]
    return f"{metric.title}, {unit}" if unit else metric.title


def axis_limits(metric: str) -> tuple[float | None, float | None]:
    """Ends of an axis of a metric; None leaves one free."""
    kind = METRICS[metric].kind
    return (0.0, 1.0) if kind == "overlap" else (0.0, None) if kind == "distance" else (None, None)


def volume_picture(found: Sequence[VolumeAgreement], colours: Mapping[str, str]) -> Picture | None:
    """Bland and Altman's chart of each label; of very many those with the widest limits beside their size."""
    drawn = [one for one in found if one.means_mm3]
    if not drawn:
        return None
    if len(drawn) > _MAX_PANELS:
        widest = set(sorted(map(_relative_width, drawn), reverse=True)[:_MAX_PANELS])
        drawn = [one for one in drawn if _relative_width(one) in widest][:_MAX_PANELS]
    unit = _unit(found)
    caption = (
        "Volumes of reference and prediction (Bland and Altman): each dot is a case, the solid line the bias, dashed "
        "lines the limits between which 95 % of differences lie; bands are 95 % intervals of these lines."
    )
    if len(drawn) < len(found):
        caption += f" {len(drawn)} of {len(found)} labels are drawn; the table lists all."
    biases = [f"{one.label} {_volume(one.bias.value, unit)} {unit}" for one in drawn]
    alt = f"Difference over mean of volumes by label. Biases: {', '.join(biases)}."
    return Picture("svg", agreement_svg(drawn, colours, unit, _UNITS_MM3[unit]), alt, caption)


def _relative_width(found: VolumeAgreement) -> float:
    if found.lower is None or found.upper is None:
        return 0.0
    return (found.upper.value - found.lower.value) / float(np.mean(found.means_mm3))


def volume_table(found: Sequence[VolumeAgreement]) -> Table | None:
    """Bias and limits of every label with their intervals."""
    if not found:
        return None
    unit = _unit(found)
    lines = []
    for one in found if len(found) <= MOST_ROWS else sorted(found, key=lambda one: one.bias.value):
        numbers = [
            Cell("–") if e is None else Cell(_with_interval(e, unit), e.value) for e in (one.bias, one.lower, one.upper)
        ]
        counts = [(one.n_scores, "with the structure"), (one.n_both_empty, "both empty"), (one.n_unplaced, "not drawn")]
        text = ", ".join(f"{n} {name}" for n, name in counts if n)
        lines.append((Cell(one.label), *numbers, Cell(text, one.n_scores)))
    caption = (
        f"Predicted minus reference volume in {unit} with 95 % intervals, patients as independent units. Cases where "
        "both masks lack the structure do not count; a missed one counts with its whole volume."
    )
    columns = ("label", "bias", "lower limit", "upper limit", "cases")
    return Table(columns, tuple(lines), caption, is_sortable=True, is_folded=True)


def _unit(found: Sequence[VolumeAgreement]) -> str:
    """mL, or mm³ if every volume is below 1 mL."""
    return "mL" if max((v for one in found for v in one.means_mm3), default=0.0) >= _UNITS_MM3["mL"] else "mm³"


def bias_text(one: VolumeAgreement, found: Sequence[VolumeAgreement]) -> str:
    """A label's bias with its sign, in the unit of the table of all of them."""
    unit = _unit(found)
    return f"{_volume(one.bias.value, unit)} {unit}"


def _with_interval(estimate: VolumeEstimate, unit: str) -> str:
    text = _volume(estimate.value, unit)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text}\n[{_volume(estimate.low, unit)}, {_volume(estimate.high, unit)}]"


def _volume(value_mm3: float, unit: str) -> str:
    value = value_mm3 / _UNITS_MM3[unit]
    if unit == "mm³":
        text = f"{round(value) + 0.0:+.0f}"  # never −0
    else:
        is_small = 0.0005 <= abs(value) < 0.1  # two digits say more than 0.00; below half a mm³ it is 0
        text = f"{value:+.2g}" if is_small else f"{round(value, 2) + 0.0:+.2f}"
    return text.replace("-", "−")


_ROW_INCHES = 0.42
_COLOURS = {  # the words stand beside the rows, so that nothing rests on colour
    "better": CHART_COLOURS[0],
    "worse": CHART_COLOURS[1],
    "no difference": CHART_COLOURS[2],
    "cannot tell": "#5b6b7b",
}


def differences_svg(rows: Sequence[Difference], name: str, margin: float) -> bytes:
    """Differences of all cases at the left; at the right, enlarged, their means with intervals over the margin.

    Args:
        rows: From above, one or more.
        name: What is measured, with the unit.
        margin: Largest difference that counts as none.
    """
    figure = new_figure(WIDTH_INCHES, 1.2 + _ROW_INCHES * max(2, len(rows)))
    left, right = figure.subplots(1, 2, sharey=True)
    is_dense = sum(len(row.values) for row in rows) > MAX_VECTOR_DOTS
    right.axvspan(-margin, margin, color="black", alpha=0.08, linewidth=0)
    for place, row in enumerate(rows):
        draw_dots(left, row.values, place, CHART_COLOURS[5], is_dense)
        if row.mean is not None:
            left.plot([row.mean] * 2, [place - 0.3, place + 0.3], color="black", linewidth=1.5)
            _draw_intervals(right, row, row.mean, place)
        right.text(1.02, place, row.answer, transform=right.get_yaxis_transform(), fontsize=8.5, va="center")
    for panel, title in ((left, "each case; black: mean"), (right, "mean, 95 % intervals; grey: margin")):
        panel.axvline(0, color="black", linewidth=0.7)
        label_rows(panel, [row.name for row in rows])
        panel.set_title(title, fontsize=9.5, loc="left")
        panel.set_xlabel(f"difference of {name}", fontsize=9)
        panel.locator_params(axis="x", nbins=6)
    return figure_bytes(figure, "svg")


def _draw_intervals(panel: Axes, row: Difference, mean: float, place: int) -> None:
    """Thick for trained models, thin below it for methods."""
    colour = _COLOURS[row.answer]
    for interval, width, shift in ((row.models, 3.0, 0.0), (row.methods, 1.0, 0.22)):
        if interval is not None:
            panel.plot(interval, [place + shift] * 2, color=colour, linewidth=width, solid_capstyle="butt")
    panel.plot(mean, place, "o", color=colour, markersize=6, markeredgecolor="white")


def learning_curve_svg(curve: LearningCurve, name: str) -> bytes:
    """Score over training patients: folds, means, and the line with its 95 % band, dashed beyond the largest arm.

    Args:
        curve: The curve.
        name: What is measured, with the unit.
    """
    figure = new_figure(WIDTH_INCHES, 3.4)
    panel = figure.subplots()
    n, score, low, high = np.array([(p.n_patients, p.score, p.low, p.high) for p in curve.fitted]).T
    largest = curve.points[-1].n_patients
    panel.fill_between(n, low, high, color=CHART_COLOURS[0], alpha=0.13, linewidth=0)
    panel.plot(n, score, "--", color=CHART_COLOURS[0], linewidth=1.3)
    panel.plot(n[n <= largest], score[n <= largest], color=CHART_COLOURS[0], linewidth=2)
    panel.axvline(largest, color=EDGE_COLOUR, linewidth=0.7, linestyle=":")
    for point in curve.points:
        here = [point.n_patients] * len(point.of_folds)
        panel.plot(here, point.of_folds, "o", color=CHART_COLOURS[5], markersize=4, alpha=0.8)
        panel.plot(point.n_patients, point.mean, "o", color="black", markersize=6, markeredgecolor="white")
    shown = [value for point in curve.points for value in point.of_folds] + score.tolist()
    room = 0.25 * (max(shown) - min(shown)) or 0.01
    panel.set_ylim(min(shown) - room, max(shown) + room)  # a wide band would flatten the points
    panel.set_xlabel("training patients", fontsize=9)
    panel.set_ylabel(name, fontsize=9)
    tidy(panel)
    return figure_bytes(figure, "svg")


def rankings_svg(rankings: Sequence[Ranking]) -> bytes:
    """Rank of each method with the range of 95 % of resamples, a panel for each way to rank; the best above."""
    n_methods = len(rankings[0].methods)
    figure = new_figure(WIDTH_INCHES, 1.1 + _ROW_INCHES * max(2, n_methods))
    for panel, ranking in zip(figure.subplots(1, len(rankings), squeeze=False)[0], rankings, strict=True):
        order = rank_order(ranking)
        for place, method in enumerate(order):
            panel.plot([ranking.low[method], ranking.high[method]], [place] * 2, color=CHART_COLOURS[5], linewidth=7)
            panel.plot([ranking.ranks[method]], [place], "o", color=CHART_COLOURS[0], markersize=6)
            text = f"first in {100 * ranking.first_fraction[method]:.0f} %"
            panel.text(1.01, place, text, transform=panel.get_yaxis_transform(), fontsize=8, va="center")
        label_rows(panel, [ranking.methods[method] for method in order])
        panel.set_xlim(0.7, n_methods + 0.3)
        panel.locator_params(axis="x", integer=True)
        panel.set_title(f"{ranking.order}, Kendall's tau {ranking.kendall_tau:.2f}", fontsize=9.5, loc="left")
        panel.set_xlabel("rank", fontsize=9)
    return figure_bytes(figure, "svg")


def rank_order(ranking: Ranking) -> list[int]:
    """Numbers of the methods, the best first."""
    return sorted(range(len(ranking.methods)), key=lambda method: ranking.ranks[method])


@dataclass(frozen=True)
class Difference:
    """One row of a picture, in the metric's unit; differences are second method minus first.

    Args:
        name: Of the pair or the label.
        values: Of every pair of scores; for the mean over labels of every case.
        mean: As compared; None without a pair.
        models: 95 % interval of trained models; None if there is none.
        methods: The same of methods.
        answer: The verdict on trained models.
    """

    name: str
    values: tuple[float, ...]
    mean: float | None
    models: tuple[float, float] | None
    methods: tuple[float, float] | None
    answer: str


def aligned_scores(methods: Sequence[Method], metric: str, question: Question) -> Aligned:
    """The scores that were compared; what was said of missing cases is not said again."""
    cases: dict[tuple[str, int | None], set[str]] = {}
    for method in methods:
        for row in method.table.rows:
            if row.metric == metric:
                cases.setdefault((method.name, row.seed), set()).add(row.case_id)
    common = set.intersection(*cases.values())
    kept = [
        replace(method, table=ScoreTable(tuple(row for row in method.table.rows if row.case_id in common)))
        for method in methods
    ]
    return align(
        kept, metric, question.policy,
        labels=question.labels, patients=question.cases.patients, allow_missing=question.allow_missing,
    )  # fmt: skip


def difference_of(row: ComparisonRow, aligned: Aligned, name: str) -> Difference:
    """A row of a comparison with its cases.

    Args:
        row: Of all cases, not of a group.
        aligned: What was compared.
        name: For the picture.
    """
    first, second = (aligned.methods.index(method) for method in (row.baseline, row.method))
    of_cases = aligned.model_values[second] - aligned.model_values[first]
    values = mean_of_numbers(of_cases, 1) if row.label == MEAN_LABEL else of_cases[:, aligned.labels.index(row.label)]
    verdicts = (row.models, row.methods)
    models, methods = (
        None if found is None or found.low is None or found.high is None else (found.low, found.high)
        for found in verdicts
    )
    return Difference(
        name, tuple(values[~np.isnan(values)].tolist()), row.difference, models, methods, row.models.answer
    )
