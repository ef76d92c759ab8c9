"""Out-of-fold masks of every configuration and ensemble, scored under every kind of postprocessing."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.labels import LabelSet
from segpipe.core.progress import map_threads
from segpipe.core.text import count
from segpipe.core.volume import read_labels
from segpipe.core.work import FoldFolder, Work
from segpipe.data.dataset import Case
from segpipe.evaluate.evaluation_case import ScoreSettings
from segpipe.evaluate.scores import Origin, ScoreTable
from segpipe.evaluate.scoring import score_case
from segpipe.evaluate.summary import DEFAULT_POLICY, counted_values
from segpipe.predict.ensemble_files import mean_mask
from segpipe.predict.outputs import mask_path, probabilities_path
from segpipe.predict.postprocess import Postprocessing, Steps, postprocess

_VOLUMES_MM3 = (0.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # fixed, since volumes taken from the data would know the answer
STEPS = tuple(
    Steps(min_volume_mm3=volume, keep_largest=largest, fill_holes=holes)
    for holes in (False, True)
    for volume, largest in (*((volume, False) for volume in _VOLUMES_MM3), (0.0, True))
)
AVERAGED = " + "  # between the configurations of an ensemble

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ValidatedCase:
    """A case and the fold it was validated in."""

    case: Case
    fold: int


@dataclass(frozen=True)
class OutOfFold:
    """Masks of a work folder's validation cases, and how they are scored.

    Args:
        work: The folder.
        labels: Structures.
        cases: In order; every array of scores has them in this order.
        metric: What is computed.
        n_workers: Cases worked on side by side.
    """

    work: Work
    labels: LabelSet
    cases: tuple[ValidatedCase, ...]
    metric: str
    n_workers: int

    def with_ensembles(self, configurations: Iterable[str]) -> tuple[str, ...]:
        """The configurations, then each set of those that have probabilities, joined by ` + `."""
        alone = tuple(configurations)
        members = [name for name in alone if all(self.has_probabilities(name, one) for one in self.cases)]
        sets = [found for n in range(2, len(members) + 1) for found in combinations(members, n)]
        return (*alone, *(AVERAGED.join(found) for found in sets))

    def values_of_steps(self, model: str, kept: Path) -> Floats:
        """Scores of a model under each of `STEPS`, done to all labels at once: (n_steps, n_cases, n_labels).

        Args:
            model: A configuration, or several joined by ` + `.
            kept: Folder of scores by case; those of the same masks are read from it, others are deleted.
        """
        folder = kept / self._digest(model)
        for other in kept.glob("*"):
            if other != folder:
                shutil.rmtree(other)
        score = partial(self._table_of_steps, model, folder)
        tables = map_threads(score, self.cases, f"trying {model}", self.n_workers)
        return np.stack([self._values(table, map(str, range(len(STEPS)))) for table in tables], axis=1)

    def values(self, model: str, postprocessing: Postprocessing, is_in: NDArray[np.bool_]) -> Floats:
        """Scores of a model with a postprocessing on some of the cases, (n_cases, n_labels)."""
        cases = [one for one, counts in zip(self.cases, is_in, strict=True) if counts]

        def score(one: ValidatedCase) -> Floats:
            mask, voxel_mm3 = self._mask(model, one)
            changed = postprocess(mask, voxel_mm3, self.labels, postprocessing)
            return self._values(self._score(changed, one), [""])[0]

        return np.array(map_threads(score, cases, f"scoring {model}", self.n_workers))

    def fold(self, configuration: str, one: ValidatedCase) -> FoldFolder:
        """The folder of the fold that validated a case."""
        return self.work.fold(configuration, str(one.fold))

    def require_files(self, models: Iterable[str]) -> None:
        """Check that references and masks are there.

        Raises:
            DataError: If some are gone.
        """
        wanted = [file for model in models for one in self.cases for file in self._all_files(model, one)]
        gone = [str(file) for file in dict.fromkeys(wanted) if not file.is_file()]
        if gone:
            missing = count(len(gone), "file is missing", "files are missing")
            raise DataError(f"{missing}: {', '.join(gone[:3])}. Predict again: `segpipe train`.")

    def has_probabilities(self, name: str, one: ValidatedCase) -> bool:
        """True if the probabilities of a case were written."""
        return probabilities_path(self.fold(name, one).validation, one.case.case_id).is_file()

    def _all_files(self, model: str, one: ValidatedCase) -> list[Path]:
        return [Path(one.case.label or ""), *self._files(model, one)]

    def _files(self, model: str, one: ValidatedCase) -> list[Path]:
        place = probabilities_path if AVERAGED in model else mask_path
        return [place(self.fold(name, one).validation, one.case.case_id) for name in model.split(AVERAGED)]

    def _digest(self, model: str) -> str:
        """Changes with any mask and reference, and with what is tried.

        Raises:
            DataError: If masks or references are gone.
        """
        self.require_files([model])
        parts = [self.metric, self.labels.digest(), *(steps.digest() for steps in STEPS)]
        for one in self.cases:
            stats = [file.stat() for file in self._all_files(model, one)]
            parts += [one.case.case_id, *(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def _table_of_steps(self, model: str, folder: Path, one: ValidatedCase) -> ScoreTable:
        """Scores of one case; `run` is the number of the steps."""
        path = folder / f"{one.case.case_id}.csv"
        if path.is_file():
            return ScoreTable.load(path)
        mask, voxel_mm3 = self._mask(model, one)
        known: dict[bytes, ScoreTable] = {}
        tables = []
        for number, steps in enumerate(STEPS):
            wanted = Postprocessing(labels=dict.fromkeys(self.labels.names, steps))
            changed = postprocess(mask, voxel_mm3, self.labels, wanted)
            content = hashlib.sha256(changed.tobytes()).digest()
            if content not in known:  # most steps change little
                known[content] = self._score(changed, one)
            tables.append(ScoreTable(tuple(replace(row, run=str(number)) for row in known[content].rows)))
        joined = ScoreTable.join(tables, path)
        joined.save(path)
        return joined

    def _mask(self, model: str, one: ValidatedCase) -> tuple[NDArray[np.integer[Any]], float]:
        """(Z, Y, X) of file values, and the volume of a voxel."""
        reference, grid = read_labels(Path(one.case.label or ""))
        files, voxel_mm3 = self._files(model, one), float(np.prod(grid.spacing_mm))
        if AVERAGED not in model:
            return read_labels(files[0])[0], voxel_mm3
        return mean_mask(files, self.labels, reference.shape), voxel_mm3

    def _score(self, mask: NDArray[np.integer[Any]], one: ValidatedCase) -> ScoreTable:
        reference, grid = read_labels(Path(one.case.label or ""))
        origin = Origin(one.case.case_id, one.case.patient_id, fold=one.fold)
        settings = ScoreSettings(metrics=(self.metric,))
        return ScoreTable(score_case(reference, mask, grid, self.labels, origin, settings).rows)

    def _values(self, table: ScoreTable, runs: Iterable[str]) -> Floats:
        """(n_steps, n_labels) of one case."""
        counted = counted_values(table, self.metric, DEFAULT_POLICY)
        by_place = {(key[0], label): value for (key, label), value in counted.items()}
        return np.array([[by_place[run, label] for label in self.labels.names] for run in runs])
