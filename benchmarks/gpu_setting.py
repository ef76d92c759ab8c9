"""What the checks of gpu_accept.py train and predict: made-up cases in memory, plans for them, and trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_outcome import Setting

from segpipe.core.grid import ZYX, Box
from segpipe.core.labels import IGNORE_INDEX, Label, LabelSet
from segpipe.data.splits import Fold
from segpipe.networks.build import build, ready_to_predict
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.schema import Configuration, Normalisation, Plan, Training
from segpipe.predict.model import Ensemble, Model
from segpipe.prepare.case import Prepared, Trace
from segpipe.prepare.places import find_places
from segpipe.prepare.store import PatchCase
from segpipe.train.fold import TRAIN, FoldData, FoldTraining, Hooks

NAME = "3d_fullres"
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
RATE = 0.01
_CASE_IDS = ("case_0", "case_1", "case_2", "case_3")


def of_values(n_labels: int, ignore_value: int | None = None) -> LabelSet:
    """Labels of one value each."""
    labels = tuple(Label(name=f"label_{value}", values=(value,)) for value in range(1, n_labels + 1))
    return LabelSet(labels=labels, ignore_value=ignore_value)


LABELS = of_values(2)
REGIONS = LabelSet(
    labels=(Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))), ignore_value=9, paint_values=(1, 2)
)


def made_cases(plan: Plan, shape_zyx: ZYX, n_cases: int = 4) -> list[PatchCase]:
    """Noise with a bright ball of each label; a fifth is not annotated where labels have a value for that."""
    cases, labels = [], plan.labels
    guided = any(configuration.previous for configuration in plan.configurations.values())
    for seed in range(n_cases):
        generator = np.random.default_rng(seed)
        indices = np.zeros(shape_zyx, np.int16)
        radius = max(2.0, min(shape_zyx) / (2 + len(labels.values) ** (1 / 3)) / 2)
        reach = np.ceil(radius).astype(int)
        for value in range(1, len(labels.values) + 1):
            centre = [int(generator.integers(0, n)) for n in shape_zyx]
            box = tuple(slice(max(0, c - reach), c + reach + 1) for c in centre)
            apart = np.ogrid[tuple(slice(s.start, min(s.stop, n)) for s, n in zip(box, shape_zyx, strict=True))]
            near = sum((a - c) ** 2 for a, c in zip(apart, centre, strict=True)) <= radius**2
            indices[box][near] = value
        channels = [generator.normal(0, 0.5, shape_zyx) + np.sqrt(indices) for _ in plan.channels]
        guide = np.roll(indices, 1, axis=2) if guided else None
        if labels.ignore_value is not None:
            indices[:, :, : shape_zyx[2] // 5] = IGNORE_INDEX
        image = np.stack(channels).astype(np.float32)
        places = find_places(indices, labels).by_label()
        cases.append(PatchCase(Path(_CASE_IDS[seed]), image, indices, places, guide))
    return cases


def network(kind: str, features: tuple[int, ...], *, n_axes: int = 3, **more: Any) -> NetworkSpec:
    """A U-Net of two convolutions in each block, halved along every axis from stage to stage."""
    n_stages = len(features)
    return NetworkSpec(
        kind=kind,
        features=features,
        strides_zyx=((1,) * n_axes, *((2,) * n_axes,) * (n_stages - 1)),
        kernels_zyx=((3,) * n_axes,) * n_stages,
        blocks=(2,) * n_stages,
        decoder_convolutions=(2,) * (n_stages - 1),
        **more,
    )


def made_plan(
    setting: Setting,
    labels: LabelSet = LABELS,
    *,
    patch_zyx: ZYX | None = None,
    spec: NetworkSpec | None = None,
    batch_size: int = 2,
    guided: bool = False,
    training: Mapping[str, Any] | None = None,
) -> Plan:
    """A plan of one configuration for `made_cases`; full size: four stages on 48³, quick: two on 8 × 16 × 16."""
    patch = patch_zyx or setting.pick((48, 48, 48), (8, 16, 16))
    fullres = Configuration(
        spacing_mm=(1.0, 1.0, 1.0),
        median_shape_zyx=tuple(map(float, shape_for(patch))),
        patch_zyx=patch,
        batch_size=batch_size,
        batch_dice=False,
        network=spec or network("plain", setting.pick((32, 64, 128, 256), (4, 8))),
    )
    configurations = {NAME: fullres}
    if guided:
        configurations = {"3d_lowres": fullres, NAME: fullres.model_copy(update={"previous": "3d_lowres"})}
    recipe = {"augmentation": "none", "precision": "fp32", "compiled": False, **(training or {})}
    return Plan(
        preset="nnunet",
        dataset="made up",
        fingerprint="0",
        channels=("MR",),
        labels=labels,
        orientation="RAS",
        axis_order=(0, 1, 2),
        normalisation=(Normalisation(scheme="zscore"),),
        mirror_axes=(0, 1, 2),
        configurations=configurations,
        training=Training.model_validate(recipe),
        reasons={},
    )


def shape_for(patch_zyx: ZYX) -> ZYX:
    """Voxels of cases that are a little larger than a patch."""
    z, y, x = (math.ceil(1.25 * edge) for edge in patch_zyx)
    return z, y, x


def fold_of(
    plan: Plan,
    device: torch.device,
    cases: Sequence[PatchCase] | None = None,
    hooks: Hooks | None = None,
    name: str = NAME,
) -> FoldTraining:
    """A new training, the last case for validation."""
    configuration = plan.configurations[name]
    shape = shape_for((max(4, configuration.patch_zyx[0]), *configuration.patch_zyx[1:]))
    cases = cases or made_cases(plan, shape)
    ids = tuple(case.case_id for case in cases)
    data = FoldData(0, Fold(train=ids[:-1], validation=ids[-1:]), cases[:-1], cases[-1:])
    return FoldTraining(plan, configuration, data, device, is_new=True, hooks=hooks)


def steps(fold: FoldTraining, n_steps: int) -> list[float]:
    """Train and return the losses."""
    return [fold.step(fold.draw(TRAIN, fold.at.iteration), RATE) for _ in range(n_steps)]


def made_model(
    plan: Plan, device: torch.device, shape_zyx: ZYX, prepared_zyx: ZYX | None = None
) -> tuple[Ensemble, Prepared]:
    """A model with first weights, and an image of noise for it.

    Args:
        plan: Of one configuration.
        device: Where it predicts.
        shape_zyx: Voxels of the image.
        prepared_zyx: Voxels of what the network sees of it; None: the same.
    """
    configuration = plan.configurations[NAME]
    spec, seen = configuration.network, prepared_zyx or shape_zyx
    torch.manual_seed(0)
    made = build(spec, plan.n_inputs(configuration), plan.labels.n_outputs)
    model = Model(plan, configuration, (ready_to_predict(made, spec.kind, spec.n_axes, device),), "0")
    trace = Trace(
        shape_zyx=shape_zyx,
        axes_zyx=(0, 1, 2),
        flips_zyx=(False, False, False),
        spacing_mm=(1.0, 1.0, 1.0),
        box=Box.whole(shape_zyx),
        target_mm=tuple(n / m for n, m in zip(shape_zyx, seen, strict=True)),
        prepared_shape_zyx=seen,
    )
    image = np.random.default_rng(0).standard_normal((len(plan.channels), *seen), np.float32)
    return Ensemble((model,)), Prepared(image, None, trace)


def largest_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest difference of two lists of numbers, relative to the expected ones."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, expected, strict=True))
