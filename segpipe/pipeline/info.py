"""`segpipe info`: what lies in a work folder, in one of its runs, or in a packed model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from segpipe.core.errors import UsageError
from segpipe.core.history import History
from segpipe.core.records import Record
from segpipe.core.work import FoldFolder, Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits
from segpipe.evaluate.ledger import LEDGER_FILE, LedgerLine, ledger_sentences, read_ledger, tables_outside
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.summary import DEFAULT_POLICY, MEAN_LABEL, summarise
from segpipe.plan.schema import Configuration, Plan
from segpipe.predict.folds import SELECTED_MODEL_FILE, SELECTION, SelectedModel, weights_digest
from segpipe.predict.package import Manifest, open_model, read_manifest
from segpipe.train.weights_header import about_weights


class FoldInfo(Record):
    """A fold's folder.

    Args:
        configuration, fold: Which.
        state: `trained` to the end, `unfinished` (rerun the same command to resume), `begun` (no weights yet).
        epochs, seconds: Finished so far; None where no epoch ended or the history was not kept.
        patch_dice: Mean over labels on validation patches, of the last epoch; None if unknown.
        n_scored: Validation cases with scores.
        dice: Mean of their scores over labels, empty masks by policy mr; None if there are none.
        sha256: First digits of the weights' hash; None without weights.
    """

    configuration: str
    fold: str
    state: Literal["trained", "unfinished", "begun"]
    epochs: int | None
    seconds: float | None
    patch_dice: float | None
    n_scored: int
    dice: float | None
    sha256: str | None


class ConfigurationInfo(Record):
    """A configuration of the plan: edges of voxels in mm, patch, batch and network."""

    name: str
    spacing_mm: tuple[float | None, ...]
    patch_zyx: tuple[int, ...]
    batch_size: int
    network: str
    n_stages: int


class Info(Record):
    """Contents of a folder or a packed model.

    Args:
        path: Where.
        kind: `work` folder, `run` (folds of a configuration, or one fold) or `package` (of `segpipe pack`).
        dataset, preset: Names, as the plan has them.
        channels, labels: Names, in order.
        n_cases, n_patients, n_folds: Of the dataset and its splits; None where only a model is there.
        configurations: Planned ones.
        folds: Those with a folder, trained or not.
        chosen: Configurations that `segpipe select` chose; empty if it did not.
        size_bytes: By part (`prepared`, `runs`, …), files only.
        package: What a packed model says of itself; None if it is none. All its parts were compared with their hashes.
    """

    path: str
    kind: Literal["work", "run", "package"]
    dataset: str
    preset: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    n_cases: int | None
    n_patients: int | None
    n_folds: int | None
    configurations: tuple[ConfigurationInfo, ...]
    folds: tuple[FoldInfo, ...]
    chosen: tuple[str, ...]
    size_bytes: dict[str, int]
    package: Manifest | None


def info(path: Path) -> Info:
    """Look at a work folder, a `runs/<configuration>`, a fold's folder or a file of `segpipe pack`; nothing is changed.

    Raises:
        UsageError: If it is none of these, or a packed model is damaged.
        PlanError, DataError: If a file in it is damaged.
    """
    if path.is_file():
        manifest = read_manifest(path)
        with open_model(path) as folder:  # which compares every part with its hash
            found = _of_folds(path, _fold_folders(folder))
        return found.model_copy(update={"kind": "package", "package": manifest})
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder. Give a work folder, a run in it, or a model file.")
    work = Work(path)
    if not work.plan.is_file() or FoldFolder(path).split.is_file():
        return _of_folds(path, _fold_folders(path))
    own = _describe(path, "work", Plan.load(work.plan), _fold_folders(path))
    more: dict[str, object] = {}
    if work.dataset.is_file():  # not where a plan was made from nnU-Net's files
        dataset = Dataset.load(work.dataset)
        more = {"n_cases": len(dataset.cases), "n_patients": len({case.patient_id for case in dataset.cases})}
    if work.splits.is_file():
        more["n_folds"] = Splits.load(work.splits).k
    chosen = path / SELECTION / SELECTED_MODEL_FILE
    if chosen.is_file():
        more["chosen"] = SelectedModel.load(chosen).configurations
    return own.model_copy(update=more)


def _fold_folders(path: Path) -> list[FoldFolder]:
    """Find the folds of a work folder or a run, or the fold itself."""
    found = [path] if FoldFolder(path).split.is_file() or FoldFolder(path).weights.is_file() else []
    found += sorted([*path.glob("fold_*"), *path.glob("runs/*/fold_*")])
    return [FoldFolder(folder) for folder in found if folder.is_dir()]


def _of_folds(path: Path, folders: Sequence[FoldFolder]) -> Info:
    planned = [folder for folder in folders if folder.plan.is_file()]
    if not planned:
        raise UsageError(
            f"{path}: holds no plan.yaml and no trained fold; expected a work folder, a run in it, or a file of "
            "`segpipe pack`. `segpipe plan` makes a work folder."
        )
    return _describe(path, "run", Plan.load(planned[0].plan), folders)


def _describe(path: Path, kind: Literal["work", "run"], plan: Plan, folders: Sequence[FoldFolder]) -> Info:
    return Info(
        path=str(path),
        kind=kind,
        dataset=plan.dataset,
        preset=plan.preset,
        channels=plan.channels,
        labels=plan.labels.names,
        n_cases=None,
        n_patients=None,
        n_folds=None,
        configurations=tuple(_configuration(name, own) for name, own in plan.configurations.items()),
        folds=tuple(map(_fold, folders)),
        chosen=(),
        size_bytes=_sizes(path) if path.is_dir() else {path.name: path.stat().st_size},
        package=None,
    )


def _configuration(name: str, own: Configuration) -> ConfigurationInfo:
    n_axes = own.network.n_axes
    return ConfigurationInfo(
        name=name,
        spacing_mm=own.spacing_mm[-n_axes:],
        patch_zyx=own.patch_zyx[-n_axes:],
        batch_size=own.batch_size,
        network=own.network.kind,
        n_stages=len(own.network.features),
    )


def _fold(folder: FoldFolder) -> FoldInfo:
    about = about_weights(folder.weights) if folder.weights.is_file() else None
    history = History.load(folder.history).columns if folder.history.is_file() else {}
    last = {name: values[-1] for name, values in history.items() if values and values[-1] == values[-1]}
    n_scored, dice = _dice(folder.scores)
    return FoldInfo(
        configuration=(about or {}).get("configuration", folder.path.parent.name),
        fold=(about or {}).get("fold", folder.path.name.removeprefix("fold_")),
        state="begun" if about is None else "unfinished" if about.get("finished") == "0" else "trained",
        epochs=int(last["epoch"]) if "epoch" in last else None,
        seconds=last.get("seconds"),
        patch_dice=last.get("mean_patch_dice"),
        n_scored=n_scored,
        dice=dice,
        sha256=weights_digest(folder.weights) if about else None,
    )


def _dice(scores: Path) -> tuple[int, float | None]:
    """Number of scored cases, and the mean of their Dice over labels."""
    if not scores.is_file():
        return 0, None
    table = ScoreTable.load(scores)
    dice = ScoreTable(tuple(row for row in table.rows if row.metric == "dice"))
    means = [row.mean for row in summarise(dice, DEFAULT_POLICY) if row.label == MEAN_LABEL]
    return len(table.case_ids), means[0] if means else None


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of the files in each part, largest first."""
    parts = {part.name: [part] if part.is_file() else part.rglob("*") for part in path.iterdir()}
    sizes = {name: sum(f.stat().st_size for f in files if f.is_file()) for name, files in parts.items()}
    return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))


class LedgerInfo(Record):
    """The ledger of a work folder.

    Args:
        path: The file.
        lines: What was scored, in order.
        faults: What breaks the chain, beginning with the line; empty if nothing does.
        is_torn: Whether the last line is incomplete, as a killed run leaves it. The next scoring removes it.
        not_in_ledger: Tables of scores in the folder that no line is about: changed since, or made by an older version.
        sentences: How often the test set and the folds were scored.
    """

    path: str
    lines: tuple[LedgerLine, ...]
    faults: tuple[str, ...]
    is_torn: bool
    not_in_ledger: tuple[str, ...]
    sentences: tuple[str, ...]


def ledger_info(folder: Path) -> LedgerInfo:
    """Read the ledger of a work folder, check its chain, and look for scores that it does not know.

    Raises:
        UsageError: If there is no ledger.
        DataError: If it or a table of scores cannot be read.
    """
    path = folder / LEDGER_FILE
    if not path.is_file():
        raise UsageError(f"{folder}: has no {LEDGER_FILE}. `segpipe train` and `segpipe evaluate` begin one.")
    state = read_ledger(path)
    of_study = ("arms/*/seed_*/runs/*/fold_*/scores.csv", "arms/*/seed_*/fold_*/scores.csv")
    files = sorted(file for place in ("runs/*/fold_*/scores.csv", *of_study) for file in folder.glob(place))
    tables = {str(file.relative_to(folder)): ScoreTable.load(file) for file in files}
    return LedgerInfo(
        path=str(path),
        lines=state.lines,
        faults=state.faults,
        is_torn=bool(state.torn),
        not_in_ledger=tables_outside(state, tables),
        sentences=ledger_sentences(state),
    )
