"""A dataset as the planner's rules see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segpipe.core.labels import LabelSet
from segpipe.fingerprint.record import Fingerprint
from segpipe.plan.spacing import Floats, axis_order, resampled_shape, spacings_and_shapes, target_spacing


@dataclass(frozen=True, eq=False)
class Measured:
    """A dataset at its target spacing, axes in the plan's order.

    Args:
        axis_order: Coarsest axis first.
        spacing_mm: (3,) target voxel edges.
        median_shape: (3,) median over cases at that spacing, voxels.
        n_cases: As the rules count them.
        n_label_entries: Entries of the label list: background, ignore and regions included.
    """

    axis_order: tuple[int, int, int]
    spacing_mm: Floats
    median_shape: Floats
    n_cases: int
    n_label_entries: int

    @property
    def voxels(self) -> float:
        """Of all cases."""
        return float(np.prod(self.median_shape) * self.n_cases)


def seen_by_rules(fingerprint: Fingerprint, labels: LabelSet, *, exact: bool) -> Measured:
    """What the rules start from.

    Args:
        fingerprint: The measured dataset.
        labels: Its structures.
        exact: As nnunetv2: the number of cases is the declared one, and a lone slice is no coarse axis.
    """
    spacings, shapes = spacings_and_shapes(fingerprint)
    target = target_spacing(spacings, shapes)
    is_lone = np.median(shapes, axis=0) == 1
    order = axis_order(target if exact else np.where(is_lone, np.inf, target))
    resampled = [
        resampled_shape(n, s, target.tolist())
        for n, s in zip(shapes.astype(int).tolist(), spacings.tolist(), strict=True)
    ]
    n_declared = fingerprint.declared_cases if exact else None
    return Measured(
        axis_order=order,
        spacing_mm=target[list(order)],
        median_shape=np.median(resampled, axis=0)[list(order)],
        n_cases=n_declared or len(fingerprint.cases),
        n_label_entries=len(labels.labels) + 1 + (labels.ignore_value is not None),
    )
