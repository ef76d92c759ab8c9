"""The cases of a page in their order, with their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segpipe.core.labels import LabelSet
from segpipe.evaluate.scores import ScoreTable


@dataclass(frozen=True)
class GalleryCase:
    """Files of a case.

    Args:
        case_id: Its name.
        images: One file for each channel, or one with all of them.
        reference: Label map; None if there is none.
        prediction: Mask; None if there is none.
        dice: Mean over its labels, both masks empty as 1; None if it was not scored.
    """

    case_id: str
    images: tuple[Path, ...]
    reference: Path | None = None
    prediction: Path | None = None
    dice: float | None = None


@dataclass(frozen=True)
class Gallery:
    """All that one page shows.

    Args:
        title: For people.
        cases: In the order of the page.
        channels: Names of the channels; empty if nobody named them.
        label_names: Name of each value of the label maps, as far as it is known.
        background_value: Value of everything that is no structure.
        ignore_value: Value of voxels that nobody annotated; None if there is none.
    """

    title: str
    cases: tuple[GalleryCase, ...]
    channels: tuple[str, ...] = ()
    label_names: Mapping[int, str] = field(default_factory=dict)
    background_value: int = 0
    ignore_value: int | None = None

    def case(self, case_id: str) -> GalleryCase | None:
        """The case of that name."""
        return next((case for case in self.cases if case.case_id == case_id), None)


def worst_first(cases: Iterable[GalleryCase]) -> tuple[GalleryCase, ...]:
    """By mean Dice, then by name; cases without scores last."""
    return tuple(sorted(cases, key=lambda c: (c.dice is None, c.dice if c.dice is not None else 0.0, c.case_id)))


def case_dice(table: ScoreTable | None) -> dict[str, float]:
    """Mean Dice of each case over its labels, both masks empty as 1, one as 0; of several predictions the mean."""
    values: dict[str, list[float]] = {}
    for row in table.rows if table else ():
        if row.metric == "dice":
            value = row.value if row.status == "ok" else float(row.status == "both_empty")
            values.setdefault(row.case_id, []).append(value)
    return {case_id: float(np.mean(found)) for case_id, found in values.items()}


def value_names(labels: LabelSet | None) -> dict[int, str]:
    """Name of each value; with regions that of the smallest region with it."""
    if labels is None:
        return {}
    by_size = sorted(labels.labels, key=lambda one: len(one.values), reverse=True)
    return {value: one.name for one in by_size for value in one.values}
