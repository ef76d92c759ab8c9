"""Trained folds: found in a folder, loaded, named."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from segpipe.core.errors import UsageError
from segpipe.core.work import FoldFolder, Work
from segpipe.networks.build import build
from segpipe.plan.schema import Configuration, Plan
from segpipe.train.checkpoint import load_weights

_PREFERRED = "3d_fullres"


@dataclass(frozen=True, eq=False)
class Model:
    """One or several folds of a configuration, ready to predict.

    Args:
        plan: What the images must become.
        configuration: Patch, resolution, network.
        networks: One for each fold, in evaluation mode.
        digest: Twelve hexadecimal digits of the weights.
    """

    plan: Plan
    configuration: Configuration
    networks: tuple[nn.Module, ...]
    digest: str


def find_folds(path: Path, configuration: str | None, folds: Sequence[str] | None) -> tuple[str, list[FoldFolder]]:
    """Folders of trained folds.

    Args:
        path: A work folder, one of its `runs/<configuration>`, or one fold's folder.
        configuration: Which; None for the only one there is, or 3d_fullres of several.
        folds: Which; None for all that are trained.

    Raises:
        UsageError: If there is no such configuration or fold, or no weights.
    """
    if (path / "checkpoint.safetensors").is_file():
        return path.parent.name, [FoldFolder(path)]
    run = path
    if (path / "runs").is_dir():
        found = sorted(p.name for p in (path / "runs").iterdir() if p.is_dir())
        name = configuration or (_PREFERRED if _PREFERRED in found else next(iter(found), ""))
        if name not in found:
            raise UsageError(
                f"{path}: no trained configuration {name!r} (found: {', '.join(found) or 'none'}). Train it."
            )
        run = Work(path).run(name)
    if not run.is_dir():
        raise UsageError(f"{path}: no such folder. Give a work folder or one of its runs/<configuration>.")
    trained = {
        p.parent.name.removeprefix("fold_"): FoldFolder(p.parent) for p in run.glob("fold_*/checkpoint.safetensors")
    }
    if not trained:
        raise UsageError(
            f"{path}: holds no trained weights (looked for {run.name}/fold_*/checkpoint.safetensors). Train first: "
            "`segpipe train`."
        )
    missing = [fold for fold in folds or [] if fold not in trained]
    if missing:
        raise UsageError(f"{run}: fold {', '.join(missing)} is not trained (trained: {', '.join(sorted(trained))}).")
    return run.name, [trained[fold] for fold in folds or sorted(trained, key=int)]


def load_model(configuration_name: str, folders: Sequence[FoldFolder], device: torch.device) -> Model:
    """Load folds of one configuration for an ensemble.

    Raises:
        UsageError: If weights are missing or damaged.
        PlanError: If a plan is, or if the folds' plans prepare images differently.
    """
    plans = [Plan.load(folder.plan) for folder in folders]
    plan, configuration = plans[0], plans[0].configurations[configuration_name]
    networks, digest = [], hashlib.sha256()
    for folder, other in zip(folders, plans, strict=True):
        if other.model_copy(update={"training": plan.training}) != plan:
            raise UsageError(
                f"{folder.path}: trained with another plan than {folders[0].path}; predict with one of them."
            )
        network = build(configuration.network, len(plan.channels), plan.labels.n_outputs)
        load_weights(folder.weights, network)
        networks.append(network.to(device).eval())
        digest.update(folder.weights.read_bytes())
    return Model(plan, configuration, tuple(networks), digest.hexdigest()[:12])
