"""Spacing, shapes, axis order, strides and kernels, and what a network holds: nnU-Net's rules as pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.core.labels import LabelSet
from segpipe.fingerprint.record import Fingerprint
from segpipe.networks.spec import NetworkSpec

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


# Source: nnU-Net v2.8.1, ExperimentPlanner and its residual variants; the closed form of the memory count was
# derived from its networks' own counters. Works for 2 and 3 axes.

_MIN_EDGE = 4  # voxels of the coarsest feature map


@dataclass(frozen=True)
class Topology:
    """Strides and kernels of each stage, the patch rounded up to fit them, its divisors and its voxels' edges."""

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch: tuple[int, ...]
    divisors: tuple[int, ...]
    spacing_mm: tuple[float, ...]


def topology(spacing_mm: Sequence[float], size: Sequence[float], max_stages: int | None = None) -> Topology:
    """Pool every axis while it is long enough and not much coarser than the others.

    An axis is pooled if it has at least twice the smallest edge and its spacing is below twice the smallest among
    such axes; a lone axis needs three times the edge. A kernel is 1 along an axis until its spacing is below twice
    the smallest of all, then 3 for good; 3 everywhere in the coarsest stage. Networks that come with a number of
    stages stop at `max_stages`.
    """
    n_axes = len(spacing_mm)
    spacing, edges = list(spacing_mm), list(size)
    kernel, pools = [1] * n_axes, [0] * n_axes
    strides, kernels = [(1,) * n_axes], []
    while max_stages is None or len(strides) < max_stages:
        long_enough = [a for a in range(n_axes) if edges[a] >= 2 * _MIN_EDGE]
        finest = min((spacing[a] for a in long_enough), default=0.0)
        pooled = [a for a in long_enough if spacing[a] / finest < 2]
        if not pooled or (len(pooled) == 1 and edges[pooled[0]] < 3 * _MIN_EDGE):
            break
        finest_of_all = min(spacing)
        kernel = [3 if k == 3 or s / finest_of_all < 2 else 1 for k, s in zip(kernel, spacing, strict=True)]
        for a in pooled:
            pools[a] += 1
            spacing[a] *= 2
            edges[a] = math.ceil(edges[a] / 2)
        strides.append(tuple(2 if a in pooled else 1 for a in range(n_axes)))
        kernels.append(tuple(kernel))
    divisors = tuple(2**n for n in pools)
    patch = tuple(int(math.ceil(e / d) * d) if e % d else int(e) for e, d in zip(size, divisors, strict=True))
    return Topology(tuple(strides), (*kernels, (3,) * n_axes), patch, divisors, tuple(spacing_mm))


def feature_voxels(network: NetworkSpec, patch: Sequence[int], n_label_entries: int) -> int:
    """Voxels of all feature maps for one patch, nnU-Net's stand-in for memory.

    Args:
        network: The network.
        patch: Voxels of the input, as many axes as the network.
        n_label_entries: Entries of the label list, background, ignore and regions included.
    """
    edges, voxels = list(patch), []
    for stride in network.strides_zyx:
        edges = [e // s for e, s in zip(edges, stride, strict=True)]
        voxels.append(math.prod(edges))
    maps = [f * v for f, v in zip(network.features, voxels, strict=True)]
    decoder = sum((n + 1) * m for n, m in zip(network.decoder_convolutions, maps[:-1], strict=True))
    total = decoder + (n_label_entries * voxels[0] if len(voxels) > 1 else 0)  # outputs are the decoder's
    if network.kind == "plain":
        return total + sum(b * m for b, m in zip(network.blocks, maps, strict=True))
    projected = [
        m
        for i, m in enumerate(maps)
        if i and (network.features[i] != network.features[i - 1] or max(network.strides_zyx[i]) > 1)
    ]
    return total + maps[0] + sum(2 * b * m for b, m in zip(network.blocks, maps, strict=True)) + sum(projected)
