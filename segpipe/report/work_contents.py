"""Read the content of a work folder. Missing or broken parts become notes; only a folder of another kind is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from segpipe.core.errors import DataError, PlanError, SegpipeError, UsageError
from segpipe.core.history import History
from segpipe.core.machine import Environment
from segpipe.core.probabilities import CalibrationReport
from segpipe.core.records import read_mapping
from segpipe.core.text import command_text, count
from segpipe.core.work import CALIBRATION_FILE, FoldFolder, Work
from segpipe.data.check import CheckReport
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits
from segpipe.evaluate.ledger import LEDGER_FILE, LedgerState, read_ledger
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.summary import MEAN_LABEL, SummaryRow, summarise
from segpipe.plan.pretraining import PretrainedOn
from segpipe.plan.training_commands import PlanChange, plan_changes, train_commands
from segpipe.report.volume_agreement import VolumeAgreement, volume_agreements

Content = TypeVar("Content")


@dataclass(frozen=True)
class FoldRun:
    """One fold of one configuration.

    Args:
        name: Its number, or `all`.
        folder: Its files.
        history: How training went; None if it is not known.
        changes: Where its plan differs from the work folder's.
        environment: What it was trained with; None if it is not known.
    """

    name: str
    folder: FoldFolder
    history: History | None
    changes: tuple[PlanChange, ...]
    environment: Environment | None

    @property
    def n_steps(self) -> int | None:
        """Steps that were taken; None if they are not known."""
        steps = self.history.column("iteration")[-1:] if self.history else ()
        return int(steps[0]) if steps and isfinite(steps[0]) else None


@dataclass(frozen=True)
class Run:
    """All folds of one configuration, the scores of their validation cases and their calibration (None: none yet)."""

    configuration: str
    folds: tuple[FoldRun, ...]
    scores: ScoreTable | None
    calibration: CalibrationReport | None = None


@dataclass(frozen=True)
class WorkFolder:
    """Content of a work folder.

    Args:
        folder: The work folder.
        dataset: None if there is none that can be read.
        plan: The plan as it stands in the file; empty if there is none.
        splits: None if there are none.
        runs: By configuration, in alphabetical order.
        checked: What was found in the data; None if it is not known.
        ledger: Every scoring; None if there is no ledger.
        notes: What is missing or broken, a sentence each, for people.
    """

    folder: Work
    dataset: Dataset | None
    plan: Mapping[str, Any]
    splits: Splits | None
    runs: tuple[Run, ...]
    checked: CheckReport | None
    ledger: LedgerState | None
    notes: tuple[str, ...]


def read_work(folder: Path) -> WorkFolder:
    """Read what a work folder holds.

    Raises:
        UsageError: If `folder` is no work folder: it has neither `plan.yaml` nor `splits.json` nor `runs`.
            A `dataset.json` alone is a dataset, into which nothing is written.
    """
    if not any((folder / name).exists() for name in ("plan.yaml", "splits.json", "runs")):
        what = "no such folder" if not folder.exists() else "it has none of plan.yaml, splits.json, runs"
        raise UsageError(
            f"{folder}: not a work folder ({what}). Give the folder that `segpipe plan DATA -o WORK` or "
            "`segpipe run DATA -o WORK` wrote."
        )
    work, notes = Work(folder), list[str]()
    dataset = _read(work.dataset, Dataset.load, notes)
    plan = _read(work.plan, _plan_values, notes) or {}
    splits = _read(work.splits, Splits.load, notes)
    folders = sorted(path for path in folder.glob("runs/*") if path.is_dir() and not path.name.startswith("."))
    runs = tuple(_read_run(work, path.name, plan, splits, notes) for path in folders)
    if not runs:
        notes.append(f"Nothing is trained yet. Next: `{command_text('segpipe', 'train', str(folder))}`.")
    checked = _read(work.data_check, CheckReport.load, notes) if work.data_check.exists() else None
    ledger = _read(path, read_ledger, notes) if (path := work.path / LEDGER_FILE).exists() else None
    return WorkFolder(work, dataset, plan, splits, runs, checked, ledger, tuple(notes))


def _plan_values(path: Path) -> dict[str, Any]:
    return read_mapping(path, PlanError)


def _read(path: Path, reader: Callable[[Path], Content], notes: list[str]) -> Content | None:
    """Read a file with `reader`; None and a note if it is missing or broken."""
    if not path.exists():
        notes.append(f"{path.name} is missing.")
        return None
    try:
        return reader(path)
    except SegpipeError as fault:
        notes.append(f"{path.name} cannot be read: {fault}")
        return None


def _read_run(work: Work, name: str, plan: Mapping[str, Any], splits: Splits | None, notes: list[str]) -> Run:
    folder = work.run(name)
    names = [path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir()]
    numbers = sorted(int(name) for name in names if name.isdecimal())
    own_notes: list[str] = []
    folds = tuple(
        _read_fold(folder, fold, plan, own_notes) for fold in [*map(str, numbers), *sorted({"all"} & set(names))]
    )
    missing = sorted(set(range(splits.k)) - set(numbers)) if splits else []
    if splits and missing:
        own_notes.append(
            f"{len(missing)} of {count(splits.k, 'fold is', 'folds are')} not trained: {', '.join(map(str, missing))}."
        )
    scores = _read_scores(folder, folds, own_notes)
    if splits:
        scored = set(scores.case_ids) if scores is not None else set()
        lacking = {n: set(splits.folds[n].validation) - scored for n in numbers if n < splits.k}
        without = sorted(set().union(*lacking.values()))
        if without:
            own_notes.append(
                f"{count(len(without), 'validation case')} of trained folds without scores: {_some(without)}."
            )
        unfinished = sorted({*missing, *(number for number, cases in lacking.items() if cases)})
        completing = train_commands(work, name, map(str, unfinished))
        own_notes += [f"To complete it: `{command}`." for command in completing]
    path = folder / CALIBRATION_FILE
    calibration = _read(path, CalibrationReport.load, own_notes) if path.exists() else None
    notes += [f"{folder.name}: {note}" for note in own_notes]
    return Run(folder.name, folds, scores, calibration)


def _read_fold(run_folder: Path, name: str, plan: Mapping[str, Any], notes: list[str]) -> FoldRun:
    folder, own_notes = FoldFolder(run_folder / f"fold_{name}"), list[str]()
    history = _read(folder.history, History.load, own_notes)
    own_plan = _read(folder.plan, _plan_values, own_notes) if folder.plan.exists() else None
    environment = _read(folder.environment, Environment.load, own_notes) if folder.environment.exists() else None
    if folder.pretrained_on.exists() and (found := _read(folder.pretrained_on, PretrainedOn.load, own_notes)):
        own_notes.append(found.text())
    notes += [f"fold {name}: {note}" for note in own_notes]
    return FoldRun(name, folder, history, plan_changes(plan, own_plan) if plan and own_plan else (), environment)


def _read_scores(folder: Path, folds: Sequence[FoldRun], notes: list[str]) -> ScoreTable | None:
    """The out-of-fold table of a configuration; until it is there, the folds' own tables joined.

    The folds' tables are read in either case, so that a broken one is named: `info` and `package` need it.
    """
    joined = folder / "scores.csv"
    tables = []
    for fold in (fold for fold in folds if fold.name != "all"):  # `all` has no validation cases
        if joined.exists() and not fold.folder.scores.exists():
            continue
        fold_notes: list[str] = []
        table = _read(fold.folder.scores, ScoreTable.load, fold_notes)
        notes += [f"fold {fold.name}: {note}" for note in fold_notes]
        tables += [table] if table else []
    if joined.exists():
        return _read(joined, ScoreTable.load, notes)
    if not tables:
        return None
    try:
        return ScoreTable.join(tables, folder)
    except DataError as fault:
        notes.append(str(fault))
        return None


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


@dataclass(frozen=True)
class Scored:
    """A configuration and its scores.

    Args:
        run: The configuration.
        table: Scores of one run; None if there are none.
        rows: Their means; empty if none can be taken.
        volumes: Agreement of volumes, by label.
    """

    run: Run
    table: ScoreTable | None
    rows: tuple[SummaryRow, ...]
    volumes: tuple[VolumeAgreement, ...]

    @property
    def dice(self) -> SummaryRow | None:
        """The mean Dice over labels."""
        return next((row for row in self.rows if (row.label, row.metric) == (MEAN_LABEL, "dice")), None)

    @property
    def dice_of_labels(self) -> Sequence[SummaryRow]:
        """Mean Dice of each label, as the scores name them."""
        return [row for row in self.rows if row.metric == "dice" and row.label != MEAN_LABEL]


def read_scored(run: Run, notes: list[str]) -> Scored:
    """Scores of a configuration; what cannot be used is added to `notes`."""
    table = run.scores if run.scores is not None and run.scores.rows else None
    if table is None:
        return Scored(run, None, (), ())
    if len(table.runs) > 1:
        notes.append(
            f"{run.configuration}: scores.csv has the runs {', '.join(table.runs)}; only {table.runs[0]!r} is shown."
        )
        table = table.of_run(table.runs[0])
    rows: tuple[SummaryRow, ...] = ()
    try:
        rows = summarise(table)
    except SegpipeError as fault:
        notes.append(f"{run.configuration}: means cannot be computed: {fault}")
    return Scored(run, table, rows, volume_agreements(table))
