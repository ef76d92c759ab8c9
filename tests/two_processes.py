"""What two processes do in tests/test_distributed.py: `python two_processes.py OUT`, with the variables of torchrun.

The same functions run in one process, with the same batch, to be compared.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plans import LABELS, REGIONS, small_plan, small_spec
from segpipe.core.errors import Interrupted, SetupError
from segpipe.core.labels import IGNORE_INDEX, LabelSet
from segpipe.core.work import FoldFolder
from segpipe.data.splits import Fold
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.schema import Plan
from segpipe.prepare.places import find_places
from segpipe.prepare.store import PatchCase
from segpipe.train.distributed import Group, join_group
from segpipe.train.fold import TRAIN, FoldData, FoldTraining
from segpipe.train.loop import train_fold

CPU = torch.device("cpu")
NAME = "3d_fullres"
BATCH = 4
N_STEPS = 4
IGNORING = LABELS.model_copy(update={"ignore_value": 9})
DEEP = NetworkSpec(  # three outputs, of which the coarsest has weight 0
    kind="plain",
    features=(4, 6, 8, 8),
    strides_zyx=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 1)),
    kernels_zyx=((1, 3, 3), *((3, 3, 3),) * 3),
    blocks=(1, 1, 2, 1),
    decoder_convolutions=(1, 2, 1),
)


@dataclass(frozen=True)
class Recipe:
    """How a fold is trained."""

    training: dict[str, Any]
    labels: LabelSet = LABELS
    batch_dice: bool = True
    network: NetworkSpec | None = None


LOSSES = ("dice_ce_cldice", "dice_ce_skeleton_recall", "tversky_ce", "dice_focal")
RECIPES = {
    "plain": Recipe({}),
    "dice of each sample": Recipe({}, batch_dice=False),
    "ignored voxels": Recipe({}, IGNORING),
    "ignored voxels, dice of each sample": Recipe({}, IGNORING, batch_dice=False),
    "regions and ignored voxels": Recipe({}, REGIONS),
    "deep": Recipe({"gradient_clip": 0.1}, network=DEEP),
    "augmented": Recipe({"augmentation": "strong", "foreground_fraction": 0.5}),
    "in parts": Recipe({"gradient_accumulation": 3, "weight_average": 0.9, "augmentation": "nnunet"}),
    "two passes": Recipe({"optimizer": "sgd+sam_on", "gradient_accumulation": 2, "augmentation": "light"}),
    "spikes": Recipe({"optimizer": "spam", "spam_threshold": 2.0, "spam_quiet_steps": 1, "learning_rate": 1e-3}),
    **{loss: Recipe({"loss": loss}, IGNORING) for loss in LOSSES},
}


def case(seed: int, labels: LabelSet) -> PatchCase:
    """Noise with a bright block of each label; in a dataset with ignored voxels there are more of them in each case."""
    generator = np.random.default_rng(seed)
    indices = np.zeros((12, 14, 16), np.int16)
    indices[3:7, 4:9, 2:7], indices[5:9, 4:9, 8:13] = 1, 2
    image = (generator.normal(0, 0.5, indices.shape) + indices).astype(np.float32)[None]
    if labels.ignore_value is not None:
        indices[:, :, 16 - 5 * seed :] = IGNORE_INDEX
    return PatchCase(Path(f"case_{seed}"), image, indices, find_places(indices, labels).by_label())


def plan_of(recipe: Recipe) -> Plan:
    plan = small_plan(recipe.labels, **{"augmentation": "none", "momentum": 0.9, **recipe.training})
    changes = {"batch_size": BATCH, "batch_dice": recipe.batch_dice, "network": recipe.network or small_spec()}
    full = plan.configurations[NAME].model_copy(update=changes)
    return plan.model_copy(update={"configurations": {NAME: full}})


def data_of(labels: LabelSet) -> FoldData:
    ids = ("case_0", "case_1", "case_2", "case_3")
    cases = [case(seed, labels) for seed in range(4)]
    return FoldData(0, Fold(train=ids[:3], validation=ids[3:]), cases[:3], cases[3:])


def train(recipe: Recipe, group: Group) -> dict[str, Any]:
    """Some steps: the losses, the weights, the validation."""
    plan = plan_of(recipe)
    fold = FoldTraining(plan, plan.configurations[NAME], data_of(recipe.labels), CPU, is_new=True, group=group)
    losses = [fold.step(fold.draw(TRAIN, step), 0.01) for step in range(N_STEPS)]
    weights = torch.cat([p.detach().flatten() for p in fold.predictor.parameters()])
    loss, dice = fold.validate(2)
    return {"losses": losses, "weights": weights, "validation": [loss, *dice.values()]}


class Knocking(Sequence[PatchCase]):
    """Cases that ask this process to stop when some have been drawn."""

    def __init__(self, cases: Sequence[PatchCase], n_draws: int) -> None:
        self.cases, self.n_draws = cases, n_draws

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: Any) -> Any:
        self.n_draws -= 1
        if self.n_draws == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.cases[index]


DROPPING = small_spec().model_copy(update={"parts": small_spec().parts.model_copy(update={"dropout_fraction": 0.2})})
WITH_BATCH_NORM = small_spec().model_copy(update={"parts": small_spec().parts.model_copy(update={"norm": "batch"})})
LOOPED = Recipe({"epochs": 3, "iterations_per_epoch": 4, "weight_average": 0.9}, network=DROPPING)


def loop(out: Path, group: Group, *, n_draws: int = -1, **changed: Any) -> dict[str, Any]:
    """Train to the end, or until the last process is asked to stop."""
    data = data_of(LABELS)
    if group.rank == group.size - 1:
        data = replace(data, train=Knocking(data.train, n_draws))
    plan = plan_of(replace(LOOPED, training=LOOPED.training | changed))
    try:
        train_fold(plan, NAME, data, FoldFolder(out), CPU, time.monotonic(), group=group)
    except Interrupted as fault:
        return {"stopped": str(fault)}
    return {}


def refusal(group: Group) -> str:
    """What is said of a network with batch norms."""
    try:
        train(Recipe({}, network=WITH_BATCH_NORM), group)
    except SetupError as fault:
        return str(fault)
    return ""


def everything(out: Path, group: Group) -> dict[str, Any]:
    """All there is to compare."""
    found: dict[str, Any] = {name: train(recipe, group) for name, recipe in RECIPES.items()}
    found["whole"] = loop(out / "whole", group)
    found["stopped"] = loop(out / "stopped", group, n_draws=BATCH * 7)
    found["went on"] = loop(out / "stopped", group)
    found["timed"] = loop(out / "timed", group, time_budget_seconds=1.5)
    found["gathered"] = group.gather([group.rank, time.monotonic()])
    return found


if __name__ == "__main__":
    with join_group(CPU) as both:
        result = everything(Path(sys.argv[1]), both) | {"batch norms": refusal(both)}
        torch.save(result, Path(sys.argv[1]) / f"result_{both.rank}.pt")
        both.gather([0.0])
        if both.rank == 1:
            os._exit(3)  # dies, and the other one must notice
        try:
            both.gather([0.0])
        except SetupError as fault:
            torch.save(str(fault), Path(sys.argv[1]) / "fault.pt")
            os._exit(0)
