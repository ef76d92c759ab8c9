"""Target spacing, shapes and axis order: nnU-Net's rules as pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.core.labels import LabelSet
from segpipe.fingerprint.record import Fingerprint

ANISOTROPY = 3.0  # an axis this many times coarser than the others is treated apart
_COARSE_AXIS_PERCENTILE = 10  # nnU-Net's: finer than the median, but not the single finest case
Floats = NDArray[np.float64]


def uses_fine_tenth(spacings_mm: Floats, shapes: Floats) -> bool:
    """Return whether one axis has voxels so long and so few that their median would blur the finer cases.

    Args:
        spacings_mm: (cases, 3).
        shapes: (cases, 3) after cropping.
    """
    target, size = np.percentile(spacings_mm, 50, axis=0), np.percentile(shapes, 50, axis=0)
    worst = int(np.argmax(target))
    others = [a for a in range(3) if a != worst]
    return bool(target[worst] > ANISOTROPY * target[others].max() and size[worst] * ANISOTROPY < size[others].min())


def target_spacing(spacings_mm: Floats, shapes: Floats) -> Floats:
    """Median spacing; for a coarse axis with few slices the 10th percentile of that axis.

    Args:
        spacings_mm: (cases, 3).
        shapes: (cases, 3) after cropping.

    Returns:
        (3,) mm. The coarse axis never becomes finer than the others.
    """
    target = np.percentile(spacings_mm, 50, axis=0)
    if uses_fine_tenth(spacings_mm, shapes):
        worst = int(np.argmax(target))
        coarsest_other = np.delete(target, worst).max()
        fine = np.percentile(spacings_mm[:, worst], _COARSE_AXIS_PERCENTILE)
        target[worst] = (
            fine if fine >= coarsest_other else coarsest_other + 1e-5
        )  # still the coarsest axis, as in nnU-Net
    return target


def resampled_shape(shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]) -> tuple[int, ...]:
    """Voxels after resampling: each edge keeps its length in mm, rounded, at least 1."""
    return tuple(max(1, round(s / t * n)) for n, s, t in zip(shape, spacing_mm, target_mm, strict=True))


def axis_order(target_mm: Floats) -> tuple[int, int, int]:
    """The coarsest axis first, the others as they were."""
    first = int(np.argmax(target_mm))
    second, third = (a for a in range(3) if a != first)
    return (first, second, third)


def spacings_and_shapes(fingerprint: Fingerprint) -> tuple[Floats, Floats]:
    """(cases, 3) mm and (cases, 3) voxels after cropping."""
    spacings = np.array([case.spacing_mm for case in fingerprint.cases], np.float64)
    shapes = np.array([case.cropped_shape_zyx for case in fingerprint.cases], np.float64)
    return spacings, shapes


@dataclass(frozen=True, eq=False)
class PlannerInput:
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
        """Voxels of all cases."""
        return float(np.prod(self.median_shape) * self.n_cases)


def planner_input(fingerprint: Fingerprint, labels: LabelSet, *, exact: bool) -> PlannerInput:
    """Return what the rules start from.

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
    return PlannerInput(
        axis_order=order,
        spacing_mm=target[list(order)],
        median_shape=np.median(resampled, axis=0)[list(order)],
        n_cases=n_declared or len(fingerprint.cases),
        n_label_entries=len(labels.labels) + 1 + (labels.ignore_value is not None),
    )
