"""The lesions of a case as metrics and as rows of lesions.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from math import prod
from pathlib import Path

import numpy as np

from segpipe.core.files import write_text
from segpipe.evaluate.case import Case, GroupScores
from segpipe.evaluate.lesions import RULES, SCORES, Lesions, lesion_scores, match_lesions
from segpipe.evaluate.metrics import METRICS, Status, dice, iou


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


def lesion_group(case: Case) -> GroupScores:
    """Lesions of every label under every rule that a chosen metric names."""
    chosen = [name for name in case.settings.metrics if METRICS[name].group == "lesions"]
    diagonal_mm = float(np.linalg.norm(np.multiply(case.grid.shape_zyx, case.grid.spacing_mm)))
    values: dict[str, dict[str, float]] = {}
    statuses: dict[str, dict[str, Status]] = {}
    details: list[LesionRow] = []
    for label_name in case.labels.names:
        values[label_name], statuses[label_name] = {}, {}
        masks = case.masks(label_name)
        for end, rule in RULES.items():
            names = {f"lesion_{what}{end}": what for what in SCORES if f"lesion_{what}{end}" in chosen}
            if names:
                lesions = match_lesions(*masks, case.grid.spacing_mm, rule, "hd95" in names.values())
                scores = lesion_scores(lesions, diagonal_mm if rule.missed_mm is None else rule.missed_mm)
                values[label_name] |= {name: scores[what] for name, what in names.items()}
                statuses[label_name] |= dict.fromkeys(names, lesions.status)
                details += _rows(lesions, case, label_name, end.removeprefix("_") or "any")
    return GroupScores(values, tuple(details), statuses)


def _rows(lesions: Lesions, case: Case, label_name: str, rule: str) -> list[LesionRow]:
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
    """Where the lesions of a table of scores go: `lesions.csv` beside `scores.csv`, `b_lesions.csv` beside `b.csv`."""
    own = scores.stem.removesuffix("scores").rstrip("_-")
    return scores.with_name(f"{own}_lesions.csv" if own else "lesions.csv")


def save_lesions(rows: Sequence[LesionRow], path: Path) -> None:
    """Write rows as CSV, whole or not at all.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the place is not writable.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(LesionRow)])
    writer.writerows(astuple(row) for row in rows)
    write_text(path, text.getvalue())
