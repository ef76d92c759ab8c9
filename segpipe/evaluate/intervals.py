"""Confidence intervals over patients: of means by bootstrap, of rates and medians exactly.

Cases of one patient are not independent, so patients are resampled and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import inf

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

from segpipe.core.text import count

FEWEST_PATIENTS = 5  # below, an interval is little more than the values themselves
HEAVY_PATIENT = 0.15  # of the width. No patient can move a mean by half of it: by 1 / (2 * 1.96) at most, if the others
# agree. In nine of ten samples of 20 or more scores without an outlier nobody moves it by 0.15 (simulate_intervals.md)
N_RESAMPLES = 9999
_ALPHA = 0.05
_SMALL = 1e-12  # relative; means that are equal on paper differ by rounding
_CHUNK = 2_000_000  # weights turned into floats at a time


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Args:
        mean: Over labels of the means over cases; NaN if there is no value.
        low, high: The interval; None if there is none.
        note: Why there is no interval, or why to trust it less; empty otherwise.
    """

    mean: float
    low: float | None
    high: float | None
    note: str


def mean_with_interval(
    values: NDArray[np.float64],
    patients: NDArray[np.intp],
    seed: int = 0,
    limits: tuple[float, float] = (-inf, inf),
) -> Interval:
    """Mean over labels of the mean over cases, and its interval: the last of `means_with_intervals`."""
    return means_with_intervals(values, patients, seed, limits)[-1]


def means_with_intervals(
    values: NDArray[np.float64],
    patients: NDArray[np.intp],
    seed: int = 0,
    limits: tuple[float, float] = (-inf, inf),
) -> tuple[Interval, ...]:
    """Mean over cases of each label, then the mean over labels of these, with bootstrap-t intervals over patients.

    How often such an interval holds the true mean is measured in benchmarks/results/simulate_intervals.md.

    Args:
        values: (n_cases, n_labels) float64; NaN where a case does not count for a label.
        patients: (n_cases,) number of the patient of each case, any integers.
        seed: Of the resampling; the same seed gives the same intervals.
        limits: Between which a value can lie; intervals end there.

    Returns:
        n_labels + 1 intervals. For each mean the patients are resampled that have a value for it. No interval below
        `FEWEST_PATIENTS` or if all patients agree.

    Source:
        Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans, section 10.9, with patients as units and
        the linearised standard error of a ratio. We differ twice: the levels are those of a normal with SD
        sqrt(n / (n - 1)), as Hesterberg 2015, Am. Stat. 69(4), expands percentiles; and the variance of a resample is
        at least 1 / n of that of the sample, since a resample without the only patient that differs has none.
    """
    sums, sizes = sums_by_patient(values, patients)
    has_value = sizes > 0
    any_value = has_value.any(axis=1)
    overall = _intervals(sums[any_value], sizes[any_value], seed, limits)
    result: list[Interval] = []
    for label in range(values.shape[1]):
        own = has_value[:, label]
        same = np.array_equal(own, any_value)  # the usual case: one resampling serves every label
        column = slice(label, label + 1)
        result.append(overall[label] if same else _intervals(sums[own, column], sizes[own, column], seed, limits)[0])
    return (*result, overall[-1])


def rate_interval(n_events: int, n_patients: int) -> tuple[float, float]:
    """95 % interval of a rate; 0 to 1 without patients. It holds the true rate in 95 % of studies or more.

    Source:
        Clopper and Pearson 1934, Biometrika 26(4).

    Example:
        >>> tuple(round(limit, 3) for limit in rate_interval(0, 20))
        (0.0, 0.168)
    """
    low = stats.beta.ppf(_ALPHA / 2, n_events, n_patients - n_events + 1) if n_events else 0.0
    high = stats.beta.ppf(1 - _ALPHA / 2, n_events + 1, n_patients - n_events) if n_events < n_patients else 1.0
    return float(low), float(high)


def median_interval(values: NDArray[np.float64], patients: NDArray[np.intp]) -> tuple[float, float] | None:
    """95 % interval of a median between two of the values; None below 6 patients, whose extremes cover less.

    Args:
        values: (n_cases,) float64 without NaN.
        patients: (n_cases,) number of the patient of each case, any integers.

    Source:
        Order statistics with binomial ranks, e.g. Conover 1999, Practical Nonparametric Statistics, section 3.2. With
        several cases of a patient the ranks of patients are taken as shares of the cases, which is careful: it would be
        exact if the cases of a patient were equal.
    """
    n_patients = len(np.unique(patients))
    n_outside = int(stats.binom.ppf(_ALPHA / 2, n_patients, 0.5))  # rank of the lower limit; 0: there is none
    if n_outside == 0:
        return None
    ordered = np.sort(values)
    first = (n_outside - 1) * len(values) // n_patients
    return float(ordered[first]), float(ordered[len(values) - 1 - first])


def sums_by_patient(
    values: NDArray[np.float64], patients: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each patient, both (n_patients, n_labels), patients in ascending order."""
    has_value = ~np.isnan(values)
    unit = np.unique(patients, return_inverse=True)[1]
    n_patients = int(unit.max()) + 1 if len(unit) else 0
    sums, sizes = np.zeros((n_patients, values.shape[1])), np.zeros((n_patients, values.shape[1]))
    np.add.at(sums, unit, np.where(has_value, values, 0))
    np.add.at(sizes, unit, has_value)
    return sums, sizes


def patient_weights(n_patients: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Counts of each patient in each resample: blocks of rows (n, n_patients), N_RESAMPLES rows in all."""
    drawn = _draw_patients(n_patients, seed)
    n_rows = max(1, _CHUNK // n_patients)
    for start in range(0, len(drawn), n_rows):
        yield drawn[start : start + n_rows].astype(float)


def _intervals(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], seed: int, limits: tuple[float, float]
) -> list[Interval]:
    """Intervals of each label and of the mean over labels; every patient has a value."""
    n_patients, n_labels = sums.shape
    if n_patients == 0:
        return [Interval(float("nan"), None, None, "no case counts")] * (n_labels + 1)
    means = means_of(sums.sum(axis=0)[None], sizes.sum(axis=0)[None])[0]
    if n_patients < FEWEST_PATIENTS:
        note = f"{count(n_patients, 'patient')}: too few for an interval of the mean"
        return [Interval(float(mean), None, None, note) for mean in means]
    deviations = _deviations(sums, sizes, means)
    resampled, squares, shifts = [], [], []
    for weights in patient_weights(n_patients, seed):
        resampled.append(means_of(weights @ sums, weights @ sizes))
        squares.append(weights @ deviations**2 / n_patients)
        shifts.append(weights @ deviations / n_patients)
    variances = np.concatenate(squares) - np.concatenate(shifts) ** 2
    left_out = means_of(sums.sum(axis=0) - sums, sizes.sum(axis=0) - sizes)
    columns = zip(means.tolist(), deviations.T, np.concatenate(resampled).T, variances.T, left_out.T, strict=True)
    return [_interval(*column, limits) for column in columns]


def _interval(
    mean: float,
    deviations: NDArray[np.float64],
    resampled: NDArray[np.float64],
    variances: NDArray[np.float64],
    left_out: NDArray[np.float64],
    limits: tuple[float, float],
) -> Interval:
    """Interval of one mean from what patients add to it, and from the means and variances of resamples."""
    n_patients, variance = len(deviations), float(np.mean(deviations**2))
    if np.isnan(mean):
        return Interval(mean, None, None, "no case counts")
    if np.sqrt(variance) <= _SMALL * max(1.0, abs(mean)):
        return Interval(mean, None, None, "all patients equal: no interval")
    known = ~np.isnan(resampled)
    errors = np.sqrt(np.maximum(variances[known], variance / n_patients) / (n_patients - 1))
    tail = float(ndtr(ndtri(_ALPHA / 2) * np.sqrt(n_patients / (n_patients - 1))))
    lowest, highest = np.quantile((resampled[known] - mean) / errors, [tail, 1 - tail]).tolist()
    error = float(np.sqrt(variance / (n_patients - 1)))
    low, high = max(mean - highest * error, limits[0]), min(mean - lowest * error, limits[1])
    return Interval(mean, low, high, _tail_note(mean, left_out, high - low))


def _tail_note(mean: float, left_out: NDArray[np.float64], width: float) -> str:
    """Say whether the mean rests on one patient; empty if not."""
    moved = float(np.nanmax(np.abs(left_out - mean)))
    share = f"{100 * HEAVY_PATIENT:.0f} %"
    return f"one patient moves the mean by more than {share} of the interval" if moved > HEAVY_PATIENT * width else ""


def _deviations(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], means: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Contribution of each patient to labels' means and their mean, times the number of patients; columns sum to 0."""
    totals = np.maximum(sizes.sum(axis=0), 1)
    of_labels = len(sums) * (sums - np.nan_to_num(means[:-1]) * sizes) / totals
    n_labels = max(1, np.count_nonzero(sizes.sum(axis=0)))
    return np.column_stack([of_labels, of_labels.sum(axis=1) / n_labels])


def means_of(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each label, then their mean over the labels that have cases: (n, n_labels + 1); NaN without cases."""
    has_cases = sizes > 0
    means = np.divide(sums, sizes, out=np.zeros_like(sums), where=has_cases)
    n_labels = has_cases.sum(axis=1, keepdims=True)
    overall = np.divide(
        means.sum(axis=1, keepdims=True), n_labels, out=np.full(n_labels.shape, np.nan), where=n_labels > 0
    )
    return np.hstack([np.where(has_cases, means, np.nan), overall])


@lru_cache(maxsize=2)
def _draw_patients(n_patients: int, seed: int) -> NDArray[np.uint16]:
    """Counts of each patient in each resample, (N_RESAMPLES, n_patients); cached, since every metric uses the same."""
    random = np.random.default_rng(seed)
    drawn = np.zeros((N_RESAMPLES, n_patients), np.uint16)
    for row in drawn:
        row[:] = np.bincount(random.integers(n_patients, size=n_patients), minlength=n_patients)
    drawn.setflags(write=False)
    return drawn
