"""Pictures of three cases on the plan's page: the slice through the most labelled voxels, and patches to scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, SegpipeError
from segpipe.core.figures import WINDOW_PERCENTILES, drawn_name, label_colours, new_figure, scan_png
from segpipe.core.grid import reorientation, require_same_grid, turn_between
from segpipe.core.labels import LabelSet
from segpipe.core.text import list_names
from segpipe.core.volume import read_image, read_labels
from segpipe.data.dataset import Case, Dataset
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint
from segpipe.plan.schema import Normalisation, Plan
from segpipe.report.overlay_pictures import (
    CONVENTION,
    DISPLAY_ORIENTATION,
    PLANES,
    draw_contours,
    draw_legend,
    frame_plane,
    of_plane,
)
from segpipe.report.page import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")  # of patches
_MAX_LEGEND_LABELS = 12
_MAX_CHANNELS = 11
_MAX_COLUMNS = 4
_WIDTH_INCHES = 10.0
_PANEL_INCHES = (1.2, 4.2)  # heights; thinner ones leave no room for letters
_MARGIN_FRACTION, _MARGIN_MM = 0.25, 10.0  # around the labels, so that their surroundings can be judged


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice of a case, seen as radiologists look at scans.

    Args:
        channels: Each (rows, columns) float32.
        values: File values of the label map, integers (rows, columns).
        spacing_mm: Edge of a pixel along rows and columns.
        plane: Its name, e.g. `axial`.
        letters: Directions at left, right, top, bottom.
    """

    channels: tuple[NDArray[np.float32], ...]
    values: NDArray[np.integer[Any]]
    spacing_mm: tuple[float, float]
    plane: str
    letters: str

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        rows, columns = self.values.shape
        return rows * self.spacing_mm[0], columns * self.spacing_mm[1]


def sample_pictures(
    dataset: Dataset, fingerprint: Fingerprint, plan: Plan
) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """The cases with the smallest, the median and the largest labelled volume; and why one could not be drawn."""
    pictures, faults = [], []
    for rank, chosen in sample_cases(fingerprint, plan.labels).items():
        case = dataset.by_id.get(chosen.case_id)
        try:
            if case is None or case.label is None:
                raise DataError(f"{chosen.case_id}: has no label map in dataset.json.")
            picture = _picture(rank, case, plan)
        except SegpipeError as fault:
            faults.append(f"No picture of {chosen.case_id}: {fault}")
            continue
        pictures.append(picture)
    return tuple(pictures), tuple(faults)


def sample_cases(fingerprint: Fingerprint, labels: LabelSet) -> dict[str, CaseFingerprint]:
    """Cases by what they are samples of, each once; cases without any label only if there are no others."""

    def volume_mm3(case: CaseFingerprint) -> float:  # of overlapping regions the largest, or they would count twice
        volumes = [measure.volume_mm3 for measure in case.labels.values()]
        return max(volumes, default=0.0) if labels.has_regions else sum(volumes)

    labelled = [case for case in fingerprint.cases if case.present] or list(fingerprint.cases)
    ranked = sorted(labelled, key=lambda case: (volume_mm3(case), case.case_id))
    if len(ranked) == 1:
        return {"only": ranked[0]}
    places = {"smallest": 0, "largest": len(ranked) - 1, "median": (len(ranked) - 1) // 2}
    by_place = {place: rank for rank, place in reversed(places.items())}
    return {by_place[place]: ranked[place] for place in sorted(by_place)}


def _picture(rank: str, case: Case, plan: Plan) -> Picture:
    shown = read_slice(case, plan)
    present = [name for name, mask in plan.labels.masks_of(shown.values).items() if mask.any()]
    names = list_names(present) or "no label"
    alt = f"Case {case.case_id}, {shown.plane} slice of {list_names(plan.channels)} with contours of {names}."
    caption = (
        f"{case.case_id}, the case with the {rank} labelled volume: {shown.plane} slice through its largest labelled "
        "cross-section. First the whole slice with the patches to scale, then each channel around the labels. "
        f"{CONVENTION}"
    )
    if len(plan.channels) > _MAX_CHANNELS:
        caption += f" The first {_MAX_CHANNELS} of {len(plan.channels)} channels."
    return Picture("png", _slice_png(shown, plan), alt, caption)


def read_slice(case: Case, plan: Plan) -> Slice:
    """Read the slice to be shown; one image file is in memory at a time.

    Raises:
        DataError: If a file is missing or broken.
        GeometryError: If image and label map lie on different grids.
    """
    assert case.label is not None
    values, grid = read_labels(Path(case.label))
    turn = reorientation(grid, DISPLAY_ORIENTATION)
    name, axis, letters = PLANES[shown_axes(plan)[0]]
    turned = turn.apply(values)
    areas = np.isin(turned, plan.labels.values).sum(axis=tuple(a for a in range(3) if a != axis))
    index = int(areas.argmax()) if areas.any() else len(areas) // 2
    channels: list[NDArray[np.float32]] = []
    for path in case.image_paths:
        image = read_image(path)
        require_same_grid(image.grid, grid, case.label)
        channels.extend(np.take(turn.apply(image.voxels_czyx), index, axis + 1))
        if len(channels) >= _MAX_CHANNELS:
            break
    spacing_mm = of_plane(turn.permute(grid.spacing_mm), axis)
    return Slice(tuple(channels[:_MAX_CHANNELS]), np.take(turned, index, axis), spacing_mm, name, letters)


def shown_axes(plan: Plan) -> tuple[int, ...]:
    """The plan's axes 0, 1, 2 as axes of `DISPLAY_ORIENTATION`; slices across the first, the coarsest, are shown."""
    turn = turn_between(plan.orientation, DISPLAY_ORIENTATION)  # shown axis i is axis turn.axes_zyx[i] of the images
    return tuple(turn.axes_zyx.index(axis) for axis in plan.axis_order)


def _slice_png(shown: Slice, plan: Plan) -> bytes:
    """The whole slice with patches, then every channel around the labels with contours."""
    n_panels = 1 + len(shown.channels)
    n_rows = math.ceil(n_panels / _MAX_COLUMNS)
    n_columns = math.ceil(n_panels / n_rows)
    box_mm = _box_mm(shown, plan.labels)
    low_mm, high_mm = ((float(rows), float(columns)) for rows, columns in box_mm)
    patches_mm = patch_corners_mm(shown, box_mm.mean(axis=0), plan)
    aspect = max(_aspect(*_seen_mm(shown, patches_mm)), _aspect(low_mm, high_mm))
    panel_inches = float(np.clip(aspect * _WIDTH_INCHES / n_columns, *_PANEL_INCHES))
    figure = new_figure(_WIDTH_INCHES, n_rows * (panel_inches + 0.25) + 0.5, dark=True)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel in panels[n_panels:]:
        panel.set_axis_off()
    patch_lines = _draw_whole(panels[0], shown, patches_mm, plan)
    lines: dict[str, Any] = {}
    for number, panel in enumerate(panels[1:n_panels]):
        _draw_channel(panel, shown, number, plan.normalisation[number])
        lines |= _draw_contours(panel, shown, plan.labels)
        frame_plane(panel, low_mm, high_mm, shown.letters)
        panel.set_title(drawn_name(plan.channels[number]), fontsize=9, color="white", pad=3)
    _draw_legend(figure, lines, patch_lines)
    return scan_png(figure)


def _aspect(low_mm: tuple[float, float], high_mm: tuple[float, float]) -> float:
    """Height over width."""
    return (high_mm[0] - low_mm[0]) / (high_mm[1] - low_mm[1])


def _box_mm(shown: Slice, labels: LabelSet) -> NDArray[np.float64]:
    """Lower and upper corner (2, rows and columns) in mm of what is zoomed in on: the labels and a margin."""
    spacing, size = np.array(shown.spacing_mm), np.array(shown.size_mm)
    places = np.argwhere(np.isin(shown.values, labels.values))
    if not len(places):
        return np.stack([np.zeros(2), size])
    low, high = places.min(axis=0) * spacing, (places.max(axis=0) + 1) * spacing
    margin = max(_MARGIN_MM, _MARGIN_FRACTION * (high - low).max())
    return np.stack([np.maximum(low - margin, 0), np.minimum(high + margin, size)])


def _draw_channel(panel: Axes, shown: Slice, channel: int, normalisation: Normalisation) -> None:
    """The channel as grey values: clipped as the network sees it, or between two percentiles of the slice."""
    pixels = shown.channels[channel]
    finite = pixels[np.isfinite(pixels)]
    low, high = np.percentile(finite, WINDOW_PERCENTILES) if finite.size else (0.0, 1.0)
    if normalisation.low is not None and normalisation.high is not None:
        low, high = normalisation.low, normalisation.high
    height_mm, width_mm = shown.size_mm
    extent = (0.0, width_mm, height_mm, 0.0)
    panel.imshow(pixels, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=extent, interpolation="nearest")


def _draw_contours(panel: Axes, shown: Slice, labels: LabelSet) -> dict[str, Any]:
    """Draw the labels of the slice; their lines for the legend in the order of the labels."""
    from matplotlib.lines import Line2D

    masks = {name: mask for name, mask in labels.masks_of(shown.values).items() if mask.any()}
    colours = label_colours(labels.names)
    draw_contours(panel, masks, shown.spacing_mm, colours)
    return {name: Line2D([], [], color=colours[name], linewidth=2) for name in masks}


def patch_corners_mm(shown: Slice, centre_mm: NDArray[np.float64], plan: Plan) -> dict[str, NDArray[np.float64]]:
    """Corners (2, rows and columns) in mm of each patch: around the labels, and inside the image if it fits."""
    _, first, second = shown_axes(plan)
    is_turned = first > second  # the plan's second axis runs along rows
    size_mm, corners = np.array(shown.size_mm), {}
    for name, configuration in plan.configurations.items():
        if configuration.previous is not None:
            continue
        edges_mm = np.multiply(configuration.patch_zyx[1:], np.array(configuration.spacing_mm[1:], float))
        edges_mm = edges_mm[::-1] if is_turned else edges_mm
        free_mm = np.maximum(size_mm - edges_mm, 0)
        low_mm = np.where(free_mm > 0, np.clip(centre_mm - edges_mm / 2, 0, free_mm), (size_mm - edges_mm) / 2)
        corners[name] = np.stack([low_mm, low_mm + edges_mm])
    return corners


def _draw_whole(panel: Axes, shown: Slice, patches_mm: Mapping[str, NDArray[np.float64]], plan: Plan) -> dict[str, Any]:
    """The first channel with all patches, however far they reach beyond it; their lines for the legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    _draw_channel(panel, shown, 0, plan.normalisation[0])
    lines = {}
    for number, (name, (low_mm, high_mm)) in enumerate(patches_mm.items()):
        style = _LINES[number % len(_LINES)]
        height_mm, width_mm = high_mm - low_mm
        frame = Rectangle(
            (low_mm[1], low_mm[0]), width_mm, height_mm, fill=False, edgecolor="white", linestyle=style, linewidth=1.8
        )
        frame.set_path_effects([withStroke(linewidth=3.2, foreground="black")])
        panel.add_patch(frame)
        lines[f"patch of {name}"] = Line2D([], [], color="white", linestyle=style, linewidth=1.8)
    low_mm, high_mm = _seen_mm(shown, patches_mm)
    frame_plane(panel, low_mm, high_mm, shown.letters)
    panel.set_title(f"{drawn_name(plan.channels[0])}, whole {shown.plane} slice", fontsize=9, color="white", pad=3)
    return lines


def _seen_mm(
    shown: Slice, patches_mm: Mapping[str, NDArray[np.float64]]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Lower and upper corner of the image with the patches that reach beyond it, and a little air."""
    low = np.min([(0.0, 0.0), *(patch[0] for patch in patches_mm.values())], axis=0)
    high = np.max([shown.size_mm, *(patch[1] for patch in patches_mm.values())], axis=0)
    air = 0.01 * (high - low).max()
    return (float(low[0] - air), float(low[1] - air)), (float(high[0] + air), float(high[1] + air))


def _draw_legend(figure: Figure, lines: Mapping[str, Any], patches: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    shown = dict(list(lines.items())[:_MAX_LEGEND_LABELS])
    n_more = len(lines) - len(shown)
    texts = [*map(drawn_name, shown), *([f"and {n_more} more"] if n_more else []), *patches]
    handles = [*shown.values(), *([Line2D([], [], alpha=0)] if n_more else []), *patches.values()]
    draw_legend(figure, handles, texts)
