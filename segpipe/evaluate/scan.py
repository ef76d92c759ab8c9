"""One pass over two maps of labels: how often each pair of values occurs, and where each value lies."""

from __future__ import annotations

from typing import Any

import numpy as np

from segpipe.core.compiled import kernel, trailing_zeros

_ONE, _BYTE = np.uint64(1), np.uint64(3)


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
