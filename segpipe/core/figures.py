"""Figures of training and of reports: colours that the colour-blind tell apart, names, axes; and learning curves.

Figures are made without pyplot, so nothing stays open and no window system is needed.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe & Ito 2008, "Color Universal Design"; black is left out (scans are dark), light ones come first on scans.
COLOUR_NAMES = {
    "#E69F00": "orange",
    "#56B4E9": "sky blue",
    "#F0E442": "yellow",
    "#CC79A7": "purple",
    "#009E73": "green",
    "#D55E00": "vermilion",
    "#0072B2": "blue",
}
SCAN_COLOURS = tuple(COLOUR_NAMES)
CHART_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WINDOW_PERCENTILES = (0.5, 99.8)  # of intensities, from black to white
MAX_LEGEND_LABELS = 12
_MAX_NAME_LETTERS = 36


def new_figure(width_inches: float, height_inches: float, dark: bool = False) -> Figure:
    """Make an empty figure, white or black."""
    from matplotlib.figure import Figure

    colour = "black" if dark else "white"
    return Figure((width_inches, height_inches), layout="constrained", facecolor=colour)


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """Draw a figure; equal figures give equal bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "segpipe"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box is drawn; the page's text has the name
        FigureCanvasAgg(figure)
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(stream, format=kind, dpi=110, metadata=metadata)
    figure.clear()
    return stream.getvalue()


def drawn_name(name: str) -> str:
    """Make a name fit for a picture: dollar signs start no formula, a long name is cut."""
    cut = name if len(name) <= _MAX_NAME_LETTERS else f"{name[: _MAX_NAME_LETTERS - 1]}…"
    return cut.replace("$", r"\$")


def tidy(panel: Axes) -> None:
    """Give a chart the common look: no upper and right spine, small ticks, a faint grid."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8.5)
    panel.grid(alpha=0.25)
    panel.set_axisbelow(True)


_WIDTH_INCHES, _ROW_INCHES, _REST_INCHES = 9.6, 1.75, 0.75
_TITLES = ("Loss", "Patch Dice", "Learning rate")
_MOST_LABELS = 6  # drawn one by one, each in a colour; of more the worst, and grey bands of all
_N_WORST = 3
_MOST_POINTS = 200  # of a line: a pixel each, and a report that stays small after a thousand epochs
_N_SMOOTHED = 9  # points of the running mean, once there are many points
_BLACK, _GREY = "#000000", "#9aa5b1"
_BAND_QUANTILES = ((0.0, 1.0), (0.25, 0.75))
_UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))


@dataclass(frozen=True)
class FoldCurves:
    """One row: the fold's name, the history of its training, and whether it is still training."""

    name: str
    history: History
    in_training: bool = False


def learning_curves(folds: Sequence[FoldCurves], kind: str) -> bytes:
    """Losses, patch Dice and learning rate over epochs, with the time of training below the epochs.

    Dotted vertical lines: training was resumed there. A dash-dotted one: it stopped early.

    Args:
        folds: From above; each has an epoch or more.
        kind: `svg` or `png`.
    """
    labels = _shown_labels(folds)
    figure = new_figure(_WIDTH_INCHES, _ROW_INCHES * len(folds) + _REST_INCHES)
    rows = figure.subplots(len(folds), len(_TITLES), squeeze=False, width_ratios=(4, 4, 2.4))
    last = max(fold.history.columns["epoch"][-1] for fold in folds)
    for fold, panels in zip(folds, rows, strict=True):
        _draw_losses(panels[0], fold.history)
        _draw_dice(panels[1], fold.history, labels)
        _draw_line(panels[2], fold.history, fold.history.column("learning_rate"), color=_BLACK)
        panels[2].ticklabel_format(axis="y", scilimits=(-2, 2))
        panels[2].set_ylim(bottom=0)
        panels[0].set_ylabel(f"{fold.name}\n(in training)" if fold.in_training else fold.name, fontsize=9)
        for panel in panels:
            _finish(panel, fold.history, last, shows_time=panel is not panels[2])
    for panel, title in zip(rows[0], _TITLES, strict=True):
        panel.set_title(title, fontsize=10, loc="left")
    rows[-1][1].set_xlabel("epoch and training time", fontsize=9)
    entries = {  # of equal names the last
        name: handle
        for panel in (*rows[:, 0], *rows[:, 1])
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure_bytes(figure, kind)


def _shown_labels(folds: Sequence[FoldCurves]) -> dict[str, str]:
    """Colours of the labels that get one: all if they are few, else the worst at the end, by the mean over folds."""
    ends: dict[str, list[float]] = {}
    for fold in folds:
        for name, values in fold.history.dice_of_labels.items():
            ends.setdefault(name, []).extend([value for value in values if np.isfinite(value)][-1:])
    names = list(ends)
    if len(names) > _MOST_LABELS:
        names = sorted((name for name in names if ends[name]), key=lambda name: float(np.mean(ends[name])))[:_N_WORST]
    return dict(zip(names, CHART_COLOURS, strict=False))


def _draw_losses(panel: Axes, history: History) -> None:
    for column, name, style in (("train_loss", "training loss", "-"), ("validation_loss", "validation loss", "--")):
        if column in history.columns:
            _draw_line(panel, history, history.column(column), linestyle=style, color=_BLACK, label=name)


def _draw_dice(panel: Axes, history: History, colours: dict[str, str]) -> None:
    dice = history.dice_of_labels
    if len(dice) > len(colours):
        x, y = (np.array(a) for a in zip(*(_thin(history.columns["epoch"], v) for v in dice.values()), strict=True))
        is_known = np.isfinite(y).any(axis=0)
        for low, high in _BAND_QUANTILES if is_known.any() else ():
            band = np.nanquantile(y[:, is_known], (low, high), axis=0)
            panel.fill_between(x[0, is_known], *band, color=_GREY, alpha=0.3, linewidth=0)
    for name, colour in colours.items():
        if name in dice:
            _draw_line(panel, history, dice[name], color=colour, label=drawn_name(name))
    if len(dice) != 1:
        label = (
            "mean of labels"
            if len(dice) <= len(colours)
            else f"mean of {len(dice)} labels (grey: middle half and range)"
        )
        _draw_line(panel, history, history.mean_dice, color=_BLACK, label=label, linestyle=(0, (1, 1)))
    panel.set_ylim(-0.02, 1.02)


def _draw_line(panel: Axes, history: History, values: Sequence[float], **style: Any) -> None:
    """Draw a line; of many points a pale one, and its running mean."""
    x, y = _thin(history.columns["epoch"], values)
    if len(x) < 3 * _N_SMOOTHED:
        panel.plot(x, y, linewidth=1.4, marker="." if len(x) < 3 else "", **style)
        return
    panel.plot(x, y, linewidth=0.7, alpha=0.3, color=style["color"])
    panel.plot(x, _running_mean(y), linewidth=1.4, **style)


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of as many neighbours as it takes to leave few points; NaN where nothing is known."""
    n_together = -(-len(x) // _MOST_POINTS)
    parts = np.arange(0, len(x), n_together)
    known = np.isfinite(y)
    sums, counts = (np.add.reduceat(values, parts) for values in (np.where(known, y, 0.0), known.astype(float)))
    with np.errstate(invalid="ignore"):
        return np.asarray(x, float)[np.append(parts[1:], len(x)) - 1], sums / counts


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over neighbours on both sides, fewer at the ends; NaN where there is no value."""
    known, window = np.isfinite(values), np.ones(_N_SMOOTHED)
    total, count = (np.convolve(part, window, "same") for part in (np.where(known, values, 0), known.astype(float)))
    return np.where(known, total / np.maximum(count, 1), np.nan)


def _finish(panel: Axes, history: History, last: float, *, shows_time: bool) -> None:
    """Add marks, limits and an axis with epochs and time."""
    from matplotlib.ticker import MaxNLocator

    for number, epoch in enumerate(history.interruptions):
        name = "_" if number else "resumed after an interruption"
        panel.axvline(epoch - 0.5, linestyle=":", color=_GREY, linewidth=1.2, label=name)
    epochs, seconds = history.columns["epoch"], history.seconds
    if history.stopped_early:
        panel.axvline(epochs[-1], linestyle="-.", color=CHART_COLOURS[1], linewidth=1.2, label="stopped early")
    panel.set_xlim(min(1.0, epochs[0]) - 0.5, last + 0.5)
    unit, size = next((pair for pair in _UNITS if seconds[-1] >= 3 * pair[1]), _UNITS[-1])

    def tick(epoch: float, _: float) -> str:
        """Epoch, and the time when it ended if it has."""
        if not (shows_time and epochs[0] <= epoch <= epochs[-1] and np.isfinite(seconds).all()):
            return f"{epoch:g}"
        time = float(np.interp(epoch, epochs, seconds)) / size
        return f"{epoch:g}\n{time:.{1 if time < 10 else 0}f} {unit}"

    panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    panel.xaxis.set_major_formatter(tick)
    tidy(panel)
