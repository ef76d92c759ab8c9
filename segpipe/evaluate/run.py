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
from segpipe.core.progress import map_threads, say
from segpipe.core.volume import read_labels
from segpipe.data.label_lists import value_counts
from segpipe.evaluate.case import Box, Case, ScoreSettings, is_one_of
from segpipe.evaluate.groups import GROUPS
from segpipe.evaluate.metrics import METRICS, Overlap, Status, measure
from segpipe.evaluate.scores import DIAGONAL, IMAGE_LABEL, Origin, Score, ScoreTable

_MAX_TABLE = 1 << 20  # label values further apart than this are searched for instead of looked up
DEFAULT_SETTINGS = ScoreSettings()
_N_NAMED = 8  # values and labels in a message


@dataclass(frozen=True)
class MaskPair:
    """Two mask files of one case, and whose they are; `probabilities` is a file for metrics that need one."""

    reference: Path
    prediction: Path
    origin: Origin
    probabilities: Path | None = None


@dataclass(frozen=True)
class FolderScores:
    """The table of scores, and further rows such as one for each lesion, in the order of the pairs."""

    table: ScoreTable
    details: tuple[Any, ...]


def score_folder(
    pairs: Sequence[MaskPair], labels: LabelSet, n_workers: int, settings: ScoreSettings = DEFAULT_SETTINGS
) -> ScoreTable:
    """The table of `score_pairs`."""
    return score_pairs(pairs, labels, n_workers, settings).table


def score_pairs(
    pairs: Sequence[MaskPair], labels: LabelSet, n_workers: int, settings: ScoreSettings = DEFAULT_SETTINGS
) -> FolderScores:
    """Score pairs of files, several side by side.

    Args:
        pairs: In the order of the table.
        labels: The structures.
        n_workers: Cases worked on at once; the result does not depend on it.
        settings: What to compute.

    Raises:
        DataError: After all pairs were tried, with one line for each that cannot be read or whose two grids differ.
    """
    results = map_threads(partial(_score_pair, labels=labels, settings=settings), pairs, "score", n_workers)
    faults = [result for result in results if isinstance(result, DataError)]
    if faults:
        lines = "\n  ".join(str(fault) for fault in faults)
        raise DataError(f"{len(faults)} of {len(pairs)} cases cannot be scored:\n  {lines}")
    scored = [result for result in results if isinstance(result, _Scored)]
    _say_strange_values(scored, labels)
    return FolderScores(
        ScoreTable(tuple(row for one in scored for row in one.scores.rows)),
        tuple(row for one in scored for row in one.scores.details),
    )


@dataclass(frozen=True)
class CaseScores:
    """Rows of one case for the table of scores, and the details of `GroupScores`."""

    rows: tuple[Score, ...]
    details: tuple[Any, ...]


@dataclass(frozen=True)
class _Scored:
    """Scores of a pair, and the values of no label that stand in its two files."""

    pair: MaskPair
    scores: CaseScores
    strange_in_reference: frozenset[int]
    strange_in_prediction: frozenset[int]


def _say_strange_values(scored: Sequence[_Scored], labels: LabelSet) -> None:
    """Warn of masks with values that nothing explains, such as 255 for 1: every structure would look missed."""
    left_out = frozenset[int]().union(*(one.strange_in_reference for one in scored))  # by choice of labels
    strange = {one.pair.prediction: sorted(one.strange_in_prediction - left_out) for one in scored}
    files = [path for path, values in strange.items() if values]
    if files:
        values = ", ".join(map(str, sorted({value for found in strange.values() for value in found})[:_N_NAMED]))
        say(
            f"warning: {len(files)} of {len(scored)} masks (e.g. {files[0]}) hold values that are of no label and in "
            f"no reference: {values}. They count as background. Expected "
            f"{_known(labels)}: store the masks with these values."
        )


def _score_pair(pair: MaskPair, labels: LabelSet, settings: ScoreSettings) -> _Scored | DataError:
    try:
        reference, grid = read_labels(pair.reference)
        prediction, prediction_grid = read_labels(pair.prediction)
        require_same_grid(grid, prediction_grid, f"{pair.prediction} against {pair.reference}")
        strange = [_values_in(values) - labels.known_values for values in (reference, prediction)]
        if settings.only_known_values:
            _refuse_strange_values(pair, strange, labels)
        scores = score_case(reference, prediction, grid, labels, pair.origin, settings, pair.probabilities)
    except DataError as fault:
        return fault
    return _Scored(pair, scores, *strange)


def _refuse_strange_values(pair: MaskPair, strange: Sequence[frozenset[int]], labels: LabelSet) -> None:
    found = [
        f"{path} holds {', '.join(map(str, sorted(values)[:_N_NAMED]))}"
        for path, values in zip((pair.reference, pair.prediction), strange, strict=True)
        if values
    ]
    if found:
        raise DataError(
            f"{pair.origin.case_id}: values that are of no label: {'; '.join(found)}; expected {_known(labels)}. Store "
            "the mask with these values, or choose labels (-l): then others count as background."
        )


def _known(labels: LabelSet) -> str:
    return ", ".join(f"{label.name} = {'+'.join(map(str, label.values))}" for label in labels.labels[:_N_NAMED])


def _values_in(values_zyx: NDArray[np.integer[Any]]) -> frozenset[int]:
    """Every value; slice by slice, since counting takes several times the memory of what is counted."""
    return frozenset[int]().union(*(value_counts(values) for values in values_zyx))


def score_case(
    reference_values: NDArray[np.integer[Any]],
    prediction_values: NDArray[np.integer[Any]],
    grid: Grid,
    labels: LabelSet,
    origin: Origin,
    settings: ScoreSettings = DEFAULT_SETTINGS,
    probabilities: Path | None = None,
) -> CaseScores:
    """Score every label of one case.

    Args:
        reference_values: (Z, Y, X) of file values. Voxels of `labels.ignore_value` count in neither mask.
        prediction_values: (Z, Y, X) of file values; values that no label has count as background.
        grid: Where both lie.
        labels: The structures; regions are scored as wholes.
        origin: Whose scores these are.
        settings: What to compute.
        probabilities: File of the predicted probabilities, for metrics that need it.

    Returns:
        For each label one row for each metric, then rows of the image: its diagonal in mm, and what metrics of the
        whole image there are.

    Raises:
        ValueError: If the shapes are not the grid's.
        DataError: If the file of probabilities is needed and wrong.
    """
    shapes = {reference_values.shape, prediction_values.shape, grid.shape_zyx}
    if len(shapes) > 1:
        raise ValueError(f"reference, prediction and grid have the shapes {sorted(shapes)}, expected one")
    case, n_counted_vox, surfaces = _case(
        reference_values, prediction_values, grid, labels, origin, settings, probabilities
    )
    groups = [GROUPS[name](case) for name in GROUPS if name in settings.groups]
    rows: list[Score] = []
    diagonal_mm = float(np.linalg.norm(np.multiply(grid.shape_zyx, grid.spacing_mm)))
    for name in (*labels.names, IMAGE_LABEL):
        overlap = case.overlaps.get(name, Overlap(n_counted_vox, n_counted_vox, n_counted_vox))
        values, statuses = dict(surfaces.get(name, {})), dict[str, Status]()
        for group in groups:
            values |= group.values.get(name, {})
            statuses |= group.statuses.get(name, {})
        make = _row_maker(origin, name)
        sizes = (overlap.n_reference_vox, overlap.n_prediction_vox)
        if name == IMAGE_LABEL:
            rows.append(make(DIAGONAL, diagonal_mm, "mm", "ok", *sizes))
        rows += [
            make(m, values[m], METRICS[m].unit, statuses.get(m, overlap.status), *sizes)
            for m in settings.metrics
            if m in values
        ]
    return CaseScores(tuple(rows), tuple(row for group in groups for row in group.details))


def _case(
    reference_values: NDArray[np.integer[Any]],
    prediction_values: NDArray[np.integer[Any]],
    grid: Grid,
    labels: LabelSet,
    origin: Origin,
    settings: ScoreSettings,
    probabilities: Path | None,
) -> tuple[Case, int, dict[str, dict[str, float]]]:
    reference, prediction, n_counted_vox = _indexed(reference_values, prediction_values, labels)
    boxes = [find_objects(indices, max_label=len(labels.values)) for indices in (reference, prediction)]
    overlaps, label_boxes, surfaces = {}, {}, {}
    for label in labels.labels:
        indices = labels.indices_of(label)
        found = [found[i - 1] for found in boxes for i in indices]
        box = _union(found, grid.shape_zyx)
        masks = [is_one_of(array[box], indices) for array in (reference, prediction)]
        label_boxes[label.name] = box if any(found) else None
        overlaps[label.name], surfaces[label.name] = measure(
            masks[0], masks[1], grid.spacing_mm, settings.tolerance_mm(label.name), settings.metrics
        )
    is_ignored = None if labels.ignore_value is None else reference_values == labels.ignore_value
    case = Case(
        origin.case_id, reference, prediction, is_ignored, grid, labels, overlaps, label_boxes, probabilities, settings
    )
    return case, n_counted_vox, surfaces


def _row_maker(origin: Origin, label: str) -> Callable[..., Score]:
    return lambda *rest: Score(origin.run, origin.case_id, origin.patient_id, origin.fold, origin.seed, label, *rest)


def _indexed(
    reference: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], labels: LabelSet
) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Both arrays as inside indices (0 for all else and where ignored), and the number of voxels that count.

    Slice by slice: a whole-volume temporary of file values would cost more memory than everything else.
    """
    dtype = np.uint8 if len(labels.values) < 256 else np.uint16
    results = np.zeros(reference.shape, dtype), np.zeros(reference.shape, dtype)
    index_of = _lookup(labels.values, dtype)
    n_counted = 0
    for z in range(reference.shape[0]):
        for result, values in zip(results, (reference[z], prediction[z]), strict=True):
            result[z] = index_of(values)
        if labels.ignore_value is not None:
            is_ignored = reference[z] == labels.ignore_value
            n_counted -= int(np.count_nonzero(is_ignored))
            for result in results:
                result[z][is_ignored] = 0
    return *results, n_counted + reference.size


def _lookup(values: tuple[int, ...], dtype: Any) -> Callable[[NDArray[np.integer[Any]]], NDArray[Any]]:
    """A function from file values to places in `values` counted from 1; 0 for values that are not there."""
    known, order = np.sort(values), np.argsort(values)
    low, span = int(known[0]), int(known[-1] - known[0]) + 1
    if span > _MAX_TABLE:

        def searched(found: NDArray[np.integer[Any]]) -> NDArray[Any]:
            place = np.minimum(np.searchsorted(known, found), len(known) - 1)
            return np.where(known[place] == found, order[place] + 1, 0).astype(dtype)

        return searched
    table = np.zeros(span + 1, dtype)  # the last entry is for everything outside
    table[known - low] = order + 1

    def looked_up(found: NDArray[np.integer[Any]]) -> NDArray[Any]:
        beyond_is_large = (found.astype(np.int64) - low).view(np.uint64)  # below `low` wraps round to huge
        return table[np.minimum(beyond_is_large, np.uint64(span)).view(np.int64)]

    return looked_up


def _union(boxes: Sequence[Box | None], shape_zyx: tuple[int, int, int]) -> Box:
    """Smallest box around all boxes; an axis of which the image has only one voxel stays one."""
    found = [box for box in boxes if box is not None]
    if not found:
        z, y, x = (slice(0, min(n, 2)) for n in shape_zyx)
        return (z, y, x)
    box = []
    for axis, n in enumerate(shape_zyx):
        low, high = min(b[axis].start for b in found), max(b[axis].stop for b in found)
        if high - low == 1 and n > 1:  # one slice of a volume is a volume, not a contour
            low, high = (low, high + 1) if high < n else (low - 1, high)
        box.append(slice(low, high))
    return (box[0], box[1], box[2])
