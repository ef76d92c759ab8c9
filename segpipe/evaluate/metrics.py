"""The metrics of one label in one case, with the names, units and edge values that scores.csv has.

A raw value is never made up: where both masks are empty there is nothing to measure (NaN), where one is, distances
are infinite. What that means for a mean is decided when aggregating (`summary.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from math import inf, nan, prod
from typing import Literal

import numpy as np

from segpipe.core.errors import UsageError
from segpipe.core.labels import Mask
from segpipe.core.records import did_you_mean
from segpipe.evaluate.surfaces import distances as surfaces
from segpipe.evaluate.surfaces.distances import SurfaceDistances, mask_distances

Status = Literal["ok", "both_empty", "missed", "spurious"]
STATUSES: tuple[Status, ...] = ("ok", "both_empty", "missed", "spurious")


@dataclass(frozen=True)
class Metric:
    """What a metric is.

    Args:
        name: As in scores.csv.
        unit: `1` for a share, `mm`, `mm3`.
        kind: `overlap` (0 worst, 1 best), `distance` (0 best, no upper bound) or `difference` (0 best, either sign; it
            is defined where a mask is empty too, so no policy replaces it).
        title: For tables that people read.
        group: What it is computed from, together with the others of its group: `counts` of voxels, one of the surface
            models `lattice`, `voxel`, `mc` (see `surfaces/distances.py`), or a name in `scoring.GROUPS`.
        is_default: Whether it is computed when nobody asked for anything.
        missed_mm: Of a distance that says itself what a missed structure counts; None leaves it to the policy.
    """

    name: str
    unit: str
    kind: Literal["overlap", "distance", "difference"]
    title: str
    group: str
    is_default: bool = True
    missed_mm: float | None = None


_BRATS_MM = 374.0  # diagonal of the BraTS image, 240×240×155 mm rounded up
_LESION_RULES: dict[str, tuple[str, float | None]] = {  # end of the name (see `lesions.RULES`): in titles, missed_mm
    "": ("", None),
    "_overlap50": (" ov50", None),
    "_iou10": (" IoU10", None),
    "_iou25": (" IoU25", None),
    "_iou50": (" IoU50", None),
    "_brats": (" GLI", _BRATS_MM),
    "_brats_men": (" MEN", _BRATS_MM),
    "_brats_met": (" MET", _BRATS_MM),
}


def _lesion_metrics(rule: str) -> list[Metric]:
    """What `lesions.py` gives for one rule of matching."""
    short, missed_mm = _LESION_RULES[rule]
    shares = {"sensitivity": "sens.", "precision": "prec.", "f1": "F1", "dice": "Dice"}
    if rule == "_iou50":
        shares |= {"sq": "SQ", "pq": "PQ"}
    rows = [
        Metric(f"lesion_{n}{rule}", "1", "overlap", f"les. {t}{short}", "lesions", False) for n, t in shares.items()
    ]
    title = f"les. HD95{short or ' mm'}"
    return [*rows, Metric(f"lesion_hd95{rule}", "mm", "distance", title, "lesions", False, missed_mm)]


def _calibration_metrics(suffix: str, where: str) -> list[Metric]:
    """What `calibration.py` gives for one part of the image."""
    titles = {"ece": "ECE", "ece_equal_mass": "ECE eq. mass", "mce": "MCE", "brier": "Brier", "nll": "NLL"}
    return [Metric(f"{n}{suffix}", "1", "difference", f"{t}{where}", "calibration", False) for n, t in titles.items()]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("dice", "1", "overlap", "Dice", "counts"),
        Metric("iou", "1", "overlap", "IoU", "counts"),
        Metric("sensitivity", "1", "overlap", "sensitivity", "counts"),
        Metric("precision", "1", "overlap", "precision", "counts"),
        Metric("nsd", "1", "overlap", "NSD", "lattice"),
        Metric("hd95", "mm", "distance", "HD95 mm", "lattice"),
        Metric("hd", "mm", "distance", "HD mm", "lattice"),
        Metric("assd", "mm", "distance", "ASSD mm", "lattice"),
        Metric("masd", "mm", "distance", "MASD mm", "lattice"),
        Metric("hd95_voxel_max", "mm", "distance", "HD95 voxel max mm", "voxel"),
        Metric("hd95_voxel_pooled", "mm", "distance", "HD95 voxel pooled mm", "voxel"),
        Metric("nsd_voxel", "1", "overlap", "NSD voxel", "voxel", is_default=False),
        Metric("hd_voxel", "mm", "distance", "HD voxel mm", "voxel", is_default=False),
        Metric("assd_voxel", "mm", "distance", "ASSD voxel mm", "voxel", is_default=False),
        Metric("masd_voxel", "mm", "distance", "MASD voxel mm", "voxel", is_default=False),
        Metric("hd95_mc", "mm", "distance", "HD95 mc mm", "mc"),
        Metric("nsd_mc", "1", "overlap", "NSD mc", "mc"),
        Metric("assd_mc", "mm", "distance", "ASSD mc mm", "mc"),
        Metric("hd_mc", "mm", "distance", "HD mc mm", "mc", is_default=False),
        Metric("masd_mc", "mm", "distance", "MASD mc mm", "mc", is_default=False),
        Metric("volume_difference", "mm3", "difference", "volume diff. mm³", "counts"),
        Metric("relative_volume_difference", "1", "difference", "volume diff. rel.", "counts"),
        Metric("cldice", "1", "overlap", "clDice", "centreline", is_default=False),
        Metric("cldice_sensitivity", "1", "overlap", "clDice sens.", "centreline", is_default=False),
        Metric("cldice_precision", "1", "overlap", "clDice prec.", "centreline", is_default=False),
        *(metric for rule in _LESION_RULES for metric in _lesion_metrics(rule)),
        *_calibration_metrics("", ""),
        *_calibration_metrics("_image", " img"),
    )
}
DEFAULT_METRICS = tuple(name for name, metric in METRICS.items() if metric.is_default)


def parse_metrics(text: str) -> tuple[str, ...]:
    """Names of metrics from `all` or `dice,hd95,hd95_mc`, in the order of `METRICS`.

    Raises:
        UsageError: If a name is unknown.
    """
    if text.strip() == "all":
        return tuple(METRICS)
    names = {name.strip() for name in text.split(",")}
    unknown = sorted(names - set(METRICS))
    if unknown:
        raise UsageError(f"metric {unknown[0]!r} is unknown.{did_you_mean(unknown[0], list(METRICS))}")
    return tuple(name for name in METRICS if name in names)


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
    reference: Mask,
    prediction: Mask,
    spacing_mm: tuple[float, ...],
    nsd_tolerance_mm: float | None = None,
    metrics: Collection[str] = DEFAULT_METRICS,
) -> tuple[Overlap, dict[str, float]]:
    """Metrics of one label in one case, of those groups that counts and surfaces give.

    Args:
        reference: Mask (Z, Y, X), bool. A single slice is measured as a contour in 2D.
        prediction: Mask of the same shape.
        spacing_mm: Voxel edge along Z, Y, X.
        nsd_tolerance_mm: Tolerance of `nsd`; without it there is no `nsd`, since no tolerance fits every organ.
        metrics: Names of `METRICS`; those of other groups are passed over.

    Returns:
        The counts, and values by name. `hd95`, `hd`, `assd` and `nsd` follow the `lattice` model: HD95 is the larger
        of the two directed percentiles of surface area. `hd95_voxel_max` is MONAI's number and `hd95_voxel_pooled`
        MedPy's: the three may differ by many voxels on the same masks.

    Raises:
        ValueError: If shapes differ or either array is not bool.
    """
    overlap = overlap_of(reference, prediction)
    values = count_values(overlap, spacing_mm)
    models = {METRICS[name].group for name in metrics}
    for model, distances in mask_distances(reference, prediction, spacing_mm, models).items():
        values |= surface_values(model, distances, nsd_tolerance_mm, metrics)
    return overlap, {name: values[name] for name in METRICS if name in metrics and name in values}


def count_values(overlap: Overlap, spacing_mm: tuple[float, ...]) -> dict[str, float]:
    """Every metric of the group `counts`."""
    return {
        "dice": dice(overlap),
        "iou": iou(overlap),
        "sensitivity": sensitivity(overlap),
        "precision": precision(overlap),
        "volume_difference": volume_difference_mm3(overlap, spacing_mm),
        "relative_volume_difference": relative_volume_difference(overlap),
    }


def surface_values(
    model: str, distances: SurfaceDistances, nsd_tolerance_mm: float | None, metrics: Collection[str]
) -> dict[str, float]:
    """Those of some metrics that one surface model gives; those of `lattice` carry no suffix."""
    suffix = "" if model == "lattice" else f"_{model}"
    statistics: dict[str, Callable[[SurfaceDistances], float]] = {
        f"hd{suffix}": surfaces.hausdorff_mm,
        f"assd{suffix}": surfaces.mean_surface_distance_mm,
        f"masd{suffix}": surfaces.mean_directed_distance_mm,
    }
    if model == "voxel":
        statistics["hd95_voxel_max"] = partial(surfaces.hausdorff_interpolated_mm, fraction=0.95)
        statistics["hd95_voxel_pooled"] = partial(surfaces.hausdorff_pooled_mm, fraction=0.95)
    else:
        statistics[f"hd95{suffix}"] = partial(surfaces.hausdorff_percentile_mm, fraction=0.95)
    if nsd_tolerance_mm is not None:
        statistics[f"nsd{suffix}"] = partial(surfaces.surface_dice, tolerance_mm=nsd_tolerance_mm)
    return {name: statistic(distances) for name, statistic in statistics.items() if name in metrics}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else nan
