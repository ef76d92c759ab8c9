"""Score one case, or folders of masks against folders of references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from segpipe.core.errors import DataError
from segpipe.core.grid import Grid, require_same_grid
from segpipe.core.labels import LabelSet
from segpipe.core.progress import map_threads
from segpipe.core.volume import read_labels
from segpipe.evaluate.metrics import METRICS, measure
from segpipe.evaluate.scores import DIAGONAL, IMAGE_LABEL, Origin, Score, ScoreTable


@dataclass(frozen=True)
class MaskPair:
    """Two mask files of one case, and whose they are."""

    reference: Path
    prediction: Path
    origin: Origin


def score_folder(
    pairs: Sequence[MaskPair], labels: LabelSet, n_workers: int, nsd_tolerance_mm: float | None = None
) -> ScoreTable:
    """Score pairs of files, several side by side.

    Args:
        pairs: In the order of the table.
        labels: The structures.
        n_workers: Cases worked on at once; the result does not depend on it.
        nsd_tolerance_mm: Tolerance of the surface Dice in mm; None for no `nsd`.

    Raises:
        DataError: After all pairs were tried, with one line for each that cannot be read or whose two grids differ.
    """
    results = map_threads(
        partial(_score_pair, labels=labels, nsd_tolerance_mm=nsd_tolerance_mm), pairs, "score", n_workers
    )
    faults = [result for result in results if isinstance(result, DataError)]
    if faults:
        lines = "\n  ".join(str(fault) for fault in faults)
        raise DataError(f"{len(faults)} of {len(pairs)} cases cannot be scored:\n  {lines}")
    return ScoreTable(tuple(row for result in results if isinstance(result, list) for row in result))


def _score_pair(pair: MaskPair, labels: LabelSet, nsd_tolerance_mm: float | None) -> list[Score] | DataError:
    try:
        reference, grid = read_labels(pair.reference)
        prediction, prediction_grid = read_labels(pair.prediction)
        require_same_grid(grid, prediction_grid, f"{pair.prediction} against {pair.reference}")
    except DataError as fault:
        return fault
    return score_case(reference, prediction, grid, labels, pair.origin, nsd_tolerance_mm)


def score_case(
    reference_values: NDArray[np.integer[Any]],
    prediction_values: NDArray[np.integer[Any]],
    grid: Grid,
    labels: LabelSet,
    origin: Origin,
    nsd_tolerance_mm: float | None = None,
) -> list[Score]:
    """Score every label of one case.

    Args:
        reference_values: (Z, Y, X) of file values. Voxels of `labels.ignore_value` count in neither mask.
        prediction_values: (Z, Y, X) of file values; values that no label has count as background.
        grid: Where both lie.
        labels: The structures; regions are scored as wholes.
        origin: Whose scores these are.
        nsd_tolerance_mm: Tolerance of the surface Dice in mm; None for no `nsd`.

    Returns:
        For each label one row for each metric, then one row with the diagonal of the image in mm.

    Raises:
        ValueError: If the shapes are not the grid's.
    """
    shapes = {reference_values.shape, prediction_values.shape, grid.shape_zyx}
    if len(shapes) > 1:
        raise ValueError(f"reference, prediction and grid have the shapes {sorted(shapes)}, expected one")
    reference, prediction, n_counted_vox = _indexed(reference_values, prediction_values, labels)
    boxes = [find_objects(indices, max_label=len(labels.values)) for indices in (reference, prediction)]
    rows: list[Score] = []
    for label in labels.labels:
        indices = labels.indices_of(label)
        box = _union([found[i - 1] for found in boxes for i in indices], grid.shape_zyx)
        masks = [np.isin(array[box], indices) for array in (reference, prediction)]
        overlap, values = measure(masks[0], masks[1], grid.spacing_mm, nsd_tolerance_mm)
        sizes = (overlap.n_reference_vox, overlap.n_prediction_vox)
        make = _row_maker(origin, label.name)
        rows += [make(name, value, METRICS[name].unit, overlap.status, *sizes) for name, value in values.items()]
    diagonal_mm = float(np.linalg.norm(np.multiply(grid.shape_zyx, grid.spacing_mm)))
    rows.append(_row_maker(origin, IMAGE_LABEL)(DIAGONAL, diagonal_mm, "mm", "ok", n_counted_vox, n_counted_vox))
    return rows


def _row_maker(origin: Origin, label: str) -> Callable[..., Score]:
    return lambda *rest: Score(origin.run, origin.case_id, origin.patient_id, origin.fold, origin.seed, label, *rest)


def _indexed(
    reference: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], labels: LabelSet
) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Both arrays as inside indices (0 for all else and where ignored), and the number of voxels that count.

    Slice by slice: a whole-volume temporary of file values would cost more memory than everything else.
    """
    known = np.array(labels.values)
    table = np.zeros(len(known) + 1, np.uint8 if len(known) < 256 else np.uint16)
    table[:-1] = np.arange(1, len(known) + 1)
    results = np.zeros(reference.shape, table.dtype), np.zeros(reference.shape, table.dtype)
    n_counted = 0
    for z in range(reference.shape[0]):
        counts = (
            np.ones(reference.shape[1:], bool) if labels.ignore_value is None else reference[z] != labels.ignore_value
        )
        n_counted += int(np.count_nonzero(counts))
        for result, values in zip(results, (reference[z], prediction[z]), strict=True):
            place = np.minimum(np.searchsorted(known, values), len(known) - 1)
            result[z] = table[np.where((known[place] == values) & counts, place, len(known))]
    return *results, n_counted


def _union(boxes: Sequence[tuple[slice, ...] | None], shape_zyx: tuple[int, int, int]) -> tuple[slice, ...]:
    """Smallest box around all boxes; an axis of which the image has only one voxel stays one."""
    found = [box for box in boxes if box is not None]
    if not found:
        return tuple(slice(0, min(n, 2)) for n in shape_zyx)
    box = []
    for axis, n in enumerate(shape_zyx):
        low, high = min(b[axis].start for b in found), max(b[axis].stop for b in found)
        if high - low == 1 and n > 1:  # one slice of a volume is a volume, not a contour
            low, high = (low, high + 1) if high < n else (low - 1, high)
        box.append(slice(low, high))
    return tuple(box)
