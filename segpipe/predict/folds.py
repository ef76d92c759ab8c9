"""Find trained folds in a folder. torch is not imported, so that `segpipe info` answers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from pathlib import Path

from segpipe.core.errors import UsageError
from segpipe.core.progress import say
from segpipe.core.work import FoldFolder, Work, preferred_configuration
from segpipe.plan.training_stats import TrainingStats
from segpipe.train.weights_header import about_weights

_EVERY_CASE = "all"  # name of the fold that keeps no case for validation


def find_folds(
    path: Path, configuration: str | None, folds: Sequence[str] = (), note: Callable[[str], None] = say
) -> list[FoldFolder]:
    """Find the folders of trained folds of one configuration.

    Args:
        path: A work folder, one of its `runs/<configuration>`, or one fold's folder; a copy under another name will do.
        configuration: Which; None for `preferred_configuration` of those that are trained, which is noted if it is
            neither the only one nor 3d_fullres.
        folds: Which, trained to the end or not; none for all numbered ones that are trained to the end, or `all` (one
            network trained on every case, as nnU-Net has it) if there is no other.
        note: Takes lines for the user.

    Raises:
        UsageError: If there is no such configuration or fold, or no weights.
    """
    alone = FoldFolder(path)
    if alone.weights.is_file():
        about = about_weights(alone.weights)
        if configuration not in (None, about.get("configuration")) or any(fold != about.get("fold") for fold in folds):
            raise UsageError(f"{path}: is fold {about.get('fold')} of {about.get('configuration')}. Omit -c and -f.")
        return [alone]
    run = _run_folder(path, configuration, note)
    trained = {_number(p.parent): FoldFolder(p.parent) for p in run.glob("fold_*/checkpoint.safetensors")}
    numbered = {number: folder for number, folder in trained.items() if number.isdecimal()}
    trained = numbered or {name: folder for name, folder in trained.items() if name == _EVERY_CASE}
    if not trained:
        raise UsageError(
            f"{run}: no trained weights, expected fold_*/checkpoint.safetensors. Train first: `segpipe train`."
        )
    if run == path and configuration is not None:
        _require_of(configuration, run, trained.values())
    missing = [fold for fold in folds if fold not in trained]
    if missing:
        raise UsageError(f"{run}: fold {', '.join(missing)} is not trained (trained: {', '.join(sorted(trained))}).")
    unfinished = {n for n, folder in trained.items() if about_weights(folder.weights).get("finished") == "0"}
    chosen = list(folds) if folds else sorted(set(trained) - unfinished, key=_place)
    if unfinished:
        text = "used as it is" if unfinished & set(folds) else "left out"
        names = ", ".join(sorted(unfinished, key=_place))
        which = f"fold {names} is" if len(unfinished) == 1 else f"folds {names} are"
        note(f"warning: {run}: {which} not trained to the end; {text}.")
    if not chosen:
        raise UsageError(f"{run}: no fold is trained to the end. Finish training, or name one with -f.")
    return [trained[fold] for fold in chosen]


def _require_of(configuration: str, run: Path, folders: Iterable[FoldFolder]) -> None:
    """Refuse the folder of one configuration where another is asked for; the weights say it, not the folder's name."""
    names = {about_weights(folder.weights).get("configuration", run.name) for folder in folders}
    if configuration not in names:
        raise UsageError(
            f"{run}: holds folds of {', '.join(sorted(names))}, not of {configuration!r}. Leave out -c, or give the "
            "work folder that holds both."
        )


def _number(fold: Path) -> str:
    return fold.name.removeprefix("fold_")


def _place(fold: str) -> int:
    return int(fold) if fold.isdecimal() else 0


def _run_folder(path: Path, configuration: str | None, note: Callable[[str], None]) -> Path:
    """The folder of a configuration's folds."""
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder. Give a work folder or one of its runs/<configuration>.")
    if not (path / "runs").is_dir():
        return path
    found = sorted(p.name for p in (path / "runs").iterdir() if p.is_dir())
    name = configuration or preferred_configuration(found) or ""
    if name not in found:
        raise UsageError(f"{path}: no trained configuration {name!r} (found: {', '.join(found) or 'none'}). Train it.")
    if configuration is None and len(found) > 1 and name != "3d_fullres":
        note(f"{path}: trained are {', '.join(found)}; using {name}. Choose another with -c, or run `segpipe select`.")
    return Work(path).run(name)


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
            f"{cascade.path}: is guided by {previous}, expected in {run}. Train it (`segpipe train -c {previous}`), or "
            "copy the folders of both configurations into one folder."
        )
    return find_folds(run, None, folds, note)


def common_training_stats(folders: Sequence[FoldFolder], note: Callable[[str], None] = say) -> TrainingStats | None:
    """Statistics of the training cases of all folds; None if one fold has none."""
    if not all(folder.trained_on.is_file() for folder in folders):
        note(
            f"warning: {folders[0].path}: no {folders[0].trained_on.name}; images are not compared with training cases."
        )
        return None
    return reduce(TrainingStats.join, (TrainingStats.load(folder.trained_on) for folder in folders))
