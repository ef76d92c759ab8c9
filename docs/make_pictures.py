"""docs/pictures/*.svg, drawn from masks made by hand and scored by segpipe: `python docs/make_pictures.py`.

A mask of one slice is measured as a contour in its plane, so what is drawn is exactly what is scored. Voxels are 1 mm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.evaluate.calibration import Tally, calibration_scores
from segpipe.evaluate.lesions import RULES, lesion_scores, match_lesions
from segpipe.evaluate.metrics import METRICS, measure
from segpipe.evaluate.scoring import centreline_scores

FOLDER = Path(__file__).with_name("pictures")
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]  # first and last + 1 along y, then along x

_CELL, _GAP, _LINE = 12, 34, 18  # pixels: a voxel, between panels, a line of text
_MISSED, _ADDED, _BOTH, _INK = "#0072B2", "#E69F00", "#C9C9C9", "#222222"  # Okabe and Ito 2008: safe for colour-blind
_TOLERANCE_MM = 1.0
_MISSED_MM = 30.0  # what a missed lesion counts in the picture of lesions
_SPACING_MM = (1.0, 1.0, 1.0)
_LEGEND = (("only in the reference", _MISSED), ("only in the prediction", _ADDED), ("in both", _BOTH))


@dataclass(frozen=True, eq=False)
class Panel:
    """Two masks (Y, X) side by side on one grid, and what is written below them."""

    reference: Mask
    prediction: Mask
    lines: tuple[str, ...]
    band_mm: float = 0.0

    def svg(self, left: int, top: int) -> str:
        """The masks, their outlines (reference solid, prediction dashed) and the text."""
        ny, nx = self.reference.shape
        parts = [f'<g transform="translate({left} {top}) scale({_CELL})">']
        parts.append(f'<rect width="{nx}" height="{ny}" fill="#F6F6F6"/>')
        for mask, colour in (
            (self.reference & self.prediction, _BOTH),
            (self.reference & ~self.prediction, _MISSED),
            (self.prediction & ~self.reference, _ADDED),
        ):
            parts.append(f'<path fill="{colour}" d="{_runs(mask)}"/>' if mask.any() else "")
        if self.band_mm:
            width = 2 * self.band_mm
            parts.append(
                f'<path d="{_outline(self.reference)}" fill="none" stroke="{_INK}" stroke-opacity=".2" '
                f'stroke-width="{width}" stroke-linecap="round"/>'
            )
        for mask, dash in ((self.reference, ""), (self.prediction, ' stroke-dasharray=".35 .25"')):
            line = f'<path d="{_outline(mask)}" fill="none" stroke="{_INK}" stroke-width=".14"{dash}/>'
            parts.append(line if mask.any() else "")
        parts.append("</g>")
        parts += [_text(left, top + ny * _CELL + _LINE * (row + 1), line) for row, line in enumerate(self.lines)]
        return "".join(parts)


@dataclass(frozen=True)
class Picture:
    """A file of the page *Evaluation explained*.

    Args:
        alt: For those who do not see it.
        caption: With numbers that the metrics gave.
        svg: The file's content.
    """

    alt: str
    caption: str
    svg: str


def pictures() -> dict[str, Picture]:
    """By name of the file."""
    made = (_overlap, _volume, _hausdorff, _definitions, _average, _tolerance, _empty, _tubes, _lesions, _calibration)
    return {maker.__name__.strip("_"): maker() for maker in made}


def _overlap() -> Picture:
    panel = _panel((12, 14), [(2, 8, 2, 7)], [(4, 8, 4, 10)], ("dice", "iou", "sensitivity", "precision"))
    return Picture("A prediction that covers part of the reference", ", ".join(panel.lines) + ".", _drawn(panel))


def _volume() -> Picture:
    panel = _panel((8, 20), [(2, 6, 2, 8)], [(2, 6, 12, 18)], ("volume_difference", "dice"))
    return Picture("Two masks of one size, side by side", ", ".join(panel.lines) + ".", _drawn(panel))


def _hausdorff() -> Picture:
    body = (2, 26, 2, 26)
    panel = _panel((28, 38), [body], [body, (14, 15, 34, 35)], ("hd", "hd95", "assd", "dice"))
    return Picture("A right prediction with a single voxel far away", ", ".join(panel.lines) + ".", _drawn(panel))


def _definitions() -> Picture:
    names, body = ("hd95", "hd95_mc", "hd95_voxel_max", "hd95_voxel_pooled"), (2, 14, 2, 14)
    panel = _panel((16, 24), [body], [body, (7, 8, 14, 20)], names, by_name=True)
    return Picture("A right prediction with a thin spur", ", ".join(panel.lines) + ".", _drawn(panel))


def _average() -> Picture:
    panel = _panel((8, 26), [(2, 6, 2, 24)], [(2, 6, 2, 6)], ("assd", "masd", "hd95"))
    return Picture("A prediction that ends early", ", ".join(panel.lines) + ".", _drawn(panel))


def _tolerance() -> Picture:
    panel = _panel((16, 20), [(2, 14, 2, 14)], [(3, 14, 2, 17)], ("nsd", "dice"), band_mm=_TOLERANCE_MM)
    caption = f"{panel.lines[0]} at a tolerance of {_TOLERANCE_MM:g} mm, the grey band; {panel.lines[1]}."
    return Picture("A prediction whose right side is 3 mm off and whose upper side is 1 mm off", caption, _drawn(panel))


def _empty() -> Picture:
    whole: list[Box] = [(2, 6, 2, 6)]
    panels = []
    for reference, prediction in ((whole, whole), ([], []), (whole, []), ([], whole)):
        status = measure(_mask((8, 8), reference), _mask((8, 8), prediction), _SPACING_MM)[0].status
        panel = _panel((8, 8), reference, prediction, ("dice", "hd95"))
        panels.append(Panel(panel.reference, panel.prediction, (f"{status}:", *panel.lines)))
    caption = "; ".join(f"`{p.lines[0][:-1]}`: {p.lines[1]}, {p.lines[2]}" for p in panels) + "."
    return Picture("Both masks, no mask, only the reference, only the prediction", caption, _drawn(*panels))


def _tubes() -> Picture:
    shape, whole = (9, 26), (3, 6, 1, 25)
    found = []
    for prediction in ([(4, 5, 1, 25)], [(3, 6, 1, 11), (3, 6, 14, 25)]):
        panel = _panel(shape, [whole], list(prediction), ("dice",))
        cldice = centreline_scores(panel.reference[None], panel.prediction[None])["cldice"]
        found.append(Panel(panel.reference, panel.prediction, (*panel.lines, f"clDice {cldice:.2f}")))
    thin, broken = (", ".join(panel.lines) for panel in found)
    alt = "A vessel predicted too thin but whole, and one predicted with a gap"
    return Picture(alt, f"Too thin but whole: {thin}. Broken: {broken}.", _drawn(*found))


def _lesions() -> Picture:
    references: list[Box] = [(2, 9, 2, 9), (3, 5, 15, 17), (11, 13, 8, 10)]
    panel = _panel((16, 24), references, [(2, 9, 3, 10), (3, 5, 16, 18), (11, 14, 18, 21)], ("dice",))
    matched = match_lesions(panel.reference[None], panel.prediction[None], _SPACING_MM, RULES[""])
    scores = lesion_scores(matched, _MISSED_MM)
    lines = tuple(f"lesion {name} {scores[name]:.2f}" for name in ("sensitivity", "precision", "f1", "dice"))
    whole = Panel(panel.reference, panel.prediction, (*panel.lines, *lines))
    alt = "Three lesions, of which two are found and one is missed, and a false alarm"
    return Picture(alt, f"{panel.lines[0]} of the whole mask; {', '.join(lines)}.", _drawn(whole))


def _calibration() -> Picture:
    said, true = (0.1, 0.3, 0.5, 0.7, 0.9), (0.3, 0.4, 0.5, 0.6, 0.7)
    n_true = np.array([round(share * 100) for share in true])
    scores = calibration_scores(Tally(np.array(said), np.full(5, 100), n_true, 1e-6))
    titles = {"ece": "ECE", "mce": "MCE", "brier": "Brier", "nll": "NLL"}
    lines = [f"{title} {scores[name]:.2f}" for name, title in titles.items()]
    edge = 210
    points = [(40 + p * edge, 20 + (1 - f) * edge) for p, f in zip(said, true, strict=True)]
    parts = [f'<rect x="40" y="20" width="{edge}" height="{edge}" fill="#F6F6F6" stroke="{_INK}"/>']
    parts.append(f'<path d="M40 {20 + edge}L{40 + edge} 20" stroke="{_INK}" stroke-dasharray="5 4"/>')
    for (x, y), p in zip(points, said, strict=True):
        parts.append(f'<path d="M{x:g} {y:g}V{20 + (1 - p) * edge:g}" stroke="{_ADDED}" stroke-width="3"/>')
        parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="{_MISSED}"/>')
    parts.append(_text(40, 20 + edge + _LINE, "what the network says, 0 to 1"))
    parts.append(
        f'<g transform="translate(28 {20 + edge}) rotate(-90)">{_text(0, 0, "how often it is so, 0 to 1")}</g>'
    )
    caption = f"Five groups of 100 voxels: {', '.join(lines)}."
    alt = "Points of what a network says against how often it is so, flatter than the diagonal"
    return Picture(alt, caption, _framed("".join(parts), 40 + edge + 20, 20 + edge + 2 * _LINE))


def _panel(
    shape: tuple[int, int],
    reference: list[Box],
    prediction: list[Box],
    names: tuple[str, ...],
    *,
    band_mm: float = 0.0,
    by_name: bool = False,
) -> Panel:
    """A panel with metrics of the masks in lines such as `Dice 0.44`, or `dice 0.44` by name."""
    masks = _mask(shape, reference), _mask(shape, prediction)
    values = measure(*masks, _SPACING_MM, _TOLERANCE_MM, names)[1]
    lines = []
    for name in names:
        title = name if by_name else METRICS[name].title
        unit = {"1": "", "mm3": " mm³"}.get(METRICS[name].unit, f" {METRICS[name].unit}")
        number = f"{values[name]:.{2 if unit == '' else 1}f}"
        shown = {"nan": "undefined", "inf": "infinite"}.get(number, number + unit)
        lines.append(f"{title} {shown}")
    return Panel(masks[0][0], masks[1][0], tuple(lines), band_mm)


def _mask(shape: tuple[int, int], boxes: list[Box]) -> Mask:
    mask = np.zeros((1, *shape), bool)
    for y0, y1, x0, x1 in boxes:
        mask[0, y0:y1, x0:x1] = True
    return mask


def _runs(mask: Mask) -> str:
    """Rows of voxels as rectangles."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(int), axis=1)
    runs = []
    for y, row in enumerate(edges):
        starts, ends = np.flatnonzero(row == 1), np.flatnonzero(row == -1)
        runs += [f"M{a} {y}H{b}v1H{a}z" for a, b in zip(starts, ends, strict=True)]
    return "".join(runs)


def _outline(mask: Mask) -> str:
    """Edges between inside and outside."""
    padded = np.pad(mask, 1)
    across = np.argwhere(padded[:-1, 1:-1] != padded[1:, 1:-1])
    along = np.argwhere(padded[1:-1, :-1] != padded[1:-1, 1:])
    return "".join([f"M{x} {y}h1" for y, x in across] + [f"M{x} {y}v1" for y, x in along])


def _drawn(*panels: Panel) -> str:
    """Panels side by side above a legend; a single one is told by the caption alone."""
    if len(panels) == 1:
        panels = (replace(panels[0], lines=()),)
    top, parts, left, height = 16, [], 16, 0
    for panel in panels:
        ny, nx = panel.reference.shape
        parts.append(panel.svg(left, top))
        left += max(nx * _CELL, 7 * max(map(len, panel.lines), default=0)) + _GAP
        height = max(height, top + ny * _CELL + _LINE * len(panel.lines))
    at = 16
    for text, colour in _LEGEND:
        parts.append(f'<rect x="{at}" y="{height + 20}" width="12" height="12" fill="{colour}" stroke="{_INK}"/>')
        parts.append(_text(at + 18, height + 31, text))
        at += 30 + 7 * len(text)
    return _framed("".join(parts), max(left, at), height + 44)


def _framed(content: str, width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="13" fill="{_INK}">'
        f'<rect width="{width}" height="{height}" rx="6" fill="#FFFFFF"/>{content}</svg>\n'
    )


def _text(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}">{text}</text>'


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (FOLDER / f"{name}.svg").write_text(picture.svg, encoding="utf-8")
        print(f"![{picture.alt}](pictures/{name}.svg)\n\n*{picture.caption}*\n")
