"""Figures of training and of reports: colours that the colour-blind tell apart, names, axes; and learning curves.

Figures are made without pyplot, so nothing stays open and no window system is needed.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# A label has the colour of its place in the label set wherever it is drawn. The first seven are those of Okabe & Ito
# 2008, "Color Universal Design": black is left out, since scans are dark; what is pale on paper (yellow) or dark on a
# scan (blue) comes last. The other seven are ours: of the colours seen on black and on white, those that lie farthest
# from all others, to the usual eye and to one without red or green cones. A test measures the distances.
COLOUR_NAMES = {
    "#E69F00": "orange",
    "#56B4E9": "sky blue",
    "#CC79A7": "purple",
    "#009E73": "green",
    "#D55E00": "vermilion",
    "#F0E442": "yellow",
    "#0072B2": "blue",
    "#00FFAA": "mint",
    "#6611FF": "violet",
    "#994433": "rust",
    "#00FFFF": "cyan",
    "#6677FF": "periwinkle",
    "#CCAA66": "tan",
    "#116666": "teal",
}
SCAN_COLOURS = tuple(COLOUR_NAMES)
ERROR_COLOURS = {"missed": "#D55E00", "spurious": "#56B4E9", "other label": "#F0E442"}
CHART_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of what is no label
EDGE_COLOUR = "#3d4a57"  # around a label's colour on white, so that pale ones are seen
WINDOW_PERCENTILES = (0.5, 99.8)  # of intensities, from black to white
MAX_LEGEND_LABELS = 12
_MAX_NAME_LETTERS = 36
_N_GREYS, _GREY_RANGE = 160, 2  # of a palette; red, green and blue of what is grey differ by this much


def label_colour(place: int) -> str:
    """Colour of the label at a place of its label set, `#RRGGBB`; after fourteen they repeat."""
    return SCAN_COLOURS[place % len(SCAN_COLOURS)]


def paler(colour: str) -> str:
    """The colour of a prediction beside its reference: 60 % of the way to white, `#RRGGBB`."""
    return "#" + bytes(round(part + 0.6 * (255 - part)) for part in bytes.fromhex(colour[1:])).hex()


def label_colours(names: Iterable[str]) -> dict[str, str]:
    """Colour of each label; `names` are those of the whole label set in its order."""
    return {name: label_colour(place) for place, name in enumerate(names)}


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


def scan_png(figure: Figure) -> bytes:
    """Draw a figure of scans as a small PNG; equal figures give equal bytes."""
    return with_palette(figure_bytes(figure, "png"))


def with_palette(png: bytes) -> bytes:
    """Store a PNG with 256 colours, which makes one of scans a third as large.

    Grey values are rounded to 1.6 in 255. The labels' own colours stay exact; other colours, as shades of them where
    lines are smoothed, are rounded to the nearest of a few.
    """
    from PIL import Image

    drawn = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int32)
    own = (*SCAN_COLOURS, *map(paler, SCAN_COLOURS), *ERROR_COLOURS.values())
    fixed = np.array([list(bytes.fromhex(colour[1:])) for colour in own])
    is_shade = np.ptp(drawn, axis=-1) > _GREY_RANGE
    greys = np.round(np.linspace(0, 255, _N_GREYS)).astype(int)[:, None].repeat(3, 1)
    shades, place = np.unique(drawn[is_shade], axis=0, return_inverse=True)
    common = _common_colours(shades[place], 256 - _N_GREYS - len(fixed))
    coloured = np.concatenate([fixed, common])
    indices = np.round(drawn.mean(axis=-1) * (_N_GREYS - 1) / 255).astype(np.uint8)
    nearest = ((shades[:, None] - coloured) ** 2).sum(axis=-1).argmin(axis=1) if len(shades) else shades[:, 0]
    indices[is_shade] = _N_GREYS + nearest[place]
    picture = Image.fromarray(indices, "P")
    picture.putpalette(np.concatenate([greys, coloured]).astype(np.uint8).tobytes())
    stream = io.BytesIO()
    picture.save(stream, "png", optimize=True)
    return stream.getvalue()


def _common_colours(pixels: NDArray[np.int32], n_colours: int) -> NDArray[np.int32]:
    """At most so many colours (n, RGB) that stand for the pixels (n, RGB)."""
    from PIL import Image

    if not len(pixels):
        return pixels
    found = Image.fromarray(pixels[None].astype(np.uint8)).quantize(n_colours, Image.Quantize.MAXCOVERAGE)
    return np.array(found.getpalette()).reshape(-1, 3)[:n_colours].astype(np.int32)


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
_SPIKES_TITLE = "Clipped gradients"
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

    Where an optimizer clips spikes, a further panel has the share for each layer in grey and the mean in black. Dotted
    vertical lines: training was resumed there. A dash-dotted one: it stopped early.

    Args:
        folds: From above; each has an epoch or more.
        kind: `svg` or `png`.
    """
    labels = _shown_labels(folds)
    figure = new_figure(_WIDTH_INCHES, _ROW_INCHES * len(folds) + _REST_INCHES)
    has_spikes = any(fold.history.spikes_of_layers for fold in folds)
    titles = (*_TITLES, _SPIKES_TITLE) if has_spikes else _TITLES
    rows = figure.subplots(len(folds), len(titles), squeeze=False, width_ratios=(4, 4, 2.4, 2.4)[: len(titles)])
    last = max(fold.history.columns["epoch"][-1] for fold in folds)
    for fold, panels in zip(folds, rows, strict=True):
        _draw_losses(panels[0], fold.history)
        _draw_dice(panels[1], fold.history, labels)
        _draw_line(panels[2], fold.history, fold.history.column("learning_rate"), has_noise=False, color=_BLACK)
        panels[2].ticklabel_format(axis="y", scilimits=(-2, 2))
        panels[2].set_ylim(bottom=0)
        if has_spikes:
            _draw_spikes(panels[3], fold.history)
        panels[0].set_ylabel(f"{fold.name}\n(in training)" if fold.in_training else fold.name, fontsize=9)
        for panel in panels:
            _finish(panel, fold.history, last, shows_time=panel is panels[0] or panel is panels[1])
    for panel, title in zip(rows[0], titles, strict=True):
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
    colours = label_colours(ends)  # a history has its labels in the order of the label set
    return {name: colours[name] for name in names}


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


def _draw_spikes(panel: Axes, history: History) -> None:
    layers = history.spikes_of_layers
    for values in layers.values():
        _draw_line(panel, history, values, has_noise=False, color=_GREY)
    if layers:
        means = tuple(float(np.mean(values)) for values in zip(*layers.values(), strict=True))
        _draw_line(panel, history, means, has_noise=False, color=_BLACK)
    panel.ticklabel_format(axis="y", scilimits=(-2, 2))
    panel.set_ylim(bottom=0)


def _draw_line(panel: Axes, history: History, values: Sequence[float], *, has_noise: bool = True, **style: Any) -> None:
    """Draw a line; of many noisy points a pale one, and its running mean."""
    x, y = _thin(history.columns["epoch"], values)
    if not has_noise or len(x) < 3 * _N_SMOOTHED:
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
    """Mean over as many neighbours on both sides, fewer at the ends; NaN where there is no value."""
    known, places = np.isfinite(values), np.arange(len(values))
    reach = np.minimum(np.minimum(places, places[::-1]), _N_SMOOTHED // 2)  # more on one side would bend the ends
    sums, counts = (np.append(0, np.cumsum(part)) for part in (np.where(known, values, 0), known.astype(float)))
    total, count = (part[places + reach + 1] - part[places - reach] for part in (sums, counts))
    return np.where(known, total / np.maximum(count, 1), np.nan)


def _finish(panel: Axes, history: History, last: float, *, shows_time: bool) -> None:
    """Add marks, limits and an axis with epochs and time."""
    from matplotlib.ticker import MaxNLocator

    for number, epoch in enumerate(history.interruptions):
        name = "_" if number else "resumed after an interruption"
        panel.axvline(epoch - 0.5, linestyle=":", color=_GREY, linewidth=1.2, label=name)
    epochs, seconds = history.columns["epoch"], history.seconds
    if history.stopped_early:
        panel.axvline(epochs[-1], linestyle="-.", color=EDGE_COLOUR, linewidth=1.2, label="stopped early")
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
