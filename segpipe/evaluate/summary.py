"""Summarise a table of scores: means with intervals, under a named policy for empty masks.

A mean over cases must say what a structure counts that one mask has and the other has not. No policy drops a missed
structure silently: `mr` and `brats` give it the worst value, `nnunet` too, `omit` prints how many it left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import inf, isfinite
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, UsageError
from segpipe.core.records import Record, did_you_mean, finite_or_none
from segpipe.core.text import count
from segpipe.evaluate.intervals import means_with_intervals, median_interval, rate_interval
from segpipe.evaluate.metrics import METRICS, Metric
from segpipe.evaluate.scores import DIAGONAL, IMAGE_LABEL, Score, ScoreTable

MEAN_LABEL = "(mean)"  # row of the mean over labels
DEFAULT_POLICY = "mr"
FAILED_DICE = 0.1  # below, the structure was not found in any useful sense
_FAILED = ("missed", "spurious")
_BRATS_DISTANCE_MM = 374.0  # diagonal of the BraTS image, 240×240×155 mm rounded up


class SummaryRow(Record):
    """One metric of one label over all cases.

    Args:
        label: The structure, or `(mean)` for the mean over labels of their means.
        metric: Name, as in `METRICS`.
        unit: Of mean, low and high.
        mean: None if no case counts.
        low, high: 95 % interval over patients; None if there is none.
        note: Why there is no interval, or why to trust it less.
        median: Over cases; of `(mean)` over the cases' means over labels. None if no case counts.
        median_low, median_high: 95 % interval of it over patients; None below 6 patients.
        worst_5_percent: What the worst twentieth of the cases does not reach: the 5th percentile of an overlap, the
            95th of a distance or of the size of a difference, interpolated. None if no case counts.
        n_patients: Patients with a case.
        n_ok, n_both_empty, n_missed, n_spurious: Cases by status; for `(mean)` summed over labels.
        n_failures: Missed and spurious structures, and those whose Dice is below 0.1; for `(mean)` summed over labels.
        n_failed_patients: Patients with a failure.
        failure_low, failure_high: 95 % interval of the rate of such patients, 0 to 1 (Clopper and Pearson).
        n_left_out: Cases that the policy leaves out of the mean, or whose value is undefined.
    """

    label: str
    metric: str
    unit: str
    mean: float | None
    low: float | None
    high: float | None
    note: str
    median: float | None
    median_low: float | None
    median_high: float | None
    worst_5_percent: float | None
    n_patients: int
    n_ok: int
    n_both_empty: int
    n_missed: int
    n_spurious: int
    n_failures: int
    n_failed_patients: int
    failure_low: float
    failure_high: float
    n_left_out: int


def summarise(table: ScoreTable, policy: str = DEFAULT_POLICY, seed: int = 0) -> tuple[SummaryRow, ...]:
    """Means per label over cases, then over labels, with 95 % intervals over patients.

    Args:
        table: Scores of one run.
        policy: What empty masks count. `mr` (Metrics Reloaded): both empty is the best value, one empty the worst: 0,
            or the image's diagonal in mm. `nnunet`: both empty is left out, one empty is the worst. `brats`: both
            empty is the best, one empty 0 or 374 mm. `omit`: only cases with both masks. Volume differences keep
            their raw values, which are defined; a relative one to an empty reference is left out and counted.
        seed: Of the bootstrap.

    Returns:
        For each metric the labels in order of appearance, then `(mean)`.

    Raises:
        UsageError: If there is no such policy.
        DataError: If the table holds several runs or an unknown metric, or the diagonal of an image is needed and
            missing.
    """
    check_policy(policy)
    if len(table.runs) > 1:
        raise DataError(
            f"the table holds the runs {', '.join(table.runs)}; means need a single run. Choose one of them."
        )
    result: list[SummaryRow] = []
    low_dice = {(row.case_key, row.label) for row in table.rows if row.metric == "dice" and row.value < FAILED_DICE}
    for name in table.metrics:
        values = counted_values(table, name, policy)
        rows = [row for row in table.rows if row.metric == name and row.label != IMAGE_LABEL]
        result += _rows(rows, values, low_dice, seed)
    return tuple(result)


AnyRow = TypeVar("AnyRow", bound=SummaryRow)


def worst_first(rows: Iterable[AnyRow]) -> list[AnyRow]:
    """Rows without a mean, then the others, the mean farthest from the metric's best value first."""
    return sorted(rows, key=lambda row: -inf if row.mean is None else -abs(row.mean - METRICS[row.metric].best))


def failure_text(row: SummaryRow) -> str:
    """Patients with a failure, and the 95 % interval of their rate."""
    interval = f"{100 * row.failure_low:.0f} to {100 * row.failure_high:.0f} %"
    return f"failures in {row.n_failed_patients} of {count(row.n_patients, 'patient')} (95 % interval {interval})"


Place = tuple[tuple[str, str, int | None, int | None], str]  # case and label
Values = dict[Place, float]  # NaN does not count


def counted_values(table: ScoreTable, metric: str, policy: str) -> Values:
    """The value that each score of one metric counts under a policy, by case and label; NaN if it is left out.

    Raises:
        UsageError: If there is no such policy.
        DataError: If the metric is unknown, or the diagonal of an image is needed and missing.
    """
    check_policy(policy)
    if metric not in METRICS:
        raise DataError(f"the table holds the metric {metric!r}.{did_you_mean(metric, list(METRICS))}")
    diagonals = {row.case_key: row.value for row in table.rows if row.metric == DIAGONAL}
    return {
        (row.case_key, row.label): _value_under_policy(row, policy, diagonals)
        for row in table.rows
        if row.metric == metric and row.label != IMAGE_LABEL
    }


def check_policy(policy: str) -> None:
    """Refuse a policy that does not exist, before any mask is read.

    Raises:
        UsageError: If there is no such policy.
    """
    if policy not in POLICIES:
        raise UsageError(f"policy {policy!r} is unknown.{did_you_mean(policy, list(POLICIES))}")


def _rows(rows: list[Score], values: Values, low_dice: set[Place], seed: int) -> list[SummaryRow]:
    """Rows of one metric: one for each label, then the mean over labels."""
    labels = list(dict.fromkeys(row.label for row in rows))
    patient_of = {row.case_key: row.patient_id for row in rows}
    matrix = np.array([[values.get((case, label), np.nan) for label in labels] for case in patient_of])
    patients = np.unique(list(patient_of.values()), return_inverse=True)[1]
    metric = METRICS[rows[0].metric]
    intervals = means_with_intervals(matrix, patients, seed, metric.limits)
    failures = [row for row in rows if row.status in _FAILED or (row.case_key, row.label) in low_dice]
    result: list[SummaryRow] = []
    for column, (name, interval) in enumerate(zip([*labels, MEAN_LABEL], intervals, strict=True)):
        own = [row for row in rows if name in (row.label, MEAN_LABEL)]
        of_cases = matrix[:, [column]] if name != MEAN_LABEL else matrix
        failed = [row for row in failures if name in (row.label, MEAN_LABEL)]
        n_by_status = Counter(row.status for row in own)
        n_patients, n_failed = (len({row.patient_id for row in some}) for some in (own, failed))
        failure_low, failure_high = rate_interval(n_failed, n_patients)
        result.append(
            SummaryRow(
                label=name,
                metric=metric.name,
                unit=metric.unit,
                mean=finite_or_none(interval.mean),
                low=interval.low,
                high=interval.high,
                note=interval.note,
                **_spread(of_cases, patients, metric),
                n_patients=n_patients,
                n_ok=n_by_status["ok"],
                n_both_empty=n_by_status["both_empty"],
                n_missed=n_by_status["missed"],
                n_spurious=n_by_status["spurious"],
                n_failures=len(failed),
                n_failed_patients=n_failed,
                failure_low=failure_low,
                failure_high=failure_high,
                n_left_out=sum(bool(np.isnan(values[row.case_key, row.label])) for row in own),
            )
        )
    return result


def _spread(values: NDArray[np.float64], patients: NDArray[np.intp], metric: Metric) -> dict[str, float | None]:
    """Median with its interval, and worst twentieth, of the cases' means over labels."""
    counted = ~np.isnan(values).all(axis=1)
    per_case = np.array([np.mean(row[~np.isnan(row)]) for row in values[counted]])
    if not per_case.size:
        return dict.fromkeys(("median", "median_low", "median_high", "worst_5_percent"))
    badness = -per_case if metric.kind == "overlap" else per_case if metric.kind == "distance" else np.abs(per_case)
    worst = float(np.quantile(badness, 0.95))
    low, high = median_interval(per_case, patients[counted]) or (None, None)
    return {
        "median": float(np.median(per_case)),
        "median_low": low,
        "median_high": high,
        "worst_5_percent": -worst if metric.kind == "overlap" else worst,
    }


def _value_under_policy(
    row: Score, policy: str, diagonals: dict[tuple[str, str, int | None, int | None], float]
) -> float:
    """The value that a score counts in a mean; NaN if it is left out."""
    metric = METRICS[row.metric]
    if row.status == "ok":
        return row.value
    if metric.kind == "difference" and policy != "omit":
        return row.value if isfinite(row.value) else float("nan")

    def diagonal_mm() -> float:
        if metric.missed_mm is not None:
            return metric.missed_mm
        if row.case_key not in diagonals:
            raise DataError(
                f"case {row.case_id}, label {row.label}: {row.status}, and the table has no row {DIAGONAL} of label "
                f"{IMAGE_LABEL} for it, which policy {policy} needs. Score it again or use --policy brats."
            )
        return diagonals[row.case_key]

    return POLICIES[policy](row, metric, diagonal_mm)


def _mr(row: Score, metric: Metric, diagonal_mm: Callable[[], float]) -> float:
    if row.status == "both_empty":
        return metric.best
    return 0.0 if metric.kind == "overlap" else diagonal_mm()


def _nnunet(row: Score, metric: Metric, diagonal_mm: Callable[[], float]) -> float:
    return float("nan") if row.status == "both_empty" else _mr(row, metric, diagonal_mm)


def _brats(row: Score, metric: Metric, diagonal_mm: Callable[[], float]) -> float:  # noqa: ARG001 (one signature)
    return _mr(row, metric, lambda: _BRATS_DISTANCE_MM)


def _omit(row: Score, metric: Metric, diagonal_mm: Callable[[], float]) -> float:  # noqa: ARG001 (one signature)
    return float("nan")


POLICIES: dict[str, Callable[[Score, Metric, Callable[[], float]], float]] = {
    "mr": _mr,
    "nnunet": _nnunet,
    "brats": _brats,
    "omit": _omit,
}
