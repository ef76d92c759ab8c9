"""Pictures with numbers: the spread of scores over cases, and the agreement of volumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import isfinite

import numpy as np

from segpipe.evaluate.metrics import METRICS, number_text
from segpipe.evaluate.scores import IMAGE_LABEL, Score, ScoreTable
from segpipe.report.charts import Spread, agreement_svg, distribution_svg
from segpipe.report.page import STATUS_TEXT, Cell, Picture, Table
from segpipe.report.volume_agreement import VolumeAgreement, VolumeEstimate

_MAX_NAMED = 6  # cases without value in a caption
_MAX_PANELS = 12  # more would be taller than a page
_UNITS_MM3 = {"mL": 1000.0, "mm³": 1.0}


def distributions(table: ScoreTable, metrics: Iterable[str]) -> tuple[Picture, ...]:
    """A picture for each of the metrics that the table has, a row for each label, a dot for each score."""
    rows_of: dict[str, list[Score]] = {}
    for row in table.rows:
        if row.label != IMAGE_LABEL:
            rows_of.setdefault(row.metric, []).append(row)
    return tuple(
        _distribution(metric, rows_of[metric]) for metric in metrics if metric in rows_of and metric in METRICS
    )


def _distribution(metric: str, rows: Sequence[Score]) -> Picture:
    spreads = []
    scale = 1000 if METRICS[metric].unit == "mm3" else 1  # volumes are shown in mL
    for label in dict.fromkeys(row.label for row in rows):
        own = [row for row in rows if row.label == label]
        missing = Counter(STATUS_TEXT[row.status] for row in own if not isfinite(row.value))
        remark = ", ".join(f"{n} {status}" for status, n in missing.items())
        spreads.append(Spread(label, tuple(row.value / scale for row in own if isfinite(row.value)), remark))
    title, unit = METRICS[metric].heading, METRICS[metric].unit
    hidden = [f"{row.label} in {row.case_id} ({STATUS_TEXT[row.status]})" for row in rows if not isfinite(row.value)]
    caption = f"{title} of every case; boxes show median and quartiles."
    if hidden:
        more = f" and {len(hidden) - _MAX_NAMED} more" if len(hidden) > _MAX_NAMED else ""
        caption += f" Without a value: {', '.join(hidden[:_MAX_NAMED])}{more}."
    medians = [f"{s.name} {number_text(float(np.median(s.values)) * scale, unit)}" for s in spreads if s.values]
    alt = f"Distribution of {title} over cases by label. Medians: {', '.join(medians) or 'none'}."
    return Picture("svg", distribution_svg(spreads, title, axis_limits(metric)), alt, caption)


def axis_limits(metric: str) -> tuple[float | None, float | None]:
    """Ends of an axis of a metric; None leaves one free."""
    kind = METRICS[metric].kind
    return (0.0, 1.0) if kind == "overlap" else (0.0, None) if kind == "distance" else (None, None)


def volume_picture(found: Sequence[VolumeAgreement]) -> Picture | None:
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
    return Picture("svg", agreement_svg(drawn, unit, _UNITS_MM3[unit]), alt, caption)


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
    for one in found:
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
    return Table(columns, tuple(lines), caption, is_sortable=True)


def _unit(found: Sequence[VolumeAgreement]) -> str:
    """mL, or mm³ if every volume is below 1 mL."""
    return "mL" if max((v for one in found for v in one.means_mm3), default=0.0) >= _UNITS_MM3["mL"] else "mm³"


def volume_text(value_mm3: float) -> str:
    """A volume with its sign and unit."""
    unit = "mL" if abs(value_mm3) >= _UNITS_MM3["mL"] else "mm³"
    return f"{_volume(value_mm3, unit)} {unit}".replace("-", "−")


def _with_interval(estimate: VolumeEstimate, unit: str) -> str:
    text = _volume(estimate.value, unit)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text}\n[{_volume(estimate.low, unit)}, {_volume(estimate.high, unit)}]"


def _volume(value_mm3: float, unit: str) -> str:
    return f"{value_mm3 / _UNITS_MM3[unit]:+.{2 if unit == 'mL' else 0}f}"
