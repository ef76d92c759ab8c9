"""Time and peak memory of measuring datasets: segpipe and nnunetv2's extractor take turns.

python benchmarks/bench_fingerprint.py DATASET... [--workers 2] [--repeats 3]

DATASET is a folder in nnU-Net's layout. `seconds` excludes imports, `in all` is the whole process. Memory is that of
the process and its children, sampled every 20 ms, with shared pages divided among processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SECONDS_BETWEEN_LOOKS = 0.02
_TOOLS = ("segpipe", "segpipe again", "nnunetv2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tool; the fastest counts")
    parser.add_argument("--only", choices=_TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        measure_once(args.only, args.datasets[0], args.scratch, args.workers)
        return
    print(f"{args.workers} workers, best of {args.repeats}")
    print("| dataset | tool | seconds | in all | peak MiB |\n|---|---|---|---|---|")
    for dataset in args.datasets:
        for tool, (seconds, whole, mebibytes) in compared(dataset, args.workers, args.repeats).items():
            print(f"| {dataset.resolve().name} | {tool} | {seconds:.2f} | {whole:.2f} | {mebibytes:.0f} |", flush=True)


def compared(dataset: Path, n_workers: int, n_repeats: int) -> dict[str, tuple[float, float, float]]:
    """Run the tools in turn; return the least seconds, seconds with imports, and peak MiB of each."""
    found: dict[str, tuple[float, float, float]] = {}
    for _ in range(n_repeats):
        with tempfile.TemporaryDirectory() as scratch:
            for tool in _TOOLS:
                seconds, whole, peak = watched(tool, dataset, Path(scratch), n_workers)
                before = found.get(tool, (seconds, whole, peak))
                found[tool] = (min(before[0], seconds), min(before[1], whole), min(before[2], peak))
    return found


def watched(tool: str, dataset: Path, scratch: Path, n_workers: int) -> tuple[float, float, float]:
    """Run one tool in a process of its own; return seconds by its own clock, in all, and peak MiB."""
    command = [sys.executable, __file__, str(dataset), "--only", tool, "--scratch", str(scratch)]
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(
        [*command, "--workers", str(n_workers)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        while process.poll() is None:
            peak = max(peak, memory_kib(process.pid))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        output = process.stdout.read() if process.stdout else ""
    whole = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{tool} ended with {process.returncode} on {dataset}")
    return float(output.splitlines()[-1]), whole, peak / 1024


def memory_kib(pid: int) -> int:
    """Return the memory of a process and its descendants; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, ProcessLookupError):
        return 0
    own = next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return own + sum(memory_kib(int(child)) for child in children)


def measure_once(tool: str, dataset: Path, scratch: Path, n_workers: int) -> None:
    """Measure a dataset and print the seconds it took without imports."""
    if tool == "nnunetv2":
        seconds = with_nnunet(dataset, scratch, n_workers)
    else:
        from segpipe.data.load import load_dataset
        from segpipe.fingerprint.changes import remeasure

        started = time.perf_counter()
        remeasure(scratch / "cases.npz", load_dataset(dataset), n_workers).save(scratch / "fingerprint.json")
        seconds = time.perf_counter() - started
    print(seconds)


def with_nnunet(dataset: Path, scratch: Path, n_workers: int) -> float:
    """Do the same with nnunetv2, with a link to the dataset in the folder that it reads."""
    raw = scratch / "raw" / "Dataset001_measured"
    raw.mkdir(parents=True)
    for name in ("imagesTr", "labelsTr"):
        (raw / name).symlink_to((dataset / name).resolve())
    description = json.loads((dataset / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(description))
    for name in ("raw", "preprocessed", "results"):
        (scratch / name).mkdir(exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(scratch / name)
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    started = time.perf_counter()
    extractor = DatasetFingerprintExtractor(1, n_workers)
    extractor.show_progress_bar = False
    extractor.run(overwrite_existing=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
