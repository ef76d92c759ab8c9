"""One case as the metrics see it: two maps of labels on one grid, each label counted and boxed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.grid import Grid
from segpipe.core.labels import LabelSet, Mask
from segpipe.evaluate.metrics import DEFAULT_METRICS, METRICS, Overlap, Status
from segpipe.evaluate.surfaces.distances import Box


@dataclass(frozen=True)
class ScoreSettings:
    """Options of scoring.

    Args:
        metrics: Names of `METRICS`.
        nsd_tolerance_mm: Tolerance of every `nsd`, one for all labels or by name of the label. A label without one
            has no `nsd`, since no tolerance fits every organ.
        only_known_values: Whether a value of no label is a fault of the file. If not, it is background: labels were
            chosen, and the others left out.

    Raises:
        ValueError: If a metric is unknown.
    """

    metrics: tuple[str, ...] = DEFAULT_METRICS
    nsd_tolerance_mm: float | Mapping[str, float] | None = None
    only_known_values: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.metrics) - set(METRICS)
        if unknown:
            raise ValueError(f"unknown metrics {sorted(unknown)}")

    @property
    def groups(self) -> frozenset[str]:
        """Groups of the chosen metrics."""
        return frozenset(METRICS[name].group for name in self.metrics)

    def tolerance_mm(self, label: str) -> float | None:
        """Tolerance of one label."""
        if isinstance(self.nsd_tolerance_mm, Mapping):
            return self.nsd_tolerance_mm.get(label)
        return self.nsd_tolerance_mm


@dataclass(frozen=True, eq=False)
class EvaluationCase:
    """One case, for metrics that need more than the counts or the surfaces of one label.

    Args:
        case_id: Its name, for details.
        reference: (Z, Y, X) uint8 or uint16: index of a value in `labels.values` counted from 1; 0 for everything
            else and where the reference has the ignored value.
        prediction: The same of the prediction.
        is_ignored: (Z, Y, X) bool, where the reference has the ignored value; None if the labels have none.
        grid: Where both lie.
        labels: The structures.
        overlaps: Voxels of each label, by its name.
        boxes: Smallest box around each label in both maps, by its name; None where both are empty.
        probabilities: File of the predicted probabilities; None if there is none.
        settings: What was asked for.
    """

    case_id: str
    reference: NDArray[np.unsignedinteger[Any]]
    prediction: NDArray[np.unsignedinteger[Any]]
    is_ignored: NDArray[np.bool_] | None
    grid: Grid
    labels: LabelSet
    overlaps: Mapping[str, Overlap]
    boxes: Mapping[str, Box | None]
    probabilities: Path | None
    settings: ScoreSettings

    def masks(self, name: str) -> tuple[Mask, Mask]:
        """Reference and prediction of one label, cut to its box; (0, 0, 0) where both are empty."""
        indices = self.labels.indices_of(next(label for label in self.labels.labels if label.name == name))
        box = self.boxes[name] or (slice(0, 0),) * 3
        return is_one_of(self.reference[box], indices), is_one_of(self.prediction[box], indices)


@dataclass(frozen=True)
class GroupScores:
    """Results of a group of metrics for one case.

    Args:
        values: By label, then by metric; a label may be `scores.IMAGE_LABEL`, for what is of the whole image.
        details: Rows of a further table, e.g. one for each lesion.
        statuses: By label, then by metric, where the status is not that of the label's voxels: a lesion too small to
            count leaves voxels, but no lesion.
    """

    values: Mapping[str, Mapping[str, float]]
    details: tuple[Any, ...] = field(default=())
    statuses: Mapping[str, Mapping[str, Status]] = field(default_factory=dict)


def is_one_of(array: NDArray[Any], indices: tuple[int, ...]) -> Mask:
    """Mask of where an array has one of some values."""
    return array == indices[0] if len(indices) == 1 else np.isin(array, indices)
