"""Locations of the labels of a case: places to centre patches on, few of them, by connected component."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.grid import ZYX
from segpipe.core.labels import LabelSet
from segpipe.core.seeds import generator_for
from segpipe.fingerprint.labels import Runs, components_of, runs_of
from segpipe.plan.planned_cost import MAX_LOCATIONS

ANNOTATED = -1  # in place of a label: all annotated voxels

_Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class LabelPlaces:
    """Some voxels of one label, component after component.

    Args:
        voxels: (n,) positions in the case, counted along X, then Y, then Z.
        kept_ends: (components,) end of each component in `voxels`.
        size_ends: (components,) numbers of voxels that the components have in the case, added up.
    """

    voxels: _Ints
    kept_ends: _Ints
    size_ends: _Ints

    @property
    def n_voxels(self) -> int:
        """Voxels of the label in the whole case, not only the kept ones."""
        return int(self.size_ends[-1])

    def draw(self, generator: np.random.Generator, *, by_component: bool) -> int:
        """A voxel: each as likely, or each component as likely and in it each voxel."""
        if by_component:
            component = int(generator.integers(len(self.kept_ends)))
        else:
            component = int(np.searchsorted(self.size_ends, generator.integers(self.size_ends[-1]), side="right"))
        first = self.kept_ends[component - 1] if component else 0
        return int(self.voxels[generator.integers(first, self.kept_ends[component])])


@dataclass(frozen=True, eq=False)
class Places:
    """Places of all labels as stored: one label after the other, in two arrays.

    Args:
        voxels: (n,) unsigned integers, as in `LabelPlaces`.
        components: (components, 3) int64: position of the label in the label set or `ANNOTATED`, voxels kept, voxels in
            the case.
    """

    voxels: _Ints
    components: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.components.shape[1:] != (3,) or self.components[:, 1].sum() != len(self.voxels):
            raise ValueError(f"{len(self.voxels)} voxels do not fit components {self.components.shape}")

    def by_label(self) -> dict[int, LabelPlaces]:
        """Places of each label that is present."""
        kept_ends = np.cumsum(self.components[:, 1])
        found = {}
        for label in np.unique(self.components[:, 0]).tolist():
            own = np.flatnonzero(self.components[:, 0] == label)
            first, last = (int(kept_ends[own[0] - 1]) if own[0] else 0), int(kept_ends[own[-1]])
            sizes = np.cumsum(self.components[own, 2])
            found[label] = LabelPlaces(self.voxels[first:last], kept_ends[own] - first, sizes)
        return found


def find_places(indices_zyx: NDArray[np.int16], labels: LabelSet) -> Places:
    """Up to `MAX_LOCATIONS` voxels of each label that is present, and of what is annotated if a dataset ignores voxels.

    Small components keep all their voxels and large ones share the rest. Of a label with more components than
    `MAX_LOCATIONS`, some are kept.

    Args:
        indices_zyx: (Z, Y, X) inside values.
        labels: What they mean.
    """
    n_z, n_y, n_x = indices_zyx.shape
    voxels: list[_Ints] = [np.zeros(0, np.int64)]
    components = [np.zeros((0, 3), np.int64)]
    for label, runs, parts in _runs_by_label(indices_zyx, labels):
        found, kept, sizes = _sample(runs, parts, (n_z, n_y, n_x), generator_for(0, label + 1))
        voxels.append(found)
        components.append(np.stack([np.full(len(sizes), label), kept, sizes], axis=1))
    smallest = np.min_scalar_type(max(0, indices_zyx.size - 1))
    return Places(np.concatenate(voxels).astype(smallest), np.concatenate(components))


def _runs_by_label(indices: NDArray[np.int16], labels: LabelSet) -> Iterator[tuple[int, Runs, _Ints]]:
    """Label, its runs and the component of each; labels that are absent are left out."""
    if labels.ignore_value is not None:
        runs = runs_of((indices >= 0).astype(np.int8))
        if runs.values.size:
            yield ANNOTATED, runs, np.zeros(runs.values.size, np.int64)
    if labels.has_regions:  # they overlap: one after the other
        for label, region in enumerate(labels.labels):
            inside = np.zeros(len(labels.values) + 1, np.int8)
            inside[list(labels.indices_of(region))] = 1
            runs = runs_of(inside[indices.clip(0)])
            if runs.values.size:
                yield label, runs, components_of(runs)
        return
    runs = runs_of(indices)
    parts = components_of(runs)
    for value in np.unique(runs.values).tolist():
        own = runs.values == value
        yield value - 1, runs.select(own), parts[own]


def _sample(runs: Runs, parts: _Ints, shape_zyx: ZYX, generator: np.random.Generator) -> tuple[_Ints, _Ints, _Ints]:
    """Voxels by component, how many of each component these are, and how many it has."""
    order = np.argsort(parts, kind="stable")
    lengths = (runs.last_x - runs.first_x + 1)[order]
    flat = ((runs.z * shape_zyx[1] + runs.y) * shape_zyx[2] + runs.first_x)[order]
    run_ends = np.cumsum(lengths)
    _, first_runs = np.unique(parts[order], return_index=True)
    firsts = (run_ends - lengths)[first_runs]  # voxels are counted in the order of `flat`
    sizes = np.diff(firsts, append=run_ends[-1])
    if len(sizes) > MAX_LOCATIONS:
        some = np.sort(generator.choice(len(sizes), MAX_LOCATIONS, replace=False))
        firsts, sizes = firsts[some], sizes[some]
    kept = np.minimum(sizes, _quota(sizes))
    chosen = np.concatenate(
        [
            first + (np.arange(size) if n == size else np.sort(generator.choice(size, n, replace=False)))
            for first, size, n in zip(firsts, sizes, kept, strict=True)
        ]
    )
    run = np.searchsorted(run_ends, chosen, side="right")
    return flat[run] + chosen - (run_ends - lengths)[run], kept, sizes


def _quota(sizes: _Ints) -> int:
    """The most that each component may keep so that all together keep no more than `MAX_LOCATIONS`."""
    low, high = 1, max(1, int(sizes.max()))
    while low < high:
        middle = (low + high + 1) // 2
        fits = np.minimum(sizes, middle).sum() <= MAX_LOCATIONS
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
