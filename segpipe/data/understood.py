"""What was understood of a dataset, in a few lines that a person can compare with what they know of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from segpipe.core.grid import Grid
from segpipe.core.labels import LabelSet
from segpipe.data.found import Found
from segpipe.data.inspect import CaseFacts

LAYOUT_NAMES = {
    "nnunet": "nnU-Net v2 (dataset.json)",
    "msd": "Medical Segmentation Decathlon (dataset.json)",
    "folders": "two folders, images and labels",
    "csv": "CSV manifest",
    "bids": "BIDS (sub-…/anat, derivatives)",
    "files": "no layout: image files one by one",
}
_MAX_LABELS = 12


def understood(
    found: Found,
    facts: Sequence[CaseFacts],
    labels: LabelSet | None,
    presence: Mapping[str, tuple[str, ...]],
    patients: str | None,
) -> dict[str, str]:
    """Headings and lines: layout, cases, patients, channels, labels, shapes, spacings, orientations, sites.

    Args:
        found: The layout.
        facts: What was read, one for each case.
        labels: Its labels; None if there are none.
        presence: Labels in each case.
        patients: Their number and where it is known from; None if it does not matter.
    """
    grids = [one.grid for one in facts if one.grid is not None]
    lines = {"layout": LAYOUT_NAMES[found.layout], "cases": str(len(found.cases))}
    if patients is not None:
        lines["patients"] = patients
    if found.channels:
        lines["channels"] = ", ".join(found.channels)
    if found.layout == "bids" and (first := next((case.label for case in found.cases if case.label), None)):
        lines["label maps"] = f"{first.relative_to(found.root)}, …"
    if labels is not None:
        lines["labels"] = _labels(labels, presence)
    sites = Counter(case.site for case in found.cases if case.site)
    if sites:
        lines["sites"] = ", ".join(f"{site} ({n})" for site, n in sorted(sites.items()))
    return lines | (_grids(grids) if grids else {})


def _labels(labels: LabelSet, presence: Mapping[str, tuple[str, ...]]) -> str:
    n_cases = Counter(name for names in presence.values() for name in names)
    named = [
        f"{label.name} = {'+'.join(map(str, label.values))} (in {n_cases[label.name]})"
        for label in labels.labels[:_MAX_LABELS]
    ]
    if len(labels.labels) > _MAX_LABELS:
        named.append(f"… {len(labels.labels)} in all")
    extra = [] if labels.ignore_value is None else [f"ignore = {labels.ignore_value}"]
    return ", ".join([f"background = {labels.background_value}", *named, *extra])


def _grids(grids: Sequence[Grid]) -> dict[str, str]:
    shapes = [grid.shape_zyx[::-1] for grid in grids]
    spacings = [grid.spacing_mm[::-1] for grid in grids]
    orientations = Counter(grid.orientation for grid in grids)
    return {
        "shape": f"{_ranges(shapes)} voxels (x, y, z)",
        "spacing": f"{_ranges(spacings)} mm (x, y, z)",
        "orientation": ", ".join(f"{name} ({n})" for name, n in orientations.most_common()),
    }


def _ranges(triples: Sequence[tuple[float, ...]]) -> str:
    """Smallest to largest value along each axis."""
    ends = [(min(axis), max(axis)) for axis in zip(*triples, strict=True)]
    return " × ".join(f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g}–{high:.4g}" for low, high in ends)
