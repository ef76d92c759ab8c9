"""Read what `segpipe select` chose for a work folder; it holds as long as the weights do not change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from segpipe.core.labels import LabelSet
from segpipe.core.progress import say
from segpipe.core.records import Record
from segpipe.core.work import FoldFolder
from segpipe.predict.folds import find_folds
from segpipe.predict.options import PredictOptions
from segpipe.predict.postprocess import NO_POSTPROCESSING, POSTPROCESSING_FILE, Postprocessing
from segpipe.train.weights_header import about_weights

SELECTION = "selection"  # folder in a work folder
SELECTED_MODEL_FILE = "model.yaml"

Members = Sequence[Sequence[FoldFolder]]


class SelectedModel(Record):
    """selection/model.yaml: the configurations that predict unless others are named.

    Args:
        configurations: One, or several whose probabilities are averaged.
        weights: Digests of the weights it was chosen on, as `weights_of` gives them.
    """

    configurations: tuple[str, ...]
    weights: dict[str, str]


def weights_of(folders: Iterable[FoldFolder]) -> dict[str, str]:
    """Twelve digits of the SHA-256 of each fold's weights, by `<configuration>/<fold>`; folds without are left out."""
    digests = {}
    for folder in folders:
        if folder.weights.is_file():
            about = about_weights(folder.weights)
            with folder.weights.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
            digests[f"{about.get('configuration')}/{about.get('fold')}"] = digest
    return digests


def find_members(
    path: Path, configurations: Sequence[str], folds: Sequence[str] = (), note: Callable[[str], None] = say
) -> list[list[FoldFolder]]:
    """Find the folders of the folds that predict, for each configuration.

    Args:
        path: As for `find_folds`.
        configurations: Which; none for what `segpipe select` chose, else the default one.
        folds: Which; none for all that are trained to the end.
        note: Takes lines for the user.

    Raises:
        UsageError: As `find_folds`.
        PlanError: If selection/model.yaml is damaged.
    """
    names = list(dict.fromkeys(configurations))
    if names or not (path / SELECTION / SELECTED_MODEL_FILE).is_file():
        return [find_folds(path, name, folds, note) for name in names] or [find_folds(path, None, folds, note)]
    file = path / SELECTION / SELECTED_MODEL_FILE
    chosen = SelectedModel.load(file)
    members = [find_folds(path, name, folds, note) for name in chosen.configurations]
    if retrained := _find_retrained(chosen.weights, members):
        note(
            f"warning: {file}: {retrained} has been trained again since; using the default configuration instead. "
            f"Rerun `segpipe select {path}`."
        )
        return [find_folds(path, None, folds, note)]
    names_text = " + ".join(chosen.configurations)
    note(f"{path.name or path}: predicting with {names_text}, from {SELECTION}/{SELECTED_MODEL_FILE}.")
    return members


def postprocessing_for(
    options: PredictOptions, members: Members, labels: LabelSet, note: Callable[[str], None] = say
) -> Postprocessing:
    """Steps for the masks: none, those of a file, or what `segpipe select` chose.

    Raises:
        PlanError: If a file is damaged or names an unknown label.
    """
    if not options.postprocesses:
        return NO_POSTPROCESSING
    if options.postprocessing is None:
        return selected_postprocessing(members, labels, note)
    return read_postprocessing(options.postprocessing, labels, note)


def read_postprocessing(
    file: Path, labels: LabelSet | None = None, note: Callable[[str], None] = say
) -> Postprocessing:
    """Read steps from a file; they must fit the labels, if those are known."""
    steps = Postprocessing.load(file)
    if labels is not None:
        steps.require_known(labels, file)
    note(f"postprocessing: {file}")
    return steps


def selected_postprocessing(members: Members, labels: LabelSet, note: Callable[[str], None] = say) -> Postprocessing:
    """Steps that `segpipe select` chose for the masks of these configurations together; none if it chose none.

    Raises:
        PlanError: If a file of the selection is damaged or names a label that does not exist.
    """
    runs = {folders[0].path.resolve().parent for folders in members}
    file = next(iter(runs)) / POSTPROCESSING_FILE
    if len(members) > 1:
        home = next(iter(runs)).parent.parent / SELECTION
        is_known = len({run.parent for run in runs}) == 1 and (home / SELECTED_MODEL_FILE).is_file()
        if not is_known or set(SelectedModel.load(home / SELECTED_MODEL_FILE).configurations) != {
            run.name for run in runs
        }:
            return NO_POSTPROCESSING
        file = home / POSTPROCESSING_FILE
    if not file.is_file():
        return NO_POSTPROCESSING
    steps = Postprocessing.load(file)
    steps.require_known(labels, file)
    if retrained := _find_retrained(steps.weights, members):
        note(
            f"warning: {file}: {retrained} has been trained again since; not applied. Rerun `segpipe select`, or "
            f"apply it as it is: --postprocess {file}."
        )
        return NO_POSTPROCESSING
    note(f"postprocessing: {file}")
    return steps


def _find_retrained(known: Mapping[str, str], members: Members) -> str:
    """Folds whose weights differ from the known ones; folds that are not among the known ones do not count."""
    if not known:
        return ""
    now = weights_of(folder for folders in members for folder in folders)
    return ", ".join(fold for fold, digest in now.items() if known.get(fold, digest) != digest)
