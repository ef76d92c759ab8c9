"""Resampling of label maps: every label's mask linearly, the strongest wins, and no mask is made.

A new voxel is between eight old ones. Where they agree, nothing needs weighing; elsewhere the weights of those that
bear the same label are added. The time depends on the surface between labels, not on their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from segpipe.core.grid import ZYX
from segpipe.prepare.resample import LABEL_ORDER, linear_places, nearest_places

_TIE = 1e-5  # shares this near are equal but for rounding
_CHUNK_VOX = 2**16  # weighed at a time; what they need stays in the processor's cache
_UNDECIDED, _LOSER = np.iinfo(np.int16).min, np.iinfo(np.int16).max  # which no label has
_Places = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


def resample_indices(indices_zyx: NDArray[np.int16], shape_zyx: ZYX, orders_zyx: Sequence[int]) -> NDArray[np.int16]:
    """Resample a label map: each label's mask linearly, then the strongest wins. No label is invented.

    Of equally strong labels that of the nearest voxel wins, or else the smallest.

    Args:
        indices_zyx: (Z, Y, X) int16 inside labels.
        shape_zyx: Voxels after.
        orders_zyx: 1 or, along an axis that is much coarser, 0.

    Returns:
        (*shape_zyx) int16; the argument itself if it has this shape.

    Source:
        nnU-Net with batchgenerators 0.25.5. It calls labels equally strong if their sums in float64 are, so that
        rounding decides between halves; we allow for rounding. In earlier versions the last label of one
        half or more won, and where three labels met and none had a half, background.
    """
    if indices_zyx.shape == tuple(shape_zyx):
        return indices_zyx
    axes = zip(indices_zyx.shape, shape_zyx, orders_zyx, strict=True)
    places = [_places_along(n_in, n_out, order) for n_in, n_out, order in axes]
    labels = np.ascontiguousarray(indices_zyx)
    marked = np.where(_is_mixed(labels, places), np.int16(_UNDECIDED), labels)
    for axis, (low, _, _) in enumerate(places):
        marked = marked.take(low, axis)
    flat = marked.reshape(-1)
    undecided = np.flatnonzero(flat == _UNDECIDED)
    for start in range(0, undecided.size, _CHUNK_VOX):
        chosen = undecided[start : start + _CHUNK_VOX]
        flat[chosen] = _strongest(labels, places, np.unravel_index(chosen, shape_zyx))
    return marked


def _places_along(n_in: int, n_out: int, order: int) -> _Places:
    """For each new voxel the old ones before and after it, and the share of the latter."""
    if order == LABEL_ORDER and n_in != n_out:
        low, high, share = linear_places(n_in, n_out)
        return low, high, share.astype(np.float32)
    places = nearest_places(n_in, n_out)
    return places, places, np.zeros(n_out, np.float32)


def _is_mixed(labels: NDArray[np.int16], places: Sequence[_Places]) -> NDArray[np.bool_]:
    """Old voxels which differ from one of those after them that are weighed together with them."""
    least, most = labels.copy(), labels.copy()
    for axis, (low, high, _) in enumerate(places):
        if (low != high).any():
            for bound, choose in ((least, np.minimum), (most, np.maximum)):
                lines = np.moveaxis(bound, axis, 0)
                choose(lines[:-1], lines[1:], out=lines[:-1])
    return least != most


def _strongest(
    labels: NDArray[np.int16], places: Sequence[_Places], voxels_zyx: tuple[NDArray[np.intp], ...]
) -> NDArray[np.int16]:
    """The label with most weight around each of some new voxels (n,)."""
    sides, nearest = [], []
    for (low, high, share), index in zip(places, voxels_zyx, strict=True):
        after = share[index]
        sides.append([(low[index], 1 - after), (high[index], after)] if share.any() else [(low[index], None)])
        nearest.append(np.where(after < 0.5 - _TIE, low[index], high[index]))
    corners, weights = [], []
    for corner in product(*sides):
        corners.append(labels[tuple(index for index, _ in corner)])
        weights.append(np.prod([weight for _, weight in corner if weight is not None], axis=0))
    totals = [weight.copy() for weight in weights]
    for first, second in combinations(range(len(corners)), 2):
        same = corners[first] == corners[second]
        totals[first] += weights[second] * same
        totals[second] += weights[first] * same
    enough = np.max(totals, axis=0) - np.float32(_TIE)
    winners = [np.where(total < enough, np.int16(_LOSER), label) for label, total in zip(corners, totals, strict=True)]
    closest = labels[tuple(nearest)]
    return np.where(np.any([winner == closest for winner in winners], axis=0), closest, np.min(winners, axis=0))
