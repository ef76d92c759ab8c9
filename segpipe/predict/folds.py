"""Find trained folds in a folder, and what `segpipe select` chose.

torch is not imported, so that `segpipe info` answers at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path

from segpipe.core.errors import UsageError
from segpipe.core.labels import LabelSet
from segpipe.core.probabilities import CalibrationReport
from segpipe.core.progress import say
from segpipe.core.records import Record
from segpipe.core.text import command_text
from segpipe.core.work import CALIBRATION_FILE, FoldFolder, Work, preferred_configuration
from segpipe.data.splits import Splits
from segpipe.plan.schema import Plan
from segpipe.plan.training_commands import training_advice
from segpipe.plan.training_stats import TrainingStats
from segpipe.predict.options import PredictOptions
from segpipe.predict.postprocess import NO_POSTPROCESSING, POSTPROCESSING_FILE, Postprocessing
from segpipe.train.weights_header import about_weights

_EVERY_CASE = "all"  # name of the fold that keeps no case for validation, in the folder fold_all
_PREFIX = "fold_"


def find_folds(
    path: Path, configuration: str | None, folds: Sequence[str] = (), note: Callable[[str], None] = say
) -> list[FoldFolder]:
    """Find the folders of trained folds of one configuration.

    Args:
        path: A work folder, one of its `runs/<configuration>`, or one fold's folder; a copy under another name will do.
        configuration: Which; None for `preferred_configuration` of those that are trained, which is noted if it is
            neither the only one nor 3d_fullres.
        folds: Which, trained to the end or not, as for `choose_folds`; none for all that are trained to the end.
        note: Takes lines for the user.

    Raises:
        UsageError: If there is no such configuration or fold, or no weights.
    """
    alone = FoldFolder(path)
    if alone.weights.is_file():
        about = about_weights(alone.weights)
        others = {fold.removeprefix(_PREFIX) for fold in folds} - {about.get("fold"), _EVERY_CASE}
        if configuration not in (None, about.get("configuration")) or others:
            raise UsageError(f"{path}: is fold {about.get('fold')} of {about.get('configuration')}. Omit -c and -f.")
        return [alone]
    run = _run_folder(path, configuration, note)
    trained = {_number(p.parent): FoldFolder(p.parent) for p in run.glob("fold_*/checkpoint.safetensors")}
    trained = {name: folder for name, folder in trained.items() if name.isdecimal() or name == _EVERY_CASE}
    if not trained:
        raise UsageError(
            f"{_message_path(run)}: no trained weights, expected fold_*/checkpoint.safetensors."
            f"{_advice(run, None) or ' Train first.'}"
        )
    if run == path and configuration is not None:
        _require_of(configuration, run, trained.values())
    named, names_each = choose_folds(run, list(trained), folds)
    unfinished = {n for n in named if about_weights(trained[n].weights).get("finished") == "0"}
    chosen = named if names_each else [name for name in named if name not in unfinished]
    if unfinished:
        text = "used as it is" if names_each else "left out"
        names = ", ".join(sorted(unfinished, key=_place))
        which = f"fold {names} is" if len(unfinished) == 1 else f"folds {names} are"
        note(f"warning: {_message_path(run)}: {which} not trained to the end; {text}.")
    if not chosen:
        raise UsageError(
            f"{_message_path(run)}: no fold is trained to the end. Finish training, or name one with -f."
            f"{_advice(run, sorted(unfinished))}"
        )
    return [trained[fold] for fold in chosen]


def choose_folds(where: Path, found: Sequence[str], asked: Sequence[str] = ()) -> tuple[list[str], bool]:
    """Choose folds of a model by their names.

    Args:
        where: The model's folder, for messages.
        found: The folds that it has: numbers and `all`.
        asked: `0` or `fold_0`, …; `fold_all` for the network trained on every case; `all` for every numbered fold, or
            `fold_all` if there is no other. None are the same as `all`, but do not mind that there are both.

    Returns:
        Their names, in the order asked for; and whether each was named.

    Raises:
        UsageError: If there is no such fold, or `all` could mean either kind.
    """
    numbered = sorted((name for name in found if name.isdecimal()), key=int)
    whole = [name for name in found if name == _EVERY_CASE]
    if not asked or list(asked) == [_EVERY_CASE]:
        if asked and numbered and whole:
            raise UsageError(
                f"{_message_path(where)}: -f all could mean fold_all (one network, trained on every case) or folds "
                f"{', '.join(numbered)}, whose outputs are averaged. Use -f fold_all or -f {','.join(numbered)}."
            )
        return numbered or whole, False
    names = list(dict.fromkeys(name.removeprefix(_PREFIX) for name in asked))
    if missing := [name for name in names if name not in found]:
        there = ", ".join([*numbered, *(f"{_PREFIX}{name}" for name in whole)]) or "none"
        raise UsageError(
            f"{_message_path(where)}: has no trained fold {', '.join(missing)} (it has {there}). Choose from those "
            f"with -f.{_advice(where, missing)}"
        )
    return names, True


def _require_of(configuration: str, run: Path, folders: Iterable[FoldFolder]) -> None:
    """Refuse the folder of one configuration where another is asked for; the weights say it, not the folder's name."""
    names = {about_weights(folder.weights).get("configuration", run.name) for folder in folders}
    if configuration not in names:
        raise UsageError(
            f"{run}: holds folds of {', '.join(sorted(names))}, not of {configuration!r}. Leave out -c, or give the "
            "work folder that holds both."
        )


def _advice(run: Path, folds: Sequence[str] | None) -> str:
    """Say how to train folds of a configuration; None: all. Empty where `run` is in no work folder with such folds."""
    work = Work(run.parent.parent)
    if run.parent.name != "runs" or not (work.plan.is_file() and work.splits.is_file()):
        return ""
    planned = [str(fold) for fold in range(Splits.load(work.splits).k)]
    wanted = [fold for fold in planned if folds is None or fold in folds]
    return f" To train: {training_advice(work, run.name, wanted)}." if wanted else ""


def _message_path(path: Path) -> Path:
    """`path`, or the packed model that holds it: a message names the one file that people have."""
    homes = (folder.parent for folder in path.parents if folder.name == "runs")
    return next((home for home in homes if Work(home).package_list.is_file()), path)


def _number(fold: Path) -> str:
    return fold.name.removeprefix(_PREFIX)


def _place(fold: str) -> int:
    return int(fold) if fold.isdecimal() else 0


def _run_folder(path: Path, configuration: str | None, note: Callable[[str], None]) -> Path:
    """The folder of a configuration's folds."""
    if not path.is_dir():
        raise UsageError(
            f"{path}: {'is no folder' if path.exists() else 'does not exist'}; expected a work folder, one of its "
            "runs/<configuration>, or a file of `segpipe pack`. Check the path."
        )
    if not (path / "runs").is_dir():
        return path
    found = sorted(p.name for p in (path / "runs").iterdir() if p.is_dir())
    name = configuration or preferred_configuration(found) or ""
    if name not in found:
        advice = (
            _advice(Work(path).run(name), None) if _is_planned(Work(path), name) else " Choose one of these with -c."
        )
        raise UsageError(
            f"{path}: no trained configuration {name!r} (found: {', '.join(found) or 'none'}).{advice if found else ''}"
        )
    if configuration is None and len(found) > 1 and name != "3d_fullres":
        note(f"{path}: trained are {', '.join(found)}; using {name}. Choose another with -c, or run `segpipe select`.")
    return Work(path).run(name)


def _is_planned(work: Work, configuration: str) -> bool:
    return work.plan.is_file() and configuration in Plan.load(work.plan).configurations


def guide_folds(
    cascade: FoldFolder, previous: str, folds: Sequence[str] = (), note: Callable[[str], None] = say
) -> list[FoldFolder]:
    """Find the folds of the configuration that guides a cascade, in the folder beside the cascade's own.

    Raises:
        UsageError: If they are not there.
    """
    run = cascade.path.parent.parent / previous
    if not run.is_dir():
        raise UsageError(
            f"{cascade.path}: is guided by {previous}, expected in {run}. Copy the folders of both configurations into "
            f"one folder.{_advice(run, None)}"
        )
    return find_folds(run, None, folds, note)


def common_training_stats(folders: Sequence[FoldFolder], note: Callable[[str], None] = say) -> TrainingStats | None:
    """Statistics of the training cases of all folds; None if one fold has none."""
    if not all(folder.trained_on.is_file() for folder in folders):
        note(
            f"warning: {_message_path(folders[0].path)}: the training images are not known; new ones are not compared "
            "with them."
        )
        return None
    return reduce(TrainingStats.join, (TrainingStats.load(folder.trained_on) for folder in folders))


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
    """The digest of each fold's weights, by `<configuration>/<fold>`; folds without are left out."""
    digests = {}
    for folder in folders:
        if folder.weights.is_file():
            about = about_weights(folder.weights)
            digests[f"{about.get('configuration')}/{about.get('fold')}"] = weights_digest(folder.weights)
    return digests


def weights_digest(path: Path) -> str:
    """Twelve digits of the SHA-256 of a file of weights, which is not read into memory as a whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


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
        _require_not_packed(path, retrained)
        note(
            f"warning: {file}: {retrained} has been trained again since; using the default configuration instead. "
            f"Rerun `{command_text('segpipe', 'select', str(path))}`."
        )
        return [find_folds(path, None, folds, note)]
    names_text = " + ".join(chosen.configurations)
    if not Work(path).package_list.is_file():
        note(f"{path.name or path}: predicting with {names_text}, from {SELECTION}/{SELECTED_MODEL_FILE}.")
    elif len(chosen.configurations) > 1:
        note(f"{path.name}: predicting with {names_text}, averaged.")
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
    model = next(iter(runs)).parent.parent
    if retrained := _find_retrained(steps.weights, members):
        _require_not_packed(model, retrained)
        note(
            f"warning: {file}: {retrained} has been trained again since; not applied. Rerun `segpipe select`, or "
            f"apply it as it is: --postprocess {file}."
        )
        return NO_POSTPROCESSING
    is_packed = Work(model).package_list.is_file()
    note(f"{model.name}: masks are postprocessed, as it was packed." if is_packed else f"postprocessing: {file}")
    return steps


def temperature_for(options: PredictOptions, members: Members, note: Callable[[str], None] = say) -> float:
    """Temperature of the probabilities: 1 unless calibrated ones are requested.

    Raises:
        UsageError: If there are several configurations, none was fitted, or a fold has been trained again since.
        DataError: If the file is damaged.
    """
    if not options.calibrated:
        return 1.0
    if len(members) > 1:
        names = ", ".join(folders[0].path.parent.name for folders in members)
        raise UsageError(
            f"--calibrated: {names} are averaged, but a temperature is fitted for one configuration. Choose one (-c)."
        )
    file = members[0][0].path.parent / CALIBRATION_FILE
    if not file.is_file():
        raise UsageError(
            f"--calibrated: no {file}, which `segpipe train` writes. Rerun `segpipe train` on the work folder: it "
            "predicts the validation cases again. A model of nnU-Net or an earlier package has none."
        )
    found = CalibrationReport.load(file)
    if retrained := _find_retrained(found.weights, members):
        raise UsageError(f"{file}: {retrained} has been trained again since. Rerun `segpipe train` on the work folder.")
    note(f"calibration: probabilities with temperature {found.temperature_text} ({_message_path(file)})")
    if found.makes_worse:
        note(
            f"warning: {_message_path(file)}: temperatures of other folds made the probabilities of a fold "
            "worse, not better."
        )
    return found.temperature


def _require_not_packed(model: Path, retrained: str) -> None:
    """Refuse a package with other weights than its choices were made on: nobody trains in a package."""
    if Work(model).package_list.is_file():
        raise UsageError(
            f"{model}: was edited: the weights of {retrained} are not those it was packed with. Get the file again, "
            "or pack the model again."
        )


def _find_retrained(known: Mapping[str, str], members: Members) -> str:
    """Folds whose weights differ from the known ones; folds that are not among the known ones do not count."""
    if not known:
        return ""
    now = weights_of(folder for folders in members for folder in folders)
    return ", ".join(fold for fold, digest in now.items() if known.get(fold, digest) != digest)
