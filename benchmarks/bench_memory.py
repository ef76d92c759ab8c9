"""Predicted and measured peak memory of a training step, for several networks, patches and precisions.

python benchmarks/bench_memory.py [--device cpu|cuda] [--networks plain_4 …]

Each step runs in a process of its own, after a small step. CPU: the peak of the resident memory, minus the context,
which is what the process holds after the small step without weights, gradients and optimizer. CUDA: the peak that
torch's allocator reserved. Prints a table (MiB without the context) and the `Calibration` that fits the measurements
best.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from segpipe.core.labels import Label, LabelSet
from segpipe.networks.build import build
from segpipe.networks.cost import CPU, CUDA, Calibration, cost
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.schema import Training
from segpipe.plan.training import OPTIMIZERS
from segpipe.train.losses import supervised_loss
from segpipe.train.optim import MAKE_OPTIMIZER

LABELS = LabelSet(labels=tuple(Label(name=str(value), values=(value,)) for value in (1, 2)))
LOSS = partial(supervised_loss, labels=LABELS, batch_dice=False)
N_CHANNELS, BATCH_SIZE = 2, 2
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc: what is freed goes back to the system, as on a GPU to torch
_SHARES = (0.0, 0.5, 1.0, 1.5, 2.0)  # of scratch memory, to choose from


def _spec(kind: str, features: tuple[int, ...], **changes: Any) -> NetworkSpec:
    n_stages, n_axes = len(features), changes.pop("n_axes", 3)
    values = dict(
        kind=kind,
        features=features,
        strides_zyx=((1,) * n_axes, *((2,) * n_axes,) * (n_stages - 1)),
        kernels_zyx=((3,) * n_axes,) * n_stages,
        blocks=(2,) * n_stages,
        decoder_convolutions=(2 if kind == "plain" else 1,) * (n_stages - 1),
    )
    return NetworkSpec.model_validate(values | changes)


_FOUR, _FIVE = (32, 64, 128, 256), (32, 64, 128, 256, 320)
_THIN = {"strides_zyx": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)), "kernels_zyx": ((1, 3, 3), *((3, 3, 3),) * 3)}
_SWIN = (24, 24, 48, 96, 192, 384)
_CUBES, _SLABS, _SLICES = ((40, 40, 40), (56, 56, 56)), ((16, 56, 56), (16, 96, 96)), ((1, 192, 192), (1, 320, 320))
_SMALL_CUBES = ((32, 32, 32), (40, 40, 40))
NETWORKS: dict[str, tuple[NetworkSpec, tuple[tuple[int, int, int], ...]]] = {
    "plain_4": (_spec("plain", _FOUR), _CUBES),
    "plain_thin": (_spec("plain", _FOUR, **_THIN), _SLABS),
    "plain_2d": (_spec("plain", _FIVE, n_axes=2), _SLICES),
    "plain_checkpointing": (_spec("plain", _FOUR, parts={"checkpointing": True}), _SMALL_CUBES),
    "residual_4": (_spec("residual", _FOUR, blocks=(1, 3, 4, 6)), _SMALL_CUBES),
    "residual_attention": (_spec("residual", _FOUR, parts={"attention": "scse"}), _SMALL_CUBES),
    "segresnet": (_spec("segresnet", (16, 32, 64, 128), blocks=(1, 2, 2, 4)), _SMALL_CUBES),
    "swin_unetr": (
        _spec("swin_unetr", _SWIN, blocks=(1, 2, 2, 2, 2, 1), decoder_convolutions=(1,) * 5),
        ((32, 32, 64), (32, 64, 64)),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--smallest", action="store_true", help="one patch, one precision: to see that it runs")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure), options.device)))
        return
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        for patch_zyx in NETWORKS[name][1][: 1 if options.smallest else None]:
            for precision in list(_DTYPES)[: 1 if options.smallest else None]:
                row = {"network": name, "patch_zyx": patch_zyx, "precision": precision}
                command = [sys.executable, __file__, "--device", options.device, "--measure", json.dumps(row)]
                found = json.loads(
                    subprocess.run(
                        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | _MALLOC
                    ).stdout
                )
                rows.append(row | found)
                print(_line(rows[-1], CUDA if options.device == "cuda" else CPU), flush=True)
    fitted = fit(rows, options.device)
    print(f"\n{platform.processor() or platform.machine()}, torch {torch.__version__}; best calibration: {fitted!r}\n")
    for row in rows:
        print(_line(row, fitted))


def measure(row: dict[str, Any], device_name: str) -> dict[str, int]:
    """Return peak bytes of a step without the context, of its tensors alone, and the bytes of the context."""
    spec, device = NETWORKS[row["network"]][0], torch.device(device_name)
    torch.manual_seed(0)
    network = build(spec, N_CHANNELS, LABELS.n_outputs).to(device)
    optimizer = MAKE_OPTIMIZER["sgd"](network, Training())
    small = [min(p, max(32, 2 * d)) for p, d in zip(row["patch_zyx"], (1, *spec.divisors_zyx)[-3:], strict=True)]
    _step(network, optimizer, small, row["precision"], device)  # loads libraries, makes the optimizer's state
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        _step(network, optimizer, row["patch_zyx"], row["precision"], device)
        free, total = torch.cuda.mem_get_info()
        return {
            "measured_bytes": torch.cuda.max_memory_reserved(),
            "tensor_bytes": torch.cuda.max_memory_allocated(),
            "context_bytes": total - free - torch.cuda.memory_reserved(),
        }
    weight_bytes = sum(p.nbytes for p in network.parameters())
    optimizer.zero_grad(set_to_none=True)
    with torch.profiler.profile(profile_memory=True) as profiled:
        _step(network, optimizer, row["patch_zyx"], row["precision"], device)
    tensor_bytes = 2 * weight_bytes + _highest(profiled)  # with momentum
    del profiled
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    context_bytes = _resident_bytes("VmRSS") - 3 * weight_bytes  # with momentum and gradients
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    _step(network, optimizer, row["patch_zyx"], row["precision"], device)
    measured_bytes = _resident_bytes("VmHWM") - context_bytes
    return {"measured_bytes": measured_bytes, "tensor_bytes": tensor_bytes, "context_bytes": context_bytes}


def _highest(profiled: torch.profiler.profile) -> int:
    """Return the most bytes that torch's allocator had given out at once, above those at the start."""
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes))


def _step(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    patch_zyx: list[int],
    precision: str,
    device: torch.device,
) -> None:
    images = torch.randn(BATCH_SIZE, N_CHANNELS, *patch_zyx, device=device)
    indices = torch.randint(0, LABELS.n_outputs, (BATCH_SIZE, *patch_zyx), device=device)
    optimizer.zero_grad(set_to_none=True)
    _loss(network, images, indices, precision).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
    optimizer.step()


def _loss(network: torch.nn.Module, images: torch.Tensor, indices: torch.Tensor, precision: str) -> torch.Tensor:
    with torch.autocast(images.device.type, _DTYPES[precision], enabled=precision != "fp32"):
        outputs = network(images)
    return LOSS(outputs, indices)


def _resident_bytes(which: str) -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[which].split()[0]) * 1024


def predicted_bytes(row: dict[str, Any], calibration: Calibration) -> int:
    """Predict the bytes of training without the context."""
    found = cost(
        NETWORKS[row["network"]][0],
        N_CHANNELS,
        LABELS.n_outputs,
        tuple(row["patch_zyx"]),
        BATCH_SIZE,
        optimizer_states=OPTIMIZERS["sgd"].states,
        precision=row["precision"],
        loss=LOSS,
        calibration=calibration,
    )
    return found.training_bytes - calibration.context_bytes


def fit(rows: list[dict[str, Any]], device_name: str) -> Calibration:
    """Find the scratch memory whose measured/predicted varies least between rows, and the slack that centres it."""
    best: tuple[float, Calibration] | None = None
    context_bytes = round(statistics.median(row["context_bytes"] for row in rows))
    for share in _SHARES:
        trial = Calibration(device_kind=device_name, context_bytes=0, scratch_share=share, slack_fraction=0)
        ratios = [row["measured_bytes"] / predicted_bytes(row, trial) for row in rows]
        middle = max(1.0, statistics.median(ratios))
        worst = max(abs(ratio / middle - 1) for ratio in ratios)
        found = trial.model_copy(update={"context_bytes": context_bytes, "slack_fraction": round(middle - 1, 3)})
        if best is None or worst < best[0]:
            best = (worst, found)
    assert best is not None
    return best[1]


def _line(row: dict[str, Any], calibration: Calibration) -> str:
    tensors = predicted_bytes(row, calibration.model_copy(update={"scratch_share": 0.0, "slack_fraction": 0.0}))
    cells = [row["network"], " × ".join(map(str, row["patch_zyx"])), row["precision"]]
    for predicted, measured in (
        (tensors, row["tensor_bytes"]),
        (predicted_bytes(row, calibration), row["measured_bytes"]),
    ):
        cells += [f"{predicted / 2**20:.0f}", f"{measured / 2**20:.0f}", f"{predicted / measured - 1:+.1%}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
