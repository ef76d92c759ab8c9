"""The metrics of one label in one case: a table of all there is to know of them, and what computes them.

`METRICS` is that table. Names in scores.csv, `--metrics` and its corrections of typing errors, titles, units, what
empty masks count in a mean, the methods paragraph and the table of docs/evaluation.md all follow from it.

To add a metric of voxel counts, write a function of an `Overlap` beside `dice`, and a row of the table with
`FromCounts(function)`. A metric of surface distances is a function of `SurfaceDistances` and a row with
`FromSurfaces(model, function)`. Metrics that need the whole case (lesions, centrelines, probabilities) are computed by
a group of `scoring.GROUPS`; their rows name the group and the group's own key for the number, `FromCase(group, key)`.

A raw value is never made up: where both masks are empty there is nothing to measure (NaN), where one is, distances
are infinite. What that means for a mean is decided when aggregating (`summary.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite, isnan, nan, prod
from typing import Literal

import numpy as np

from segpipe.core.errors import UsageError
from segpipe.core.labels import Mask
from segpipe.core.records import did_you_mean
from segpipe.evaluate.surfaces.distances import (
    SurfaceDistances,
    hausdorff_interpolated_mm,
    hausdorff_mm,
    hausdorff_percentile_mm,
    hausdorff_pooled_mm,
    mask_distances,
    mean_directed_distance_mm,
    mean_surface_distance_mm,
    surface_dice,
)

Spacing = tuple[float, ...]
Status = Literal["ok", "both_empty", "missed", "spurious"]
STATUSES: tuple[Status, ...] = ("ok", "both_empty", "missed", "spurious")
SHOWN_UNITS = {"1": "", "mm": "mm", "mm3": "mL"}  # tables for programs keep mm3; people see one unit for volumes
_DECIMALS = {"1": 3, "mm": 2, "mm3": 3}


@dataclass(frozen=True)
class Overlap:
    """Sizes of two masks and of their intersection, in voxels."""

    n_reference_vox: int
    n_prediction_vox: int
    n_both_vox: int

    @property
    def status(self) -> Status:
        """The empty mask, if any: `missed` if the prediction is, `spurious` if the reference is."""
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


def volume_difference_mm3(overlap: Overlap, spacing_mm: Spacing) -> float:
    """Prediction minus reference in mm³, negative if the prediction is too small."""
    return (overlap.n_prediction_vox - overlap.n_reference_vox) * prod(spacing_mm)


def relative_volume_difference(overlap: Overlap) -> float:
    """(Prediction − reference) / reference, -1 or more; inf if only the reference is empty, NaN if both are."""
    if not overlap.n_reference_vox:
        return inf if overlap.n_prediction_vox else nan
    return (overlap.n_prediction_vox - overlap.n_reference_vox) / overlap.n_reference_vox


@dataclass(frozen=True)
class FromCounts:
    """A metric that follows from the sizes of both masks and of their intersection.

    Args:
        compute: Called with an `Overlap`, and with the spacing if `needs_spacing`.
        needs_spacing: Whether the value is in mm or mm³.
    """

    compute: Callable[..., float]
    needs_spacing: bool = False
    group: Literal["counts"] = "counts"


@dataclass(frozen=True)
class FromSurfaces:
    """A metric that follows from the distances between two surfaces.

    Args:
        group: What a surface is, a name in `surfaces.distances.MODELS`.
        compute: Called with `SurfaceDistances`, and with the tolerance in mm if `needs_tolerance`.
        needs_tolerance: Whether there is no value without a tolerance.
    """

    group: Literal["lattice", "voxel", "mc"]
    compute: Callable[..., float]
    needs_tolerance: bool = False


@dataclass(frozen=True)
class FromCase:
    """A metric that a group computes from the whole case together with its other ones.

    Args:
        group: A name in `scoring.GROUPS`.
        key: What the group calls the number.
        variant: How it is computed: the rule of matching of lesions, the part of the image for calibration.
    """

    group: Literal["centreline", "lesions", "calibration"]
    key: str
    variant: str = ""


@dataclass(frozen=True)
class Metric:
    """All there is to know of a metric.

    Args:
        name: As in scores.csv.
        unit: `1` for a share, `mm`, `mm3`.
        kind: `overlap` (0 worst, 1 best), `distance` (0 best, no upper bound) or `difference` (0 best, either sign but
            for calibration; it is defined where a mask is empty too, so no policy replaces it).
        title: For tables that people read, without the unit.
        description: What it is, to follow "TITLE is".
        value: Where its value comes from.
        is_default: Whether it is computed when no metric is named.
        source: Who defined it; empty where it needs none.
        missed_mm: What a missed structure counts in the metric's own definition; None leaves it to the policy.
    """

    name: str
    unit: Literal["1", "mm", "mm3"]
    kind: Literal["overlap", "distance", "difference"]
    title: str
    description: str
    value: FromCounts | FromSurfaces | FromCase
    is_default: bool = True
    source: str = ""
    missed_mm: float | None = None

    @property
    def group(self) -> str:
        """The source of its value, shared with the others of its group."""
        return self.value.group

    @property
    def heading(self) -> str:
        """Title with the unit that people see."""
        if self.group == "lesions" and self.missed_mm is None and self.name != "lesion_hd95":
            return self.title  # the title of a rule fills the column of a terminal
        return f"{self.title} {SHOWN_UNITS[self.unit]}".rstrip()

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value that a case can have."""
        if self.name == "relative_volume_difference":
            return (-1.0, inf)
        if self.group == "calibration":
            return (0.0, inf)
        return {"overlap": (0.0, 1.0), "distance": (0.0, inf), "difference": (-inf, inf)}[self.kind]

    @property
    def best(self) -> float:
        """The value of a perfect mask."""
        return 1.0 if self.kind == "overlap" else 0.0


_BRATS_MM = 374.0  # diagonal of the BraTS image, 240×240×155 mm rounded up
_AREA = "weighted by surface area"
_HD95 = partial(hausdorff_percentile_mm, fraction=0.95)
_LATTICE_HD95 = f"the larger of the two directed 95th percentiles of the distances between the surfaces, {_AREA}"
_DIRECTED = "the mean of the two directed mean distances between the surfaces"
_POOLED = "the mean distance between the surfaces, both directions pooled"
_LARGEST = "the largest distance between the surfaces"
_WITHIN = "the share of both surfaces within a tolerance of the other one"
_NIKOLOV = "Nikolov et al. 2021"
_OF_SURFACES = {"voxel": ", each surface voxel counting once", "mc": ", on marching-cubes surfaces"}


def _distance(name: str, title: str, text: str, value: FromSurfaces, is_default: bool, source: str = "") -> Metric:
    return Metric(name, "mm", "distance", title, text + _OF_SURFACES.get(value.group, ""), value, is_default, source)


def _nsd(name: str, title: str, model: Literal["lattice", "voxel", "mc"], is_default: bool) -> Metric:
    value = FromSurfaces(model, surface_dice, needs_tolerance=True)
    return Metric(name, "1", "overlap", title, _WITHIN + _OF_SURFACES.get(model, ""), value, is_default, _NIKOLOV)


def _tubes(name: str, title: str, text: str) -> Metric:
    return Metric(name, "1", "overlap", title, text, FromCase("centreline", name), False, "Shit et al. 2021")


_LESION_RULES: dict[str, tuple[str, str, float | None]] = {  # see `lesions.RULES`: in titles, in words, missed_mm
    "": ("", "touching counts as found", None),
    "_overlap50": (" ov50", "half of the smaller lesion must be shared", None),
    "_iou10": (" IoU10", "pairs one to one with an IoU above 0.1", None),
    "_iou25": (" IoU25", "pairs one to one with an IoU above 0.25", None),
    "_iou50": (" IoU50", "pairs one to one with an IoU above 0.5", None),
    "_brats": (" GLI", "as in BraTS glioma 2023", _BRATS_MM),
    "_brats_men": (" MEN", "as in BraTS meningioma 2023", _BRATS_MM),
    "_brats_met": (" MET", "as in BraTS metastases 2023", _BRATS_MM),
}
_LESION_SHARES = {  # title, description
    "sensitivity": ("sens.", "the share of reference lesions that were found"),
    "precision": ("prec.", "the share of predicted lesions that belong to a reference lesion"),
    "f1": ("F1", "the harmonic mean of lesion sensitivity and lesion precision"),
    "dice": ("Dice", "the mean Dice over lesions, 0 for one that was missed and for a false alarm"),
}
_LESION_QUALITY = {
    "sq": ("SQ", "segmentation quality, the mean IoU of the lesions that were found"),
    "pq": ("PQ", "panoptic quality, segmentation quality times lesion F1"),
}


def _lesion_metrics(rule: str) -> list[Metric]:
    """Rows of one rule of matching."""
    short, words, missed_mm = _LESION_RULES[rule]
    shares = _LESION_SHARES | (_LESION_QUALITY if rule == "_iou50" else {})
    source = "Kirillov et al. 2019" if rule == "_iou50" else "BraTS 2023" if missed_mm else ""
    rows = [
        Metric(
            f"lesion_{key}{rule}",
            "1",
            "overlap",
            f"les. {title}{short}",
            f"{text} ({words})",
            FromCase("lesions", key, rule),
            False,
            source,
        )
        for key, (title, text) in shares.items()
    ]
    text = f"the mean HD95 over lesions, the worst distance for one that was missed and for a false alarm ({words})"
    value = FromCase("lesions", "hd95", rule)
    return [
        *rows,
        Metric(f"lesion_hd95{rule}", "mm", "distance", f"les. HD95{short}", text, value, False, source, missed_mm),
    ]


_GAP = "the mean gap between probability and frequency over 15 bins"
_CALIBRATION = {  # title, description, source
    "ece": ("ECE", f"{_GAP} of equal width", "Guo et al. 2017"),
    "ece_equal_mass": (
        "ECE eq. mass",
        f"{_GAP} of equally many voxels",
        "Naeini et al. 2015",
    ),
    "mce": ("MCE", "the largest gap between probability and frequency over 15 bins", "Naeini et al. 2015"),
    "brier": ("Brier", "the mean squared difference between probability and truth", "Brier 1950"),
    "nll": ("NLL", "the mean of the negative logarithm of the probability of the truth", ""),
}


def _calibration_metrics(variant: str, where: str, words: str) -> list[Metric]:
    """Rows of one part of the image."""
    return [
        Metric(
            f"{key}{variant}",
            "1",
            "difference",
            f"{title}{where}",
            f"{text}, {words}",
            FromCase("calibration", key, variant),
            False,
            source,
        )
        for key, (title, text, source) in _CALIBRATION.items()
    ]


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "dice",
            "1",
            "overlap",
            "Dice",
            "twice the overlap of reference and prediction divided by the sum of their sizes",
            FromCounts(dice),
            source="Dice 1945",
        ),
        Metric(
            "iou", "1", "overlap", "IoU", "the overlap divided by the union", FromCounts(iou), source="Jaccard 1912"
        ),
        Metric(
            "sensitivity",
            "1",
            "overlap",
            "sensitivity",
            "the share of the reference that was found",
            FromCounts(sensitivity),
        ),
        Metric(
            "precision", "1", "overlap", "precision", "the share of the prediction that is right", FromCounts(precision)
        ),
        _nsd("nsd", "NSD", "lattice", True),
        _distance(
            "hd95", "HD95", _LATTICE_HD95, FromSurfaces("lattice", _HD95), True, "DeepMind's surface-distance, BraTS"
        ),
        _distance("hd", "HD", _LARGEST, FromSurfaces("lattice", hausdorff_mm), True),
        _distance("assd", "ASSD", f"{_POOLED}, {_AREA}", FromSurfaces("lattice", mean_surface_distance_mm), True),
        _distance("masd", "MASD", _DIRECTED, FromSurfaces("lattice", mean_directed_distance_mm), True),
        _distance(
            "hd95_voxel_max",
            "HD95 voxel max",
            "the larger of the two directed 95th percentiles of the distances between the surfaces, interpolated",
            FromSurfaces("voxel", partial(hausdorff_interpolated_mm, fraction=0.95)),
            True,
            "MONAI",
        ),
        _distance(
            "hd95_voxel_pooled",
            "HD95 voxel pooled",
            "the 95th percentile of the distances of both directions, interpolated",
            FromSurfaces("voxel", partial(hausdorff_pooled_mm, fraction=0.95)),
            True,
            "MedPy",
        ),
        _nsd("nsd_voxel", "NSD voxel", "voxel", False),
        _distance("hd_voxel", "HD voxel", _LARGEST, FromSurfaces("voxel", hausdorff_mm), False),
        _distance("assd_voxel", "ASSD voxel", _POOLED, FromSurfaces("voxel", mean_surface_distance_mm), False),
        _distance("masd_voxel", "MASD voxel", _DIRECTED, FromSurfaces("voxel", mean_directed_distance_mm), False),
        _distance("hd95_mc", "HD95 mc", _LATTICE_HD95, FromSurfaces("mc", _HD95), True),
        _nsd("nsd_mc", "NSD mc", "mc", True),
        _distance("assd_mc", "ASSD mc", f"{_POOLED}, {_AREA}", FromSurfaces("mc", mean_surface_distance_mm), True),
        _distance("hd_mc", "HD mc", _LARGEST, FromSurfaces("mc", hausdorff_mm), False),
        _distance("masd_mc", "MASD mc", _DIRECTED, FromSurfaces("mc", mean_directed_distance_mm), False),
        Metric(
            "volume_difference",
            "mm3",
            "difference",
            "volume diff.",
            "the volume of the prediction minus that of the reference",
            FromCounts(volume_difference_mm3, needs_spacing=True),
        ),
        Metric(
            "relative_volume_difference",
            "1",
            "difference",
            "volume diff. rel.",
            "the volume of the prediction minus that of the reference, divided by the latter",
            FromCounts(relative_volume_difference),
        ),
        _tubes("cldice", "clDice", "the harmonic mean of the shares of each centreline inside the other mask"),
        _tubes("cldice_sensitivity", "clDice sens.", "the share of the reference's centreline inside the prediction"),
        _tubes("cldice_precision", "clDice prec.", "the share of the prediction's centreline inside the reference"),
        *(metric for rule in _LESION_RULES for metric in _lesion_metrics(rule)),
        *_calibration_metrics("", "", "within 10 mm of the structure"),
        *_calibration_metrics("_image", " img", "over the whole image"),
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


def measure(
    reference: Mask,
    prediction: Mask,
    spacing_mm: Spacing,
    nsd_tolerance_mm: float | None = None,
    metrics: Collection[str] = DEFAULT_METRICS,
) -> tuple[Overlap, dict[str, float]]:
    """Metrics of one label in one case, of those groups that counts and surfaces give.

    Args:
        reference: Mask (Z, Y, X), bool. A single slice is measured as a contour in 2D.
        prediction: Mask of the same shape.
        spacing_mm: Voxel edge along Z, Y, X.
        nsd_tolerance_mm: Tolerance of `nsd`; without it there is no `nsd`, since no tolerance fits every organ.
        metrics: Names of `METRICS`; those of other groups are ignored.

    Returns:
        The counts, and values by name. `hd95`, `hd`, `assd` and `nsd` follow the `lattice` model: HD95 is the larger
        of the two directed percentiles of surface area. `hd95_voxel_max` is MONAI's number and `hd95_voxel_pooled`
        MedPy's: the three may differ by many voxels on the same masks.

    Raises:
        ValueError: If shapes differ or either array is not bool.
    """
    overlap = overlap_of(reference, prediction)
    values = count_values(overlap, spacing_mm, metrics)
    models = {METRICS[name].group for name in metrics}
    for model, distances in mask_distances(reference, prediction, spacing_mm, models).items():
        values |= surface_values(model, distances, nsd_tolerance_mm, metrics)
    return overlap, {name: values[name] for name in METRICS if name in values}


def count_values(overlap: Overlap, spacing_mm: Spacing, metrics: Collection[str]) -> dict[str, float]:
    """Compute those of some metrics that voxel counts give."""
    return {
        name: value.compute(overlap, spacing_mm) if value.needs_spacing else value.compute(overlap)
        for name in metrics
        if isinstance(value := METRICS[name].value, FromCounts)
    }


def surface_values(
    model: str, distances: SurfaceDistances, nsd_tolerance_mm: float | None, metrics: Collection[str]
) -> dict[str, float]:
    """Compute those of some metrics that one surface model gives; without a tolerance none that needs one."""
    values = {name: METRICS[name].value for name in metrics if METRICS[name].group == model}
    return {
        name: value.compute(distances, nsd_tolerance_mm) if value.needs_tolerance else value.compute(distances)
        for name, value in values.items()
        if isinstance(value, FromSurfaces) and not (value.needs_tolerance and nsd_tolerance_mm is None)
    }


def case_metrics(group: str, metrics: Collection[str]) -> dict[str, FromCase]:
    """Choose those of some metrics that a group of `scoring.GROUPS` gives, by name."""
    values = {name: METRICS[name].value for name in metrics}
    return {name: value for name, value in values.items() if isinstance(value, FromCase) and value.group == group}


def number_text(value: float | None, unit: str, signed: bool = False, n_decimals: int | None = None) -> str:
    """A value as people see it, without its unit; volumes become mL.

    Example:
        >>> number_text(0.91234, "1"), number_text(1500.0, "mm3", signed=True), number_text(float("inf"), "mm")
        ('0.912', '+1.500', '∞')
    """
    if value is None or not isfinite(value):
        return "–" if value is None or isnan(value) else "∞"
    scaled = value / 1000 if unit == "mm3" else value
    return f"{scaled:{'+' if signed else ''}.{_DECIMALS.get(unit, 0) if n_decimals is None else n_decimals}f}"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else nan
