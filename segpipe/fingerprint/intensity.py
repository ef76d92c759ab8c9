"""Intensities of labelled voxels: counted case by case in bounded memory, pooled with the same weight for every case.

A value's bin is its float32 rounded to twelve significant bits: whole numbers to ±4096 have bins of their own, any
other value is exact to 1/8192. What a case leaves behind does not grow with its voxels, and bins of cases add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.fingerprint.record import Histogram, Intensities

_CUT_BITS = 12  # of the 24 significant bits of a float32
_MAGNITUDE = np.int32(0x7FFFFFFF)  # every bit but the sign
_CHUNK_VOX = 1 << 20
_N_BINS = 64  # of the picture
_ROUNDING = 1e-9  # weights are sums of fractions: a half may be a little more or less


@dataclass(frozen=True, eq=False)
class Foreground:
    """Labelled voxels of one channel of one case: exact moments and a sparse histogram.

    Args:
        keys: Occupied bins, int32, ascending.
        counts: Voxels in each, uint32.
        mean, variance, low, high: Of all voxels, not of the bins.
    """

    keys: NDArray[np.int32]
    counts: NDArray[np.uint32]
    mean: float
    variance: float
    low: float
    high: float


def count_voxels(values: NDArray[np.float32]) -> Foreground:
    """Count the voxels of each bin.

    Args:
        values: Any shape, at least one, finite.
    """
    flat = values.reshape(-1)
    low, high = flat.min(), flat.max()
    first, last = (int(key) for key in _keys(np.array([low, high], np.float32)))
    counts = np.zeros(last - first + 1, np.int64)
    mean = float(flat.mean(dtype=np.float64))
    squares = 0.0
    for start in range(0, flat.size, _CHUNK_VOX):
        chunk = flat[start : start + _CHUNK_VOX]
        counts += np.bincount(_keys(chunk) - first, minlength=counts.size)
        squares += float(np.square(np.subtract(chunk, mean, dtype=np.float64)).sum())
    occupied = np.flatnonzero(counts)
    return Foreground(
        keys=(occupied + first).astype(np.int32),
        counts=counts[occupied].astype(np.uint32),
        mean=mean,
        variance=squares / flat.size,
        low=float(low),
        high=float(high),
    )


def pool(cases: Sequence[Foreground]) -> Intensities:
    """Pool the intensities of one channel; each case has the same weight, however many voxels it has.

    Args:
        cases: At least one.

    Returns:
        Exact mean, SD, minimum and maximum; quantiles to the width of a bin. They are what nnU-Net's sample, drawn
        from every case with replacement, tends to: with few voxels a quantile is one of them, and the mean of two
        only where it falls between them.
    """
    first = min(int(case.keys[0]) for case in cases)
    weights = np.zeros(max(int(case.keys[-1]) for case in cases) - first + 1)
    for case in cases:
        weights[case.keys - first] += case.counts / case.counts.sum() / len(cases)
    occupied = np.flatnonzero(weights)
    low, high = min(case.low for case in cases), max(case.high for case in cases)
    values, weights = _values(occupied + first).clip(low, high), weights[occupied]
    below, middle, above = (_quantile(values, weights, fraction) for fraction in (0.005, 0.5, 0.995))
    means = np.array([case.mean for case in cases])
    variance = float(np.mean([case.variance for case in cases])) + float(means.var())  # within cases, between them
    return Intensities(
        mean=float(means.mean()),
        std=variance**0.5,
        min=low,
        median=middle,
        max=high,
        percentile_00_5=below,
        percentile_99_5=above,
        least_range=min(_range_of(case) for case in cases),
        histogram=_histogram(values, weights, below, above),
    )


def _range_of(case: Foreground) -> float:
    """The range from percentile 0.5 to 99.5 of one case."""
    values, weights = _values(case.keys).clip(case.low, case.high), case.counts / case.counts.sum()
    return _quantile(values, weights, 0.995) - _quantile(values, weights, 0.005)


def _keys(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Bins of values, in their order; the bits of a float32 without its sign are in the order of the values."""
    bits = np.ascontiguousarray(values).view(np.int32)
    keys = ((bits & _MAGNITUDE) + (1 << _CUT_BITS - 1)) >> _CUT_BITS
    return np.where(bits < 0, -keys, keys)


def _values(keys: NDArray[np.integer]) -> NDArray[np.float64]:
    """The value in the middle of each bin."""
    magnitudes = (np.abs(keys).astype(np.int32) << _CUT_BITS).view(np.float32).astype(np.float64)
    return np.copysign(magnitudes, keys)


def _quantile(values: NDArray[np.float64], weights: NDArray[np.float64], fraction: float) -> float:
    """The first ascending value at which the summed weights, 1 in all, reach `fraction`; between two their mean."""
    reached = np.cumsum(weights)
    first = np.searchsorted(reached, fraction - _ROUNDING)
    beyond = np.searchsorted(reached, fraction + _ROUNDING)
    return float((values[first] + values[beyond]) / 2)


def _histogram(values: NDArray[np.float64], weights: NDArray[np.float64], low: float, high: float) -> Histogram:
    inside = (values >= low) & (values <= high)
    width = (high - low) / _N_BINS or 1.0  # of equal values the first bin has all
    bins = ((values[inside] - low) / width).astype(int).clip(max=_N_BINS - 1)
    shares = np.bincount(bins, weights[inside], _N_BINS)
    return Histogram(
        low=low,
        high=high,
        shares=tuple(shares.clip(0, 1).tolist()),
        share_below=min(1.0, float(weights[values < low].sum())),
        share_above=min(1.0, float(weights[values > high].sum())),
    )
