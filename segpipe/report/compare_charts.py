"""Charts of a comparison as SVG: paired differences with intervals, ranks with their stability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.align import Aligned, align
from segpipe.compare.comparison import Question
from segpipe.compare.comparison_records import ComparisonRow, Ranking
from segpipe.compare.results import Method
from segpipe.core.figures import CHART_COLOURS, figure_bytes, new_figure
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.summary import MEAN_LABEL
from segpipe.report.charts import MAX_VECTOR_DOTS, WIDTH_INCHES, draw_dots, label_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    values = case_means(of_cases) if row.label == MEAN_LABEL else of_cases[:, aligned.labels.index(row.label)]
    verdicts = (row.models, row.methods)
    models, methods = (
        None if found is None or found.low is None or found.high is None else (found.low, found.high)
        for found in verdicts
    )
    return Difference(
        name, tuple(values[~np.isnan(values)].tolist()), row.difference, models, methods, row.models.answer
    )


def case_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_cases,) mean over labels of (n_cases, n_labels), of those that count; NaN if none does."""
    has_value = ~np.isnan(values)
    n_values = has_value.sum(axis=1)
    total = np.where(has_value, values, 0).sum(axis=1)
    return np.divide(total, n_values, out=np.full(len(values), np.nan), where=n_values > 0)
