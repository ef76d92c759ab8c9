"""Reliability diagrams and calibration errors of a configuration, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from segpipe.core.figures import EDGE_COLOUR, drawn_name, figure_bytes, new_figure, tidy
from segpipe.core.probabilities import CalibrationReport, LabelCalibration, Reliability
from segpipe.report.charts import WIDTH_INCHES
from segpipe.report.page import Cell, Picture, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS, _MAX_PANELS = 3, 12  # more would be taller than a page
_BEFORE_COLOUR = "#8a97a5"


def calibration_picture(found: CalibrationReport, colours: Mapping[str, str]) -> Picture | None:
    """Reliability diagram of each label, before and after the temperature; of very many the worst.

    Args:
        found: What was counted.
        colours: Of the labels.
    """
    if not found.labels:
        return None
    worst = sorted(found.labels, key=lambda one: -one.before.ece)[:_MAX_PANELS]
    drawn = [one for one in found.labels if one in worst]
    caption = (
        "How often a label is there, by the predicted probability, in voxels near it; patients count equally. Larger "
        "dots stand for more voxels. On the dashed line probabilities are right; below it they are too sure."
    )
    if len(drawn) < len(found.labels):
        caption += f" {len(drawn)} of {len(found.labels)} labels are drawn; the table lists all."
    gaps = [f"{one.label} {one.before.ece:.3f}{f' and {one.after.ece:.3f}' if one.after else ''}" for one in drawn]
    alt = f"Frequency over probability by label. Mean gap before and after correction: {', '.join(gaps)}."
    return Picture("svg", reliability_svg(drawn, colours), alt, caption)


def reliability_svg(labels: Sequence[LabelCalibration], colours: Mapping[str, str]) -> bytes:
    """Frequency over probability, a panel for each label: grey before, in the label's colour after."""
    n_columns = min(_COLUMNS, len(labels))
    n_rows = -(-len(labels) // n_columns)
    figure = new_figure(WIDTH_INCHES, 3.1 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel, one in zip(panels, labels, strict=False):
        panel.plot([0, 1], [0, 1], "--", color="black", linewidth=0.8)
        _draw_reliability(panel, one.before, _BEFORE_COLOUR, "before")
        if one.after is not None:
            _draw_reliability(panel, one.after, colours.get(one.label, EDGE_COLOUR), "after")
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        panel.set_title(drawn_name(one.label), fontsize=10, loc="left")
        panel.set_xlabel("predicted probability", fontsize=8.5)
        panel.set_ylabel("frequency", fontsize=8.5)
        panel.legend(fontsize=8, frameon=False, loc="upper left")
        tidy(panel)
    for panel in panels[len(labels) :]:
        panel.set_axis_off()
    return figure_bytes(figure, "svg")


def _draw_reliability(panel: Axes, curve: Reliability, colour: str, name: str) -> None:
    points = [
        (p, frequency, share)
        for p, frequency, share in zip(curve.probability, curve.frequency, curve.share, strict=True)
        if p is not None and frequency is not None
    ]
    p, frequency, share = np.array(points).T
    panel.plot(p, frequency, "-", color=colour, linewidth=1.3, label=name)
    panel.scatter(p, frequency, 4 + 120 * share, color=colour, alpha=0.7, linewidth=0, clip_on=False, zorder=3)


def calibration_table(found: CalibrationReport) -> Table | None:
    """Calibration error of every label before and after the temperature."""
    if not found.labels:
        return None
    lines = []
    for one in found.labels:
        cells = [cell for curve in (one.before, one.after) for cell in _error_cells(curve)]
        lines.append((Cell(one.label), *cells, Cell(str(one.n_patients), one.n_patients)))
    of_folds = ", ".join(f"{value:.2f}" for value in found.temperature_of_fold.values())
    caption = (
        "ECE: mean gap between predicted probability and frequency. Chance alone adds to it; debiased, it is 0 on "
        "average if probabilities are right. In brackets the 95 % interval of the true gap over patients. "
        f"Temperature {found.temperature:.2f} from all folds: `segpipe predict --calibrated` divides logits by it, "
        "which changes no mask. "
    )
    caption += (
        f"After: each fold with the temperature of the others ({of_folds})."
        if of_folds
        else "It takes two folds to show how well it works on other patients."
    )
    columns = ("label", "ECE before", "debiased", "ECE after", "debiased", "patients")
    return Table(columns, tuple(lines), caption, is_sortable=True)


def _error_cells(curve: Reliability | None) -> tuple[Cell, Cell]:
    if curve is None:
        return Cell("–"), Cell("–")
    interval = "" if curve.low is None or curve.high is None else f"\n[{curve.low:.3f}, {curve.high:.3f}]"
    debiased = max(0.0, curve.ece_debiased)
    return Cell(f"{curve.ece:.3f}", curve.ece), Cell(f"{debiased:.3f}{interval}", debiased)
