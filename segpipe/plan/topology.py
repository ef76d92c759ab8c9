"""Strides and kernels from spacing and size, and what a network of them holds: nnU-Net's rules as pure functions.

Source: nnU-Net v2.8.1, ExperimentPlanner and its residual variants; the closed form of the memory count was
derived from its networks' own counters. Works for 2 and 3 axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segpipe.networks.spec import NetworkSpec

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
