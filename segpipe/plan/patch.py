"""The patch, its network and the batch: as large as a budget allows, in the shape of the body."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from segpipe.core.errors import PlanError
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.geometry import PlannerInput, Topology, feature_voxels, topology
from segpipe.plan.presets import Preset
from segpipe.plan.schema import Configuration

_SEARCH_VOXELS = {2: 2048**2, 3: 256**3}  # larger than any patch that will fit
_MIN_BATCH = 2  # of a single patch neither the gradient nor batch Dice says much
_GIB = 2**30
_FAR_TOO_LARGE = 1.05  # times the memory


@dataclass(frozen=True)
class Memory:
    """Predicted memory of training: all of it, and the part that does not grow with the patches."""

    total_bytes: int
    fixed_bytes: int


class PredictMemory(Protocol):
    """Predicts what training a network takes; `segpipe.networks.cost` does it for any."""

    def __call__(self, network: NetworkSpec, patch_zyx: tuple[int, int, int], batch_size: int) -> Memory: ...


class PatchBudget(Protocol):
    """Decide what a patch may cost."""

    def is_exceeded(self, network: NetworkSpec, patch: tuple[int, ...]) -> bool:
        """Return whether the smallest batch of such patches is too large."""
        ...

    def batch_size(self, network: NetworkSpec, patch: tuple[int, ...]) -> int:
        """Return how many patches there is room for."""
        ...


@dataclass(frozen=True)
class CountedVoxels:
    """nnU-Net's budget: voxels of all feature maps against a reference. Knows plain and residual networks only."""

    preset: Preset
    n_label_entries: int

    def is_exceeded(self, network: NetworkSpec, patch: tuple[int, ...]) -> bool:
        """Return whether a batch of 2 is too large, or the reference batch (see `Preset.batch_in_shrink`)."""
        scale = 2 / self.preset.reference_batch[len(patch)] if self.preset.batch_in_shrink else 1
        return feature_voxels(network, patch, self.n_label_entries) * scale > self.preset.reference_voxels[len(patch)]

    def batch_size(self, network: NetworkSpec, patch: tuple[int, ...]) -> int:
        """Patches for which the reference stands."""
        cost = feature_voxels(network, patch, self.n_label_entries)
        return round(self.preset.reference_voxels[len(patch)] / cost * self.preset.reference_batch[len(patch)])


@dataclass(frozen=True)
class PredictedBytes:
    """The memory that training any network is predicted to take against that of a GPU.

    Predicting takes a second, and on the way to the patch that fits there are dozens. What grows, grows with voxels:
    patches that are far too large by that are not predicted.
    """

    limit_gib: float
    predict: PredictMemory
    _bytes_for_each_voxel: dict[tuple[tuple[int, ...], ...], float] = field(default_factory=dict)

    def is_exceeded(self, network: NetworkSpec, patch: tuple[int, ...]) -> bool:
        """Return whether a batch of 2 is too large."""
        known = self._bytes_for_each_voxel.get(network.strides_zyx)
        if known is not None and known * math.prod(patch) > _FAR_TOO_LARGE * self.limit_gib * _GIB:
            return True
        return self._pair(network, patch).total_bytes > self.limit_gib * _GIB

    def batch_size(self, network: NetworkSpec, patch: tuple[int, ...]) -> int:
        """Return how many patches fit; each takes the same."""
        pair = self._pair(network, patch)
        each_bytes = max(1, (pair.total_bytes - pair.fixed_bytes) / _MIN_BATCH)
        return int((self.limit_gib * _GIB - pair.fixed_bytes) / each_bytes)

    def _pair(self, network: NetworkSpec, patch: tuple[int, ...]) -> Memory:
        """Predict the memory of the smallest batch, two patches."""
        z, y, x = (1, *patch) if len(patch) == 2 else patch
        memory = self.predict(network, (z, y, x), _MIN_BATCH)
        self._bytes_for_each_voxel[network.strides_zyx] = (memory.total_bytes - memory.fixed_bytes) / math.prod(patch)
        return memory


@dataclass(frozen=True)
class Fitted:
    """A patch, a network and a batch that fit the memory."""

    patch: tuple[int, ...]
    network: NetworkSpec
    batch_size: int


def fit(
    preset: Preset,
    budget: PatchBudget,
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    dataset_voxels: float,
) -> Fitted | None:
    """The largest patch with the aspect ratio of the body that fits, and the batch for what memory is left.

    Args:
        preset: The table row.
        budget: What may be spent.
        spacing_mm: Target voxel edges.
        median_shape: Median over cases at that spacing, same axes.
        dataset_voxels: Voxels of all cases at the target spacing of the 3D images.

    Returns:
        None if the images are too small for two stages; an exact preset plans one stage, as nnU-Net does.

    Raises:
        PlanError: If not even the smallest patch fits.
    """
    n_axes = len(spacing_mm)
    density = 1 / np.asarray(spacing_mm, np.float64)
    edge = (_SEARCH_VOXELS[n_axes] / np.prod(density)) ** (1 / n_axes)
    size = [min(max(1, round(d * edge)), m) for d, m in zip(density, median_shape, strict=True)]
    found = topology(spacing_mm, size, preset.max_stages)
    if len(found.strides) < 2 and not preset.is_exact:
        return None
    network = preset.network(found)
    while budget.is_exceeded(network, found.patch):
        smaller = _shrunk(preset, spacing_mm, found, median_shape)
        if smaller is None and preset.reference_voxels:
            break  # nnU-Net's count is no limit of the memory
        if smaller is None:
            raise PlanError(
                "--gpu-memory: not even the smallest patch fits. Allow more memory, or choose a smaller preset."
            )
        found = smaller
        network = preset.network(found)
    cap = round(dataset_voxels * preset.coverage / math.prod(found.patch))
    largest = preset.max_batch[n_axes] if preset.max_batch else cap
    return Fitted(found.patch, network, max(min(budget.batch_size(network, found.patch), cap, largest), _MIN_BATCH))


def _shrunk(
    preset: Preset, spacing_mm: Sequence[float], found: Topology, median_shape: Sequence[float]
) -> Topology | None:
    """A patch one step smaller along the axis that covers most of the body; None if two stages would not be left.

    nnU-Net takes that axis even if the network loses its second stage; ours then tries the next.
    """
    covered = np.argsort([p / m for p, m in zip(found.patch, median_shape, strict=True)])[::-1]
    for axis in covered[:1] if preset.is_exact else covered:
        smaller = _one_step(spacing_mm, found, int(axis), preset.max_stages)
        if min(smaller.patch) >= 1 and (preset.is_exact or len(smaller.strides) > 1):
            return smaller
    return None


def _one_step(spacing_mm: Sequence[float], found: Topology, axis: int, max_stages: int | None) -> Topology:
    """The step is what the smaller patch must be a multiple of."""
    trial = list(found.patch)
    trial[axis] -= found.divisors[axis]
    step = topology(spacing_mm, trial, max_stages).divisors[axis]
    patch = list(found.patch)
    patch[axis] -= step
    return topology(spacing_mm, patch, max_stages)


def patch_budget(preset: Preset, measured: PlannerInput, predict: PredictMemory | None) -> PatchBudget:
    """Return the preset's budget: feature maps where nnU-Net's reference is known, predicted memory elsewhere."""
    if preset.reference_voxels:
        return CountedVoxels(preset, measured.n_label_entries)
    if predict is None or preset.reference_gib is None:
        raise ValueError("this preset is planned by predicted memory; give `predict`")
    return PredictedBytes(preset.reference_gib, predict)


_MIN_COARSE_VOX = 2  # a coarsest map of one voxel along an axis has no neighbours to convolve


def nearest_fit(
    configuration: Configuration, predict_bytes: Callable[[Configuration], int], limit_bytes: int
) -> Configuration | None:
    """First fewer patches in a batch, down to 2; then a smaller patch, for the same network.

    Args:
        configuration: What is wanted.
        predict_bytes: Memory of training a configuration; not larger for a smaller batch or patch. It is asked a few
            times only, since the candidates are ordered.
        limit_bytes: What there is.

    Returns:
        The configuration itself if it fits; None if even the smallest patch does not.

    Source:
        The patch shrinks as in nnU-Net's planner: along the axis that covers most of the median image. There the
        network may lose a stage on the way; here it stays, so that the step is always its divisor.
    """
    candidates = [configuration, *_smaller(configuration)]
    first = bisect_left(candidates, True, key=lambda candidate: predict_bytes(candidate) <= limit_bytes)
    return candidates[first] if first < len(candidates) else None


def _smaller(configuration: Configuration) -> Iterator[Configuration]:
    """Yield ever smaller configurations, one step at a time."""
    for batch_size in range(configuration.batch_size - 1, _MIN_BATCH - 1, -1):
        configuration = configuration.model_copy(update={"batch_size": batch_size})
        yield configuration
    divisors = (*(1,) * (3 - configuration.network.n_axes), *configuration.network.divisors_zyx)
    while True:
        patch, median = configuration.patch_zyx, configuration.median_shape_zyx
        free = [a for a in range(3) if patch[a] > _MIN_COARSE_VOX * divisors[a]]
        if not free:
            return
        longest = max(free, key=lambda a: (patch[a] / median[a], a))
        smaller = tuple(p - divisors[a] * (a == longest) for a, p in enumerate(patch))
        configuration = configuration.model_copy(update={"patch_zyx": smaller})
        yield configuration
