"""Time and memory of the metrics, compared with MONAI's HD95 in the same run.

    OMP_NUM_THREADS=1 python benchmarks/bench_metrics.py [ROW …]

Rows are SIZE:LABELS (organs), noise:SIZE:LABELS, shifted:SIZE:LABELS, or folder:N. Organs are ellipsoids with about a
voxel of noise at their boundary. Predictions are moved by a voxel or two, and one label of four (the first, the
fifth, …) has a blob far away. `shifted` moves the prediction by 60 voxels; in `noise` both maps are random. Times are
processor seconds, the least of several repeats, with ours and MONAI's taking turns, so that a busy machine affects
them little; only `wall, 2 threads` is wall time. `extra MB` is the most memory beyond the two maps, on two threads
and with every metric of counts and surfaces, in a process of its own (`memory:SIZE:LABELS`). MONAI gets a ready mask
of each label, segpipe the map of labels.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from segpipe.core.grid import Grid
from segpipe.core.labels import Label, LabelSet
from segpipe.core.volume import read_labels, write_image
from segpipe.evaluate.evaluation_case import ScoreSettings
from segpipe.evaluate.metrics import DEFAULT_METRICS, METRICS
from segpipe.evaluate.scores import Origin
from segpipe.evaluate.scoring import MaskPair, score_case, score_folder

SPACING_MM = (1.5, 0.8, 0.8)
ROWS = (
    "128:1", "128:20", "256:1", "256:20", "512:1", "512:20", "noise:128:20", "shifted:256:1", "shifted:256:20",
    "folder:100",
)  # fmt: skip


def noise(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Make smooth noise of standard deviation 1, at a quarter of the resolution."""
    small = gaussian_filter(random.standard_normal([max(n // 4, 4) + 2 for n in shape]).astype(np.float32), 1.0)
    large = zoom(small, [n / (m - 2) for n, m in zip(shape, small.shape, strict=True)], order=1)
    large = large[tuple(slice(0, n) for n in shape)]
    return large / large.std()


def organs(size: int, n_labels: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make reference and prediction (size, size, size)."""
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
        if label % 4 == 1:
            corner = random.integers(0, size - 8, 3)
            maps[1][tuple(slice(c, c + 8) for c in corner)] = label
    return maps[0], maps[1]


def least_seconds(
    functions: list[Callable[[], object]], repeats: list[int], clock: Callable[[], float] = time.process_time
) -> list[float]:
    """Return the least time of each function; they take turns."""
    best = [np.inf] * len(functions)
    for repeat in range(max(repeats)):
        for i, function in enumerate(functions):
            if repeat < repeats[i]:
                start = clock()
                function()
                best[i] = min(best[i], clock() - start)
    return best


def monai_hd95_seconds(reference: NDArray[np.uint8], prediction: NDArray[np.uint8], n_labels: int) -> float:
    """Measure processor seconds of MONAI's HD95, label by label: all at once would need 8 bytes per voxel and label."""
    import torch
    from monai.metrics import compute_hausdorff_distance

    total = 0.0
    for label in range(1, n_labels + 1):
        one, other = (torch.from_numpy(values == label)[None, None] for values in (prediction, reference))
        start = time.process_time()
        compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=SPACING_MM)
        total += time.process_time() - start
    return total


def memory_line(field: str) -> float:
    """Read a line of this process's status in MB: VmRSS (memory now) or VmHWM (the most so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def extra_mb(row: str) -> float:
    """Return the most memory while a row is scored, above that before, in a process of its own."""
    command = [sys.executable, __file__, f"memory:{row}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(row: str) -> float:
    """Measure `extra_mb` in this process: load the loops first, then reset the peak."""
    scoring("64:2", EVERY, n_threads=2)()
    run = scoring(row, EVERY, n_threads=2)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_line("VmRSS")
    run()
    return memory_line("VmHWM") - before


def masks_of(row: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """Make reference, prediction and number of labels of a row."""
    *kind, size, n_labels = row.split(":")
    shape, n = (int(size),) * 3, int(n_labels)
    if kind == ["noise"]:
        maps = np.random.default_rng(0).integers(0, n + 1, (2, *shape), np.uint8)
        return maps[0], maps[1], n
    reference, prediction = organs(shape[0], n)
    if kind == ["shifted"]:
        prediction = np.roll(reference, 60, 2)
        prediction[:, :, :60] = 0
    return reference, prediction, n


def names_of(*groups: str) -> tuple[str, ...]:
    """Return the metrics of some groups."""
    return tuple(name for name, metric in METRICS.items() if metric.group in groups)


EVERY = names_of("counts", "lattice", "voxel", "mc")
COLUMNS = (("hd95_voxel_max",), *(names_of(group) for group in ("counts", "lattice", "voxel", "mc")), DEFAULT_METRICS)


def scoring(
    row: str,
    metrics: tuple[str, ...],
    n_threads: int = 1,
    masks: tuple[NDArray[np.uint8], NDArray[np.uint8], int] | None = None,
) -> Callable[[], object]:
    """Return a call that scores a row."""
    reference, prediction, n_labels = masks or masks_of(row)
    labels = LabelSet(labels=tuple(Label(name=f"l{i}", values=(i,)) for i in range(1, n_labels + 1)))
    grid = Grid(reference.shape, np.diag([*SPACING_MM[::-1], 1.0]))
    case = (reference, prediction, grid, labels, Origin("a", "a"), ScoreSettings(metrics, 1.0))
    return lambda: score_case(*case, n_threads=n_threads)


def measure_row(row: str, with_monai: bool) -> str:
    """Measure one line of the table."""
    masks = reference, prediction, n_labels = masks_of(row)
    mine = [scoring(row, names, masks=masks) for names in COLUMNS]
    n_repeats = 3 if reference.size > 2**25 else 7
    seconds, theirs = [np.inf] * len(mine), np.inf
    for run in mine:
        run()  # compiled, or read from disk
    for repeat in range(n_repeats):
        seconds = [min(pair) for pair in zip(seconds, least_seconds(mine, [1] * len(mine)), strict=True)]
        if with_monai and (repeat == 0 or reference.size < 2**23):
            theirs = min(theirs, monai_hd95_seconds(reference, prediction, n_labels))
    both = scoring(row, DEFAULT_METRICS, n_threads=2, masks=masks)
    wall = least_seconds([both], [n_repeats], time.perf_counter)[0]
    cells = [*(f"{s:.3f}" for s in (*seconds, wall)), f"{extra_mb(row):.0f}"]
    cells += [f"{theirs:.2f}", f"**{theirs / seconds[0]:.0f}**"] if with_monai else ["", ""]
    return f"| {row} | " + " | ".join(cells) + " |"


def measure_folder(n_cases: int) -> str:
    """Measure the share of reading in scoring a folder of small cases (50 × 35 × 35 voxels, 2 labels), one worker."""
    labels = LabelSet(labels=tuple(Label(name=f"l{i}", values=(i,)) for i in range(1, 3)))
    with TemporaryDirectory() as name:
        pairs = []
        for case in range(n_cases):
            maps = [values[:, :35, :35] for values in organs(50, 2, seed=case)]
            files = [Path(name) / f"{case}_{side}.nii.gz" for side in ("reference", "prediction")]
            for file, values in zip(files, maps, strict=True):
                write_image(file, values[None], np.diag([*SPACING_MM[::-1], 1.0]))
            pairs.append(MaskPair(*files, Origin(f"c{case}", f"c{case}")))
        score_folder(pairs[:1], labels, 1)

        def read() -> None:
            for pair in pairs:
                read_labels(pair.reference)
                read_labels(pair.prediction)

        reading, scoring = least_seconds([read, lambda: score_folder(pairs, labels, 1)], [3, 3])
    return f"{n_cases} cases: {scoring:.2f} s of processor time, {reading:.2f} s for reading ({reading / scoring:.0%})"


def main(rows: list[str]) -> None:
    """Print the table."""
    if not rows[0].startswith("memory:"):
        print(
            "| row | HD95 voxel | counts | lattice | voxel | mc | default | wall, 2 threads | extra MB | MONAI | ratio",
            "|",
        )
        print("|---" * 11 + "|")
    for row in rows:
        if row.startswith("memory:"):
            print(measure_memory(row.removeprefix("memory:")))
        elif row.startswith("folder:"):
            print(measure_folder(int(row.removeprefix("folder:"))), flush=True)
        else:
            print(measure_row(row, with_monai=row != "512:20"), flush=True)  # MONAI would take many minutes


if __name__ == "__main__":
    main(sys.argv[1:] or list(ROWS))
