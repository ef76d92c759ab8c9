"""Two maps of file values as maps of inside indices, with every pair of values counted and every value boxed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segpipe.core.labels import LabelSet
from segpipe.evaluate.metrics import Overlap
from segpipe.evaluate.surface import Box

Item = TypeVar("Item")
Result = TypeVar("Result")
_MAX_TABLE = 1 << 20  # label values further apart than this are searched for instead of looked up
_IGNORED, _UNKNOWN = -1, -2
_INT32 = np.iinfo(np.int32)
_N_SLICES = 32  # worked on at once, where a copy of the whole volume would cost more memory than everything else


@dataclass(frozen=True, eq=False)
class IndexedMaps:
    """Reference and prediction of one case.

    Args:
        reference: (Z, Y, X) uint8 or uint16: index of a value in `labels.values` counted from 1; 0 for everything
            else and where the reference has the ignored value.
        prediction: The same of the prediction.
        is_ignored: (Z, Y, X) bool, where the reference has the ignored value; None if the labels have none.
        counts: (n, n) int64, voxels with each pair of indices, the reference's first.
        boxes: (n, 6) int64, box around an index in both maps: low Z, Y, X, high (exclusive) Z, Y, X; high is 0 where
            there is none.
        n_counted_vox: Voxels that are not ignored.
        has_strange: Whether the reference, and the prediction, hold a value that is of no label.
    """

    reference: NDArray[Any]
    prediction: NDArray[Any]
    is_ignored: NDArray[np.bool_] | None
    counts: NDArray[np.int64]
    boxes: NDArray[np.int64]
    n_counted_vox: int
    has_strange: tuple[bool, bool]

    def overlap(self, indices: tuple[int, ...]) -> Overlap:
        """Voxels of a structure, given by its indices."""
        own = list(indices)
        rows = self.counts[own]
        return Overlap(int(rows.sum()), int(self.counts[:, own].sum()), int(rows[:, own].sum()))

    def box(self, indices: tuple[int, ...]) -> Box | None:
        """Smallest box around a structure in both maps; None if it is in neither."""
        boxes = self.boxes[list(indices)]
        boxes = boxes[boxes[:, 3] > 0]
        if not len(boxes):
            return None
        low, high = boxes[:, :3].min(axis=0), boxes[:, 3:].max(axis=0)
        z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return z, y, x


def index_maps(
    reference: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], labels: LabelSet, n_threads: int = 1
) -> IndexedMaps:
    """Index, count and box two maps of file values.

    Args:
        reference, prediction: (Z, Y, X) integers. Where they are uint8 and already the indices, nothing is copied.
        labels: What the values mean.
        n_threads: Slabs of slices worked on at once.
    """
    maps = np.ascontiguousarray(reference), np.ascontiguousarray(prediction)
    n = len(labels.values)
    if _are_indices(labels) and all(values.dtype == np.uint8 for values in maps):
        counts, boxes = _count(*maps, 256, n_threads)
        if not counts[n + 1 :].any() and not counts[:, n + 1 :].any():
            counts, boxes = counts[: n + 1, : n + 1], boxes[: n + 1]
            return IndexedMaps(*maps, None, counts, boxes, maps[0].size, (False, False))
    results = np.empty((2, *maps[0].shape), np.uint8 if n < 256 else np.uint16)
    is_ignored = None if labels.ignore_value is None else np.zeros(maps[0].shape, bool)
    has_strange = _index(*maps, labels, results, is_ignored, n_threads)
    counts, boxes = _count(results[0], results[1], n + 1, n_threads)
    n_ignored = 0 if is_ignored is None else int(np.count_nonzero(is_ignored))
    return IndexedMaps(results[0], results[1], is_ignored, counts, boxes, maps[0].size - n_ignored, has_strange)


def _are_indices(labels: LabelSet) -> bool:
    is_plain = labels.ignore_value is None and labels.background_value == 0
    return is_plain and labels.values == tuple(range(1, min(len(labels.values), 255) + 1))


def _index(
    reference: NDArray[Any],
    prediction: NDArray[Any],
    labels: LabelSet,
    results: NDArray[Any],
    is_ignored: NDArray[np.bool_] | None,
    n_threads: int,
) -> tuple[bool, bool]:
    """Write indices and what is ignored; returns which map has unknown values."""
    from segpipe.core.compiled import say_first_use
    from segpipe.evaluate.scan import index_pair

    say_first_use(index_pair)
    known = {labels.background_value: 0} | {value: i + 1 for i, value in enumerate(labels.values)}
    if labels.ignore_value is not None:
        known[labels.ignore_value] = _IGNORED
    table, low, place = _lookup(known)

    def slab(first: int) -> NDArray[np.int64]:
        part = slice(first, first + _N_SLICES)
        ignored = np.zeros(0, bool) if is_ignored is None else is_ignored[part].reshape(-1)
        one, other = (place(values[part]).reshape(-1) for values in (reference, prediction))
        reference_out, prediction_out = (result[part].reshape(-1) for result in results)
        return index_pair(one, other, low, table, _IGNORED, _UNKNOWN, reference_out, prediction_out, ignored)

    n_strange = np.sum(in_threads(slab, range(0, len(reference), _N_SLICES), n_threads), axis=0)
    return bool(n_strange[0]), bool(n_strange[1])


def _lookup(known: dict[int, int]) -> tuple[NDArray[np.int32], int, Callable[[NDArray[Any]], NDArray[Any]]]:
    """A table of indices, the value of its first entry, and what to do to values before they are looked up."""
    values = sorted(known)
    if values[-1] - values[0] < _MAX_TABLE:
        table = np.full(values[-1] - values[0] + 1, _UNKNOWN, np.int32)
        for value in values:
            table[value - values[0]] = known[value]
        return table, values[0], _in_kind
    ordered = np.array(values)

    def place(found: NDArray[Any]) -> NDArray[Any]:
        places = np.minimum(np.searchsorted(ordered, found), len(ordered) - 1)
        return np.where(ordered[places] == found, places, -1).astype(np.int32)

    return np.array([known[value] for value in values], np.int32), 0, place


def _in_kind(values: NDArray[Any]) -> NDArray[Any]:
    """Values as uint8 or int32, the kinds that loops are compiled for."""
    if values.dtype in (np.uint8, np.int32):
        return values
    if values.dtype.itemsize >= 4:
        values = np.clip(values, _INT32.min, _INT32.max)
    return values.astype(np.int32)


def _count(
    reference: NDArray[Any], prediction: NDArray[Any], n_values: int, n_threads: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from segpipe.core.compiled import say_first_use
    from segpipe.evaluate.scan import count_pairs

    say_first_use(count_pairs)
    step = max(-(-len(reference) // n_threads), 1)
    firsts = range(0, len(reference), step)

    def slab(first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        counts, boxes = count_pairs(reference[first : first + step], prediction[first : first + step], n_values)
        boxes[boxes[:, 3] > 0, 0::3] += first
        return counts, boxes

    found = in_threads(slab, firsts, n_threads)
    boxes = np.stack([boxes for _, boxes in found])
    boxes[..., :3][boxes[..., 3] == 0] = np.iinfo(np.int64).max  # a slab without a value must not make its box larger
    counts = np.sum([counts for counts, _ in found], axis=0)
    return counts, np.concatenate([boxes[..., :3].min(0), boxes[..., 3:].max(0)], axis=1)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], n_threads: int) -> list[Result]:
    """`[function(item) for item in items]`, on threads if there are to be several."""
    if n_threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(function, items))
