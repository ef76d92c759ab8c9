"""Find scans of one patient that have different names: copies that were altered, and repeated scans.

A scan is reduced to a thumbnail: its first channel in canonical orientation, averaged to few voxels, less its local
mean, ranked. Two thumbnails are correlated. Rescaled, noised, cropped, resampled, flipped and rounded copies stay
alike, as do two scans of one patient. Scans of different patients do not, unless all are in one atlas space: therefore
what counts is the correlation above that of most pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from segpipe.core.grid import Grid, reorientation

ALIKE = 0.65  # correlation above the usual: copies and scans of one patient reach it
SAME = 0.97  # only copies are above it, and repeated scans of a patient who did not move
_SHAPE_ZYX = (24, 24, 24)
_ROUNDING = 1e-4  # of the range: differences below it are none
_LOCAL = 5  # voxels of the local mean along each axis
_BLOCK = 512  # thumbnails in one product
_MIN_PAIRS = 10  # to know what is usual


class AlikePair(NamedTuple):
    """Two scans, by their place in the list, and the correlation of their thumbnails."""

    first: int
    second: int
    correlation: float


def thumbnail(voxels_zyx: NDArray[np.float32], grid: Grid) -> NDArray[np.float16] | None:
    """Reduce an image to what is compared.

    Args:
        voxels_zyx: Finite values.
        grid: Where they are.

    Returns:
        Values of 0 mean and unit length, (13824,); None if nothing in the image stands out, as in a constant one.
    """
    small = reorientation(grid, "RAS").apply(voxels_zyx)
    for axis, n_wanted in enumerate(_SHAPE_ZYX):
        shares = _shares(small.shape[axis], n_wanted)
        small = np.moveaxis(np.tensordot(shares, small, axes=(1, axis)), 0, axis)
    span = float(np.ptp(small))
    if span <= _ROUNDING * float(np.abs(small).max()):
        return None
    # Without rounding, noise of the arithmetic would rank the voxels of an even background, alike in all scans.
    small = np.rint((small - uniform_filter(small, _LOCAL, mode="nearest")) / (_ROUNDING * span))
    _, places, counts = np.unique(small, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[places.ravel()].astype(np.float32)  # equal values share their mean rank
    ranks -= ranks.mean()
    length = float(np.linalg.norm(ranks))
    return (ranks / length).astype(np.float16) if length > 0 else None


def alike_pairs(thumbnails: Sequence[NDArray[np.float16] | None], patients: Sequence[str]) -> list[AlikePair]:
    """Find for each scan the earlier one of another patient that it is most like, if it is alike.

    Alike is a correlation of r with (r - m) / (1 - m) > `ALIKE`, where m is the median over pairs of different patients
    (0 if it is negative or there are few pairs). Memory grows with the number of scans, not of pairs.

    Args:
        thumbnails: One for each scan; None takes no part.
        patients: Of each scan.

    Returns:
        At most one pair for each scan, in the order of the second.
    """
    present = [(place, one) for place, one in enumerate(thumbnails) if one is not None]
    if not present:
        return []
    stack = np.stack([one for _, one in present])
    group = np.unique([patients[place] for place, _ in present], return_inverse=True)[1]
    best, partner, usual = np.full(len(stack), -1.0), np.zeros(len(stack), int), 0.0
    for start in range(0, len(stack), _BLOCK):
        rows = stack[start : start + _BLOCK].astype(np.float32)
        for begin in range(0, start + 1, _BLOCK):
            found = rows @ stack[begin : begin + _BLOCK].astype(np.float32).T
            later = np.arange(start, start + len(found))[:, None]
            earlier = np.arange(begin, begin + found.shape[1])[None]
            counts = (earlier < later) & (group[later] != group[earlier])
            if start == 0 and np.count_nonzero(counts) >= _MIN_PAIRS:
                usual = max(0.0, float(np.median(found[counts])))
            found[~counts] = -1
            nearest = found.argmax(axis=1)
            highest = found[np.arange(len(found)), nearest]
            is_better = highest > best[start : start + len(found)]
            best[start : start + len(found)][is_better] = highest[is_better]
            partner[start : start + len(found)][is_better] = begin + nearest[is_better]
    return [
        AlikePair(present[partner[place]][0], present[place][0], float(best[place]))
        for place in np.flatnonzero(best > usual + ALIKE * (1 - usual))
    ]


def _shares(n_vox: int, n_wanted: int) -> NDArray[np.float32]:
    """Share of each voxel of an axis in each of `n_wanted` equal parts of it, (n_wanted, n_vox)."""
    edges = np.linspace(0, n_vox, n_wanted + 1)[:, None]
    starts = np.arange(n_vox)[None]
    overlap = np.minimum(edges[1:], starts + 1) - np.maximum(edges[:-1], starts)
    return (np.maximum(overlap, 0) * (n_wanted / n_vox)).astype(np.float32)
