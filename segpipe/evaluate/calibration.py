"""Calibration: of the voxels with a probability of 0.7, seven in ten should belong to the structure.

Each label is judged alone, as present or not. Every number follows from how often each probability occurs and how often
it is right, so a file is read one output at a time and counted once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from segpipe.core.errors import DataError
from segpipe.core.labels import LabelSet, Mask
from segpipe.core.probabilities import read_outputs
from segpipe.evaluate.evaluation_case import EvaluationCase, GroupScores, is_one_of
from segpipe.evaluate.metrics import case_metrics

N_BINS = 15  # Guo et al. 2017, ICML, and most papers since
NEAR_MM = 10.0  # far from every mask all is background, which any network knows: it would hide every fault


def calibration_group(case: EvaluationCase) -> GroupScores:
    """Calibration of every label: near it, and in the whole image (`_image`, where easy background outweighs all).

    Raises:
        DataError: If there is no file of probabilities, or it is wrong.
    """
    if case.probabilities is None:
        raise DataError(
            f"{case.case_id}: calibration needs probabilities, but there are none. Predict with --save-probabilities."
        )
    shape, values = case.reference.shape, {}
    chosen = case_metrics("calibration", case.settings.metrics)
    outputs = read_probabilities(case.probabilities, case.labels, shape)
    counts = np.ones(shape, bool) if case.is_ignored is None else ~case.is_ignored
    for label, probabilities in zip(case.labels.labels, outputs, strict=True):
        indices = case.labels.indices_of(label)
        masks = is_one_of(case.reference, indices), is_one_of(case.prediction, indices)
        near = near_masks(*masks, case.grid.spacing_mm) & counts
        scores = {
            "": calibration_scores(tally(probabilities[near], masks[0][near])),
            "_image": calibration_scores(tally(probabilities[counts], masks[0][counts])),
        }
        values[label.name] = {name: scores[value.variant][value.key] for name, value in chosen.items()}
    return GroupScores(values)


@dataclass(frozen=True, eq=False)
class Tally:
    """Voxels with each probability, and those of the structure.

    Args:
        probabilities: (n,) float64, 0 to 1, ascending, each once.
        n_vox: (n,) voxels with this probability.
        n_true_vox: (n,) those of them that are of the structure.
        resolution: Probabilities nearer to 0 or 1 than this cannot be told from them.
    """

    probabilities: NDArray[np.float64]
    n_vox: NDArray[np.int64]
    n_true_vox: NDArray[np.int64]
    resolution: float


def tally(probabilities: NDArray[np.floating[Any]], is_true: NDArray[np.bool_]) -> Tally:
    """Count.

    Args:
        probabilities: Any shape, 0 to 1; fast in float16, of which only 15361 values lie there.
        is_true: Where the structure is, same shape.
    """
    resolution = float(np.finfo(probabilities.dtype).epsneg) / 2
    if probabilities.dtype == np.float16:
        bits = np.abs(probabilities).ravel().view(np.uint16)  # of numbers from 0 up, bits ascend as numbers do
        n_vox = np.bincount(bits)
        n_true = np.bincount(bits[is_true.ravel()], minlength=len(n_vox))
        found = np.flatnonzero(n_vox)
        values = found.astype(np.uint16).view(np.float16).astype(np.float64)
        return Tally(values, n_vox[found], n_true[found], resolution)
    values, place = np.unique(probabilities, return_inverse=True)
    place = place.ravel()
    n_true = np.bincount(place[is_true.ravel()], minlength=len(values))
    return Tally(values.astype(np.float64), np.bincount(place, minlength=len(values)), n_true, resolution)


def calibration_scores(counts: Tally) -> dict[str, float]:
    """Every score of calibration; NaN of no voxel."""
    return {
        "ece": expected_calibration_error(counts),
        "ece_equal_mass": expected_calibration_error(counts, equal_mass=True),
        "mce": maximum_calibration_error(counts),
        "brier": brier_score(counts),
        "nll": negative_log_likelihood(counts),
    }


def expected_calibration_error(counts: Tally, n_bins: int = N_BINS, equal_mass: bool = False) -> float:
    """Mean gap between probability and frequency over bins, weighted by their voxels (ECE), 0 best, 1 worst.

    Args:
        counts: As `tally` gives them.
        n_bins: Bins from 0 to 1; a probability on the border belongs to the upper one.
        equal_mass: Bins of as equal numbers of voxels as ties allow instead of equal width.

    Source:
        Naeini et al. 2015, AAAI, there with equal mass; equal width as in Guo et al. 2017, ICML. Theirs is of the
        winning class over images, ours of one label over voxels (class-wise).
    """
    gaps, n_vox = _gaps(counts, n_bins, equal_mass)
    return float(np.average(gaps, weights=n_vox)) if len(gaps) else float("nan")


def maximum_calibration_error(counts: Tally, n_bins: int = N_BINS) -> float:
    """Largest gap between probability and frequency of any bin (MCE), 0 best, 1 worst; Naeini et al. 2015."""
    gaps, _ = _gaps(counts, n_bins, equal_mass=False)
    return float(gaps.max()) if len(gaps) else float("nan")


def brier_score(counts: Tally) -> float:
    """Mean squared difference between probability and truth, 0 best, 1 worst.

    Source:
        Brier 1950, Monthly Weather Review 78(1). He sums over both outcomes, which gives twice this.
    """
    p = counts.probabilities
    return _mean(counts, p**2, (1 - p) ** 2)


def negative_log_likelihood(counts: Tally) -> float:
    """Mean of −ln(probability of the truth), 0 best; probabilities of 0 and 1 are moved by the type's resolution."""
    p = np.clip(counts.probabilities, counts.resolution, 1 - counts.resolution)
    return _mean(counts, -np.log1p(-p), -np.log(p))


def _mean(counts: Tally, if_false: NDArray[np.float64], if_true: NDArray[np.float64]) -> float:
    n = counts.n_vox.sum()
    total = (counts.n_vox - counts.n_true_vox) @ if_false + counts.n_true_vox @ if_true
    return float(total / n) if n else float("nan")


def _gaps(counts: Tally, n_bins: int, equal_mass: bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """|mean probability − frequency| of each bin that has voxels, and their number."""
    if equal_mass:
        middle = np.cumsum(counts.n_vox) - counts.n_vox / 2
        place = (middle / max(1, counts.n_vox.sum()) * n_bins).astype(int)
    else:
        place = np.minimum((counts.probabilities * n_bins).astype(int), n_bins - 1)
    n_vox, n_true, total = (
        np.bincount(place, weights, n_bins)
        for weights in (counts.n_vox, counts.n_true_vox, counts.n_vox * counts.probabilities)
    )
    has_voxels = n_vox > 0
    gaps = np.abs(total - n_true)[has_voxels] / n_vox[has_voxels]
    return gaps, n_vox[has_voxels].astype(np.int64)


def near_masks(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> Mask:
    """Voxels no farther than `NEAR_MM` from one of either mask: where a label is judged.

    Of both masks, since a place that only the prediction found is where it may be overconfident.
    """
    union = reference | prediction
    if not union.any():
        return union
    result = np.zeros_like(union)
    box = []
    for axis, edge_mm in enumerate(spacing_mm):
        filled = np.flatnonzero(union.any(axis=tuple(a for a in range(union.ndim) if a != axis)))
        margin = int(NEAR_MM / edge_mm) + 1
        box.append(slice(max(0, int(filled[0]) - margin), int(filled[-1]) + margin + 1))
    place = tuple(box)
    result[place] = distance_transform_edt(~union[place], sampling=spacing_mm) <= NEAR_MM
    return result


def read_probabilities(path: Path, labels: LabelSet, shape_zyx: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """The probabilities of each label in turn; background is left out. Otherwise as `read_outputs`."""
    return islice(read_outputs(path, labels, shape_zyx), 0 if labels.has_regions else 1, None)
