"""Labels and their values: any integers in files; inside 0 (background), 1, 2, …; mapped back on export."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator, model_validator

from segpipe.core.errors import DataError
from segpipe.core.records import Record

Mask = NDArray[np.bool_]  # where a structure is
_CHUNK_VOX = 1 << 20
_TABLE_SPAN = 1 << 20  # values closer together than this are looked up in a table, which is faster than searching
_UNKNOWN = np.int16(-2)
IGNORE_INDEX = -1  # inside value of voxels that never count; in files it is `ignore_value`


class Label(Record):
    """A structure: its name and the value in the files; several values make a region (e.g. whole tumour)."""

    name: str
    values: tuple[int, ...]

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if not name.strip() or name.startswith("("):
            raise ValueError(
                "expected a name that does not begin with '(', as (mean) and (image) in tables of scores do"
            )
        return name

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if not values or len(set(values)) != len(values):
            raise ValueError("expected at least one value, each once")
        return values


class LabelSet(Record):
    """All structures of a dataset, without background.

    Args:
        labels: Structures in the order of the network's outputs.
        background_value: Value of everything else in the files.
        ignore_value: Value of voxels that were not annotated; None if there is none.
        paint_values: With regions, the value each region is painted with on export, in the order of painting
            (nnU-Net's `regions_class_order`); empty without regions.
    """

    labels: tuple[Label, ...]
    background_value: int = 0
    ignore_value: int | None = None
    paint_values: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> LabelSet:
        names = [label.name for label in self.labels]
        if not names or len(set(names)) != len(names):
            raise ValueError("expected at least one label besides background, each name once")
        special = {self.background_value, self.ignore_value}
        if any(special & set(label.values) for label in self.labels):
            raise ValueError("a label has the value of background or ignore")
        if not self.has_regions and len(set(self.values)) != len(self.labels):
            raise ValueError("two labels have the same value")
        if self.has_regions and (
            len(self.paint_values) != len(self.labels) or not set(self.paint_values) <= set(self.values)
        ):
            raise ValueError(
                "regions need one painting value for each label (regions_class_order), taken from the regions' values"
            )
        if self.has_regions and (contradiction := painting_contradiction(self.labels, self.paint_values)):
            raise ValueError(contradiction)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the outputs."""
        return tuple(label.name for label in self.labels)

    @property
    def has_regions(self) -> bool:
        """True if some label joins several values, so that labels may overlap."""
        return any(len(label.values) > 1 for label in self.labels)

    @property
    def values(self) -> tuple[int, ...]:
        """Every value of a structure in the files; inside, the i-th becomes i+1.

        Without regions in the order of the labels, so that inside values are the network's outputs; else ascending.
        """
        if not self.has_regions:
            return tuple(label.values[0] for label in self.labels)
        return tuple(sorted({v for label in self.labels for v in label.values}))

    @property
    def known_values(self) -> frozenset[int]:
        """Every value that a label file may hold."""
        extra = () if self.ignore_value is None else (self.ignore_value,)
        return frozenset((self.background_value, *self.values, *extra))

    @property
    def n_outputs(self) -> int:
        """Channels of the network: background and labels (softmax), or regions (sigmoid)."""
        return len(self.labels) if self.has_regions else len(self.labels) + 1

    @property
    def mask_dtype(self) -> np.dtype[Any]:
        """Smallest type of masks, fixed by the values, not by the case."""
        low, high = min(self.known_values), max(self.known_values)
        for kind in (np.uint8, np.int16, np.int32):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return np.dtype(kind)
        return np.dtype(np.int64)

    def indices_of(self, label: Label) -> tuple[int, ...]:
        """Inside values of a structure."""
        return tuple(self.values.index(v) + 1 for v in label.values)

    def encode(self, values: NDArray[np.integer[Any]], where: str) -> NDArray[np.int16]:
        """Convert file values to inside indices, int16 of the same shape.

        Raises:
            DataError: If a value is not in the set.
        """
        pairs = {v: i + 1 for i, v in enumerate(self.values)} | {self.background_value: 0}
        if self.ignore_value is not None:
            pairs[self.ignore_value] = IGNORE_INDEX
        flat, indices, unknown = values.reshape(-1), np.empty(values.size, np.int16), set[int]()
        for start in range(0, flat.size, _CHUNK_VOX):  # of a large map only a piece is held as 64-bit integers
            part = flat[start : start + _CHUNK_VOX].astype(np.int64)
            looked_up = _look_up(pairs, part)
            indices[start : start + _CHUNK_VOX] = looked_up
            unknown.update(np.unique(part[looked_up == _UNKNOWN]).tolist())
        if unknown:
            raise DataError(
                f"{where}: label values {sorted(unknown)[:10]} are not in the dataset's list "
                f"{sorted(self.known_values)}. Add them to the list or correct the file."
            )
        return indices.reshape(values.shape)

    def decode(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Convert the output of the network to file values, of `mask_dtype`.

        Args:
            outputs: Without regions the winning output index (0 background), any shape; with regions bool
                (regions, *shape), painted in order.
        """
        if not self.has_regions:
            table = np.array([self.background_value, *(label.values[0] for label in self.labels)], self.mask_dtype)
            return table[outputs]
        mask = np.full(outputs.shape[1:], self.background_value, self.mask_dtype)
        for value, region in zip(self.paint_values, outputs, strict=True):
            mask[region] = value
        return mask

    def masks_of(self, values: NDArray[np.integer[Any]]) -> dict[str, NDArray[np.bool_]]:
        """One mask for each structure from file values; voxels of `ignore_value` are in none."""
        return {label.name: np.isin(values, label.values) for label in self.labels}


def painting_contradiction(regions: Sequence[Label], paint_values: Sequence[int]) -> str:
    """The reason why a mask, where each voxel has one value, cannot hold these regions as painted; empty if it can.

    Painted in order, each region must leave a value that belongs to it and to every region that contains it, and to no
    other. A voxel of any value in the label files must come out with a value of the same regions.

    Args:
        regions: In the order of painting.
        paint_values: One for each region.

    Example:
        >>> whole, core = Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))
        >>> painting_contradiction([whole, core], [1, 2])
        ''
        >>> painting_contradiction([whole, core], [2, 2]).split(";")[0]
        'regions_class_order [2, 2]: whole is painted with 2, which is also a value of core'
    """
    of_value = {value: _holders(regions, value) for region in regions for value in region.values}
    given = f"regions_class_order {list(paint_values)}"
    suggested = _suggested_painting(regions)
    if suggested is None:
        advice = "No order of painting can hold these regions: give each overlap, and each rest, a value of its own"
    elif list(suggested) == sorted(suggested):
        advice = f"Use {[suggested[i] for i in range(len(regions))]}"
    else:
        listed = ", ".join(regions[i].name for i in suggested)
        advice = f"List the regions as {listed}, with regions_class_order {list(suggested.values())}"
    for region, painted in zip(regions, paint_values, strict=True):
        containing = {other.name for other in regions if set(region.values) <= set(other.values)}
        if painted not in region.values:
            return f"{given}: {region.name} is painted with {painted}, which is none of its values. {advice}"
        if surplus := of_value[painted] - containing:
            named = ", ".join(sorted(surplus))
            return (
                f"{given}: {region.name} is painted with {painted}, which is also a value of {named}; the mask would "
                f"say {named} everywhere in {region.name}. {advice}"
            )
    for value, holders in of_value.items():
        last = [painted for region, painted in zip(regions, paint_values, strict=True) if region.name in holders][-1]
        if of_value[last] != holders:
            return (
                f"{given}: value {value} ({', '.join(sorted(holders))}) is painted as {last} "
                f"({', '.join(sorted(of_value[last]))}) in the end. {advice}"
            )
    return ""


def _holders(regions: Sequence[Label], value: int) -> set[str]:
    return {region.name for region in regions if value in region.values}


def _suggested_painting(regions: Sequence[Label]) -> dict[int, int] | None:
    """Find an order that can hold the regions: the place of each and its value; None if there is none."""
    order = list(range(len(regions)))
    if any(set(a.values) < set(b.values) for a, b in itertools.combinations(regions, 2)):  # painted over later
        order.sort(key=lambda place: -len(regions[place].values))
    chosen = {}
    for place in order:
        containing = {other.name for other in regions if set(regions[place].values) <= set(other.values)}
        own = [value for value in regions[place].values if _holders(regions, value) == containing]
        if not own:
            return None
        chosen[place] = own[0]
    held = {frozenset(_holders(regions, value)) for value in chosen.values()}
    every = {frozenset(_holders(regions, value)) for region in regions for value in region.values}
    return chosen if held == every else None


def _look_up(pairs: dict[int, int], values: NDArray[np.int64]) -> NDArray[np.int16]:
    """Map each value by `pairs`; `_UNKNOWN` if it is not there."""
    known = np.array(sorted(pairs), np.int64)
    indices = np.array([pairs[int(value)] for value in known], np.int16)
    low, span = int(known[0]), int(known[-1] - known[0]) + 1
    if span > _TABLE_SPAN:
        places = np.searchsorted(known, values).clip(max=known.size - 1)
        return np.where(known[places] == values, indices[places], _UNKNOWN)
    table = np.full(span + 2, _UNKNOWN, np.int16)  # an entry at each end for all values beyond
    table[known - low + 1] = indices
    return table[(values - (low - 1)).clip(0, span + 1)]
