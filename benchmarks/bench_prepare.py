"""Planning and preparing from start to end, compared with nnunetv2; estimated and used memory.

python benchmarks/bench_prepare.py DATASET... [--workers 2] [--repeats 3] [--synthetic] [--no-race]
    > benchmarks/results/prepare.md

DATASET is a folder in nnU-Net's layout. The race compares `segpipe plan` and `segpipe prepare` with
`nnUNetv2_plan_and_preprocess -c 3d_fullres`, in fresh processes, from the same files to prepared arrays, imports
included. segpipe plans without its page and its prediction of costs, which nnunetv2 does not have. The tools take
turns, and the table shows medians. Memory of the race is that of all processes, sampled ten times a second, with
shared pages divided among them. Memory of the second table is the system's peak of a process that prepares one case
at a time, above that of the idle process. `--synthetic` adds a CT of 512×512×400 voxels to the second table.
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
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from bench_fingerprint import memory_kib

from segpipe.core.work import Work

_SECONDS_BETWEEN_LOOKS = 0.1  # a look takes some 6 ms, which are taken from what is measured if there is one core
_COMMANDS = Path(sys.executable).parent
_CT_SHAPE_ZYX, _CT_MM = (400, 512, 512), (1.5, 0.8, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="*")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tool; the median counts")
    parser.add_argument("--synthetic", action="store_true", help="also measure the memory of a large CT")
    parser.add_argument("--no-race", action="store_true", help="memory alone")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(estimated_and_used(args.memory_of)))
        return
    print(f"# Preparing\n\n{platform.machine()}, {len(os.sched_getaffinity(0))} processors; {args.workers} workers, ")
    print(f"{args.repeats} repeats.\n")
    if not args.no_race:
        print("| dataset | segpipe s | nnunetv2 s | times faster | segpipe MiB | nnunetv2 MiB |")
        print("|---|---|---|---|---|---|")
        for dataset in args.datasets:
            race(dataset.resolve(), args.workers, args.repeats)
    print("\n| one case at a time | estimated MiB | used MiB |\n|---|---|---|")
    for dataset in args.datasets:
        memory_row(dataset.name, dataset.resolve())
    if args.synthetic:
        with tempfile.TemporaryDirectory() as folder:
            memory_row("CT of 512×512×400", synthetic_ct(Path(folder)))


def race(dataset: Path, n_workers: int, n_repeats: int) -> None:
    """Measure a row of the first table."""
    runs: dict[str, list[tuple[float, float]]] = {"segpipe": [], "nnunetv2": []}
    for _ in range(n_repeats):
        with tempfile.TemporaryDirectory() as name:
            scratch, jobs = Path(name), str(n_workers)
            work = str(scratch / "work")
            plan = ["plan", str(dataset), "-o", work, "--preset", "nnunet", "--no-report", "--no-cost", "-j", jobs]
            prepare = ["prepare", work, "-c", "3d_fullres", "-j", jobs]
            parts = [watched([str(_COMMANDS / "segpipe"), *command], {}) for command in (plan, prepare)]
            runs["segpipe"].append((sum(seconds for seconds, _ in parts), max(peak for _, peak in parts)))
            command = ["-d", "1", "-c", "3d_fullres", "-np", jobs, "-npfp", jobs, "--no_pbar"]
            places = nnunet_places(dataset, scratch)
            runs["nnunetv2"].append(watched([str(_COMMANDS / "nnUNetv2_plan_and_preprocess"), *command], places))
    (ours, our_peak), (theirs, their_peak) = (
        [statistics.median(values) for values in zip(*runs[tool], strict=True)] for tool in ("segpipe", "nnunetv2")
    )
    row = f"| {dataset.name} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} | {our_peak:.0f} | {their_peak:.0f} |"
    print(row, flush=True)


def nnunet_places(dataset: Path, scratch: Path) -> dict[str, str]:
    """Return the environment of nnunetv2, with a link to the dataset in the folder that it reads."""
    raw = scratch / "raw" / "Dataset001_measured"
    raw.mkdir(parents=True)
    for name in ("imagesTr", "labelsTr"):
        (raw / name).symlink_to(dataset / name)
    (raw / "dataset.json").write_text((dataset / "dataset.json").read_text())
    return {f"nnUNet_{name}": str(scratch / name) for name in ("raw", "preprocessed", "results")}


def watched(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Return seconds and peak MiB of a command and its descendants."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            peak = max(peak, memory_kib(process.pid))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, peak / 1024


def memory_row(name: str, dataset: Path) -> None:
    """Measure a row of the second table."""
    command = [sys.executable, __file__, "--memory-of", str(dataset)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    estimated, used = json.loads(output.splitlines()[-1])
    print(f"| {name} | {estimated:.0f} | {used:.0f} |", flush=True)


def estimated_and_used(data: Path) -> tuple[float, float]:
    """Return the estimated MiB of the largest case, and the most that preparing all cases one by one took."""
    from segpipe.data.dataset import Dataset
    from segpipe.fingerprint.record import Fingerprint
    from segpipe.plan.schema import Plan
    from segpipe.prepare.dataset import prepare_dataset, preparing_bytes

    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder))
        if (child := os.fork()) == 0:  # what measuring leaves in memory is not to be used again here
            write_plan(data, work)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{data} cannot be planned")
        dataset, plan = Dataset.load(work.dataset), Plan.load(work.plan)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
        prepare_dataset(work, dataset, plan, "3d_fullres", 1)
        status = Path("/proc/self/status").read_text().splitlines()
        cases = Fingerprint.load(work.fingerprint).cases
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    estimated = max(preparing_bytes(case, plan, plan.configurations["3d_fullres"], plan.axis_order) for case in cases)
    return estimated / 2**20, (peak - before) / 1024


def write_plan(data: Path, work: Work) -> None:
    """Measure and plan a dataset without the labels that occur nowhere, which segpipe refuses."""
    from segpipe.data.load import load_dataset
    from segpipe.fingerprint.measure import assemble, measure_cases
    from segpipe.plan.make import make_plan

    dataset = load_dataset(data)
    measured, _ = measure_cases(dataset.cases, dataset, 1)
    present = frozenset[str]().union(*(m.case.present for m in measured))
    labels = dataset.labels.model_copy(
        update={"labels": tuple(label for label in dataset.labels.labels if label.name in present)}
    )
    dataset = dataset.model_copy(update={"labels": labels})
    fingerprint = assemble(dataset, measured)
    dataset.save(work.dataset)
    fingerprint.save(work.fingerprint)
    make_plan(fingerprint, labels, dataset.name, "nnunet", "cuda").save(work.plan)


def synthetic_ct(folder: Path) -> Path:
    """Make a dataset of one CT, int16, with an ellipsoid of two labels, uint8."""
    from segpipe.core.volume import write_image

    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in _CT_SHAPE_ZYX)
    distance = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
    labels = (distance < 0.5).astype(np.uint8) + (distance < 0.1)
    noise = np.random.default_rng(0).integers(-50, 50, _CT_SHAPE_ZYX, np.int16)
    affine = np.diag([*_CT_MM[::-1], 1.0])
    write_image(folder / "imagesTr" / "ct_0000.nii.gz", (noise + 40 * labels)[None], affine)
    write_image(folder / "labelsTr" / "ct.nii.gz", labels[None], affine)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nii.gz"}))
    return folder


if __name__ == "__main__":
    main()
