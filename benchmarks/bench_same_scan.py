"""Time and memory of finding scans of one patient: the comparison of many thumbnails, and `check` with it.

python benchmarks/bench_same_scan.py [DATASET...] [--scans 1000 4000]

The thumbnails are random, with one in ten almost another one. Memory is the peak of NumPy's allocations beyond the
thumbnails themselves. For each DATASET the whole check is timed, and the same without thumbnails.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np

from segpipe.data import inspect
from segpipe.data.check import check_dataset
from segpipe.data.inspect import alike_pairs

_LENGTH = 24**3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="*")
    parser.add_argument("--scans", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print("| scans | seconds | MiB beyond the thumbnails | thumbnails, MiB | pairs found |\n|--:|--:|--:|--:|--:|")
    for n_scans in args.scans:
        random = np.random.default_rng(0)
        scans = random.normal(size=(n_scans, _LENGTH)).astype(np.float32)
        scans[5::10] = scans[: len(scans[5::10])] + 0.3 * scans[5::10]
        stack = (scans / np.linalg.norm(scans, axis=1, keepdims=True)).astype(np.float16)
        del scans
        tracemalloc.start()
        started = time.perf_counter()
        found = alike_pairs(list(stack), [str(i) for i in range(n_scans)])
        seconds = time.perf_counter() - started
        more = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        print(f"| {n_scans} | {seconds:.1f} | {more:.0f} | {stack.nbytes / 2**20:.0f} | {len(found)} |", flush=True)
    if args.datasets:
        print("\n| check of | seconds | without thumbnails |\n|---|--:|--:|")
    for dataset in args.datasets:
        times = {True: float("inf"), False: float("inf")}
        for _ in range(args.repeats):
            for with_thumbnails in times:
                with mock.patch.object(inspect, "thumbnail", inspect.thumbnail if with_thumbnails else lambda *_: None):
                    started = time.process_time()
                    check_dataset(dataset, n_workers=1)
                    times[with_thumbnails] = min(times[with_thumbnails], time.process_time() - started)
        print(f"| {dataset.resolve().name} | {times[True]:.2f} | {times[False]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
