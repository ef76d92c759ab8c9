"""What tests/test_cuda.py has done on the stand-in for CUDA: `python scenario.py NAME…`, one line of JSON."""

from __future__ import annotations

import io
import json
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from specs import SPECS
from two_processes import IGNORING, Recipe, case

from cuda import stand_in
from cuda.stand_in import FOUND
from plans import LABELS, REGIONS, small_plan
from segpipe.core.errors import ResourceError
from segpipe.core.grid import Box
from segpipe.core.labels import Label, LabelSet
from segpipe.data.splits import Fold
from segpipe.evaluate.reliability import CaseCounter
from segpipe.networks.device import memory_faults, resolve_device, resolve_precision
from segpipe.pipeline.calibration import _CaseCounting
from segpipe.plan.schema import Plan
from segpipe.predict import restore as restore_module
from segpipe.predict import sliding_window as window_module
from segpipe.predict.restore import assemble, find_in_slab, restore, rows_per_slab, slabs
from segpipe.predict.sliding_window import Sliding, mirrors_of, n_windows, sliding_rows
from segpipe.prepare.case import Trace
from segpipe.train.fold import TRAIN, FoldData, FoldTraining, Hooks

NAME, CPU, CUDA = "3d_fullres", torch.device("cpu"), torch.device("cuda")
N_STEPS, RATE = 3, 0.01
STEP = ("copy", "augmentation", "forward", "loss", "backward", "optimizer")  # phases of the hot loop
# by name: the network of tests/specs.py, and a recipe; together they meet each value, most pairs, and not all triples
RECIPES = {
    "plain": ("plain", "3d", Recipe({"optimizer": "sgd"})),
    "residual": ("residual", "anisotropic", Recipe({"optimizer": "adamw"}, IGNORING)),
    "convnext": ("convnext", "3d", Recipe({"optimizer": "muon"}, REGIONS)),
    "2d": ("plain", "2d", Recipe({"optimizer": "muon"}, LABELS, batch_dice=False)),
    "strong bf16": (
        "plain",
        "3d",
        Recipe({"augmentation": "strong", "precision": "bf16", "optimizer": "sgd"}, REGIONS),
    ),
    "nnunet fp16": ("residual", "3d", Recipe({"augmentation": "nnunet", "precision": "fp16", "optimizer": "sgd"})),
    "light bf16": (
        "convnext",
        "3d",
        Recipe({"augmentation": "light", "precision": "bf16", "optimizer": "muon"}, IGNORING),
    ),
    "averaged": (
        "plain",
        "anisotropic",
        Recipe({"augmentation": "light", "weight_average": 0.9, "gradient_accumulation": 2, "gradient_clip": 1.0}),
    ),
}


def plan_of(name: str) -> Plan:
    kind, view, recipe = RECIPES[name]
    changed = {"augmentation": "none", "momentum": 0.9, "compiled": False, **recipe.training}
    plan = small_plan(recipe.labels, **changed)
    patch = (1 if view == "2d" else 8, 16, 16)
    full = plan.configurations[NAME].model_copy(
        update={"batch_dice": recipe.batch_dice, "network": SPECS[kind](view), "patch_zyx": patch}
    )
    return plan.model_copy(update={"configurations": {NAME: full}})


def fold_of(plan: Plan, device: torch.device, hooks: Hooks | None = None) -> FoldTraining:
    ids = ("case_0", "case_1", "case_2")
    cases = [case(seed, plan.labels) for seed in range(3)]
    data = FoldData(0, Fold(train=ids[:2], validation=ids[2:]), cases[:2], cases[2:])
    return FoldTraining(plan, plan.configurations[NAME], data, device, is_new=True, hooks=hooks)


def steps(fold: FoldTraining, n: int) -> list[float]:
    losses = []
    for _ in range(n):
        FOUND.phase = "draw"
        batch = fold.draw(TRAIN, fold.at.iteration)
        FOUND.phase = "copy"
        losses.append(fold.step(batch, RATE))
    FOUND.phase = "between"
    return losses


def set_phase(done: str) -> None:
    FOUND.phase = dict(zip(STEP, (*STEP[1:], "end of step"), strict=True))[done]


def weights(fold: FoldTraining) -> list[float]:
    return torch.cat([p.detach().cpu().flatten() for p in fold.predictor.parameters()]).tolist()


def train(name: str) -> dict[str, Any]:
    """A few steps on both; what was waited for in the steps; a training that stops and goes on."""
    plan = plan_of(name)
    on_cpu = fold_of(plan, CPU)
    expected, expected_validation = steps(on_cpu, N_STEPS), on_cpu.validate(2)
    fold = fold_of(plan, CUDA, Hooks(lap=set_phase))
    FOUND.clear()
    before = stand_in.waits()
    losses = steps(fold, N_STEPS)
    step_waits = stand_in.waits() - before
    hot, n_operations = FOUND.waits_in(*STEP), sum(n for (phase, _), n in FOUND.operations.items() if phase in STEP)
    whole = fold_of(plan, CUDA)
    steps(whole, N_STEPS)
    FOUND.clear()
    FOUND.phase = "validation"
    before = stand_in.waits()
    loss, dice = whole.validate(2)
    validation_waits = stand_in.waits() - before
    stopped, kept = fold_of(plan, CUDA), io.BytesIO()
    steps(stopped, N_STEPS - 1)
    torch.save(stopped.state(finished=False), kept)
    resumed = fold_of(plan, CUDA)
    resumed.restore(torch.load(io.BytesIO(kept.getvalue()), map_location="cpu", weights_only=True))
    steps(resumed, 1)
    return {
        "expected": expected,
        "losses": losses,
        "hot": hot,
        "step_waits": step_waits / N_STEPS,
        "operations": n_operations / N_STEPS,
        "expected_validation": [expected_validation[0], *expected_validation[1].values()],
        "validation": [loss, *dice.values()],
        "validation_waits": validation_waits,
        "resumed": weights(resumed) == weights(whole),
    }


def predict(n_outputs: int) -> dict[str, Any]:
    """A small image with many outputs, on both."""
    labels = LabelSet(labels=tuple(Label(name=f"l{value}", values=(value,)) for value in range(1, n_outputs)))
    shape, prepared = (40, 48, 56), (24, 32, 40)
    trace = Trace(
        shape_zyx=shape,
        axes_zyx=(0, 1, 2),
        flips_zyx=(False, False, False),
        spacing_mm=(1.0, 1.0, 1.0),
        box=Box(start_zyx=(0, 0, 0), stop_zyx=shape),
        target_mm=(1.7, 1.5, 1.4),
        prepared_shape_zyx=prepared,
    )
    torch.manual_seed(0)
    network = Wrapped(torch.nn.Conv3d(1, n_outputs, 3, padding=1)).eval()
    image = np.random.default_rng(0).normal(size=(1, *prepared)).astype(np.float32)
    sliding = Sliding(patch_zyx=(16, 16, 16), mirrors=mirrors_of((0, 2), (16, 16, 16)), n_batch=2)
    expected = restore(sliding_rows([network], image, sliding), trace, labels).mask_zyx
    network.to(CUDA)
    FOUND.clear()
    before = stand_in.waits()
    found = restore(sliding_rows([network], image, sliding), trace, labels, CUDA).mask_zyx
    return {
        "equal": float((found == expected).mean()),
        "labels": int(np.unique(expected).size),
        "waits": stand_in.waits() - before,
        "where": dict(FOUND.waits),
        "operations": sum(FOUND.operations.values()),
    }


SHRINK = 32  # of the edges of a plane
CT = (300, 512 // SHRINK, 512 // SHRINK)
CT_OUTPUTS = 117


def predict_ct(n_outputs: int, *, counts: bool = False, streams: bool = False) -> dict[str, Any]:
    """A CT of 512 × 512 × 300 with 117 outputs; planes, outputs and what is held at once are smaller by one factor.

    So there are as many slabs, blocks of rows and windows along the first axis as in the whole. Windows in the plane
    are fewer; their number is in the result.

    Args:
        n_outputs: Outputs.
        counts: Whether its calibration is counted.
        streams: Whether the image does not fit on the GPU, and windows are uploaded one by one.
    """
    for sizes, whole in ((restore_module._SLAB_BYTES, 1 << 30), (restore_module._BLOCK_BYTES, 1 << 28)):
        sizes["cuda"] = whole * n_outputs // CT_OUTPUTS // SHRINK**2
    window_module._IMAGE_SHARE = 0.0 if streams else 0.1
    labels = LabelSet(labels=tuple(Label(name=f"l{value}", values=(value,)) for value in range(1, n_outputs)))
    prepared = (240, CT[1] - 2, CT[2] - 2)
    trace = Trace(
        shape_zyx=CT,
        axes_zyx=(0, 1, 2),
        flips_zyx=(False, False, False),
        spacing_mm=(1.0, 1.0, 1.0),
        box=Box(start_zyx=(0, 0, 0), stop_zyx=CT),
        target_mm=(1.25, CT[1] / prepared[1], CT[2] / prepared[2]),
        prepared_shape_zyx=prepared,
    )
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    network = Wrapped(torch.nn.Conv3d(1, n_outputs, 1)).eval().to(CUDA)
    image = random.normal(size=(1, *prepared)).astype(np.float32)
    sliding = Sliding(patch_zyx=(128, 8, 8), n_batch=2)
    reference = random.integers(0, n_outputs, CT, np.int16)
    counter = CaseCounter(reference, trace.spacing_mm, labels, "case")
    counting = _CaseCounting(counter, Path(tempfile.mkdtemp()) / "counts.npz")
    FOUND.clear()
    before = stand_in.waits()
    found = assemble(
        slabs(sliding_rows([network], image, sliding), trace, rows_per_slab(n_outputs, trace, CUDA)),
        partial(find_in_slab, labels=labels, with_probabilities=False),
        trace,
        labels,
        observe=counting.add if counts else None,
    )
    if counts:
        counting.finish()
    return {
        "waits": stand_in.waits() - before + sum(FOUND.waits.values()),
        "where": dict(FOUND.waits),
        "operations": sum(FOUND.operations.values()),
        "windows": n_windows(prepared, sliding.patch_zyx),
        "slabs": -(-CT[0] // rows_per_slab(n_outputs, trace, CUDA)),
        "labels": int(np.unique(found.mask_zyx).size),
    }


class Wrapped(torch.nn.Module):
    """A layer as a network with one output."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.layer(x)]


def two_devices() -> dict[str, Any]:
    """The second device has no bf16."""
    found = {str(n): str(resolve_precision("auto", resolve_device(f"cuda:{n}"))) for n in range(2)}
    return {"n": torch.cuda.device_count(), **found}


def too_small() -> dict[str, Any]:
    """Train where memory does not suffice."""
    try:
        with memory_faults("training", "Take less."):
            steps(fold_of(plan_of("plain"), CUDA), 1)
    except ResourceError as fault:
        return {"fault": str(fault)}
    return {"fault": None}


def mixed() -> dict[str, Any]:
    """Operands on two devices: what the stand-in must refuse."""
    try:
        torch.ones(3, device="cuda") + torch.ones(3)
    except RuntimeError as fault:
        return {"fault": str(fault)}
    return {"fault": None}


def waiting() -> dict[str, Any]:
    """Waits that the stand-in must see."""
    FOUND.clear()
    values = torch.arange(4.0, device="cuda")
    total, chosen = float(values.sum()), values[values > 1].tolist()
    copied = torch.tensor([1.0, 2.0]).to("cuda")
    return {"total": total, "chosen": chosen, "copied": copied.tolist(), "where": dict(FOUND.waits)}


SCENARIOS: dict[str, Any] = {
    **{name: partial(train, name) for name in RECIPES},
    "predict": partial(predict, 30),
    "ct": partial(predict_ct, 8),
    "ct counted": partial(predict_ct, 8, counts=True, streams=True),
    "ct of 117": partial(predict_ct, CT_OUTPUTS),  # as benchmarks/gpu_faults.py has it
    "ct of 117 counted": partial(predict_ct, CT_OUTPUTS, counts=True),
    "two_devices": two_devices,
    "too_small": too_small,
    "mixed": mixed,
    "waiting": waiting,
}


def attempt(name: str) -> dict[str, Any]:
    """What a scenario finds; a failure is for the test that reads it."""
    try:
        return SCENARIOS[name]()  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001 (any fault, to be shown by its test)
        return {"failure": traceback.format_exc()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    stand_in.install()
    print(json.dumps({name: attempt(name) for name in sys.argv[1:]}))
