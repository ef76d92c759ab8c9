"""The picture of a trajectory: its first plane, the variance of its components, their course."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from segpipe.analyse.trajectory import Components, Floats, walk_place
from segpipe.core.figures import CHART_COLOURS, figure_bytes, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_COMPONENTS = 10
_COURSES = 3
_MARKERS = ("o", "s", "^", "v")
_WALK = {"color": "0.5", "linestyle": "--", "linewidth": 1.0}


def trajectory_png(components: Components, nulls: Mapping[str, Floats], iterations: Sequence[int], title: str) -> bytes:
    """Draw a trajectory beside the random walk.

    Args:
        components: Of its snapshots.
        nulls: Shares of variance that random motion gives, by name.
        iterations: Of the snapshots.
        title: Whose trajectory it is.
    """
    figure = new_figure(12.6, 4.2)
    plane, spectrum, course = figure.subplots(1, 3)
    figure.suptitle(title, fontsize=10)
    _draw_plane(plane, components)
    _draw_spectrum(spectrum, components, nulls)
    _draw_course(course, components, iterations)
    for panel in (plane, spectrum, course):
        tidy(panel)
    return figure_bytes(figure, "png")


def _scaled_walk(components: Components, place: int) -> Floats:
    """The walk's course along a component, as large and with the same sign as what was found."""
    found = components.places_TK[:, place]
    shape = walk_place(len(found), place + 1)
    return np.asarray(shape * np.linalg.norm(found) * (-1 if found @ shape < 0 else 1))


def _draw_plane(panel: Axes, components: Components) -> None:
    first, second = components.places_TK[:, 0], components.places_TK[:, 1]
    panel.plot(_scaled_walk(components, 0), _scaled_walk(components, 1), label="random walk", **_WALK)  # type: ignore[arg-type]
    panel.plot(first, second, "-", color=CHART_COLOURS[0], linewidth=0.8, alpha=0.6)
    panel.scatter(first, second, c=np.arange(len(first)), cmap="viridis", s=14, zorder=3)
    panel.annotate("first", (first[0], second[0]), fontsize=8)
    panel.annotate("last", (first[-1], second[-1]), fontsize=8)
    panel.set_xlabel(f"component 1 ({components.fractions[0]:.1%} of the variance)", fontsize=9)
    panel.set_ylabel(f"component 2 ({components.fractions[1]:.1%})", fontsize=9)
    panel.legend(fontsize=8)


def _draw_spectrum(panel: Axes, components: Components, nulls: Mapping[str, Floats]) -> None:
    shown = min(SHOWN_COMPONENTS, len(components.fractions))
    places = np.arange(1, shown + 1)
    curves = {"this training": components.fractions, **nulls}
    for (name, fractions), colour, marker in zip(curves.items(), CHART_COLOURS, _MARKERS, strict=False):
        drawn = np.where(fractions[:shown] > 0, fractions[:shown], np.nan)
        panel.plot(places, drawn, marker=marker, markersize=4, linewidth=1, color=colour, label=name)
    panel.set_yscale("log")
    panel.set_xticks(places)
    panel.set_xlabel("component", fontsize=9)
    panel.set_ylabel("share of the variance", fontsize=9)
    panel.legend(fontsize=8)


def _draw_course(panel: Axes, components: Components, iterations: Sequence[int]) -> None:
    for place in range(min(_COURSES, components.places_TK.shape[1])):
        panel.plot(iterations, _scaled_walk(components, place), **_WALK)  # type: ignore[arg-type]
        panel.plot(
            iterations, components.places_TK[:, place], color=CHART_COLOURS[place], linewidth=1.2,
            label=f"component {place + 1}",
        )  # fmt: skip
    panel.set_xlabel("step (dashed: random walk)", fontsize=9)
    panel.legend(fontsize=8)
