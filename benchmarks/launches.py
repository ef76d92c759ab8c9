"""Device operations of a training step by phase, counted on the stand-in for CUDA of tests/cuda.

PYTHONPATH=tests:. python benchmarks/launches.py [--steps 8]

The network, patch and batch are those that `segpipe demo` plans, in bf16 with the augmentation `light`; the optimizer
and the number of labels vary. An operation is what torch dispatches to the device once views and allocations are left
out: one kernel, a copy, or several kernels if it is a reduction or a list (`_foreach`, `_fused`). It says nothing of
time. The first step, which makes the optimizer's state, is not counted; the rest is a mean. A second table counts
placing one or two moved samples of a batch of two by the number of labels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cuda import stand_in
from cuda.stand_in import FOUND

from plans import small_plan
from segpipe.core.labels import Label, LabelSet
from segpipe.data.splits import Fold
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.augmentation import Augmentation
from segpipe.plan.schema import Plan
from segpipe.prepare.places import find_places
from segpipe.prepare.store import PatchCase
from segpipe.train.augmentation.draws import Scope, draw, region_for
from segpipe.train.augmentation.placement import place_patches
from segpipe.train.fold import TRAIN, FoldData, FoldTraining, Hooks

NAME, CUDA, PATCH, BATCH = "3d_fullres", torch.device("cuda"), (24, 48, 48), 2
DEMO = NetworkSpec(  # as `segpipe demo` plans it
    kind="plain",
    features=(16, 32, 64, 128),
    strides_zyx=((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
    kernels_zyx=((3, 3, 3),) * 4,
    blocks=(2, 2, 2, 2),
    decoder_convolutions=(2, 2, 2),
)
PHASES = ("copy", "augmentation", "forward", "loss", "backward", "optimizer")
ROWS = (("sgd", 3), ("adamw", 3), ("muon", 3), ("sgd", 2), ("sgd", 8), ("sgd", 30), ("sgd", 117))
N_LABELS = (2, 8, 30, 117)


def labels_of(n_labels: int) -> LabelSet:
    return LabelSet(labels=tuple(Label(name=f"l{value}", values=(value,)) for value in range(1, n_labels + 1)))


def plan_of(optimizer: str, n_labels: int) -> Plan:
    plan = small_plan(
        labels_of(n_labels), patch=PATCH, optimizer=optimizer, precision="bf16", augmentation="light", compiled=False
    )
    full = plan.configurations[NAME].model_copy(update={"network": DEMO, "batch_size": BATCH})
    return plan.model_copy(update={"configurations": {NAME: full}, "mirror_axes": ()})


def case(seed: int, labels: LabelSet) -> PatchCase:
    """Noise, and every label in blocks."""
    generator = np.random.default_rng(seed)
    indices = generator.integers(0, labels.n_outputs, (6, 12, 12)).repeat(5, 0).repeat(5, 1).repeat(5, 2)
    image = generator.normal(size=(1, *indices.shape)).astype(np.float32)
    return PatchCase(
        Path(f"case_{seed}"), image, indices.astype(np.int16), find_places(indices.astype(np.int16), labels).by_label()
    )


def operations_of_a_step(optimizer: str, n_labels: int, n_steps: int) -> dict[str, float]:
    """Mean number of operations by phase."""
    plan = plan_of(optimizer, n_labels)
    cases = [case(seed, plan.labels) for seed in range(2)]
    data = FoldData(0, Fold(train=("a",), validation=("b",)), cases[:1], cases[1:])

    def begin_next(done: str) -> None:
        FOUND.phase = dict(zip(PHASES, (*PHASES[1:], "after"), strict=True))[done]

    fold = FoldTraining(plan, plan.configurations[NAME], data, CUDA, is_new=True, hooks=Hooks(lap=begin_next))
    for step in range(n_steps + 1):
        batch = fold.draw(TRAIN, step)
        if step == 1:
            FOUND.clear()
        FOUND.phase = PHASES[0]
        fold.step(batch, 0.01)
    return {phase: sum(n for (place, _), n in FOUND.operations.items() if place == phase) / n_steps for phase in PHASES}


def operations_of_placing(n_labels: int, n_moved: int) -> int:
    """Number for a batch of which some samples are turned and scaled."""
    region = region_for(PATCH, Augmentation(p_rotation=1, p_scale=1))
    scope = Scope(Augmentation(p_rotation=1, p_scale=1), PATCH, (), 2, (), (), tuple(range(1, n_labels + 1)))
    draws = draw(scope, BATCH, 1, np.random.default_rng(0))
    draws.is_moved[n_moved:] = False
    images = torch.zeros((BATCH, 1, *region), device=CUDA)
    indices = torch.zeros((BATCH, *region), dtype=torch.int16, device=CUDA)
    FOUND.clear()
    place_patches(images, indices, draws, scope)
    return sum(FOUND.operations.values())


def measure(n_steps: int) -> dict[str, Any]:
    return {
        "steps": [operations_of_a_step(*row, n_steps) for row in ROWS],
        "placing": [[operations_of_placing(n, moved) for n in N_LABELS] for moved in (1, 2)],
    }


def table(found: dict[str, Any]) -> str:
    head = ("optimizer", "labels", *PHASES, "sum")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (optimizer, n_labels), phases in zip(ROWS, found["steps"], strict=True):
        numbers = [*phases.values(), sum(phases.values())]
        lines.append(f"| {optimizer} | {n_labels} | {' | '.join(f'{number:.0f}' for number in numbers)} |")
    head = ("placing, of a batch of 2", *(f"{n} labels" for n in N_LABELS))
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for n_moved, row in enumerate(found["placing"], start=1):
        lines.append(f"| {n_moved} moved | {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--on-stand-in", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.on_stand_in:
        stand_in.install()
        print(json.dumps(measure(asked.steps)))
        return
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--on-stand-in", "--steps", str(asked.steps)],
            env={**os.environ, **stand_in.build(Path(folder) / "cuda")},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    print(table(json.loads(done.stdout.splitlines()[-1])))


if __name__ == "__main__":
    main()
