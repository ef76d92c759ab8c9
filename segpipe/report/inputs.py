"""What a work folder holds so far. Whatever is missing or broken becomes a note; only a foreign folder is refused."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from segpipe.core.errors import DataError, PlanError, SegpipeError, UsageError
from segpipe.core.records import read_mapping
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits
from segpipe.evaluate.scores import ScoreTable

Content = TypeVar("Content")


@dataclass(frozen=True)
class History:
    """Columns of a fold's `history.csv`, one value for each finished epoch; NaN where the file has none."""

    columns: Mapping[str, tuple[float, ...]]

    @classmethod
    def load(cls, path: Path) -> History:
        """Read a history.

        Raises:
            DataError: If a line holds something else than numbers, or there is no column `epoch`.
        """
        try:
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                lines, names = list(reader), list(reader.fieldnames or ())
        except (OSError, UnicodeDecodeError, csv.Error) as fault:
            raise DataError(f"{path}: cannot be read as a table ({fault}).") from None
        if "epoch" not in names:
            raise DataError(f"{path}: has no column `epoch`; expected the history of a training. Train the fold again.")
        try:
            return cls({name: tuple(float(line[name] or "nan") for line in lines) for name in names})
        except ValueError as fault:
            raise DataError(f"{path}: {fault}; expected numbers only. Delete the line.") from None


@dataclass(frozen=True)
class FoldRun:
    """One fold of one configuration: its number, its folder, how training went (None: not known)."""

    fold: int
    folder: Path
    history: History | None


@dataclass(frozen=True)
class Run:
    """All folds of one configuration, and the scores of their validation cases (None: none yet)."""

    configuration: str
    folds: tuple[FoldRun, ...]
    scores: ScoreTable | None


@dataclass(frozen=True)
class WorkFolder:
    """What was found.

    Args:
        folder: The work folder.
        dataset: None if there is none that can be read.
        plan: The plan as it stands in the file; empty if there is none.
        splits: None if there are none.
        runs: By configuration, in alphabetical order.
        notes: What is missing or broken, a sentence each, for people.
    """

    folder: Path
    dataset: Dataset | None
    plan: Mapping[str, Any]
    splits: Splits | None
    runs: tuple[Run, ...]
    notes: tuple[str, ...]


def read_work(folder: Path) -> WorkFolder:
    """Read what a work folder holds.

    Raises:
        UsageError: If `folder` is no work folder: it has neither `plan.yaml` nor `dataset.json` nor `runs`.
    """
    if not any((folder / name).exists() for name in ("plan.yaml", "dataset.json", "runs")):
        what = "no such folder" if not folder.exists() else "holds none of plan.yaml, dataset.json, runs"
        raise UsageError(
            f"{folder}: is no work folder ({what}). Give the folder that `segpipe plan DATA -o WORK` or "
            "`segpipe run DATA -o WORK` wrote."
        )
    notes: list[str] = []
    dataset = _read(folder / "dataset.json", Dataset.load, notes)
    plan = _read(folder / "plan.yaml", lambda path: read_mapping(path, PlanError), notes)
    splits = _read(folder / "splits.json", Splits.load, notes)
    folders = sorted(path for path in folder.glob("runs/*") if path.is_dir() and not path.name.startswith("."))
    runs = tuple(_read_run(path, splits, notes) for path in folders)
    if not runs:
        notes.append(f"Nothing is trained yet: `segpipe train {folder}` comes next.")
    return WorkFolder(folder, dataset, plan or {}, splits, runs, tuple(notes))


def _read(path: Path, reader: Callable[[Path], Content], notes: list[str]) -> Content | None:
    """What `reader` makes of a file; None and a note if it is missing or broken."""
    if not path.exists():
        notes.append(f"{path.name} is missing.")
        return None
    try:
        return reader(path)
    except SegpipeError as fault:
        notes.append(f"{path.name} cannot be used: {fault}")
        return None


def _read_run(folder: Path, splits: Splits | None, notes: list[str]) -> Run:
    found = sorted((int(path.name[5:]), path) for path in folder.glob("fold_*") if path.name[5:].isdecimal())
    folds: list[FoldRun] = []
    own_notes: list[str] = []
    for fold, path in found:
        fold_notes: list[str] = []
        history = _read(path / "history.csv", History.load, fold_notes)
        folds.append(FoldRun(fold, path, history))
        own_notes += [f"fold {fold}: {note}" for note in fold_notes]
    missing = sorted(set(range(splits.k)) - {fold for fold, _ in found}) if splits else []
    if splits and missing:
        own_notes.append(f"{len(missing)} of {splits.k} folds are not trained: {', '.join(map(str, missing))}.")
    scores = _read_scores(folder, folds, own_notes)
    if scores is not None and splits:
        expected = {case for fold, _ in found if fold < splits.k for case in splits.folds[fold].validation}
        without = sorted(expected - set(scores.case_ids))
        if without:
            own_notes.append(f"{len(without)} validation cases of trained folds have no scores: {_some(without)}.")
    notes += [f"{folder.name}: {note}" for note in own_notes]
    return Run(folder.name, tuple(folds), scores)


def _read_scores(folder: Path, folds: list[FoldRun], notes: list[str]) -> ScoreTable | None:
    """The out-of-fold table of a configuration; until it is there, the folds' own tables joined."""
    if (folder / "scores.csv").exists():
        return _read(folder / "scores.csv", ScoreTable.load, notes)
    tables = []
    for fold in folds:
        fold_notes: list[str] = []
        table = _read(fold.folder / "scores.csv", ScoreTable.load, fold_notes)
        notes += [f"fold {fold.fold}: {note}" for note in fold_notes]
        tables += [table] if table else []
    if not tables:
        return None
    try:
        return ScoreTable.joined(tables)
    except ValueError as fault:
        notes.append(f"the folds' scores cannot be joined: {fault}. Score them again.")
        return None


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
