"""Lesion by lesion: which of the reference were found, how well, and which of the prediction are false alarms.

A lesion is a connected piece of a mask, pieces that meet at a corner included. Which lesion of the prediction belongs
to which of the reference is decided by a rule; a number depends on it, so a metric carries its rule in its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from math import inf, isinf, nan, prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, find_objects, generate_binary_structure, label
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from segpipe.core.files import write_text
from segpipe.core.labels import Mask
from segpipe.core.text import csv_text
from segpipe.evaluate.evaluation_case import EvaluationCase, GroupScores
from segpipe.evaluate.metrics import Overlap, Status, case_metrics, dice, iou
from segpipe.evaluate.surfaces.distances import hausdorff_percentile_mm, lattice_distances

Ids = NDArray[np.int32]  # 0 for background, else the number of a lesion


@dataclass(frozen=True)
class LesionRule:
    """A rule for which lesions belong together.

    Args:
        pairing: `many`: a lesion of the reference is compared with all of the prediction that touch it. `one`: at most
            one lesion belongs to another; as many pairs as possible are formed, among these the best.
        min_share: What two lesions must share, a fraction that must be exceeded: with `one` of their union (IoU),
            with `many` of the smaller of the two. 0 asks for one voxel.
        dilation_vox: Lesions of the reference nearer to each other than twice this are one lesion, and those of the
            prediction touch it if they come as near as this.
        min_volume_mm3: Lesions of the reference of this volume or less count nowhere, nor do those that touch them.
        missed_mm: Distance that a lesion without partner counts; None for the diagonal of the image.
    """

    pairing: Literal["many", "one"]
    min_share: float = 0.0
    dilation_vox: int = 0
    min_volume_mm3: float = 0.0
    missed_mm: float | None = None


SCORES = ("sensitivity", "precision", "f1", "dice", "hd95", "sq", "pq")
_BRATS_MM = 374.0  # diagonal of the BraTS image, 240×240×155 mm rounded up
RULES: dict[str, LesionRule] = {  # by the end of the metric's name
    "": LesionRule("many"),
    "_overlap50": LesionRule("many", min_share=0.5),
    "_iou10": LesionRule("one", min_share=0.1),
    "_iou25": LesionRule("one", min_share=0.25),
    "_iou50": LesionRule("one", min_share=0.5),
    "_brats": LesionRule("many", dilation_vox=3, min_volume_mm3=50, missed_mm=_BRATS_MM),  # glioma, Africa, paediatric
    "_brats_men": LesionRule("many", dilation_vox=1, min_volume_mm3=50, missed_mm=_BRATS_MM),
    "_brats_met": LesionRule("many", dilation_vox=1, min_volume_mm3=2, missed_mm=_BRATS_MM),
}


@dataclass(frozen=True)
class Lesion:
    """A lesion of the reference with its partners, or one of the prediction without any.

    Args:
        overlap: Sizes; its status is `ok` (found), `missed` or `spurious` (a false alarm).
        hd95_mm: HD95 to its partners (`lattice`); inf without any, else NaN if it was not asked for.
        centre_zyx: Centre of the voxels, of the reference where there is one, as an index of the array.
    """

    overlap: Overlap
    hd95_mm: float
    centre_zyx: tuple[float, ...]


@dataclass(frozen=True)
class Lesions:
    """All lesions of one label in one case.

    Args:
        lesions: Those of the reference, then the false alarms.
        n_predicted: Lesions of the prediction; with `many` several may belong to one of the reference.
    """

    lesions: tuple[Lesion, ...]
    n_predicted: int

    def count(self, status: Status) -> int:
        """Lesions that were found (`ok`), `missed`, or are false alarms (`spurious`)."""
        return sum(lesion.overlap.status == status for lesion in self.lesions)

    @property
    def status(self) -> Status:
        """The side without a lesion that counts."""
        n_reference = self.count("ok") + self.count("missed")
        return Overlap(n_reference, self.n_predicted, 0).status


def match_lesions(
    reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...], rule: LesionRule, with_hd95: bool = True
) -> Lesions:
    """Find the lesions of two masks and which belong together.

    Args:
        reference: Mask (Z, Y, X), bool; a crop around both masks gives the same lesions as the image.
        prediction: Mask of the same shape.
        spacing_mm: Voxel edge along Z, Y, X.
        rule: What belongs together.
        with_hd95: Also the HD95 of every lesion that was found, which takes most of the time.

    Source:
        `one` with IoU > 0.5: Kirillov et al. 2019, CVPR, section 4.1. `many` with dilation: the lesion-wise metrics of
        BraTS 2023. There every lesion is dilated in the whole image; here once all, since the dilations of lesions
        that are not joined do not meet.
    """
    zones, references = _zones_and_lesions(reference, rule.dilation_vox)
    return match_numbered(references, _label_components(prediction), spacing_mm, rule, with_hd95, zones)


def match_numbered(
    references: Ids,
    predictions: Ids,
    spacing_mm: tuple[float, ...],
    rule: LesionRule,
    with_hd95: bool = True,
    zones: Ids | None = None,
) -> Lesions:
    """Find which lesions belong together that were told apart before, e.g. by the files.

    Args:
        references: (Z, Y, X) int32, 0 for background, lesions numbered from 1 without gap.
        predictions: The same of the prediction.
        spacing_mm, rule, with_hd95: As in `match_lesions`; nothing is dilated here.
        zones: Where each lesion of the reference is touched, by its number; None for the lesion itself.
    """
    zones = references if zones is None else zones
    sizes = np.bincount(references.ravel(), minlength=1)[1:], np.bincount(predictions.ravel(), minlength=1)[1:]
    pairs, n_both = _pairs(zones, references, predictions)
    linked = _matching_places(pairs, n_both, sizes, rule)
    linked = linked[np.argsort(pairs[linked, 0], kind="stable")]
    pairs, n_both = pairs[linked], n_both[linked]
    first = np.searchsorted(pairs[:, 0], np.arange(len(sizes[0]) + 1))
    is_counted = sizes[0] * float(np.prod(spacing_mm)) > rule.min_volume_mm3
    hd95_mm = _hd95_between(references, predictions, spacing_mm) if with_hd95 and len(pairs) else None
    lesions: list[Lesion] = []
    centres = _centres(references, sizes[0])
    for number in np.flatnonzero(is_counted).tolist():
        own = slice(first[number], first[number + 1])
        partners = pairs[own, 1]
        overlap = Overlap(int(sizes[0][number]), int(sizes[1][partners].sum()), int(n_both[own].sum()))
        distance_mm = inf if not len(partners) else nan if hd95_mm is None else hd95_mm(number, partners)
        lesions.append(Lesion(overlap, distance_mm, tuple(centres[number].tolist())))
    centres = _centres(predictions, sizes[1])
    is_alone = ~np.isin(np.arange(len(sizes[1])), pairs[:, 1])
    for number in np.flatnonzero(is_alone).tolist():
        lesions.append(Lesion(Overlap(0, int(sizes[1][number]), 0), inf, tuple(centres[number].tolist())))
    n_true = len(np.unique(pairs[is_counted[pairs[:, 0]], 1]))
    return Lesions(tuple(lesions), n_true + int(is_alone.sum()))


def lesion_scores(lesions: Lesions, missed_mm: float) -> dict[str, float]:
    """Summarise the lesions of one label in one case.

    Args:
        lesions: As `match_lesions` gives them.
        missed_mm: Distance that a lesion without partner counts.

    Returns:
        `sensitivity`: share of the reference's lesions that were found; NaN if there are none. `precision`: share of
        the prediction's lesions that belong to one; NaN if there are none. `f1`: their harmonic mean. `dice`, `hd95`:
        mean over the lesions of the reference and the false alarms, where one without partner counts 0 and `missed_mm`
        (`hd95` is inf if one side has no lesion at all, as between masks). `sq`: mean IoU of the found, 0 if none was;
        as a mean over pairs it does not see what was missed. `pq`: `sq` times `f1`. All are NaN if there is no lesion.

    Source:
        Dice and HD95: BraTS 2023, except that `missed_mm` is 374 mm there. Quality: Kirillov et al. 2019, CVPR, eq. 2.
    """
    status, all_lesions = lesions.status, lesions.lesions
    if status == "both_empty":
        return dict.fromkeys(SCORES, nan)
    n_found, n_missed, n_alone = (lesions.count(s) for s in ("ok", "missed", "spurious"))
    sensitivity = n_found / (n_found + n_missed) if n_found + n_missed else nan
    precision = 1 - n_alone / lesions.n_predicted if lesions.n_predicted else nan
    f1 = 2 * sensitivity * precision / (sensitivity + precision) if n_found else 0.0
    distances_mm = [missed_mm if isinf(one.hd95_mm) else one.hd95_mm for one in all_lesions]
    sq = sum(iou(one.overlap) for one in all_lesions) / n_found if n_found else 0.0
    return {
        "sensitivity": sensitivity,
        "precision": precision,
        "f1": f1,
        "dice": float(np.mean([dice(one.overlap) for one in all_lesions])),
        "hd95": float(np.mean(distances_mm)) if status == "ok" else inf,
        "sq": sq,
        "pq": sq * f1,
    }


def _label_components(mask: Mask) -> Ids:
    if not mask.size:
        return np.zeros(mask.shape, np.int32)
    ids: Ids = label(mask, generate_binary_structure(mask.ndim, mask.ndim))[0]
    return ids


def _zones_and_lesions(reference: Mask, dilation_vox: int) -> tuple[Ids, Ids]:
    """The zones that count as touching each reference lesion, and the lesions."""
    if not dilation_vox:
        ids = _label_components(reference)
        return ids, ids
    ball = generate_binary_structure(reference.ndim, min(2, reference.ndim))
    zones = _label_components(binary_dilation(reference, ball, iterations=dilation_vox))
    return zones, np.where(reference, zones, 0)


def _centres(ids: Ids, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean index of the voxels of each lesion, (n, axes)."""
    places = np.flatnonzero(ids)
    owner = ids.ravel()[places] - 1
    axes = np.unravel_index(places, ids.shape)
    return np.stack([np.bincount(owner, axis, len(sizes)) for axis in axes], axis=1) / sizes[:, None]


def _pairs(zones: Ids, references: Ids, predictions: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every two lesions (counted from 0) that touch, (n, 2), and the voxels they share."""
    touches = np.flatnonzero((zones > 0) & (predictions > 0))
    n = int(predictions.max(initial=0)) + 1
    keys = zones.ravel()[touches].astype(np.int64) * n + predictions.ravel()[touches]
    found, place = np.unique(keys, return_inverse=True)
    n_both = np.bincount(place, references.ravel()[touches] > 0, len(found)).astype(np.int64)
    return np.stack([found // n, found % n], axis=1) - 1, n_both


def _matching_places(
    pairs: NDArray[np.int64],
    n_both: NDArray[np.int64],
    sizes: tuple[NDArray[np.int64], ...],
    rule: LesionRule,
) -> NDArray[np.int64]:
    """Places in `pairs` of those that belong together."""
    first, second = sizes[0][pairs[:, 0]], sizes[1][pairs[:, 1]]
    if rule.pairing == "many":
        return np.flatnonzero((n_both > rule.min_share * np.minimum(first, second)) | (rule.min_share == 0))
    shares = n_both / (first + second - n_both)
    allowed = np.flatnonzero(shares > rule.min_share)
    return allowed[_best_assignment(pairs[allowed], shares[allowed])]


def _best_assignment(pairs: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of pairs, none of which share a lesion: as many as possible, then with the largest sum of `shares`."""
    if not len(pairs):
        return np.zeros(0, np.int64)
    first, second = (np.unique(column, return_inverse=True)[1] for column in pairs.T)
    n_first = int(first.max()) + 1
    n = n_first + int(second.max()) + 1
    group = connected_components(coo_array((shares, (first, n_first + second)), (n, n)), directed=False)[1][first]
    chosen: list[int] = []
    order = np.argsort(group, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        rows, row = np.unique(first[places], return_inverse=True)
        columns, column = np.unique(second[places], return_inverse=True)
        worth = np.zeros((len(rows), len(columns)))
        worth[row, column] = len(rows) + shares[places]  # one more pair outweighs every overlap
        place_of = dict(zip(zip(row, column, strict=True), places, strict=True))
        solved = zip(*linear_sum_assignment(worth, maximize=True), strict=True)
        chosen += [int(place_of[cell]) for cell in solved if cell in place_of]
    return np.array(chosen, np.int64)


def _hd95_between(
    references: Ids, predictions: Ids, spacing_mm: tuple[float, ...]
) -> Callable[[int, NDArray[np.int64]], float]:
    """A function from a lesion and its partners to their HD95, measured on the part of the image around them."""
    boxes = find_objects(references), find_objects(predictions)

    def hd95_mm(number: int, partners: NDArray[np.int64]) -> float:
        box = _around([boxes[0][number], *(boxes[1][partner] for partner in partners)])
        masks = references[box] == number + 1, np.isin(predictions[box], partners + 1)
        return hausdorff_percentile_mm(lattice_distances(*masks, spacing_mm), 0.95)

    return hd95_mm


def _around(boxes: Sequence[tuple[slice, ...]]) -> tuple[Any, ...]:
    """Box of all boxes and a voxel more, so that one slice of a volume is not taken for a contour."""
    axes = zip(*boxes, strict=True)
    return tuple(slice(max(0, min(s.start for s in axis) - 1), max(s.stop for s in axis) + 1) for axis in axes)


@dataclass(frozen=True)
class LesionRow:
    """A row of lesions.csv; its fields are the columns, in this order.

    Args:
        case_id, label: Where.
        rule: How lesions were matched: the end of the metrics' names, `any` for those without.
        lesion: Number within case, label and rule, from 1.
        status: `ok` (found), `missed`, or `spurious` (a false alarm).
        n_reference_vox, n_prediction_vox: Sizes of the lesion and of all its partners.
        volume_mm3: Of the lesion; of the prediction for a false alarm.
        dice, iou: With its partners.
        hd95_mm: inf without partner, NaN if no metric asked for it.
        x_mm, y_mm, z_mm: Centre, RAS.
    """

    case_id: str
    label: str
    rule: str
    lesion: int
    status: Status
    n_reference_vox: int
    n_prediction_vox: int
    volume_mm3: float
    dice: float
    iou: float
    hd95_mm: float
    x_mm: float
    y_mm: float
    z_mm: float


def lesion_group(case: EvaluationCase) -> GroupScores:
    """Lesions of every label under every rule that a chosen metric names."""
    chosen = case_metrics("lesions", case.settings.metrics)
    diagonal_mm = float(np.linalg.norm(np.multiply(case.grid.shape_zyx, case.grid.spacing_mm)))
    values: dict[str, dict[str, float]] = {}
    statuses: dict[str, dict[str, Status]] = {}
    details: list[LesionRow] = []
    for label_name in case.labels.names:
        values[label_name], statuses[label_name] = {}, {}
        masks = case.masks(label_name)
        for end, rule in RULES.items():
            names = {name: value.key for name, value in chosen.items() if value.variant == end}
            if names:
                lesions = match_lesions(*masks, case.grid.spacing_mm, rule, "hd95" in names.values())
                scores = lesion_scores(lesions, diagonal_mm if rule.missed_mm is None else rule.missed_mm)
                values[label_name] |= {name: scores[what] for name, what in names.items()}
                statuses[label_name] |= dict.fromkeys(names, lesions.status)
                details += _rows(lesions, case, label_name, end.removeprefix("_") or "any")
    return GroupScores(values, tuple(details), statuses)


def _rows(lesions: Lesions, case: EvaluationCase, label_name: str, rule: str) -> list[LesionRow]:
    rows = []
    start_zyx = [axis.start for axis in case.boxes[label_name] or ()]
    for number, one in enumerate(lesions.lesions, 1):
        overlap = one.overlap
        n_own_vox = overlap.n_reference_vox or overlap.n_prediction_vox
        index_zyx = np.add(one.centre_zyx, start_zyx)
        x_mm, y_mm, z_mm = (case.grid.affine_ras_mm @ [*index_zyx[::-1], 1.0])[:3].tolist()
        volume_mm3 = n_own_vox * prod(case.grid.spacing_mm)
        sizes = overlap.n_reference_vox, overlap.n_prediction_vox
        shares = dice(overlap), iou(overlap)
        place = case.case_id, label_name, rule, number
        rows.append(LesionRow(*place, overlap.status, *sizes, volume_mm3, *shares, one.hd95_mm, x_mm, y_mm, z_mm))
    return rows


def lesions_path(scores: Path) -> Path:
    """Path of the lesions of a table of scores: `lesions.csv` beside `scores.csv`, `b_lesions.csv` beside `b.csv`."""
    own = scores.stem.removesuffix("scores").rstrip("_-")
    return scores.with_name(f"{own}_lesions.csv" if own else "lesions.csv")


def save_lesions(rows: Sequence[LesionRow], path: Path) -> None:
    """Write rows as CSV, whole or not at all.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the place is not writable.
    """
    write_text(path, csv_text([[field.name for field in fields(LesionRow)], *map(astuple, rows)]))
