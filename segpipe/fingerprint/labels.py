"""Labels of a case: volume, connected parts and extent; and intensities inside them, counted in bounded memory.

A value's bin is its float32 rounded to twelve significant bits: whole numbers to ±4096 have bins of their own, any
other value is exact to 1/8192. What a case leaves behind does not grow with its voxels, and bins of cases add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from segpipe.core.labels import LabelSet
from segpipe.fingerprint.record import Histogram, Intensities, LabelMeasure

# A label map is taken apart into runs: voxels of one value in a row along X. Runs of equal value that touch are
# connected. There are far fewer runs than voxels, and labels spread over the whole volume cost no more than others.

_LABELLED_CHUNK_VOX = 1 << 22
_ROWS_BEFORE = ((0, -1), (-1, -1), (-1, 0), (-1, 1))  # steps along Z and Y to the rows that touch one and precede it
_Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs in the order of the array; one entry for each.

    Args:
        values: Inside value, 1 or more.
        z, y, first_x, last_x: Index of the row, and of the first and last voxel in it.
    """

    values: _Ints
    z: _Ints
    y: _Ints
    first_x: _Ints
    last_x: _Ints

    def select(self, which: NDArray[np.bool_]) -> Runs:
        """Select some of them."""
        return Runs(*(x[which] for x in (self.values, self.z, self.y, self.first_x, self.last_x)))


def measure_labels(
    indices: NDArray[np.int16], labels: LabelSet, spacing_mm: tuple[float, float, float]
) -> dict[str, LabelMeasure]:
    """Measure every label and region.

    Args:
        indices: (Z, Y, X) inside values; values that are not above 0 are not labels.
        labels: Their meaning.
        spacing_mm: Voxel edge along Z, Y, X.
    """
    if not labels.has_regions:
        measured = _measure_values(indices, len(labels.values), spacing_mm)
        return dict(zip(labels.names, measured, strict=True))
    measures = {}
    for label in labels.labels:  # regions overlap: one after the other
        inside = np.zeros(len(labels.values) + 1, np.int8)
        inside[list(labels.indices_of(label))] = 1
        (measures[label.name],) = _measure_values(inside[indices.clip(0)], 1, spacing_mm)
    return measures


def _measure_values(
    indices: NDArray[np.signedinteger], n_values: int, spacing_mm: tuple[float, float, float]
) -> list[LabelMeasure]:
    """Measure each of the values 1 to n."""
    runs = runs_of(indices)
    parts = components_of(runs)
    value_of_part = np.zeros(int(parts.max(initial=-1)) + 1, np.int64)
    value_of_part[parts] = runs.values
    n_parts = np.bincount(value_of_part, minlength=n_values + 1)
    n_voxels = np.bincount(runs.values, runs.last_x - runs.first_x + 1, n_values + 1)
    low, high = np.full((n_values + 1, 3), np.iinfo(np.int64).max), np.full((n_values + 1, 3), -1)
    for axis, (first, last) in enumerate(((runs.z, runs.z), (runs.y, runs.y), (runs.first_x, runs.last_x))):
        np.minimum.at(low[:, axis], runs.values, first)
        np.maximum.at(high[:, axis], runs.values, last)
    measures = []
    for value in range(1, n_values + 1):
        edges = (high[value] - low[value] + 1) * np.asarray(spacing_mm) if n_voxels[value] else np.zeros(3)
        z, y, x = edges.tolist()
        measures.append(
            LabelMeasure(
                voxels=int(n_voxels[value]),
                volume_mm3=float(n_voxels[value] * np.prod(spacing_mm)),
                n_components=int(n_parts[value]),
                extent_mm=(z, y, x),
            )
        )
    return measures


def runs_of(indices: NDArray[np.signedinteger]) -> Runs:
    """Find the runs of every value above 0 in a map (Z, Y, X)."""
    n_y, n_x = indices.shape[1:]
    rows = np.ascontiguousarray(indices).reshape(-1, n_x)
    n_rows = max(1, _LABELLED_CHUNK_VOX // n_x)
    values, firsts, lasts = [], [], []
    for start in range(0, len(rows), n_rows):
        part = rows[start : start + n_rows]
        is_label = part > 0
        ends = np.ones((len(part), n_x + 1), bool)
        np.not_equal(part[:, 1:], part[:, :-1], out=ends[:, 1:-1])
        first = np.flatnonzero(ends[:, :-1] & is_label)
        values.append(part.reshape(-1)[first].astype(np.int64))
        firsts.append(first + start * n_x)
        lasts.append(np.flatnonzero(ends[:, 1:] & is_label) + start * n_x)
    row, first_x = np.divmod(np.concatenate(firsts), n_x)
    z, y = np.divmod(row, n_y)
    return Runs(np.concatenate(values), z, y, first_x, np.concatenate(lasts) - row * n_x)


def components_of(runs: Runs) -> _Ints:
    """Number the connected part of each run; voxels that share a corner are connected."""
    n_y, n_x = int(runs.y.max(initial=0)) + 1, int(runs.last_x.max(initial=0)) + 1
    row = runs.z * (n_y + 2) + runs.y + 1  # an empty row and voxel at each end: a step out of the volume meets nothing
    first, last = (row * (n_x + 2) + x + 1 for x in (runs.first_x, runs.last_x))
    ones, others = [], []
    for step_z, step_y in _ROWS_BEFORE:
        step = (step_z * (n_y + 2) + step_y) * (n_x + 2)
        start = np.searchsorted(last, first + step - 1)
        n_touching = np.searchsorted(first, last + step + 1, side="right") - start
        one = np.repeat(np.arange(first.size), n_touching)
        other = np.arange(one.size) + np.repeat(start - (np.cumsum(n_touching) - n_touching), n_touching)
        equal = runs.values[one] == runs.values[other]
        ones.append(one[equal])
        others.append(other[equal])
    one, other = np.concatenate(ones), np.concatenate(others)
    graph = coo_array((np.ones(one.size, bool), (one, other)), shape=(first.size, first.size))
    return connected_components(graph, directed=False)[1].astype(np.int64)


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
