"""Two maps of file values as maps of inside indices, with every pair of values counted and every value boxed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segpipe.core.compiled import kernel, say_first_use, trailing_zeros
from segpipe.core.labels import LabelSet
from segpipe.evaluate.metrics import Overlap
from segpipe.evaluate.surfaces.distances import Box

Item = TypeVar("Item")
Result = TypeVar("Result")
_MAX_TABLE = 1 << 20  # label values further apart than this are searched for instead of looked up
_IGNORED, _UNKNOWN = -1, -2
_INT32 = np.iinfo(np.int32)
_ONE, _BYTE = np.uint64(1), np.uint64(3)
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


@kernel
def index_pair(
    reference: Any,
    prediction: Any,
    low: Any,
    table: Any,
    ignored: Any,
    unknown: Any,
    reference_out: Any,
    prediction_out: Any,
    is_ignored: Any,
) -> Any:
    """Write the inside indices of two maps of file values.

    Args:
        reference, prediction: (n,) integers.
        low: File value of the first entry of `table`.
        table: Index of each file value from `low` on; `ignored` or `unknown` for some.
        ignored, unknown: Entries of `table` that are no index; what lies outside the table is unknown too.
        reference_out, prediction_out: (n,), written: the indices, 0 for what is unknown, and in both maps 0 where the
            reference is ignored.
        is_ignored: (n,) bool, written, where the reference is ignored; or (0,).

    Returns:
        Voxels with an unknown value in the reference and in the prediction.
    """
    n_unknown = np.zeros(2, np.int64)
    n_table = len(table)
    for i in range(len(reference)):
        place = np.int64(reference[i]) - low
        index = table[place] if 0 <= place < n_table else unknown
        place = np.int64(prediction[i]) - low
        other = table[place] if 0 <= place < n_table else unknown
        if index == unknown:
            n_unknown[0] += 1
            index = 0
        if other == unknown:
            n_unknown[1] += 1
            other = 0
        if index == ignored:
            is_ignored[i] = True
            index = other = 0
        reference_out[i] = index
        prediction_out[i] = 0 if other == ignored else other
    return n_unknown


@kernel
def count_pairs(reference: Any, prediction: Any, n_values: Any) -> Any:
    """Count pairs of values and box every value.

    Args:
        reference, prediction: (Z, Y, X) unsigned integers below `n_values`.

    Returns:
        Counts (n_values, n_values), the reference's value first, and boxes (n_values, 6) around a value in both maps
        together, low z, y, x and high (exclusive) z, y, x; of a value that is in neither map high is 0.
    """
    n_z, n_y, n_x = reference.shape
    counts = np.zeros((n_values, n_values), np.int64)
    boxes = np.zeros((n_values, 6), np.int64)
    boxes[:, :3] = max(n_z, n_y, n_x)
    ends = np.zeros((n_x // 8 + 1) * 8, np.uint8)  # where a run of equal pairs ends
    ends[n_x] = 1
    eights = ends.view(np.uint64)
    for z in range(n_z):
        for y in range(n_y):
            row, other = reference[z, y], prediction[z, y]
            largest = row[0]
            for x in range(n_x):  # a maximum keeps the small type, so that many voxels fit in one step
                largest = max(largest, row[x], other[x])
            if largest == 0:
                counts[0, 0] += n_x
                continue
            for x in range(1, n_x):
                ends[x] = (row[x] != row[x - 1]) | (other[x] != other[x - 1])
            start: Any = 0
            for i in range(len(eights)):
                word = eights[i]
                while word:
                    stop = 8 * i + np.int64(trailing_zeros(word) >> _BYTE)
                    word &= word - _ONE
                    one, two = row[start], other[start]
                    counts[one, two] += stop - start
                    _widen(boxes[one], z, y, start, stop)
                    if two != one:
                        _widen(boxes[two], z, y, start, stop)
                    start = stop
    return counts, boxes


@kernel
def _widen(box: Any, z: Any, y: Any, start: Any, stop: Any) -> None:
    box[0], box[1], box[2] = min(box[0], z), min(box[1], y), min(box[2], start)
    box[3], box[4], box[5] = max(box[3], z + 1), max(box[4], y + 1), max(box[5], stop)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], n_threads: int) -> list[Result]:
    """`[function(item) for item in items]`, on threads if there are to be several."""
    if n_threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(function, items))
