"""Score one case, or folders of masks against folders of references; and overlap of centrelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.grid import Grid, require_same_grid
from segpipe.core.labels import Label, LabelSet, Mask
from segpipe.core.prefetch import Prefetch
from segpipe.core.progress import map_threads, say
from segpipe.core.text import count
from segpipe.core.thinning import centreline_counts
from segpipe.core.volume import read_labels
from segpipe.data.label_lists import value_counts
from segpipe.evaluate.calibration import calibration_group
from segpipe.evaluate.evaluation_case import EvaluationCase, GroupScores, ScoreSettings
from segpipe.evaluate.lesions import lesion_group
from segpipe.evaluate.metrics import METRICS, Overlap, Status, case_metrics, count_values, surface_values
from segpipe.evaluate.scores import DIAGONAL, IMAGE_LABEL, Origin, Score, ScoreTable
from segpipe.evaluate.surfaces.distances import Box, surface_distances
from segpipe.evaluate.surfaces.indexed_maps import IndexedMaps, in_threads, index_maps

DEFAULT_SETTINGS = ScoreSettings()
_N_NAMED = 8  # values and labels in a message


def centreline_group(case: EvaluationCase) -> GroupScores:
    """`centreline_scores` of every label."""
    chosen = case_metrics("centreline", case.settings.metrics)
    scores = {label: centreline_scores(*case.masks(label)) for label in case.labels.names}
    return GroupScores({label: {name: of[value.key] for name, value in chosen.items()} for label, of in scores.items()})


def centreline_scores(reference: Mask, prediction: Mask) -> dict[str, float]:
    """The share of each mask's centreline inside the other mask.

    Args:
        reference: Mask (Z, Y, X), bool.
        prediction: Mask of the same shape.

    Returns:
        `cldice_sensitivity`: share of the reference's centreline inside the prediction; NaN if the reference is empty.
        `cldice_precision`: share of the prediction's inside the reference; NaN if the prediction is empty. `cldice`:
        their harmonic mean, 0 to 1; 0 if one mask is empty or none of either lies inside, NaN if both are empty.

    Source:
        Shit et al. 2021, CVPR, eq. 1 to 3, who leave the choice of the centreline open; ours is of core/thinning.py,
        the mean over all orders of thinning, so that the storage order of the array does not matter. It counts voxels,
        not millimetres. Metrics Reloaded takes scikit-image's, which loses thin vessels.
    """
    sensitivity = _share_inside(centreline_counts(reference), prediction)
    precision = _share_inside(centreline_counts(prediction), reference)
    if isnan(sensitivity) and isnan(precision):
        both = nan
    elif sensitivity > 0 and precision > 0:
        both = 2 * sensitivity * precision / (sensitivity + precision)
    else:
        both = 0.0
    return {"cldice": both, "cldice_sensitivity": sensitivity, "cldice_precision": precision}


def _share_inside(counts: NDArray[np.uint8], mask: Mask) -> float:
    """Share of a centreline inside a mask; a voxel counts by how many orders of thinning put it on the line."""
    total = int(counts.sum(dtype=np.int64))
    return int(counts[mask].sum(dtype=np.int64)) / total if total else nan


@dataclass(frozen=True)
class MaskPair:
    """Two mask files of one case with their origin; `probabilities` is a file for metrics that need one."""

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
    """Score pairs of files; only the table."""
    return score_pairs(pairs, labels, n_workers, settings).table


def score_pairs(
    pairs: Sequence[MaskPair], labels: LabelSet, n_workers: int, settings: ScoreSettings = DEFAULT_SETTINGS
) -> FolderScores:
    """Score pairs of files in parallel.

    Args:
        pairs: In the order of the table.
        labels: The structures.
        n_workers: Cases worked on at once; the result does not depend on it.
        settings: What to compute.

    Raises:
        DataError: After all pairs were tried, with one line for each that cannot be read or whose two grids differ.
    """
    n_threads = max(1, n_workers // max(1, len(pairs)))
    n_ahead = max(1, n_workers)
    with Prefetch(lambda i: _read(pairs[i], labels, settings), n_ahead, n_ahead, stop=len(pairs)) as ahead:
        score = partial(_score_pair, pairs, ahead, settings=settings, n_threads=n_threads)
        results = map_threads(score, range(len(pairs)), "score", n_workers)
    faults = [result for result in results if isinstance(result, DataError)]
    if faults:
        lines = "\n  ".join(str(fault) for fault in faults)
        raise DataError(f"{len(faults)} of {count(len(pairs), 'case')} cannot be scored:\n  {lines}")
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
    """Warn of values that the chosen labels leave out, and of masks with unknown ones, such as 255 for 1.

    With the former, parts of a structure may be missing from its label; with the latter every structure looks missed.
    """
    left_out = frozenset[int]().union(*(one.strange_in_reference for one in scored))  # by choice of labels
    if left_out:
        sides = {
            "reference": sum(bool(one.strange_in_reference) for one in scored),
            "mask": sum(bool(one.strange_in_prediction & left_out) for one in scored),
        }
        hold = " and ".join(f"{n} of {count(len(scored), side)}" for side, n in sides.items())
        named = ", ".join(map(str, sorted(left_out)[:_N_NAMED])) + ", …" * (len(left_out) > _N_NAMED)
        say(
            f"warning: the labels of -l leave out {count(len(left_out), 'value')} that references hold ({named}): "
            f"{hold} hold such values. They count as background."
        )
    strange = {one.pair.prediction: sorted(one.strange_in_prediction - left_out) for one in scored}
    files = [path for path, values in strange.items() if values]
    if files:
        values = ", ".join(map(str, sorted({value for found in strange.values() for value in found})[:_N_NAMED]))
        say(
            f"warning: {len(files)} of {count(len(scored), 'mask')} (e.g. {files[0]}) with values that are not known "
            f"labels and in no reference: {values}. They count as background. Expected {_values_of(labels)}: store "
            "the masks with these values."
        )


@dataclass(frozen=True)
class _Read:
    """Two maps on one grid, and the values of no label in each of the two files."""

    maps: IndexedMaps
    grid: Grid
    labels: LabelSet
    strange: tuple[frozenset[int], frozenset[int]]


def _read(pair: MaskPair, labels: LabelSet, settings: ScoreSettings) -> _Read:
    reference, grid = read_labels(pair.reference)
    prediction, prediction_grid = read_labels(pair.prediction)
    require_same_grid(grid, prediction_grid, f"{pair.prediction} against {pair.reference}")
    maps = index_maps(reference, prediction, labels)
    one, other = (
        _values_in(values) - labels.known_values if is_strange else frozenset[int]()
        for values, is_strange in zip((reference, prediction), maps.has_strange, strict=True)
    )
    if settings.only_known_values:
        _refuse_strange_values(pair, (one, other), labels)
    return _Read(maps, grid, labels, (one, other))


def _score_pair(
    pairs: Sequence[MaskPair], ahead: Prefetch[_Read], index: int, settings: ScoreSettings, n_threads: int
) -> _Scored | DataError:
    pair = pairs[index]
    try:
        read = ahead.get(index)
        scores = _score_maps(read.maps, read.grid, read.labels, pair.origin, settings, pair.probabilities, n_threads)
    except DataError as fault:
        return fault
    return _Scored(pair, scores, *read.strange)


def _refuse_strange_values(pair: MaskPair, strange: Sequence[frozenset[int]], labels: LabelSet) -> None:
    found = [
        f"{path} holds {', '.join(map(str, sorted(values)[:_N_NAMED]))}"
        for path, values in zip((pair.reference, pair.prediction), strange, strict=True)
        if values
    ]
    if found:
        raise DataError(
            f"{pair.origin.case_id}: unknown label values: {'; '.join(found)}; expected {_values_of(labels)}. Store "
            "the mask with these values, or choose labels with -l: other values then count as background."
        )


def _values_of(labels: LabelSet) -> str:
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
    n_threads: int = 1,
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
        n_threads: Labels worked on at once; the result does not depend on it.

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
    return _score_maps(
        index_maps(reference_values, prediction_values, labels, n_threads),
        grid,
        labels,
        origin,
        settings,
        probabilities,
        n_threads,
    )


def _score_maps(
    maps: IndexedMaps,
    grid: Grid,
    labels: LabelSet,
    origin: Origin,
    settings: ScoreSettings,
    probabilities: Path | None,
    n_threads: int,
) -> CaseScores:
    case = _case(maps, grid, labels, origin, settings, probabilities)
    measured = dict(zip(labels.names, in_threads(partial(_measure, case), labels.labels, n_threads), strict=True))
    groups = [GROUPS[name](case) for name in GROUPS if name in settings.groups]
    rows: list[Score] = []
    diagonal_mm = float(np.linalg.norm(np.multiply(grid.shape_zyx, grid.spacing_mm)))
    whole = Overlap(*(maps.n_counted_vox,) * 3)
    for name in (*labels.names, IMAGE_LABEL):
        overlap = case.overlaps.get(name, whole)
        values, statuses = dict(measured.get(name, {})), dict[str, Status]()
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


def _measure(case: EvaluationCase, label: Label) -> dict[str, float]:
    """Metrics of counts and surfaces of one label."""
    maps, spacing_mm = (case.reference, case.prediction), case.grid.spacing_mm
    values = count_values(case.overlaps[label.name], spacing_mm, case.settings.metrics)
    indices, box = case.labels.indices_of(label), case.boxes[label.name]
    settings = case.settings
    for model, distances in surface_distances(maps, indices, box, spacing_mm, settings.groups).items():
        values |= surface_values(model, distances, settings.tolerance_mm(label.name), settings.metrics)
    return values


def _case(
    maps: IndexedMaps, grid: Grid, labels: LabelSet, origin: Origin, settings: ScoreSettings, probabilities: Path | None
) -> EvaluationCase:
    indices = {label.name: labels.indices_of(label) for label in labels.labels}
    return EvaluationCase(
        origin.case_id,
        maps.reference,
        maps.prediction,
        maps.is_ignored,
        grid,
        labels,
        {name: maps.overlap(own) for name, own in indices.items()},
        {name: _never_flat(maps.box(own), grid.shape_zyx) for name, own in indices.items()},
        probabilities,
        settings,
    )


def _never_flat(box: Box | None, shape_zyx: tuple[int, int, int]) -> Box | None:
    """A box of two slices for one slice of a volume, which is a volume and no contour."""
    if box is None:
        return None
    wide = [
        side if side.stop - side.start > 1 or n == 1 else slice(max(side.start - 1, 0), max(side.stop, 2))
        for side, n in zip(box, shape_zyx, strict=True)
    ]
    return wide[0], wide[1], wide[2]


def _row_maker(origin: Origin, label: str) -> Callable[..., Score]:
    return lambda *rest: Score(origin.run, origin.case_id, origin.patient_id, origin.fold, origin.seed, label, *rest)


GROUPS: dict[str, Callable[[EvaluationCase], GroupScores]] = {
    "centreline": centreline_group,
    "lesions": lesion_group,
    "calibration": calibration_group,
}
