"""The metrics of one label in one case, with the names, units and edge values that scores.csv has.

A raw value is never made up: where both masks are empty there is nothing to measure (NaN), where one is, distances
are infinite. What that means for a mean is decided when aggregating (`summary.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.evaluate import surface

Mask = NDArray[np.bool_]
Status = Literal["ok", "both_empty", "missed", "spurious"]
STATUSES: tuple[Status, ...] = ("ok", "both_empty", "missed", "spurious")


@dataclass(frozen=True)
class Metric:
    """What a metric is.

    Args:
        name: As in scores.csv.
        unit: `1` for a share, `mm`, `mm3`.
        kind: `overlap` (0 worst, 1 best), `distance` (0 best, no upper bound) or `difference` (signed, 0 best).
        title: For tables that people read.
    """

    name: str
    unit: str
    kind: Literal["overlap", "distance", "difference"]
    title: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("dice", "1", "overlap", "Dice"),
        Metric("iou", "1", "overlap", "IoU"),
        Metric("sensitivity", "1", "overlap", "sensitivity"),
        Metric("precision", "1", "overlap", "precision"),
        Metric("nsd", "1", "overlap", "NSD"),
        Metric("hd95", "mm", "distance", "HD95 mm"),
        Metric("hd", "mm", "distance", "HD mm"),
        Metric("assd", "mm", "distance", "ASSD mm"),
        Metric("hd95_voxel_max", "mm", "distance", "HD95 voxel max mm"),
        Metric("hd95_voxel_pooled", "mm", "distance", "HD95 voxel pooled mm"),
        Metric("volume_difference", "mm3", "difference", "volume diff. mm³"),
        Metric("relative_volume_difference", "1", "difference", "volume diff. rel."),
    )
}


@dataclass(frozen=True)
class Overlap:
    """Sizes of two masks and of their intersection, in voxels."""

    n_reference_vox: int
    n_prediction_vox: int
    n_both_vox: int

    @property
    def status(self) -> Status:
        """Which of the masks is empty: `missed` if the prediction is, `spurious` if the reference is."""
        if self.n_reference_vox and self.n_prediction_vox:
            return "ok"
        if self.n_reference_vox:
            return "missed"
        return "spurious" if self.n_prediction_vox else "both_empty"


def overlap_of(reference: Mask, prediction: Mask) -> Overlap:
    """Count voxels.

    Raises:
        ValueError: If shapes differ or either array is not bool.
    """
    if reference.shape != prediction.shape or reference.dtype != bool or prediction.dtype != bool:
        found = f"{reference.shape} {reference.dtype} and {prediction.shape} {prediction.dtype}"
        raise ValueError(f"masks are {found}, expected two bool arrays of one shape")
    counts = (np.count_nonzero(mask) for mask in (reference, prediction, reference & prediction))
    return Overlap(*(int(count) for count in counts))


def dice(overlap: Overlap) -> float:
    """2|A∩B| / (|A|+|B|), 0 to 1; NaN if both masks are empty.

    Source:
        Dice 1945, Ecology 26(3), eq. 1.

    Example:
        >>> dice(Overlap(n_reference_vox=2, n_prediction_vox=1, n_both_vox=1))
        0.6666666666666666
    """
    return _share(2 * overlap.n_both_vox, overlap.n_reference_vox + overlap.n_prediction_vox)


def iou(overlap: Overlap) -> float:
    """|A∩B| / |A∪B|, 0 to 1; NaN if both masks are empty."""
    return _share(overlap.n_both_vox, overlap.n_reference_vox + overlap.n_prediction_vox - overlap.n_both_vox)


def sensitivity(overlap: Overlap) -> float:
    """Share of the reference that was found, 0 to 1; NaN if the reference is empty."""
    return _share(overlap.n_both_vox, overlap.n_reference_vox)


def precision(overlap: Overlap) -> float:
    """Share of the prediction that is right, 0 to 1; NaN if the prediction is empty."""
    return _share(overlap.n_both_vox, overlap.n_prediction_vox)


def volume_difference_mm3(overlap: Overlap, spacing_mm: tuple[float, ...]) -> float:
    """Prediction minus reference in mm³, negative if the prediction is too small."""
    return (overlap.n_prediction_vox - overlap.n_reference_vox) * prod(spacing_mm)


def relative_volume_difference(overlap: Overlap) -> float:
    """(Prediction − reference) / reference, -1 or more; inf if only the reference is empty, NaN if both are."""
    if not overlap.n_reference_vox:
        return inf if overlap.n_prediction_vox else nan
    return (overlap.n_prediction_vox - overlap.n_reference_vox) / overlap.n_reference_vox


def measure(
    reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...], nsd_tolerance_mm: float | None = None
) -> tuple[Overlap, dict[str, float]]:
    """Every metric of one label in one case.

    Args:
        reference: Mask (Z, Y, X), bool. A single slice is measured as a contour in 2D.
        prediction: Mask of the same shape.
        spacing_mm: Voxel edge along Z, Y, X.
        nsd_tolerance_mm: Tolerance of `nsd`; without it there is no `nsd`, since no tolerance fits every organ.

    Returns:
        The counts, and values by the names in `METRICS`. `hd95`, `hd`, `assd` and `nsd` follow the `lattice` model:
        HD95 is the larger of the two directed percentiles of surface area. `hd95_voxel_max` is MONAI's number and
        `hd95_voxel_pooled` MedPy's: the three may differ by many voxels on the same masks.

    Raises:
        ValueError: If shapes differ or either array is not bool.
    """
    overlap = overlap_of(reference, prediction)
    lattice = surface.lattice_distances(reference, prediction, spacing_mm)
    voxel = surface.voxel_distances(reference, prediction, spacing_mm)
    values = {
        "dice": dice(overlap),
        "iou": iou(overlap),
        "sensitivity": sensitivity(overlap),
        "precision": precision(overlap),
        "hd95": surface.hausdorff_percentile_mm(lattice, 0.95),
        "hd": surface.hausdorff_mm(lattice),
        "assd": surface.mean_surface_distance_mm(lattice),
        "hd95_voxel_max": surface.hausdorff_interpolated_mm(voxel, 0.95),
        "hd95_voxel_pooled": surface.hausdorff_pooled_mm(voxel, 0.95),
        "volume_difference": volume_difference_mm3(overlap, spacing_mm),
        "relative_volume_difference": relative_volume_difference(overlap),
    }
    if nsd_tolerance_mm is not None:
        values["nsd"] = surface.surface_dice(lattice, nsd_tolerance_mm)
    return overlap, values


def _share(part: int, whole: int) -> float:
    return part / whole if whole else nan
