"""Time and memory of Dice and cross-entropy, compared with nnunetv2's class, and of every other loss.

python benchmarks/bench_losses.py [--device cpu|cuda] [--repeats 9]

Times are of forward and backward. The arms take turns in one process. Prints medians and the values, which must be
equal. Memory is the peak without logits and labels: on a CPU the resident memory of a process of its own, on CUDA
that of torch's allocator.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nnunetv2
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor

from segpipe.core.labels import Label, LabelSet
from segpipe.plan.loss import LOSSES, Loss
from segpipe.train.losses import supervised_loss

CASES: dict[str, tuple[int, int, int]] = {  # batch, edge in voxels, labels without background
    "128³, batch 2, 3 labels": (2, 128, 3),
    "96³, batch 1, 117 labels": (1, 96, 117),
}
LIGHT_CASE = "64³, batch 2, 3 labels"
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc: what is freed goes back to the system at once
_MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # case, arm, dtype: prints the peak in MiB
    args = parser.parse_args()
    if args.child:
        case, arm, dtype = args.child
        print(_peak_mib(args.device, case, arm, dtype))
        return
    chip = torch.cuda.get_device_name() if args.device == "cuda" else _processor()
    threads = "" if args.device == "cuda" else f", {torch.get_num_threads()} thread(s)"
    print(f"{chip}{threads}, torch {torch.__version__}, nnunetv2 {_version()}, median of {args.repeats}\n")
    print("| Dice + CE | type | ours ms | nnunetv2 ms | ratio | ours MiB | nnunetv2 MiB | ratio | difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        for dtype in ("float32", "bfloat16"):
            print(_row(args.device, case, dtype, args.repeats), flush=True)
    print(f"\n| {LIGHT_CASE} | ms |\n|---|---|")
    logits, indices, labels = _batch(args.device, (2, 64, 3), "float32")
    for name in LOSSES:
        loss = Loss.from_name(name)
        run = lambda x, t: supervised_loss([x], t, labels, batch_dice=False, loss=loss)  # noqa: E731, B023
        times = [_seconds(run, logits, indices) for _ in range(args.repeats + 1)][1:]
        print(f"| {name} | {1e3 * statistics.median(times):.1f} |", flush=True)


def _row(device: str, case: str, dtype: str, repeats: int) -> str:
    logits, indices, labels = _batch(device, CASES[case], dtype)
    arms = _arms(labels)
    values = {arm: float(run(logits, indices).detach()) for arm, run in arms.items()}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(repeats + 1):
        for arm, run in arms.items():
            taken = _seconds(run, logits, indices)
            if repeat:  # the first warms up
                times[arm].append(taken)
    del logits, indices
    ms = {arm: 1e3 * statistics.median(taken) for arm, taken in times.items()}
    mib = {arm: _measured_mib(device, case, arm, dtype) for arm in arms}
    columns = [case, dtype]
    for unit in (ms, mib):
        columns += [f"{unit['ours']:.1f}", f"{unit['nnunetv2']:.1f}", f"{unit['ours'] / unit['nnunetv2']:.2f}"]
    return f"| {' | '.join(columns)} | {abs(values['ours'] - values['nnunetv2']):.1e} |"


def _arms(labels: LabelSet) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    settings = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    theirs = DC_and_CE_loss(settings, {}, dice_class=MemoryEfficientSoftDiceLoss)

    def as_in_training(logits: Tensor, indices: Tensor) -> Tensor:  # nnunetv2's loss runs inside autocast
        with torch.autocast(logits.device.type, logits.dtype, enabled=logits.dtype != torch.float32):
            return theirs(logits, indices.unsqueeze(1))

    return {
        "ours": lambda logits, indices: supervised_loss([logits], indices, labels, batch_dice=False),
        "nnunetv2": as_in_training,
    }


def _batch(device: str, size: tuple[int, int, int], dtype: str) -> tuple[Tensor, Tensor, LabelSet]:
    batch_size, edge, n_labels = size
    torch.manual_seed(0)
    shape = (batch_size, n_labels + 1, edge, edge, edge)
    logits = torch.randn(shape, device=device).to(getattr(torch, dtype)).requires_grad_()
    coarse = torch.randint(0, n_labels + 1, (batch_size, 1, *(edge // 16,) * 3), device=device).float()
    indices = torch.nn.functional.interpolate(coarse, scale_factor=16.0)[:, 0].long()  # lumps, as organs are
    return logits, indices, LabelSet(labels=tuple(Label(name=str(i), values=(i,)) for i in range(1, n_labels + 1)))


def _seconds(run: Callable[[Tensor, Tensor], Tensor], logits: Tensor, indices: Tensor) -> float:
    logits.grad = None
    _wait(logits)
    started = time.perf_counter()
    run(logits, indices).backward()
    _wait(logits)
    return time.perf_counter() - started


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def _peak_mib(device: str, case: str, arm: str, dtype: str) -> float:
    logits, indices, labels = _batch(device, CASES[case], dtype)
    run = _arms(labels)[arm]
    small, few, _ = _batch(device, (1, 16, 1), dtype)
    _arms(LabelSet(labels=labels.labels[:1]))[arm](small, few).backward()  # libraries are loaded
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(logits, indices).backward()
        return (torch.cuda.max_memory_allocated() - before) / _MIB
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident memory starts again
    before_kib = _status_kib("VmRSS")
    run(logits, indices).backward()
    return (_status_kib("VmHWM") - before_kib) / 1024


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _measured_mib(device: str, case: str, arm: str, dtype: str) -> float:
    command = [sys.executable, __file__, "--device", device, "--child", case, arm, dtype]
    done = subprocess.run(command, env=os.environ | _MALLOC, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def _version() -> str:
    from importlib.metadata import version

    return version(nnunetv2.__name__)


if __name__ == "__main__":
    main()
