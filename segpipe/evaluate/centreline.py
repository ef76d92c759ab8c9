"""Overlap of the centrelines of tubes: vessels, airways, nerves."""

from __future__ import annotations

from math import nan

import numpy as np
from numpy.typing import NDArray

from segpipe.evaluate.case import Case, GroupScores
from segpipe.evaluate.metrics import Mask


def centreline_group(case: Case) -> GroupScores:
    """`centreline_scores` of every label."""
    return GroupScores({name: centreline_scores(*case.masks(name)) for name in case.labels.names})


def centreline_scores(reference: Mask, prediction: Mask) -> dict[str, float]:
    """How much of the centreline of each mask lies inside the other one.

    Args:
        reference: Mask (Z, Y, X), bool; axes of length 1 are no axes.
        prediction: Mask of the same shape.

    Returns:
        `cldice_sensitivity`: share of the reference's centreline inside the prediction; NaN if the reference is empty.
        `cldice_precision`: share of the prediction's inside the reference; NaN if the prediction is empty. `cldice`:
        their harmonic mean, 0 to 1; 0 if one mask is empty or none of either lies inside, NaN if both are empty.

    Source:
        Shit et al. 2021, CVPR, eq. 1 to 3. The centreline is scikit-image's `skeletonize`: thinning after Lee et al.
        1994 in three dimensions, after Zhang and Suen 1984 in two, the same that Metrics Reloaded takes. It counts
        voxels, not millimetres, and a turned image may be thinned to slightly other voxels.
    """
    shape = tuple(n for n in reference.shape if n > 1) or (1,)
    reference, prediction = reference.reshape(shape), prediction.reshape(shape)
    sensitivity = _share_inside(_centreline(reference), prediction)
    precision = _share_inside(_centreline(prediction), reference)
    found, right = (0.0 if np.isnan(share) else share for share in (sensitivity, precision))
    is_empty = not reference.any() and not prediction.any()
    both = nan if is_empty else 2 * found * right / (found + right) if found and right else 0.0
    return {"cldice": both, "cldice_sensitivity": sensitivity, "cldice_precision": precision}


def _centreline(mask: Mask) -> NDArray[np.bool_]:
    from skimage.morphology import skeletonize

    if mask.ndim == 1 or not mask.any():
        return mask
    line: NDArray[np.bool_] = skeletonize(mask)  # type: ignore[no-untyped-call]
    return line


def _share_inside(line: NDArray[np.bool_], mask: Mask) -> float:
    n_vox = np.count_nonzero(line)
    return float(np.count_nonzero(line & mask) / n_vox) if n_vox else nan
