"""Trained folds: found in a folder, loaded, named."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import nn

from segpipe.core.errors import UsageError
from segpipe.core.progress import say
from segpipe.core.work import FoldFolder, Work
from segpipe.networks.build import build
from segpipe.plan.schema import Configuration, Plan
from segpipe.plan.trained_on import TrainedOn
from segpipe.train.checkpoint import about_weights, load_weights

_PREFERRED = "3d_fullres"


@dataclass(frozen=True, eq=False)
class Model:
    """One or several folds of a configuration, ready to predict.

    Args:
        plan: What the images must become.
        configuration: Patch, resolution, network.
        networks: One for each fold, in evaluation mode.
        digest: Twelve hexadecimal digits of the weights.
        trained_on: What the training cases are like; None if that was not noted.
    """

    plan: Plan
    configuration: Configuration
    networks: tuple[nn.Module, ...]
    digest: str
    trained_on: TrainedOn | None = None


def find_folds(path: Path, configuration: str | None, folds: Sequence[str] | None) -> list[FoldFolder]:
    """Folders of trained folds of one configuration.

    Args:
        path: A work folder, one of its `runs/<configuration>`, or one fold's folder; a copy under another name will do.
        configuration: Which; None for the only one there is, or 3d_fullres of several.
        folds: Which, trained to the end or not; None for all that are trained to the end.

    Raises:
        UsageError: If there is no such configuration or fold, or no weights.
    """
    alone = FoldFolder(path)
    if alone.weights.is_file():
        about = about_weights(alone.weights)
        if configuration not in (None, about.get("configuration")) or any(f != about.get("fold") for f in folds or ()):
            raise UsageError(
                f"{path}: is fold {about.get('fold')} of {about.get('configuration')}; leave out -c and -f."
            )
        return [alone]
    run = _run_folder(path, configuration)
    trained = {_number(p.parent): FoldFolder(p.parent) for p in run.glob("fold_*/checkpoint.safetensors")}
    trained = {number: folder for number, folder in trained.items() if number.isdecimal()}
    if not trained:
        raise UsageError(
            f"{run}: holds no trained weights (looked for fold_*/checkpoint.safetensors). Train first: `segpipe train`."
        )
    missing = [fold for fold in folds or [] if fold not in trained]
    if missing:
        raise UsageError(f"{run}: fold {', '.join(missing)} is not trained (trained: {', '.join(sorted(trained))}).")
    unfinished = {n for n, folder in trained.items() if about_weights(folder.weights).get("finished") == "0"}
    chosen = list(folds) if folds else sorted(set(trained) - unfinished, key=int)
    if unfinished:
        text = "used as it is" if folds and unfinished & set(folds) else "left out"
        say(f"warning: {run}: fold {', '.join(sorted(unfinished, key=int))} is not trained to the end; {text}.")
    if not chosen:
        raise UsageError(f"{run}: no fold is trained to the end. Finish training, or name one with -f.")
    return [trained[fold] for fold in chosen]


def _number(fold: Path) -> str:
    return fold.name.removeprefix("fold_")


def _run_folder(path: Path, configuration: str | None) -> Path:
    """The folder whose folds are meant."""
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder. Give a work folder or one of its runs/<configuration>.")
    if not (path / "runs").is_dir():
        return path
    found = sorted(p.name for p in (path / "runs").iterdir() if p.is_dir())
    name = configuration or (_PREFERRED if _PREFERRED in found else next(iter(found), ""))
    if name not in found:
        raise UsageError(f"{path}: no trained configuration {name!r} (found: {', '.join(found) or 'none'}). Train it.")
    return Work(path).run(name)


def load_model(folders: Sequence[FoldFolder], device: torch.device) -> Model:
    """Load folds of one configuration for an ensemble.

    Raises:
        UsageError: If weights are missing or damaged, or the folds prepare images differently.
        PlanError: If a plan is wrong.
    """
    names = [about_weights(folder.weights).get("configuration", folder.path.parent.name) for folder in folders]
    plans = [Plan.load(folder.plan) for folder in folders]
    plan, name = plans[0], names[0]
    if name not in plan.configurations:
        raise UsageError(f"{folders[0].plan}: has no configuration {name!r} ({', '.join(plan.configurations)}).")
    networks, digest = [], hashlib.sha256()
    for folder, other, other_name in zip(folders, plans, names, strict=True):
        if (other.model_copy(update={"training": plan.training}), other_name) != (plan, name):
            raise UsageError(
                f"{folder.path}: trained with another plan than {folders[0].path}; predict with one of them."
            )
        network = build(plan.configurations[name].network, len(plan.channels), plan.labels.n_outputs)
        load_weights(folder.weights, network)
        networks.append(network.to(device).eval())
        digest.update(folder.weights.read_bytes())
    return Model(plan, plan.configurations[name], tuple(networks), digest.hexdigest()[:12], _trained_on(folders))


def _trained_on(folders: Sequence[FoldFolder]) -> TrainedOn | None:
    """What the folds' training cases are like together; None if one does not tell."""
    if not all(folder.trained_on.is_file() for folder in folders):
        say(
            f"warning: {folders[0].path}: no {folders[0].trained_on.name}; images are not compared with training cases."
        )
        return None
    return reduce(TrainedOn.joined, (TrainedOn.load(folder.trained_on) for folder in folders))
