"""The look that pictures of training and of reports share: colours that the colour-blind tell apart, names, axes.

Figures are made without pyplot, so nothing stays open and no window system is needed.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

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
