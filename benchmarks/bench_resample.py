"""Time, peak memory and agreement of resampling, compared with nnunetv2's default and its torch variant.

python benchmarks/bench_resample.py [--threads 2] [--repeats 3] > benchmarks/results/resample.md

One image and one label map with 20 labels, 100×256×256 → 125×320×320 voxels, of smooth noise. The tools take turns,
and the table shows medians. Memory is the peak of a process that does nothing else, above that of the idle process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BEFORE, _AFTER = (100, 256, 256), (125, 320, 320)
_SPACING_MM, _TARGET_MM = (1.25, 1.25, 1.25), (1.0, 1.0, 1.0)
_N_LABELS = 20
_TOOLS = ("segpipe", "nnunetv2", "nnunetv2 torch")
_WHAT = ("image", "labels", "image, first axis apart")
_APART_MM = (5.0, 1.25, 1.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tool; the median counts")
    parser.add_argument("--only", nargs=2, metavar=("WHAT", "TOOL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(peak_mebibytes(args.only[0], args.only[1], args.threads)))
        return
    os.environ.update({name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")})
    print(f"# Resampling, {' × '.join(map(str, _BEFORE))} → {' × '.join(map(str, _AFTER))} voxels\n")
    print(
        f"`python benchmarks/bench_resample.py --threads {args.threads} --repeats {args.repeats}`, "
        f"{platform.machine()}, "
    )
    print(f"{len(os.sched_getaffinity(0))} processors. Time: medians, the tools taking turns. Differs: images by the ")
    print("largest difference from nnunetv2's default, in SD; labels by the share of unequal voxels.\n")
    print("| what | tool | seconds | times segpipe | peak MiB | differs |\n|---|---|---|---|---|---|")
    for what in _WHAT:
        table(what, args.threads, args.repeats)


def table(what: str, n_threads: int, n_repeats: int) -> None:
    """Measure the rows of one input; each tool has a process of its own for all repeats."""
    array = sample(what)
    runs = {tool: resampler(what, tool, n_threads) for tool in _TOOLS}
    seconds: dict[str, list[float]] = {tool: [] for tool in _TOOLS}
    results = {}
    for _ in range(n_repeats):
        for tool, run in runs.items():
            started = time.perf_counter()
            results[tool] = run(array.copy())
            seconds[tool].append(time.perf_counter() - started)
    for tool in _TOOLS:
        command = [sys.executable, __file__, "--threads", str(n_threads), "--only", what, tool]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        taken = statistics.median(seconds[tool])
        ratio = taken / statistics.median(seconds["segpipe"])
        differs = difference(results[tool], results["nnunetv2"])
        print(f"| {what} | {tool} | {taken:.2f} | {ratio:.1f} | {peak:.0f} | {differs} |", flush=True)


def difference(ours: NDArray[Any], theirs: NDArray[Any]) -> str:
    """Describe the largest difference of images, or the share of unequal voxels where either map has foreground."""
    if ours.dtype.kind == "f":
        return f"{np.abs(ours - theirs).max() / theirs.std():.1e} SD"
    foreground = (ours > 0) | (theirs > 0)
    return f"{(ours != theirs)[foreground].mean():.2%} of foreground"


def sample(what: str) -> NDArray[Any]:
    """Make an image (1, Z, Y, X) of SD 1, or labels in the upper half of its values."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=_BEFORE), 12)
    smooth /= smooth.std()
    if what == "labels":
        limits = np.linspace(0, smooth.max(), _N_LABELS + 1)[:-1]
        return np.digitize(smooth, limits).astype(np.int16)[None]
    noise = np.random.default_rng(1).normal(scale=0.1, size=_BEFORE)
    return (smooth + noise).astype(np.float32)[None]


def resampler(what: str, tool: str, n_threads: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return one tool's function from (1, Z, Y, X) to (1, *_AFTER)."""
    spacing = _APART_MM if "apart" in what else _SPACING_MM
    if tool == "segpipe":
        from segpipe.prepare.resample import IMAGE_ORDER, LABEL_ORDER, orders_for, resample_image, resample_indices

        if what == "labels":
            return lambda a: resample_indices(a[0], _AFTER, orders_for(spacing, _TARGET_MM, LABEL_ORDER))[None]
        return lambda a: resample_image(a, _AFTER, orders_for(spacing, _TARGET_MM, IMAGE_ORDER))
    is_seg = what == "labels"
    if tool == "nnunetv2":
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

        order = 1 if is_seg else 3
        return lambda a: np.asarray(
            resample_data_or_seg_to_shape(a, _AFTER, spacing, _TARGET_MM, is_seg, order, 0, force_separate_z=None)
        )
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

    return lambda a: np.asarray(
        resample_torch_fornnunet(a, _AFTER, spacing, _TARGET_MM, is_seg, n_threads, force_separate_z=None)
    )


def peak_mebibytes(what: str, tool: str, n_threads: int) -> float:
    """Return the peak of one resampling above that of the idle process, by the system's own count."""
    array, run = sample(what), resampler(what, tool, n_threads)
    run(array[:, :8, :8, :8].copy())  # what is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_kib()
    run(array)
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return (peak - before) / 1024


def resident_kib() -> int:
    """Return the memory that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


if __name__ == "__main__":
    main()
