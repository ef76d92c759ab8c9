"""Time and memory of the surface metrics beside MONAI's HD95, in one run.

    OMP_NUM_THREADS=1 python benchmarks/bench_metrics.py [SIZE:LABELS …]

Organs are ellipsoids with about a voxel of noise at their boundary, predictions are moved by a voxel or two, and in one
label of four a blob lies far away. Times are the least of several repeats, ours and MONAI's in turn.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from segpipe.core.grid import Grid
from segpipe.core.labels import Label, LabelSet
from segpipe.evaluate.case import ScoreSettings
from segpipe.evaluate.metrics import METRICS
from segpipe.evaluate.run import score_case
from segpipe.evaluate.scores import Origin

SPACING_MM = (1.5, 0.8, 0.8)
DEFAULT = ("128:1", "128:20", "256:1", "256:20", "512:1", "512:20")


def noise(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Smooth noise of standard deviation 1, made at a quarter of the resolution."""
    small = gaussian_filter(random.standard_normal([max(n // 4, 4) + 2 for n in shape]).astype(np.float32), 1.0)
    large = zoom(small, [n / (m - 2) for n, m in zip(shape, small.shape, strict=True)], order=1)
    large = large[tuple(slice(0, n) for n in shape)]
    return large / large.std()


def organs(size: int, n_labels: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reference and prediction (size, size, size)."""
    random = np.random.default_rng(seed)
    maps = np.zeros((2, size, size, size), np.uint8)
    for label in range(1, n_labels + 1):
        radius = size * random.uniform(0.6, 1.0, 3) * (0.33 if n_labels == 1 else 0.45 / n_labels ** (1 / 3))
        centre = random.uniform(radius + 5, size - radius - 5)
        low = np.maximum(centre - radius * 1.3 - 5, 0).astype(int)
        box = tuple(slice(a, min(int(c + r * 1.3 + 6), size)) for a, c, r in zip(low, centre, radius, strict=True))
        axes = np.ogrid[box]
        wobble = noise(random, tuple(s.stop - s.start for s in box)) * (1.2 / radius.mean())
        for map_zyx, shift in zip(maps, (np.zeros(3), random.uniform(-1.5, 1.5, 3)), strict=True):
            distance = sum(((a - c - s) / r) ** 2 for a, c, s, r in zip(axes, centre, shift, radius, strict=True))
            map_zyx[box][np.sqrt(distance) + wobble * (1 if map_zyx is maps[0] else random.choice([-1, 1])) < 1] = label
        if label % 4 == 0:
            corner = random.integers(0, size - 8, 3)
            maps[1][tuple(slice(c, c + 8) for c in corner)] = label
    return maps[0], maps[1]


def least_seconds(functions: list[Callable[[], object]], repeats: list[int]) -> list[float]:
    """Least time of each function, called in turn."""
    best = [np.inf] * len(functions)
    for repeat in range(max(repeats)):
        for i, function in enumerate(functions):
            if repeat < repeats[i]:
                start = time.perf_counter()
                function()
                best[i] = min(best[i], time.perf_counter() - start)
    return best


def monai_hd95(reference: NDArray[np.uint8], prediction: NDArray[np.uint8], labels: range) -> list[float]:
    """MONAI's HD95 of every label, one at a time: all at once it needs a float for each voxel and label."""
    import torch
    from monai.metrics import compute_hausdorff_distance

    pair = torch.from_numpy(prediction), torch.from_numpy(reference)
    found = []
    for label in labels:
        one, other = ((values == label)[None, None] for values in pair)
        found.append(
            compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=SPACING_MM).item()
        )
    return found


def resident_mb() -> float:
    """Memory of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def extra_mb(function: Callable[[], object]) -> float:
    """Most memory during a call beyond that before it."""
    before, most, done = resident_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], resident_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    function()
    done.set()
    thread.join()
    return max(most[0] - before, 0.0)


def main(sizes: list[str]) -> None:
    """Print a table."""
    print(
        "| case | ours: voxel HD95 | lattice | voxel | mc | all metrics | 2 threads | extra MB | MONAI HD95 | ratio |"
    )
    for text in sizes:
        size, n_labels = (int(part) for part in text.split(":"))
        reference, prediction = organs(size, n_labels)
        labels = LabelSet(labels=tuple(Label(name=f"l{i}", values=(i,)) for i in range(1, n_labels + 1)))
        grid = Grid(reference.shape, np.diag([*SPACING_MM[::-1], 1.0]))

        def ours(metrics: tuple[str, ...], n_threads: int = 1) -> Callable[[], object]:
            settings = ScoreSettings(metrics, nsd_tolerance_mm=1.0)
            return lambda: score_case(
                reference, prediction, grid, labels, Origin("a", "a"), settings, n_threads=n_threads
            )

        surfaces = [tuple(m for m in METRICS if METRICS[m].group == g) for g in ("lattice", "voxel", "mc")]
        every = tuple(m for m in METRICS if METRICS[m].group in ("counts", "lattice", "voxel", "mc"))
        mine = [ours(("hd95_voxel_max",)), *map(ours, surfaces), ours(every), ours(every, 2)]
        mine[4]()
        n = 3 if size > 300 else 7
        theirs = lambda: monai_hd95(reference, prediction, range(1, n_labels + 1))
        seconds = least_seconds([*mine, theirs], [n] * 6 + [1 if size > 300 else 2])
        print(
            f"| {size}³ × {n_labels} |",
            " | ".join(f"{s:.3f}" for s in seconds[:6]),
            f"| {extra_mb(mine[5]):.0f} | {seconds[6]:.2f} | {seconds[6] / seconds[0]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:] or list(DEFAULT))
