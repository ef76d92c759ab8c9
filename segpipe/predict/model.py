"""Trained folds: find them in a folder, load them, average them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import nn

from segpipe.core.errors import UsageError
from segpipe.core.progress import say
from segpipe.core.work import FoldFolder, Work, preferred_configuration
from segpipe.networks.build import build
from segpipe.networks.inference import ready_to_predict
from segpipe.plan.schema import Configuration, Plan
from segpipe.plan.training_stats import TrainingStats
from segpipe.train.checkpoint import about_weights, load_weights

_EVERY_CASE = "all"  # name of the fold that keeps no case for validation


@dataclass(frozen=True, eq=False)
class Model:
    """One or several folds of a configuration, ready to predict.

    Args:
        plan: What the images must become.
        configuration: Patch, resolution, network.
        networks: One for each fold, in evaluation mode.
        digest: Twelve hexadecimal digits of the weights.
        trained_on: What the training cases are like; None if that was not noted.
        guide: Of a cascade the model of the coarser configuration, whose labels are further input.
    """

    plan: Plan
    configuration: Configuration
    networks: tuple[nn.Module, ...]
    digest: str
    trained_on: TrainingStats | None = None
    guide: Model | None = None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.networks[0].parameters()).device


@dataclass(frozen=True, eq=False)
class Ensemble:
    """One or several models that predict the same structures of the same images.

    Args:
        members: Models, each of one configuration. Logits are averaged over its folds, probabilities over members.

    Raises:
        UsageError: If they differ in channels or labels, or turn images to different axes.
    """

    members: tuple[Model, ...]

    def __post_init__(self) -> None:
        first = self.plan
        for plan in (member.plan for member in self.members[1:]):
            if plan.labels != first.labels or plan.channels != first.channels:
                raise UsageError(
                    f"models of {plan.dataset} and {first.dataset} cannot be averaged: channels and labels "
                    f"{_structures_text(plan)} and {_structures_text(first)}; expected the same names and values in "
                    "the same order."
                )
            if (plan.orientation, plan.axis_order) != (first.orientation, first.axis_order):
                raise UsageError(
                    f"models of {plan.dataset} and {first.dataset} turn images to different axes ({plan.orientation} "
                    f"{plan.axis_order} and {first.orientation} {first.axis_order}). Predict with each and "
                    "--save-probabilities, and average the folders: `segpipe ensemble`."
                )

    @property
    def models(self) -> tuple[Model, ...]:
        """The members and what guides them."""
        return tuple(model for member in self.members for model in (member, member.guide) if model is not None)

    @property
    def plan(self) -> Plan:
        """The plan of the first member; channels, labels and axes are those of all."""
        return self.members[0].plan

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.members[0].device

    @property
    def uncertainty_names(self) -> tuple[str, ...]:
        """Names of the maps that it can make: a single network has none to disagree with."""
        n_networks = sum(len(member.networks) for member in self.members)
        return ("entropy", "disagreement") if n_networks > 1 else ("entropy",)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of all weights, the same for any order of the members."""
        digests = sorted(member.digest for member in self.members)
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:12]


def _structures_text(plan: Plan) -> str:
    labels = ", ".join(f"{label.name} {'/'.join(map(str, label.values))}" for label in plan.labels.labels)
    return f"({', '.join(plan.channels)}; {labels})"


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


def load_model(
    folders: Sequence[FoldFolder],
    device: torch.device,
    guides: Sequence[FoldFolder] | None = None,
    note: Callable[[str], None] = say,
) -> Model:
    """Load folds of one configuration for an ensemble.

    Args:
        folders: The folds.
        device: Where to compute.
        guides: For a cascade, the folds of the coarser configuration; None for all that are trained to the end.
        note: Takes lines for the user.

    Raises:
        UsageError: If weights are missing or damaged, or the folds prepare images differently, those of the coarser
            configuration included.
        PlanError: If a plan is wrong.
    """
    names = [about_weights(folder.weights).get("configuration", folder.path.parent.name) for folder in folders]
    plans = [Plan.load(folder.plan) for folder in folders]
    plan, name = plans[0], names[0]
    if name not in plan.configurations:
        raise UsageError(f"{folders[0].plan}: has no configuration {name!r} ({', '.join(plan.configurations)}).")
    configuration = plan.configurations[name]
    networks, digest = [], hashlib.sha256()
    for folder, other, other_name in zip(folders, plans, names, strict=True):
        if (other.model_copy(update={"training": plan.training}), other_name) != (plan, name):
            raise UsageError(
                f"{folder.path}: trained with another plan than {folders[0].path}; predict with one of them."
            )
        network = build(configuration.network, plan.n_inputs(configuration), plan.labels.n_outputs)
        load_weights(folder.weights, network)
        networks.append(ready_to_predict(network, configuration.network.kind, configuration.network.n_axes, device))
        digest.update(folder.weights.read_bytes())
    guide = None
    if configuration.previous is not None:
        guide = load_model(guides or guide_folds(folders[0], configuration.previous, note=note), device, note=note)
        require_same_view(plan, configuration.previous, guide.plan, folders[0].path)
        digest.update(guide.digest.encode())
    return Model(plan, configuration, tuple(networks), digest.hexdigest()[:12], trained_on_of(folders, note), guide)


def load_out_of_fold(folder: FoldFolder, device: torch.device) -> Model:
    """Load one fold to predict its validation cases; a cascade is guided by the same fold, which did not see them."""
    about, plan = about_weights(folder.weights), Plan.load(folder.plan)
    own = plan.configurations.get(about.get("configuration", ""))
    if own is None or own.previous is None:
        return load_model([folder], device)
    return load_model([folder], device, guide_folds(folder, own.previous, [about.get("fold", "")]))


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


def require_same_view(plan: Plan, previous: str, coarser: Plan, where: Path) -> None:
    """Refuse a coarser model that sees images otherwise than the cascade was trained to expect.

    Raises:
        UsageError: If channels, labels, axes, normalisation or the coarser configuration differ.
    """
    for name in ("channels", "labels", "orientation", "axis_order", "normalisation"):
        if getattr(plan, name) != getattr(coarser, name):
            raise UsageError(
                f"{where}: the plan of the cascade has other {name} than that of {previous}. Train both with one."
            )
    if plan.configurations[previous] != coarser.configurations.get(previous):
        raise UsageError(
            f"{where}: the plan of the cascade has another {previous} than the one that was trained. Train both with "
            "one plan."
        )


def trained_on_of(folders: Sequence[FoldFolder], note: Callable[[str], None] = say) -> TrainingStats | None:
    """What the folds' training cases are like together; None if one does not tell."""
    if not all(folder.trained_on.is_file() for folder in folders):
        note(
            f"warning: {folders[0].path}: no {folders[0].trained_on.name}; images are not compared with training cases."
        )
        return None
    return reduce(TrainingStats.joined, (TrainingStats.load(folder.trained_on) for folder in folders))
