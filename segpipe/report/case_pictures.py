"""Cases worth a look: which they are, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segpipe.core.errors import DataError, SegpipeError
from segpipe.core.grid import reorientation
from segpipe.core.volume import read_image_channels, read_labels, require_same_grid
from segpipe.evaluate.metrics import number_text
from segpipe.evaluate.scores import ScoreTable
from segpipe.report.overlay_pictures import DISPLAY_ORIENTATION, Overlay, overlay_png
from segpipe.report.page import STATUS_TEXT, Picture
from segpipe.report.volume_agreement import CaseKey
from segpipe.report.work_contents import FoldRun, Run, WorkFolder

_WORST = ("Worst case", "Second worst case", "Third worst case")
_MAX_LABELS = 6  # whose scores stand in a caption


def case_dice(table: ScoreTable) -> dict[CaseKey, float]:
    """Mean Dice over labels of each case, both masks empty as 1; from the worst to the best."""
    values: dict[CaseKey, list[float]] = {}
    for row in table.rows:
        if row.metric == "dice":
            values.setdefault(row.case_key, []).append(1.0 if row.status == "both_empty" else row.value)
    means = {key: float(np.mean(v)) for key, v in values.items()}
    return dict(sorted(means.items(), key=lambda item: (item[1], item[0][1])))


def case_pictures(work: WorkFolder, run: Run, table: ScoreTable, notes: list[str]) -> tuple[Picture, ...]:
    """The worst cases, the median and the best one, each once; what cannot be drawn is added to `notes`."""
    dice_of = case_dice(table)
    pictures: list[Picture] = []
    for key, rank in _ranks(list(dice_of)).items():
        if work.dataset is None:
            continue
        folds = [fold for fold in run.folds if key[2] is None or fold.name == str(key[2])]
        is_bad = rank in _WORST
        try:
            overlay, file_text = _overlay(work, folds, key[1], through_error=is_bad)
        except SegpipeError as fault:
            notes.append(f"no picture of {key[1]} ({rank.lower()}): {fault}")
            continue
        through = "largest error" if is_bad else "largest cross-sections of the reference"
        what = f"{rank}: {key[1]}, mean Dice {dice_of[key]:.3f}"
        caption = f"{what}{_label_scores(table, key)}. Planes through the {through}, the patient's right on the left."
        names = ", ".join(overlay.labels.names[:8])
        alt = f"{what}: orthogonal planes of {file_text} with contours of {names}; reference solid, prediction dashed."
        pictures.append(Picture("png", overlay_png(overlay), alt, caption))
    return tuple(pictures)


def _ranks(keys: Sequence[CaseKey]) -> dict[CaseKey, str]:
    """Cases to draw, from the worst; each with what it is."""
    n_worst = max(1, (len(keys) - 1) // 2)  # before the median
    ranks = dict(zip(keys[:n_worst], _WORST, strict=False))
    others = {keys[(len(keys) - 1) // 2]: "Median case", keys[-1]: "Best case"} if keys else {}
    return {**ranks, **{key: rank for key, rank in others.items() if key not in ranks}}


def _label_scores(table: ScoreTable, key: CaseKey) -> str:
    """Dice of each label if there are several, but few."""
    rows = [row for row in table.rows if row.case_key == key and row.metric == "dice"]
    if not 1 < len(rows) <= _MAX_LABELS:
        return ""
    texts = [
        f"{row.label} {number_text(row.value, row.unit) if row.status == 'ok' else STATUS_TEXT[row.status]}"
        for row in rows
    ]
    return f" ({', '.join(texts)})"


def _overlay(work: WorkFolder, folds: Sequence[FoldRun], case_id: str, through_error: bool) -> tuple[Overlay, str]:
    """One case, turned for display, and the names of its channels.

    Raises:
        DataError: If a file is missing or broken, or image and masks lie on different grids.
    """
    assert work.dataset is not None
    case = work.dataset.by_id.get(case_id)
    if case is None or case.label is None:
        raise DataError(f"{case_id}: has no label in dataset.json.")
    files = [fold.folder.validation / f"{case_id}.nii.gz" for fold in folds]
    file = next((path for path in files if path.exists()), None)
    if file is None:
        raise DataError(
            f"no mask validation/{case_id}.nii.gz in {', '.join(f.folder.path.name for f in folds) or 'any fold'}."
        )
    image = read_image_channels(case.image_paths[:2])
    reference, grid = read_labels(Path(case.label))
    prediction, prediction_grid = read_labels(file)
    require_same_grid(image.grid, grid, case.label)
    require_same_grid(grid, prediction_grid, str(file))
    turn = reorientation(grid, DISPLAY_ORIENTATION)
    z_mm, y_mm, x_mm = turn.permute(grid.spacing_mm)
    overlay = Overlay(
        image_czyx=turn.apply(image.voxels_czyx),
        channel_names=work.dataset.channels,
        reference_zyx=turn.apply(reference),
        prediction_zyx=turn.apply(prediction),
        labels=work.dataset.labels,
        spacing_mm=(z_mm, y_mm, x_mm),
        through_error=through_error,
    )
    return overlay, " and ".join(work.dataset.channels[:2])
