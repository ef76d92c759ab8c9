"""Which patches a step sees. A batch is a function of (seed, fold, iteration) alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segpipe.core.choices import functions_for
from segpipe.core.grid import ZYX
from segpipe.plan.training import SAMPLERS
from segpipe.prepare.places import ANNOTATED, LabelPlaces
from segpipe.prepare.store import PatchCase
from segpipe.train.augmentation.draws import Draws

PAD_LABEL = 0  # beyond the image there is background


@dataclass(frozen=True, eq=False)
class Pieces:
    """Arrays of different sizes, one behind the other: they are pinned and copied as one.

    Args:
        flat: (n,) all their numbers.
        shapes: Of each.
    """

    flat: Tensor
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def each(self) -> tuple[Tensor, ...]:
        """The arrays, views into `flat`."""
        flats = torch.split(self.flat, [math.prod(shape) for shape in self.shapes])
        return tuple(flat.view(shape) for flat, shape in zip(flats, self.shapes, strict=True))

    def stack(self) -> Tensor:
        """The arrays as one tensor, a view into `flat`; all must have the same shape."""
        return self.flat.view(len(self.shapes), *self.shapes[0])

    def to(self, device: torch.device) -> Pieces:
        """On a device; the copy may still run."""
        return Pieces(self.flat.to(device, non_blocking=True), self.shapes)


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples as they were cut, where the cases lie: in memory, or on the training device.

    Args:
        images: (C, Z, Y, X) each, float32, 0 beyond the image.
        indices: (Z, Y, X) each, signed integers, background beyond the image.
        case_ids: Of which case each sample is.
        guides: (Z, Y, X) each, inside labels that guide a cascade, background beyond the image; None outside of one.
        draws: The numbers to augment the samples with; None: they are patches and stay as they are.
    """

    images: Pieces
    indices: Pieces
    case_ids: tuple[str, ...]
    guides: Pieces | None = None
    draws: Draws | None = None

    def to(self, device: torch.device) -> Batch:
        """On a device; the copy may still run."""
        guides = None if self.guides is None else self.guides.to(device)
        return replace(self, images=self.images.to(device), indices=self.indices.to(device), guides=guides)


@dataclass(frozen=True)
class Sampling:
    """The way in which patches are drawn.

    Args:
        patch_zyx: What the network sees.
        batch_size: Patches.
        foreground_fraction: Share of patches centred on a labelled voxel, 0 to 1.
        foreground_unit: What such a patch is centred on, a row of `plan.training.SAMPLERS`.
    """

    patch_zyx: ZYX
    batch_size: int
    foreground_fraction: float
    foreground_unit: str = "label"


@dataclass(frozen=True)
class PatchPlace:
    """The place of a patch: a case, and the patch's first voxel, negative where it is larger than the image."""

    case: PatchCase
    start_zyx: tuple[int, ...]


_DRAWERS: dict[str, Callable[[LabelPlaces, np.random.Generator], int]] = {  # a flat index into the case
    "label": lambda places, generator: places.draw(generator, by_component=False),
    "component": lambda places, generator: places.draw(generator, by_component=True),
}
DRAW_VOXEL = functions_for(SAMPLERS, _DRAWERS, "SAMPLERS of plan/training.py")


def draw_places(cases: Sequence[PatchCase], sampling: Sampling, generator: np.random.Generator) -> list[PatchPlace]:
    """Draw the patches of a batch: cases with replacement, and a place in each.

    The last patches of a batch (`n_on_label`) are centred on a voxel of a label drawn evenly among those present in the
    case. The others lie anywhere; in a dataset with an ignore label, and where a case has no label, they are centred on
    a voxel that somebody annotated, if there is one. No patch reaches beyond the image more than it must: one larger
    than the image has it in its middle.

    Source:
        nnU-Net's data loader. It bounds the place on the lower side only; here both sides are bounded.
    """
    n_any = sampling.batch_size - n_on_label(sampling.batch_size, sampling.foreground_fraction, generator)
    places = []
    for number in range(sampling.batch_size):
        case = cases[int(generator.integers(len(cases)))]
        places.append(PatchPlace(case, _start(case, sampling, generator, on_label=number >= n_any)))
    return places


def cut_batch(
    places: Sequence[PatchPlace],
    patch_zyx: ZYX,
    draws: Draws | None = None,
    edges: Sequence[ZYX] = (),
    *,
    pins: bool = False,
) -> Batch:
    """Read the samples of a batch.

    Args:
        places: Of the patches.
        patch_zyx: Their edges.
        draws: The numbers that they will be augmented with; None: they will not.
        edges: What to cut of each sample, about the middle of its patch, see `edges_to_cut`; empty: patches. The margin
            around a patch may lie beyond the image, where there are 0 and background.
        pins: Whether to read into page-locked memory, from where copies to a GPU overlap with computing. Of cases that
            lie on the GPU nothing is copied.

    Raises:
        DataError: If a case on disk is damaged, with its name.
    """
    edges = edges or [patch_zyx] * len(places)
    starts = [
        [start - (edge - patch) // 2 for start, edge, patch in zip(place.start_zyx, own, patch_zyx, strict=True)]
        for place, own in zip(places, edges, strict=True)
    ]

    def cut_each(arrays: Sequence[Any], fill: int) -> Pieces:
        pieces = _new_pieces(arrays, edges, pins=pins)
        for piece, array, start in zip(pieces.each, arrays, starts, strict=True):
            cut_(piece, array, start, fill)
        return pieces

    cases = [place.case for place in places]
    guides = [case.guide for case in cases if case.guide is not None]
    return Batch(
        cut_each([case.image for case in cases], 0),
        cut_each([case.indices for case in cases], PAD_LABEL),
        tuple(case.case_id for case in cases),
        cut_each(guides, PAD_LABEL) if guides else None,
        draws,
    )


def _new_pieces(arrays: Sequence[Any], edges: Sequence[ZYX], *, pins: bool) -> Pieces:
    """Pieces of arrays, to be filled, where the arrays lie or in memory."""
    first = arrays[0]
    like = first if isinstance(first, Tensor) else torch.from_numpy(np.empty(0, first.dtype))
    shapes = tuple((*array.shape[:-3], *own) for array, own in zip(arrays, edges, strict=True))
    n_numbers = sum(map(math.prod, shapes))
    pins = pins and like.device.type == "cpu"
    return Pieces(torch.empty(n_numbers, dtype=like.dtype, device=like.device, pin_memory=pins), shapes)


def n_on_label(batch_size: int, fraction: float, generator: np.random.Generator) -> int:
    """Return how many patches of a batch are centred on a label.

    Returns:
        batch_size × fraction, rounded, as nnU-Net does: 1 of 2 at a third. Where that would be none or all of every
        batch although the fraction is neither, chance rounds up or down, so that the mean is the fraction: a batch of
        one at a third has a label in every third batch, and not never.
    """
    wanted = batch_size * fraction
    rounded = batch_size - round(batch_size * (1 - fraction))
    if 0 < rounded < batch_size or fraction in (0, 1):
        return rounded
    return int(wanted) + int(generator.random() < wanted - int(wanted))


def _start(case: PatchCase, sampling: Sampling, generator: np.random.Generator, *, on_label: bool) -> tuple[int, ...]:
    """First voxel of a patch; negative where the patch is larger than the image."""
    limits = [_limits(n, p) for n, p in zip(case.shape_zyx, sampling.patch_zyx, strict=True)]
    labels = sorted(label for label in case.places if label != ANNOTATED)
    label = labels[int(generator.integers(len(labels)))] if on_label and labels else ANNOTATED
    if label not in case.places:
        return tuple(int(generator.integers(low, high + 1)) for low, high in limits)
    voxel = DRAW_VOXEL[sampling.foreground_unit](case.places[label], generator)
    wanted = [int(c) - p // 2 for c, p in zip(np.unravel_index(voxel, case.shape_zyx), sampling.patch_zyx, strict=True)]
    return tuple(min(max(w, low), high) for w, (low, high) in zip(wanted, limits, strict=True))


def _limits(n_voxels: int, patch: int) -> tuple[int, int]:
    """Lowest and highest start along an axis; a patch larger than the image is centred on it."""
    if patch >= n_voxels:
        start = -((patch - n_voxels) // 2)
        return start, start
    return 0, n_voxels - patch


def cut_(piece: Tensor, array: Any, start: Sequence[int], fill: int) -> None:
    """Fill a piece with a part of the last three axes of a numpy, blosc2 or torch array, and beyond it with `fill`.

    Example:
        >>> piece = torch.empty(1, 1, 4)
        >>> cut_(piece, np.ones((1, 1, 3)), (0, 0, -1), 0)
        >>> piece.tolist()
        [[[0.0, 1.0, 1.0, 1.0]]]
    """
    lead = array.ndim - 3
    inside, place = [], []
    for n_voxels, first, edge in zip(array.shape[lead:], start, piece.shape[lead:], strict=True):
        low, high = max(first, 0), min(first + edge, n_voxels)
        inside.append(slice(low, high))
        place.append(slice(low - first, high - first))
    found = torch.as_tensor(array[(*(slice(None),) * lead, *inside)])
    if found.shape != piece.shape:
        piece.fill_(fill)
    z, y, x = place
    piece[..., z, y, x] = found
