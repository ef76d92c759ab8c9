"""Metrics of distances between surfaces; see `surface.py` for what a surface is.

All of them: inf (NSD 0) if one mask is empty, NaN if both are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import floor, inf, nan

import numpy as np
from numpy.typing import NDArray

_SLACK = 1e-9  # relative; sums of areas in another order differ by 1e-15, and must not move a percentile


@dataclass(frozen=True, eq=False)
class Directed:
    """Distances from the elements of one surface to the other surface.

    Args:
        apart_mm: (n,) float64, of the elements that the other surface does not have; inf if it has none.
        apart_weights: (n,) float64: area in mm², length in mm for one slice, or 1 for each voxel.
        n_shared: Elements that the other surface has too; their distance is 0.
        shared_weight: What they weigh together.
    """

    apart_mm: NDArray[np.float64]
    apart_weights: NDArray[np.float64]
    n_shared: int
    shared_weight: float

    @property
    def n(self) -> int:
        """Number of elements."""
        return len(self.apart_mm) + self.n_shared

    @cached_property
    def weight(self) -> float:
        """What all elements weigh."""
        return float(self.apart_weights.sum()) + self.shared_weight

    @cached_property
    def moment(self) -> float:
        """Sum of weights times distances."""
        return float((self.apart_mm * self.apart_weights).sum())  # a dot product would start threads of its own


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Both directions; an empty mask has no elements."""

    from_reference: Directed
    from_prediction: Directed


def hausdorff_mm(distances: SurfaceDistances) -> float:
    """Largest distance in mm (HD)."""
    return _combined(distances, lambda one, other: max(_largest(one), _largest(other)))


def hausdorff_percentile_mm(distances: SurfaceDistances, fraction: float) -> float:
    """Maximum over the two directions of the distance that a share `fraction` of the surface does not exceed.

    Args:
        fraction: 0 (excluded) to 1; 0.95 for HD95.

    Returns:
        mm; a distance that occurs, nothing is interpolated.

    Source:
        DeepMind's surface-distance, compute_robust_hausdorff. At an exact tie of the share its answer depends on
        rounding; here the smaller distance wins.
    """
    return _combined(distances, lambda *sides: max(_percentile(side, fraction) for side in sides))


def hausdorff_interpolated_mm(distances: SurfaceDistances, fraction: float) -> float:
    """Maximum over the two directions of the interpolated percentile, weights ignored: MONAI's HD95 with `voxel`."""
    return _combined(distances, lambda *sides: max(_interpolated(fraction, side) for side in sides))


def hausdorff_pooled_mm(distances: SurfaceDistances, fraction: float) -> float:
    """Interpolated percentile of both directions pooled, weights ignored: MedPy's HD95 with `voxel`."""
    return _combined(distances, lambda one, other: _interpolated(fraction, one, other))


def mean_surface_distance_mm(distances: SurfaceDistances) -> float:
    """Weighted mean of both directions pooled (ASSD) in mm."""
    return _combined(distances, lambda one, other: (one.moment + other.moment) / (one.weight + other.weight))


def mean_directed_distance_mm(distances: SurfaceDistances) -> float:
    """Mean of the two directed weighted means (MASD) in mm.

    Source:
        Metrics Reloaded, MASD. Unlike ASSD the larger surface does not count more.
    """
    return _combined(distances, lambda one, other: (one.moment / one.weight + other.moment / other.weight) / 2)


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Share of both surfaces that lies within a tolerance of the other one (NSD).

    Args:
        tolerance_mm: 0 or more; a distance equal to it is within.

    Returns:
        0 to 1.

    Source:
        Nikolov et al. 2021, J Med Internet Res 23(7):e26151, eq. 1.
    """
    sides = (distances.from_reference, distances.from_prediction)
    total = sum(side.weight for side in sides)
    if total == 0:
        return nan
    limit_mm = tolerance_mm * (1 + _SLACK) + _SLACK
    within = sum(side.shared_weight + float(side.apart_weights[side.apart_mm <= limit_mm].sum()) for side in sides)
    return min(within / total, 1.0)


def _combined(distances: SurfaceDistances, statistic: Callable[[Directed, Directed], float]) -> float:
    one, other = distances.from_reference, distances.from_prediction
    if one.n == 0 or other.n == 0:
        return nan if one.n == other.n else inf
    return statistic(one, other)


def _largest(side: Directed) -> float:
    return float(side.apart_mm.max()) if len(side.apart_mm) else 0.0


def _percentile(side: Directed, fraction: float) -> float:
    from segpipe.evaluate.quantile import least_reaching

    wanted = fraction * side.weight * (1 - _SLACK)
    if side.shared_weight >= wanted:
        return 0.0
    return float(least_reaching(side.apart_mm, side.apart_weights, wanted - side.shared_weight))


def _interpolated(fraction: float, *sides: Directed) -> float:
    """`np.quantile` of all distances, without writing down the zeros."""
    mm = np.concatenate([side.apart_mm for side in sides])
    n_zeros = sum(side.n_shared for side in sides)
    place = fraction * (len(mm) + n_zeros - 1)
    lower = floor(place)
    upper = min(lower + 1, len(mm) + n_zeros - 1)
    wanted = [max(k - n_zeros, 0) for k in (lower, upper)]
    if len(mm):
        mm = np.partition(mm, wanted)
    low, high = (0.0 if k < n_zeros else float(mm[k - n_zeros]) for k in (lower, upper))
    return low + (high - low) * (place - lower)
