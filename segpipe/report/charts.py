"""Charts of scores as SVG: distributions, agreement of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segpipe.core.figures import (
    CHART_COLOURS,
    drawn_name,
    figure_bytes,
    new_figure,
    tidy,
)
from segpipe.report.volume_agreement import VolumeAgreement, VolumeEstimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_VECTOR_DOTS = 2000  # of a picture; more are drawn as pixels, since each costs 100 bytes
_LIMIT_COLOUR, _BIAS_COLOUR, _DOT_COLOUR = CHART_COLOURS[1], CHART_COLOURS[2], CHART_COLOURS[0]
_COLUMNS = 3
WIDTH_INCHES = 9.6


@dataclass(frozen=True)
class Spread:
    """A row of a distribution: its finite values, and what stands at its end, e.g. `2 missed`."""

    name: str
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
        colour = CHART_COLOURS[place % len(CHART_COLOURS)]
        if row.values:
            box = panel.boxplot(
                [row.values], positions=[place], orientation="horizontal", widths=0.55, showfliers=False
            )
            for line in (line for lines in box.values() for line in lines):
                line.set(color=colour, linewidth=1.2)
            draw_dots(panel, row.values, place, colour, is_dense)
        else:
            panel.text(0.01, place, "no value", transform=panel.get_yaxis_transform(), fontsize=8, va="center")
        panel.text(1.01, place, row.remark, transform=panel.get_yaxis_transform(), fontsize=8, va="center")
    label_rows(panel, [row.name for row in rows])
    panel.set_xlim(*limits)
    panel.set_xlabel(name, fontsize=9)
    return figure_bytes(figure, "svg")


def draw_dots(panel: Axes, values: Sequence[float], place: int, colour: str, is_dense: bool) -> None:
    """Values along a row; equal ones are kept apart, the same way every time."""
    height = place + 0.18 * np.sin(2.4 * np.arange(len(values)))
    panel.plot(
        values, height, "o", color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0,
        clip_on=False, rasterized=is_dense,
    )  # fmt: skip


def label_rows(panel: Axes, names: Sequence[str]) -> None:
    """Names of rows at the left, the first above."""
    panel.set_yticks(range(len(names)), [drawn_name(name) for name in names], fontsize=9)
    panel.set_ylim(len(names) - 0.5, -0.5)
    tidy(panel)


def agreement_svg(found: Sequence[VolumeAgreement], unit: str, unit_mm3: float) -> bytes:
    """Difference over mean of the volumes, a panel for each label; lines are bias and limits, bands their intervals.

    Args:
        found: One or more.
        unit: In which volumes are shown.
        unit_mm3: Its size.
    """
    n_columns = min(_COLUMNS, len(found))
    n_rows = -(-len(found) // n_columns)
    figure = new_figure(WIDTH_INCHES, 2.9 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    is_dense = sum(len(one.means_mm3) for one in found) > MAX_VECTOR_DOTS
    for panel, one in zip(panels, found, strict=False):
        for estimate, colour, style in (
            (one.bias, _BIAS_COLOUR, "-"),
            (one.lower, _LIMIT_COLOUR, "--"),
            (one.upper, _LIMIT_COLOUR, "--"),
        ):
            if estimate is not None:
                _draw_estimate(panel, estimate, unit_mm3, colour, style)
        means, differences = (np.array(values) / unit_mm3 for values in (one.means_mm3, one.differences_mm3))
        panel.plot(
            means, differences, "o", color=_DOT_COLOUR, markersize=3.5, alpha=0.6, markeredgewidth=0,
            rasterized=is_dense,
        )  # fmt: skip
        panel.axhline(0, color="black", linewidth=0.7)
        panel.set_title(drawn_name(one.label), fontsize=10, loc="left")
        panel.set_xlabel(f"mean of both, {unit}", fontsize=8.5)
        panel.set_ylabel(f"prediction − reference, {unit}", fontsize=8.5)
        panel.locator_params(nbins=5)
        tidy(panel)
    for panel in panels[len(found) :]:
        panel.set_axis_off()
    return figure_bytes(figure, "svg")


def _draw_estimate(panel: Axes, estimate: VolumeEstimate, unit_mm3: float, colour: str, style: str) -> None:
    panel.axhline(estimate.value / unit_mm3, color=colour, linestyle=style, linewidth=1.3)
    if estimate.low is not None and estimate.high is not None:
        panel.axhspan(estimate.low / unit_mm3, estimate.high / unit_mm3, color=colour, alpha=0.15, linewidth=0)
