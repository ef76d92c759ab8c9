"""A weighted percentile without sorting: most values are told apart by the bin that they fall into."""

from __future__ import annotations

from typing import Any

import numpy as np

from segpipe.core.compiled import kernel

_MAX_BINS = 4096  # of weights stay in the nearest cache of a processor


@kernel
def least_reaching(values: Any, weights: Any, wanted: Any) -> Any:
    """Least value such that what is not larger weighs so much.

    Args:
        values: (n,) float64, not empty, none of them NaN; finite or all inf.
        weights: (n,) float64, 0 or more.
        wanted: Weight to reach. Where all together do not, the largest value that weighs something is returned.
    """
    low, high, before = values.min(), values.max(), 0.0
    n_bins = min(len(values), _MAX_BINS)  # two or more where values differ, so that each round leaves fewer of them
    while low < high:
        scale = (n_bins - 1) / (high - low)
        bins = np.zeros(n_bins)
        for i in range(len(values)):
            if low <= values[i] <= high:
                bins[np.int64((values[i] - low) * scale)] += weights[i]
        chosen, total = 0, before
        for k in range(n_bins):
            if bins[k] > 0:
                chosen, before = k, total
                total += bins[k]
                if total >= wanted:
                    break
        least, most = high, low
        for i in range(len(values)):
            if low <= values[i] <= high and np.int64((values[i] - low) * scale) == chosen:
                least, most = min(least, values[i]), max(most, values[i])
        low, high = least, most
    return low
