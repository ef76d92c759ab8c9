"""Overlap of the centrelines of tubes: vessels, airways, nerves."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
from numpy.typing import NDArray

from segpipe.core.labels import Mask
from segpipe.core.thinning import centreline_counts
from segpipe.evaluate.evaluation_case import EvaluationCase, GroupScores
from segpipe.evaluate.metrics import case_metrics


def centreline_group(case: EvaluationCase) -> GroupScores:
    """`centreline_scores` of every label."""
    chosen = case_metrics("centreline", case.settings.metrics)
    scores = {label: centreline_scores(*case.masks(label)) for label in case.labels.names}
    return GroupScores({label: {name: of[value.key] for name, value in chosen.items()} for label, of in scores.items()})


def centreline_scores(reference: Mask, prediction: Mask) -> dict[str, float]:
    """The share of each mask's centreline inside the other mask.

    Args:
        reference: Mask (Z, Y, X), bool.
        prediction: Mask of the same shape.

    Returns:
        `cldice_sensitivity`: share of the reference's centreline inside the prediction; NaN if the reference is empty.
        `cldice_precision`: share of the prediction's inside the reference; NaN if the prediction is empty. `cldice`:
        their harmonic mean, 0 to 1; 0 if one mask is empty or none of either lies inside, NaN if both are empty.

    Source:
        Shit et al. 2021, CVPR, eq. 1 to 3, who leave the choice of the centreline open; ours is of core/thinning.py,
        the mean over all orders of thinning, so that the storage order of the array does not matter. It counts voxels,
        not millimetres. Metrics Reloaded takes scikit-image's, which loses thin vessels.
    """
    sensitivity = _share_inside(centreline_counts(reference), prediction)
    precision = _share_inside(centreline_counts(prediction), reference)
    if isnan(sensitivity) and isnan(precision):
        both = nan
    elif sensitivity > 0 and precision > 0:
        both = 2 * sensitivity * precision / (sensitivity + precision)
    else:
        both = 0.0
    return {"cldice": both, "cldice_sensitivity": sensitivity, "cldice_precision": precision}


def _share_inside(counts: NDArray[np.uint8], mask: Mask) -> float:
    """Share of a centreline inside a mask; a voxel counts by how many orders of thinning put it on the line."""
    total = int(counts.sum(dtype=np.int64))
    return int(counts[mask].sum(dtype=np.int64)) / total if total else nan
