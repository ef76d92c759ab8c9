"""Patch size, strides, kernels and batch size from spacing and shape: nnU-Net's rules as pure functions.

Source: nnU-Net v2.8.1, ExperimentPlanner and its residual variants; the closed form of the memory count was
derived from its networks' own counters. Works for 2 and 3 axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segpipe.networks.spec import NetworkSpec
from segpipe.plan.presets import Preset

_MIN_EDGE = 4  # voxels of the coarsest feature map
_SEARCH_VOXELS = {2: 2048**2, 3: 256**3}  # larger than any patch that will fit
_MIN_BATCH = 2


@dataclass(frozen=True)
class Topology:
    """Strides and kernels of each stage, the patch rounded up to fit them, and its divisors."""

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch: tuple[int, ...]
    divisors: tuple[int, ...]


def topology(spacing_mm: Sequence[float], size: Sequence[float]) -> Topology:
    """Pool every axis while it is long enough and not much coarser than the others.

    An axis is pooled if it has at least twice the smallest edge and its spacing is below twice the smallest among
    such axes; a lone axis needs three times the edge. A kernel is 1 along an axis until its spacing is below twice
    the smallest of all, then 3 for good; 3 everywhere in the coarsest stage.
    """
    n_axes = len(spacing_mm)
    spacing, edges = list(spacing_mm), list(size)
    kernel, pools = [1] * n_axes, [0] * n_axes
    strides, kernels = [(1,) * n_axes], []
    while True:
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
    return Topology(tuple(strides), (*kernels, (3,) * n_axes), patch, divisors)


def network_for(preset: Preset, found: Topology) -> NetworkSpec:
    """The preset's network with the topology's stages."""
    n_stages, limit = len(found.strides), preset.max_features[len(found.patch)]
    return NetworkSpec(
        kind=preset.kind,
        features=tuple(min(limit, preset.base_features * 2**stage) for stage in range(n_stages)),
        strides_zyx=found.strides,
        kernels_zyx=found.kernels,
        blocks=preset.blocks[:n_stages],
        decoder_convolutions=(preset.decoder_convolutions,) * (n_stages - 1),
    )


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
    total = decoder + n_label_entries * voxels[0]
    if network.kind == "plain":
        return total + sum(b * m for b, m in zip(network.blocks, maps, strict=True))
    projected = [
        m
        for i, m in enumerate(maps)
        if i and (network.features[i] != network.features[i - 1] or max(network.strides_zyx[i]) > 1)
    ]
    return total + maps[0] + sum(2 * b * m for b, m in zip(network.blocks, maps, strict=True)) + sum(projected)


@dataclass(frozen=True)
class Fitted:
    """A patch, a network and a batch that fit the memory."""

    patch: tuple[int, ...]
    network: NetworkSpec
    batch_size: int


def fit(
    preset: Preset,
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    dataset_voxels: float,
    n_label_entries: int,
) -> Fitted | None:
    """The largest patch with the aspect ratio of the body that fits, and the batch for what memory is left.

    Args:
        preset: The table row.
        spacing_mm: Target voxel edges.
        median_shape: Median over cases at that spacing, same axes.
        dataset_voxels: Voxels of all cases at the target spacing of the 3D images.
        n_label_entries: As in `feature_voxels`.

    Returns:
        None if the images are too small for two stages; an exact preset plans one stage, as nnU-Net does.
    """
    n_axes = len(spacing_mm)
    budget = preset.reference_voxels[n_axes]
    reference_batch = preset.reference_batch[n_axes]
    scale = 2 / reference_batch if preset.batch_in_shrink else 1
    density = 1 / np.asarray(spacing_mm, np.float64)
    edge = (_SEARCH_VOXELS[n_axes] / np.prod(density)) ** (1 / n_axes)
    found = topology(spacing_mm, [min(max(1, round(d * edge)), m) for d, m in zip(density, median_shape, strict=True)])
    if len(found.strides) < 2 and not preset.is_exact:
        return None
    network = network_for(preset, found)
    while (cost := feature_voxels(network, found.patch, n_label_entries)) * scale > budget:
        longest = int(np.argsort([p / m for p, m in zip(found.patch, median_shape, strict=True)])[-1])
        found = _shrunk(spacing_mm, found, longest)
        network = network_for(preset, found)
    cap = round(dataset_voxels * preset.coverage / math.prod(found.patch))
    largest = preset.max_batch[n_axes] if preset.max_batch else cap
    batch = min(round(budget / cost * reference_batch), cap, largest)
    return Fitted(found.patch, network, max(batch, _MIN_BATCH))


def _shrunk(spacing_mm: Sequence[float], found: Topology, axis: int) -> Topology:
    """A patch one step smaller along `axis`; the step is what the smaller patch must be a multiple of."""
    trial = list(found.patch)
    trial[axis] -= found.divisors[axis]
    step = topology(spacing_mm, trial).divisors[axis]
    patch = list(found.patch)
    patch[axis] -= step
    return topology(spacing_mm, patch)
