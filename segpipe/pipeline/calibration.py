"""Count how good the probabilities of validation cases are while they are predicted; fit the temperature of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.files import make_folder
from segpipe.core.grid import Grid, require_same_grid
from segpipe.core.labels import LabelSet
from segpipe.core.machine import rank
from segpipe.core.probabilities import CalibrationReport, LabelCalibration, Reliability
from segpipe.core.volume import read_labels
from segpipe.core.work import FoldFolder, Work
from segpipe.data.dataset import Case
from segpipe.data.splits import Fold, Splits
from segpipe.evaluate.reliability import TEMPERATURES, UNCHANGED, CaseCounter, CaseCounts, fit_temperature, reliability
from segpipe.pipeline.plan import PlannedWork
from segpipe.plan.schema import Plan
from segpipe.predict.folds import weights_of
from segpipe.predict.restore import Slab, Unread
from segpipe.prepare.case import Trace

CountsOfFolds = Mapping[str, Mapping[str, Sequence[CaseCounts]]]
"""By fold and patient."""


@dataclass(frozen=True)
class CalibrationCounting:
    """Counts the validation cases of a fold, for `predict_cases`.

    Args:
        folder: Where a file for each case goes.
        labels: The structures.
    """

    folder: Path
    labels: LabelSet

    def is_done(self, case_id: str) -> bool:
        """True if the counts of a case are there."""
        return _counts_path(self.folder, case_id).is_file()

    def begin(self, case: Case, grid: Grid, trace: Trace) -> _CaseCounting:
        """Read the reference of a case.

        Raises:
            DataError: If it cannot be read, or holds unknown values.
            GeometryError: If it is on another grid than the image.
        """
        if case.label is None:
            raise DataError(f"{case.case_id}: has no label map, expected one: it is a validation case.")
        values, label_grid = read_labels(Path(case.label))
        require_same_grid(grid, label_grid, f"{case.case_id}: label against image")
        indices = self.labels.encode(values, case.label)
        inside = np.ascontiguousarray(trace.turn.apply(indices)[trace.box.slices])
        counter = CaseCounter(inside, trace.spacing_mm, self.labels, case.case_id)
        return _CaseCounting(counter, _counts_path(self.folder, case.case_id))


class _CaseCounting:
    """Counts one case.

    Args:
        counter: Of the case.
        path: Where the counts go.
    """

    def __init__(self, counter: CaseCounter, path: Path) -> None:
        self.counter, self.path = counter, path
        self._unread = Unread[tuple[int, list[NDArray[np.intp]]]](axis=1)  # first row and chosen places of a slab

    def add(self, slab: Slab, mask_NYX: NDArray[Any]) -> None:
        """Count a slab, at once or when its logits are read."""
        if slab.start == 0:
            self._unread.clear()  # the case may be predicted anew
        places = self.counter.choose(slab.start, mask_NYX)
        union = np.unique(np.concatenate(places))
        if union.size:
            self._unread.add((slab.start, places), slab.logits_at(union))
        if self._unread.is_full:
            self._count()

    def _count(self) -> None:
        for (start, places), logits_On in self._unread.read():
            self.counter.add(start, places, logits_On)

    def finish(self) -> None:
        """Write the counts."""
        self._count()
        make_folder(self.path.parent)
        self.counter.counts.save(self.path)


def _counts_path(folder: Path, case_id: str) -> Path:
    return folder / f"{case_id}.npz"


def scored_folds(work: Work, configuration: str, splits: Splits) -> dict[int, FoldFolder]:
    """Folds that are scored on the present splits, by number."""
    folders = ((number, work.fold(configuration, str(number))) for number in range(splits.k))
    return {
        number: folder
        for number, folder in folders
        if folder.scores.is_file() and folder.split.is_file() and Fold.load(folder.split) == splits.folds[number]
    }


def collect_calibration(planned: PlannedWork, configuration: str) -> CalibrationReport | None:
    """Calibration of every fold that is scored on the present splits, also written beside the folds.

    Returns:
        None, and nothing is written, if no case was counted: an earlier version predicted them.

    Raises:
        DataError: If counts are damaged.
    """
    folders = scored_folds(planned.work, configuration, planned.splits)
    counts: dict[str, dict[str, list[CaseCounts]]] = {}
    for number, folder in folders.items():
        n_labels = len(Plan.load(folder.plan).labels.labels)
        for case_id in planned.splits.folds[number].validation:
            if (path := _counts_path(folder.calibration, case_id)).is_file():
                patient = planned.dataset.by_id[case_id].patient_id
                counts.setdefault(str(number), {}).setdefault(patient, []).append(CaseCounts.load(path, n_labels))
    if not counts:
        return None
    found = summarise_calibration(counts, planned.plan.labels.names, weights_of(folders.values()))
    if rank() == 0:
        found.save(planned.work.calibration(configuration))
    return found


def summarise_calibration(counts: CountsOfFolds, names: Sequence[str], weights: Mapping[str, str]) -> CalibrationReport:
    """Fit temperatures and measure calibration before and after.

    Args:
        counts: At least one case.
        names: Of the labels.
        weights: Digests of the folds' weights.
    """
    nll = {fold: [_mean_nll(cases) for cases in of.values()] for fold, of in counts.items()}
    everything = fit_temperature(np.array([one for of in nll.values() for one in of]))
    places = {
        fold: fit_temperature(np.array([one for other, of in nll.items() if other != fold for one in of]))
        for fold in counts
        if len(counts) > 1
    }
    patients = [(fold, cases) for fold, of in counts.items() for cases in of.values()]
    labels = []
    for label, name in enumerate(names):
        before = _reliability([(UNCHANGED, cases) for _, cases in patients], label)
        after = _reliability([(places[fold], cases) for fold, cases in patients], label) if places else None
        if before is not None:
            n_patients = sum(any(_has_voxels(case, label) for case in cases) for _, cases in patients)
            labels.append(LabelCalibration(label=name, n_patients=n_patients, before=before, after=after))
    return CalibrationReport(
        temperature=float(TEMPERATURES[everything]),
        temperature_of_fold={fold: float(TEMPERATURES[place]) for fold, place in places.items()},
        n_cases=sum(len(cases) for _, cases in patients),
        n_patients=len(patients),
        weights=dict(weights),
        labels=tuple(labels),
    )


def _mean_nll(cases: Sequence[CaseCounts]) -> NDArray[np.float64]:
    """(T, L) mean over a patient's cases; NaN of a label in none."""
    all_nll = np.array([case.nll for case in cases])
    n = (~np.isnan(all_nll)).sum(axis=0)
    return np.divide(np.nansum(all_nll, axis=0), n, out=np.full(n.shape, np.nan), where=n > 0)


def _has_voxels(case: CaseCounts, label: int) -> bool:
    return bool(case.n_vox[UNCHANGED, label].any())


def _reliability(patients: Sequence[tuple[int, Sequence[CaseCounts]]], label: int) -> Reliability | None:
    """Reliability of a label, each patient at a temperature; None if no case has voxels of it."""
    rows = []
    for place, cases in patients:
        own = [case for case in cases if _has_voxels(case, label)]
        if own:
            parts = [
                np.stack(
                    [case.n_vox[place, label], case.n_true_vox[place, label], case.total_probability[place, label]]
                )
                / case.n_vox[place, label].sum()
                for case in own
            ]
            rows.append(np.mean(parts, axis=0))
    return reliability(*np.stack(rows, axis=1)) if rows else None
