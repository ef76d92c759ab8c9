"""Whole predictions compared with nnunetv2's, with the same weights: seconds, memory of all processes, equal voxels.

python benchmarks/bench_predict.py hippocampus=DATA,WORK,10 acdc=DATA,WORK,6 sts_multi=DATA,WORK,2
    [--threads 2] > benchmarks/results/predict.md

Each argument names a dataset in nnU-Net's layout, a work folder with a trained 3d_fullres fold of a preset that
nnU-Net can read, and how many of its first cases to predict. Commands run in fresh processes, one after the other,
from files to masks, with mirroring: `segpipe predict` in fp32 and bf16, and `nnUNetv2_predict_from_modelfolder
-device cpu`, by default and with one process each for loading and export.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bench_prepare import watched

from segpipe.bridge.nnunet_model import export_nnunet_model, import_nnunet_model
from segpipe.core.volume import read_labels
from segpipe.plan.schema import Plan

_COMMANDS = Path(sys.executable).parent
_CONFIGURATION = "3d_fullres"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", metavar="NAME=DATA,WORK,CASES")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print(f"# Whole predictions\n\n{args.threads} threads. Agreement: equal foreground voxels, worst case.")
    print("\n| dataset | tool | s | times faster | peak MiB | agreement |\n|---|---|---|---|---|---|", flush=True)
    for text in args.datasets:
        name, _, rest = text.partition("=")
        data, work, n_cases = rest.split(",")
        with tempfile.TemporaryDirectory() as folder:
            race(name, Path(data).resolve(), Path(work).resolve(), int(n_cases), args.threads, Path(folder))


def race(name: str, data: Path, work: Path, n_cases: int, n_threads: int, scratch: Path) -> None:
    """Measure the rows of one dataset."""
    images = scratch / "images"
    images.mkdir()
    cases = sorted({path.name.rsplit("_", 1)[0] for path in (data / "imagesTr").iterdir()})[:n_cases]
    for path in (data / "imagesTr").iterdir():
        if path.name.rsplit("_", 1)[0] in cases:
            (images / path.name).symlink_to(path)
    model = export_nnunet_model(work, scratch / "nnunet", _CONFIGURATION)
    places = {f"nnUNet_{n}": str(scratch) for n in ("raw", "preprocessed", "results")}
    environment = os.environ | places | {"OMP_NUM_THREADS": str(n_threads), "nnUNet_def_n_proc": str(n_threads)}
    theirs = [str(_COMMANDS / "nnUNetv2_predict_from_modelfolder"), "-i", str(images), "-m", str(model), "-f", "0"]
    arms = {
        "nnunetv2": [*theirs, "-device", "cpu", "-o", str(scratch / "nnunetv2")],
        "nnunetv2 -npp 1 -nps 1": [*theirs, "-device", "cpu", "-npp", "1", "-nps", "1", "-o", str(scratch / "alone")],
    }
    for precision in ("fp32", "bf16"):
        (fold,) = import_nnunet_model(model, scratch / precision, ["0"])
        plan = Plan.load(fold.plan)
        training = plan.training.model_copy(update={"precision": precision})
        plan.model_copy(update={"training": training}).save(fold.plan)
        command = (
            f"predict -m {scratch / precision} -i {images} --device cpu -j {n_threads} -o {scratch}/ours_{precision}"
        )
        arms[f"segpipe {precision}"] = [str(_COMMANDS / "segpipe"), *command.split()]
    first = 0.0
    for arm, command in arms.items():
        seconds, peak_mib = watched(command, environment)
        first = first or seconds
        worst = min(agreement(Path(command[-1]), scratch / "nnunetv2", case) for case in cases)
        row = f"| {name} | {arm} | {seconds:.1f} | {first / seconds:.2f} | {peak_mib:.0f} | {100 * worst:.3f} % |"
        print(row, flush=True)


def agreement(ours: Path, theirs: Path, case_id: str) -> float:
    """Return the share of equal voxels among those that are foreground in either mask; NaN if none is."""
    masks: Sequence[np.ndarray] = [read_labels(folder / f"{case_id}.nii.gz")[0] for folder in (ours, theirs)]
    is_foreground = (masks[0] > 0) | (masks[1] > 0)
    return float((masks[0] == masks[1])[is_foreground].mean()) if is_foreground.any() else float("nan")


if __name__ == "__main__":
    main()
