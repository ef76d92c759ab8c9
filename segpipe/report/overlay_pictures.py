"""Scans with contours (PNG), and which cases are worth a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, SegpipeError
from segpipe.core.figures import (
    MAX_LEGEND_LABELS,
    SCAN_COLOURS,
    WINDOW_PERCENTILES,
    drawn_name,
    figure_bytes,
    new_figure,
)
from segpipe.core.grid import reorientation
from segpipe.core.labels import LabelSet, Mask
from segpipe.core.volume import read_image_channels, read_labels, require_same_grid
from segpipe.evaluate.metrics import number_text
from segpipe.evaluate.scores import ScoreTable
from segpipe.report.page import STATUS_TEXT, Picture
from segpipe.report.volume_agreement import CaseKey
from segpipe.report.work_contents import FoldRun, Run, WorkFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DISPLAY_ORIENTATION = "LPS"  # x to the patient's left: seen from the feet, as radiologists look at scans
_MARGIN_FRACTION, _MARGIN_MM = 0.35, 15.0  # kept around the structures, so that their surroundings can be judged
_MAX_CHANNELS = 2
_WIDTH_INCHES = 10.0
_DASHED = (0, (2.2, 1.4))
PLANES = (  # name, axis looked along, letters at left, right, top, bottom
    ("axial", 0, "RLAP"),
    ("coronal", 1, "RLSI"),
    ("sagittal", 2, "APSI"),
)


@dataclass(frozen=True, eq=False)
class Overlay:
    """One case to be drawn; every array is already turned to `DISPLAY_ORIENTATION`.

    Args:
        image_czyx: (C, Z, Y, X) float32; the first two channels are drawn.
        channel_names: One for each channel.
        reference_zyx: File values, integers (Z, Y, X).
        prediction_zyx: The same.
        labels: What the values mean.
        spacing_mm: Voxel edge along Z, Y, X.
        through_error: Planes through the largest error instead of the largest reference cross-section.
    """

    image_czyx: NDArray[np.float32]
    channel_names: tuple[str, ...]
    reference_zyx: NDArray[np.integer[Any]]
    prediction_zyx: NDArray[np.integer[Any]]
    labels: LabelSet
    spacing_mm: tuple[float, float, float]
    through_error: bool = False

    @property
    def shape_zyx(self) -> tuple[int, ...]:
        """Voxels along Z, Y, X."""
        return self.reference_zyx.shape


def overlay_png(overlay: Overlay) -> bytes:
    """Three orthogonal planes with contours: reference solid, prediction dashed, one colour for each label.

    Rows are channels. Seen from the feet in axial planes and from the front in coronal ones (the patient's right is
    on the left), from the left side in sagittal ones. Millimetres are equal in all directions. A plane across which
    the image has a single voxel is left out.
    """
    planes = [plane for plane in PLANES if min(of_plane(overlay.shape_zyx, plane[1])) > 1] or list(PLANES[:1])
    n_rows = min(len(overlay.image_czyx), _MAX_CHANNELS)
    index_zyx, box_mm = _planes_through(overlay), _box_mm(overlay)
    sizes_mm = [of_plane(box_mm[1] - box_mm[0], axis) for _, axis, _ in planes]  # height, width
    inches_per_mm = _WIDTH_INCHES / sum(width for _, width in sizes_mm)
    height_inches = n_rows * (max(height for height, _ in sizes_mm) * inches_per_mm + 0.25) + 0.35
    figure = new_figure(_WIDTH_INCHES, min(height_inches, 2 * _WIDTH_INCHES), dark=True)
    axes = figure.subplots(n_rows, len(planes), squeeze=False, width_ratios=[width for _, width in sizes_mm])
    drawn: set[str] = set()
    for row in range(n_rows):
        window = _window(overlay.image_czyx[row])
        for panel, (name, axis, letters) in zip(axes[row], planes, strict=True):
            drawn |= _draw_plane(panel, overlay, row, axis, int(index_zyx[axis]), window)
            frame_plane(panel, of_plane(box_mm[0], axis), of_plane(box_mm[1], axis), letters)
            panel.set_title(f"{drawn_name(overlay.channel_names[row])}, {name}", fontsize=9, color="white", pad=3)
    _draw_legend(figure, [name for name in overlay.labels.names if name in drawn], overlay.labels.names)
    return figure_bytes(figure, "png")


def _planes_through(overlay: Overlay) -> tuple[int, ...]:
    """Index along Z, Y, X of the plane with most voxels of interest; the middle if there are none."""
    reference, prediction = _structures(overlay)
    wrong = (reference | prediction) & (overlay.reference_zyx != overlay.prediction_zyx)
    for interest in (wrong, reference, prediction) if overlay.through_error else (reference, prediction):
        if interest.any():
            counts = (interest.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3))
            return tuple(int(count.argmax()) for count in counts)
    return tuple(n // 2 for n in overlay.shape_zyx)


def _structures(overlay: Overlay) -> tuple[Mask, Mask]:
    """Masks of any label in the reference, and in the prediction."""
    reference, prediction = (
        np.isin(values, overlay.labels.values) for values in (overlay.reference_zyx, overlay.prediction_zyx)
    )
    if overlay.labels.ignore_value is not None:
        prediction &= overlay.reference_zyx != overlay.labels.ignore_value
    return reference, prediction


def _box_mm(overlay: Overlay) -> NDArray[np.float64]:
    """Lower and upper corner (2, ZYX) in mm of what is shown: all structures and a margin, inside the image."""
    spacing = np.array(overlay.spacing_mm)
    whole = np.stack([np.zeros(3), np.array(overlay.shape_zyx) * spacing])
    shown = np.logical_or(*_structures(overlay))
    if not shown.any():
        return whole
    along = [np.flatnonzero(shown.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    low, high = (np.array([f[0] for f in along]) * spacing, np.array([f[-1] + 1 for f in along]) * spacing)
    margin = np.maximum(_MARGIN_MM, _MARGIN_FRACTION * (high - low).max())
    return np.stack([np.maximum(low - margin, whole[0]), np.minimum(high + margin, whole[1])])


def of_plane(values_zyx: Sequence[float] | NDArray[Any], axis: int) -> tuple[float, float]:
    """The values for rows and columns of the plane across `axis`."""
    rows, columns = (float(v) for a, v in enumerate(values_zyx) if a != axis)
    return rows, columns


def _window(voxels: NDArray[np.float32]) -> tuple[float, float]:
    """Intensities that are black and white."""
    finite = voxels[np.isfinite(voxels)]
    low, high = np.percentile(finite, WINDOW_PERCENTILES) if finite.size else (0.0, 1.0)
    return float(low), max(float(high), float(low) + 1e-6)


def _draw_plane(
    panel: Axes, overlay: Overlay, channel: int, axis: int, index: int, window: tuple[float, float]
) -> set[str]:
    """Draw image and contours; the names of the labels that are in the plane."""
    row_mm, column_mm = of_plane(overlay.spacing_mm, axis)
    plane = np.take(overlay.image_czyx[channel], index, axis)
    extent = (0, plane.shape[1] * column_mm, plane.shape[0] * row_mm, 0)
    panel.imshow(plane, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="nearest")
    rows_mm = (np.arange(-1, plane.shape[0] + 1) + 0.5) * row_mm
    columns_mm = (np.arange(-1, plane.shape[1] + 1) + 0.5) * column_mm
    drawn = set()
    for values_zyx, style in ((overlay.reference_zyx, "-"), (overlay.prediction_zyx, _DASHED)):
        for number, (name, mask) in enumerate(overlay.labels.masks_of(np.take(values_zyx, index, axis)).items()):
            if mask.any():
                colour, padded = SCAN_COLOURS[number % len(SCAN_COLOURS)], np.pad(mask, 1).astype(np.float32)
                panel.contour(columns_mm, rows_mm, padded, [0.5], colors=[colour], linestyles=[style], linewidths=1.8)
                drawn.add(name)
    return drawn


def frame_plane(panel: Axes, low: tuple[float, float], high: tuple[float, float], letters: str) -> None:
    """Limits, directions and no ticks; feet are at the bottom."""
    from matplotlib.patheffects import withStroke

    panel.set_xlim(low[1], high[1])
    panel.set_ylim(*((low[0], high[0]) if letters.endswith("SI") else (high[0], low[0])))
    panel.set_aspect("equal", anchor="N")
    panel.set_axis_off()
    places = [(0.01, 0.5, "left", "center"), (0.99, 0.5, "right", "center")]
    places += [(0.5, 0.99, "center", "top"), (0.5, 0.01, "center", "bottom")]
    for letter, (x, y, across, up) in zip(letters, places, strict=True):
        text = panel.text(x, y, letter, transform=panel.transAxes, ha=across, va=up, color="white", fontsize=9)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="black")])


def _draw_legend(figure: Figure, drawn: Sequence[str], names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    shown = drawn[:MAX_LEGEND_LABELS]
    colours = [SCAN_COLOURS[names.index(name) % len(SCAN_COLOURS)] for name in shown]
    lines = [Line2D([], [], color=colour, linewidth=3) for colour in colours]
    lines += [Line2D([], [], color="white"), Line2D([], [], color="white", linestyle=_DASHED)]
    texts = [*map(drawn_name, shown), "reference", "prediction"]
    style: dict[str, Any] = {"fontsize": 9, "frameon": False, "labelcolor": "white", "handlelength": 2.4}
    figure.legend(lines, texts, loc="outside lower center", ncols=7, **style)


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
