"""Trained folds: find them in a folder, load them, average them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from segpipe.core.errors import UsageError
from segpipe.core.progress import say
from segpipe.core.text import size_text
from segpipe.core.work import FoldFolder
from segpipe.networks.build import build, ready_to_predict, weights_bytes
from segpipe.plan.schema import Configuration, Plan
from segpipe.plan.training_stats import TrainingStats
from segpipe.predict.folds import common_training_stats, guide_folds
from segpipe.train.checkpoint import load_weights
from segpipe.train.weights_header import about_weights

_MOST_TIMES_STORED = 8  # tensors that a network holds several times are stored once


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
        """The device of the networks."""
        return next(self.networks[0].parameters()).device


@dataclass(frozen=True, eq=False)
class Ensemble:
    """One or several models that predict the same structures of the same images.

    Args:
        members: Models, each of one configuration. Logits are averaged over its folds, probabilities over members.
        temperature: Logits are divided by it for probabilities and entropy; masks are made without it.

    Raises:
        UsageError: If they differ in channels or labels, or turn images to different axes.
    """

    members: tuple[Model, ...]
    temperature: float = 1.0

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
        """The device of the networks."""
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
        shape = (configuration.network, plan.n_inputs(configuration), plan.labels.n_outputs)
        n_bytes, n_stored = weights_bytes(*shape), folder.weights.stat().st_size
        if n_bytes > _MOST_TIMES_STORED * n_stored:  # before memory is taken for them
            raise UsageError(
                f"{folder.weights}: has {size_text(n_stored)}, the network of the plan beside it {size_text(n_bytes)}. "
                "Use the plan that it was trained with, or copy both again."
            )
        network = build(*shape)
        load_weights(folder.weights, network)
        networks.append(ready_to_predict(network, configuration.network.kind, configuration.network.n_axes, device))
        digest.update(folder.weights.read_bytes())
    guide = None
    if configuration.previous is not None:
        guide = load_model(guides or guide_folds(folders[0], configuration.previous, note=note), device, note=note)
        require_same_view(plan, configuration.previous, guide.plan, folders[0].path)
        digest.update(guide.digest.encode())
    return Model(
        plan, configuration, tuple(networks), digest.hexdigest()[:12], common_training_stats(folders, note), guide
    )


def load_out_of_fold(folder: FoldFolder, device: torch.device) -> Model:
    """Load one fold to predict its validation cases; a cascade is guided by the same fold, which did not see them."""
    about, plan = about_weights(folder.weights), Plan.load(folder.plan)
    own = plan.configurations.get(about.get("configuration", ""))
    if own is None or own.previous is None:
        return load_model([folder], device)
    return load_model([folder], device, guide_folds(folder, own.previous, [about.get("fold", "")]))


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
