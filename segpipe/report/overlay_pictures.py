"""Scans with contours (PNG), and which cases are worth a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from segpipe.core.errors import DataError, SegpipeError
from segpipe.core.figures import (
    ERROR_COLOURS,
    MAX_LEGEND_LABELS,
    WINDOW_PERCENTILES,
    drawn_name,
    label_colours,
    new_figure,
    paler,
    scan_png,
)
from segpipe.core.grid import reorientation
from segpipe.core.labels import LabelSet, Mask
from segpipe.core.volume import read_image_channels, read_labels, require_same_grid
from segpipe.evaluate.metrics import number_text
from segpipe.evaluate.scores import ScoreTable
from segpipe.plan.schema import Plan
from segpipe.report.page import STATUS_TEXT, Picture
from segpipe.report.volume_agreement import CaseKey
from segpipe.report.work_contents import FoldRun, Run, WorkFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DISPLAY_ORIENTATION = "LPS"  # x to the patient's left: seen from the feet, as radiologists look at scans
CONVENTION = "Radiological convention: the patient's right is on the left."
_MARGIN_FRACTION, _MARGIN_MM = 0.35, 15.0  # kept around the structures, so that their surroundings can be judged
MAX_CHANNELS = 2
_WIDTH_INCHES, _MAX_STACKED_INCHES = 10.0, 6.0  # a picture fits on a screen
_LEGEND_LETTERS = 140  # in a row, lines included
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
        image_czyx: (C, Z, Y, X) float32; the first `MAX_CHANNELS` are drawn.
        channel_names: One for each channel.
        reference_zyx: File values, integers (Z, Y, X).
        prediction_zyx: The same.
        labels: What the values mean.
        spacing_mm: Voxel edge along Z, Y, X.
        windows: Intensities of each channel that are black and white; None for percentiles of the channel.
        through_error: Planes through the largest error instead of the largest reference cross-section.
    """

    image_czyx: NDArray[np.float32]
    channel_names: tuple[str, ...]
    reference_zyx: NDArray[np.integer[Any]]
    prediction_zyx: NDArray[np.integer[Any]]
    labels: LabelSet
    spacing_mm: tuple[float, float, float]
    windows: tuple[tuple[float, float] | None, ...]
    through_error: bool = False

    @property
    def shape_zyx(self) -> tuple[int, ...]:
        """Voxels along Z, Y, X."""
        return self.reference_zyx.shape


def overlay_png(overlay: Overlay) -> bytes:
    """Three orthogonal planes with contours: reference solid, prediction dashed and paler, a colour for each label.

    One row for each channel, then one of errors on the first channel, filled: a dash may be longer than a small
    structure. Of flat images these are columns, which leaves less paper empty. Seen from the feet in axial planes and
    from the front in coronal ones (the patient's right is on the left), from the left side in sagittal ones. A
    millimetre is as long in all directions. A plane across which the image has a single voxel is left out, and so are
    errors where there are none.
    """
    planes = [plane for plane in PLANES if min(of_plane(overlay.shape_zyx, plane[1])) > 1] or list(PLANES[:1])
    channels = list(range(min(len(overlay.image_czyx), MAX_CHANNELS)))
    errors = _errors(overlay)
    has_errors = any(mask.any() for mask in errors.values())
    n_contents = len(channels) + has_errors
    index_zyx, box_mm = _planes_through(overlay), _box_mm(overlay)
    sizes_mm = np.array([of_plane(box_mm[1] - box_mm[0], axis) for _, axis, _ in planes])  # height, width
    figure, panels = _panels(n_contents, sizes_mm)
    drawn: set[str] = set()
    for number, channel in enumerate([*channels, 0][:n_contents]):
        is_errors = number == len(channels)
        for panel, (name, axis, letters) in zip(panels[number], planes, strict=True):
            index = int(index_zyx[axis])
            _draw_scan(panel, overlay, channel, axis, index)
            if is_errors:
                _draw_errors(panel, {kind: np.take(mask, index, axis) for kind, mask in errors.items()}, overlay, axis)
            else:
                drawn |= _draw_both(panel, overlay, axis, index)
            frame_plane(panel, of_plane(box_mm[0], axis), of_plane(box_mm[1], axis), letters)
            title = "errors" if is_errors else drawn_name(overlay.channel_names[channel])
            panel.set_title(f"{title}, {name}", fontsize=9, color="white", pad=3)
    _draw_legend(figure, [name for name in overlay.labels.names if name in drawn], overlay.labels.names, has_errors)
    return scan_png(figure)


def _panels(n_contents: int, sizes_mm: NDArray[np.float64]) -> tuple[Figure, NDArray[Any]]:
    """A black figure and its panels (contents, planes), planes side by side or, if that fills it better, stacked.

    Args:
        n_contents: How often each plane is drawn.
        sizes_mm: (planes, 2) height and width.
    """
    (heights, widths), n_planes = sizes_mm.T, len(sizes_mm)
    area_beside, area_stacked = heights.max() * widths.sum(), heights.sum() * widths.max()  # of one content
    is_stacked = n_contents > 1 and area_stacked < 0.8 * area_beside
    across_mm = n_contents * widths.max() if is_stacked else widths.sum()
    down_mm = heights.sum() if is_stacked else n_contents * heights.max()
    n_rows = n_planes if is_stacked else n_contents
    height_inches = down_mm * _WIDTH_INCHES / across_mm + 0.25 * n_rows + 0.35
    highest = _MAX_STACKED_INCHES if is_stacked else 2 * _WIDTH_INCHES
    figure = new_figure(_WIDTH_INCHES, min(height_inches, highest), dark=True)
    if is_stacked:
        return figure, figure.subplots(n_planes, n_contents, squeeze=False, height_ratios=heights.tolist()).T
    return figure, figure.subplots(n_contents, n_planes, squeeze=False, width_ratios=widths.tolist())


def _errors(overlay: Overlay) -> dict[str, Mask]:
    """Mask of each kind of error, by its name in `ERROR_COLOURS`; ignored voxels are no error."""
    reference, prediction = _structures(overlay)
    both = reference & prediction & (overlay.reference_zyx != overlay.prediction_zyx)
    return dict(zip(ERROR_COLOURS, (reference & ~prediction, prediction & ~reference, both), strict=True))


def _planes_through(overlay: Overlay) -> tuple[int, ...]:
    """Index along Z, Y, X of the plane with most voxels of interest; the middle if there are none."""
    reference, prediction = _structures(overlay)
    wrong = np.logical_or.reduce(list(_errors(overlay).values()))
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


def _draw_scan(panel: Axes, overlay: Overlay, channel: int, axis: int, index: int) -> None:
    plane = np.take(overlay.image_czyx[channel], index, axis)
    low, high = overlay.windows[channel] or _window(overlay.image_czyx[channel])
    extent = _extent_mm(plane.shape, of_plane(overlay.spacing_mm, axis))
    panel.imshow(plane, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest")


def _extent_mm(shape: Sequence[int], spacing_mm: tuple[float, float]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a plane; rows run down."""
    return (0.0, shape[1] * spacing_mm[1], shape[0] * spacing_mm[0], 0.0)


def _draw_both(panel: Axes, overlay: Overlay, axis: int, index: int) -> set[str]:
    """Draw the contours of reference and prediction; the names of the labels that are in the plane."""
    colours, spacing_mm = label_colours(overlay.labels.names), of_plane(overlay.spacing_mm, axis)
    reference, prediction = (
        overlay.labels.masks_of(np.take(values, index, axis))
        for values in (overlay.reference_zyx, overlay.prediction_zyx)
    )
    draw_contours(panel, reference, spacing_mm, colours)
    draw_contours(panel, prediction, spacing_mm, {name: paler(colour) for name, colour in colours.items()}, _DASHED)
    return {name for name in colours if reference[name].any() or prediction[name].any()}


def draw_contours(
    panel: Axes,
    masks: Mapping[str, Mask],
    spacing_mm: tuple[float, float],
    colours: Mapping[str, str],
    style: Any = "-",
    width: float = 1.8,
) -> None:
    """Draw the borders of masks, the outermost first.

    A ring is drawn before what it encloses, which shares its inner border however thin the ring is.

    Args:
        panel: Whose axes are in mm.
        masks: (rows, columns) bool by label; empty ones are passed over.
        spacing_mm: Edge of a pixel along rows and columns.
        colours: By label.
        style: A line style of matplotlib.
        width: Of the lines, in points.
    """
    areas = {name: int(binary_fill_holes(mask).sum()) for name, mask in masks.items() if mask.any()}
    for name in sorted(areas, key=lambda name: -areas[name]):
        rows_mm, columns_mm = (
            (np.arange(-1, n + 1) + 0.5) * mm for n, mm in zip(masks[name].shape, spacing_mm, strict=True)
        )
        padded = np.pad(masks[name], 1).astype(np.float32)
        panel.contour(columns_mm, rows_mm, padded, [0.5], colors=[colours[name]], linestyles=[style], linewidths=width)


def _draw_errors(panel: Axes, errors: Mapping[str, Mask], overlay: Overlay, axis: int) -> None:
    """Fill errors; the line around them keeps a single voxel visible."""
    spacing_mm = of_plane(overlay.spacing_mm, axis)
    for kind, mask in errors.items():
        if mask.any():
            from matplotlib.colors import to_rgba

            filled = np.zeros((*mask.shape, 4))
            filled[mask] = to_rgba(ERROR_COLOURS[kind], 0.75)
            panel.imshow(filled, extent=_extent_mm(mask.shape, spacing_mm), interpolation="nearest")
            draw_contours(panel, {kind: mask}, spacing_mm, ERROR_COLOURS, width=1.0)


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


def _draw_legend(figure: Figure, drawn: Sequence[str], names: Sequence[str], has_errors: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown, colours = drawn[:MAX_LEGEND_LABELS], label_colours(names)
    lines: list[Any] = [Line2D([], [], color=colours[name], linewidth=3) for name in shown]
    lines += [Line2D([], [], color="white"), Line2D([], [], color="white", linestyle=_DASHED)]
    texts = [*map(drawn_name, shown), "reference", "prediction (paler)"]
    if len(drawn) > len(shown):
        lines.insert(len(shown), Line2D([], [], alpha=0))
        texts.insert(len(shown), f"and {len(drawn) - len(shown)} more")
    for kind, colour in ERROR_COLOURS.items() if has_errors else ():
        lines.append(Patch(color=colour))
        texts.append(kind)
    draw_legend(figure, lines, texts)


def draw_legend(figure: Figure, lines: Sequence[Any], texts: Sequence[str]) -> None:
    """Draw a legend on black below all panels, in as few rows as fit."""
    n_rows = -(-sum(len(text) + 9 for text in texts) // _LEGEND_LETTERS)
    style: dict[str, Any] = {"fontsize": 9, "frameon": False, "labelcolor": "white", "handlelength": 2.4}
    figure.legend(lines, texts, loc="outside lower center", ncols=-(-len(texts) // n_rows), **style)


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
        through = "with the most errors" if is_bad else "with the largest cross-sections of the reference"
        what = f"{rank}: {key[1]}, mean Dice {dice_of[key]:.3f}"
        caption = f"{what}{_label_scores(table, key)}. Planes {through}. {CONVENTION}"
        n_channels = len(work.dataset.channels)
        if n_channels > MAX_CHANNELS:
            caption += f" The first {MAX_CHANNELS} of {n_channels} channels; `segpipe view` shows all."
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
    image = read_image_channels(case.image_paths[:MAX_CHANNELS])
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
        windows=tuple(_window_of(work.plan, channel) for channel in range(len(image.voxels_czyx))),
        through_error=through_error,
    )
    return overlay, " and ".join(work.dataset.channels[:MAX_CHANNELS])


def _window_of(plan: Mapping[str, Any], channel: int) -> tuple[float, float] | None:
    """Between which intensities the plan clips a channel (CT); None if it does not, or cannot be read."""
    try:
        normalisation = Plan.parse(plan, "plan.yaml").normalisation[channel]
    except (SegpipeError, IndexError):
        return None
    if normalisation.low is None or normalisation.high is None:
        return None
    return normalisation.low, normalisation.high
