"""Confidence intervals of means over cases, resampling patients: cases of one patient are not independent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

ENOUGH_PATIENTS = 50  # below, a nominal 95 % interval of skewed scores covers less: 82 % at 20 patients, 57 % at 10
N_RESAMPLES = 9999
_CONFIDENCE = 0.95
_SMALL = 1e-12  # relative; resampled means that are equal on paper differ by rounding
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


def mean_with_interval(values: NDArray[np.float64], patients: NDArray[np.intp], seed: int = 0) -> Interval:
    """Mean over labels of the mean over cases, and its interval: the last of `means_with_intervals`."""
    return means_with_intervals(values, patients, seed)[-1]


def means_with_intervals(
    values: NDArray[np.float64], patients: NDArray[np.intp], seed: int = 0
) -> tuple[Interval, ...]:
    """Mean over cases of each label, then the mean over labels of these, with BCa bootstrap intervals over patients.

    Args:
        values: (n_cases, n_labels) float64; NaN where a case does not count for a label.
        patients: (n_cases,) number of the patient of each case, any integers.
        seed: Of the resampling; the same seed gives the same intervals.

    Returns:
        n_labels + 1 intervals. For each mean the patients are resampled that have a value for it. No interval for one
        patient or if all patients agree: there is nothing to resample.

    Source:
        Efron 1987, JASA 82(397), section 3, with patients as units (cluster bootstrap). Resampled means equal to the
        mean count half, as in scipy.
    """
    sums, sizes = sums_by_patient(values, patients)
    has_value = sizes > 0
    any_value = has_value.any(axis=1)
    overall = _intervals(sums[any_value], sizes[any_value], seed)
    result: list[Interval] = []
    for label in range(values.shape[1]):
        own = has_value[:, label]
        same = np.array_equal(own, any_value)  # the usual case: one resampling serves every label
        column = slice(label, label + 1)
        result.append(overall[label] if same else _intervals(sums[own, column], sizes[own, column], seed)[0])
    return (*result, overall[-1])


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


def _intervals(sums: NDArray[np.float64], sizes: NDArray[np.float64], seed: int) -> list[Interval]:
    """Intervals of each label and of the mean over labels; every patient has a value."""
    n_patients, n_labels = sums.shape
    if n_patients == 0:
        return [Interval(float("nan"), None, None, "no case counts")] * (n_labels + 1)
    means = _means(sums.sum(axis=0)[None], sizes.sum(axis=0)[None])[0]
    if n_patients == 1:
        return [Interval(float(mean), None, None, "one patient: no interval") for mean in means]
    left_out = _means(sums.sum(axis=0) - sums, sizes.sum(axis=0) - sizes)
    resampled = np.concatenate([_means(w @ sums, w @ sizes) for w in patient_weights(n_patients, seed)])
    return [_interval(*columns, n_patients) for columns in zip(means, resampled.T, left_out.T, strict=True)]


def _interval(mean: float, resampled: NDArray[np.float64], left_out: NDArray[np.float64], n_patients: int) -> Interval:
    resampled, left_out, mean = resampled[~np.isnan(resampled)], left_out[~np.isnan(left_out)], float(mean)
    if np.isnan(mean) or not left_out.size or np.ptp(left_out) <= _SMALL * max(1.0, abs(mean)):
        return Interval(mean, None, None, "no case counts" if np.isnan(mean) else "all patients equal: no interval")
    limits = _bca(mean, resampled, left_out)
    if limits is None:
        return Interval(mean, None, None, "all resampled means on one side: no interval")
    few = f"{n_patients} patients are too few for an interval that covers 95 %" if n_patients < ENOUGH_PATIENTS else ""
    return Interval(mean, *limits, few)


def _means(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
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


def _bca(mean: float, resampled: NDArray[np.float64], left_out: NDArray[np.float64]) -> tuple[float, float] | None:
    """Bias-corrected and accelerated limits; None if no resampled mean lies on one side of the mean."""
    slack = _SMALL * max(1.0, abs(mean))
    below, equal = np.mean(resampled < mean - slack), np.mean(np.abs(resampled - mean) <= slack)
    bias = ndtri(below + 0.5 * equal)
    if not np.isfinite(bias):
        return None
    deviations = left_out.mean() - left_out
    acceleration = np.sum(deviations**3) / (6 * np.sum(deviations**2) ** 1.5)
    shifted = bias + ndtri([(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    levels = ndtr(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(resampled, levels)
    return float(low), float(high)
