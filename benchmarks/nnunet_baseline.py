"""nnunetv2's own trainer on one fold for a given number of minutes: the baseline segpipe is measured against.

    python benchmarks/nnunet_baseline.py DATASET SPLITS --fold 0 --minutes 10 -o OUT
    segpipe evaluate -r DATASET/labelsTr -p OUT/validation -o OUT/scores.csv

Everything is nnunetv2's: fingerprint, plan, preprocessing, network, augmentation, loss, optimiser, final prediction
with mirroring. Only the schedule is fitted to the budget, as its users would by hand: the number of epochs is such
that an epoch has about five iterations, and before each epoch the number of iterations is chosen from the seconds that
the last ones took, so that the last epoch (learning rate almost 0) ends with the budget. Pictures and checkpoints
during training are off, which leaves more of the minutes to training. The clock runs from the first iteration to the
end of the last epoch, validation iterations included; planning, preprocessing, the pilot and the final prediction have
their own times in OUT/run.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

NAME = "Dataset001_Baseline"
CONFIGURATION = "3d_fullres"
ITERATIONS_PER_EPOCH = 5  # the fewest with one validation iteration each; more epochs give a smoother schedule
TRAINING_PER_VALIDATION = 5  # nnU-Net's 250 training to 50 validation iterations
MAX_EPOCHS = 1000  # nnU-Net's own


def main() -> None:
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an orderly exit ends the augmentation workers
    out = args.output.resolve()
    _set_environment(out / "nnunet", args.threads)
    folds = read_folds(args.splits)
    if not 0 <= args.fold < len(folds):
        sys.exit(f"{args.splits}: has folds 0 to {len(folds) - 1}, --fold is {args.fold}.")
    _link_dataset(args.dataset.resolve(), folds, out / "nnunet" / "raw" / NAME)
    planning_seconds = plan_and_preprocess(out / "nnunet" / "preprocessed" / NAME, args.threads)
    (out / "nnunet" / "preprocessed" / NAME / "splits_final.json").write_text(json.dumps(folds))

    import numpy as np
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 (nnunetv2 draws from numpy's global state)
    started = time.monotonic()
    candidates = (0, 1, 2) if args.workers == "auto" else (int(args.workers),)
    pilots = {n: pilot(args.fold, args.device, n, args.pilot_seconds) for n in candidates}
    n_workers = min(pilots, key=lambda n: pilots[n])
    say(f"pilot, seconds per iteration by augmentation workers: {pilots}; taking {n_workers}")
    pilot_seconds = time.monotonic() - started
    trainer = make_trainer(args.fold, args.device, n_workers)
    trainer.fit_to_budget(60 * args.minutes, pilots[n_workers])
    trainer.run_training()
    report = trainer.report() | {
        "augmentation_workers": n_workers,
        "pilot_seconds_per_iteration": {str(n): round(s, 3) for n, s in pilots.items()},
        "planning_and_preprocessing_seconds": planning_seconds,
        "pilot_seconds": round(pilot_seconds, 1),
    }
    save_report(out, args, report)  # before prediction: a killed prediction loses no measurement
    started = time.monotonic()
    trainer.perform_actual_validation()
    report["prediction_seconds"] = round(time.monotonic() - started, 1)
    report["nnunet_foreground_dice"] = copy_masks(Path(trainer.output_folder) / "validation", out / "validation")
    save_report(out, args, report)
    say(f"masks in {out / 'validation'}, {json.dumps(report)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "dataset", type=Path, help="dataset folder in nnU-Net layout (dataset.json, imagesTr, labelsTr)"
    )
    parser.add_argument("splits", type=Path, help="segpipe's splits.json or nnU-Net's splits_final.json")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--minutes", type=float, required=True, help="wall time of training")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch; and processes")
    parser.add_argument("--workers", default="auto", help="augmentation processes; auto tries 0, 1 and 2")
    parser.add_argument("--pilot-seconds", type=float, default=30, help="of each number of workers tried")
    parser.add_argument("--seed", type=int, default=0, help="of the weights; nnunetv2's workers seed themselves")
    return parser.parse_args()


def say(text: str) -> None:
    """A line of progress."""
    print(f"[baseline] {text}", flush=True)


def _set_environment(work: Path, n_threads: int) -> None:
    """Must run before nnunetv2 and torch are imported: both read it at import."""
    folders = {f"nnUNet_{name}": work / name for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    settings = {"nnUNet_def_n_proc": n_threads, "OMP_NUM_THREADS": n_threads, "MPLBACKEND": "Agg"}
    os.environ.update({name: str(value) for name, value in (folders | settings).items()})


def read_folds(path: Path) -> list[dict[str, list[str]]]:
    """Folds as nnU-Net writes them (`train`, `val`), from its file or from segpipe's."""
    content = json.loads(path.read_text())
    folds = content["folds"] if isinstance(content, dict) else content
    return [{"train": list(f["train"]), "val": list(f.get("validation", f.get("val")))} for f in folds]


def _link_dataset(dataset: Path, folds: list[dict[str, list[str]]], raw: Path) -> None:
    """The dataset under the name that nnU-Net wants, without a copy."""
    description = json.loads((dataset / "dataset.json").read_text())
    ending = description["file_ending"]
    cases = {path.name.removesuffix(ending) for path in (dataset / "labelsTr").glob(f"*{ending}")}
    unknown = sorted({case for fold in folds for side in fold.values() for case in side} - cases)
    if unknown:
        sys.exit(f"the splits name cases without a label file in {dataset / 'labelsTr'}: {unknown[:5]}")
    raw.mkdir(parents=True, exist_ok=True)
    for name in ("imagesTr", "labelsTr"):
        (raw / name).unlink(missing_ok=True)
        (raw / name).symlink_to(dataset / name)
    (raw / "dataset.json").write_text(json.dumps(description | {"numTraining": len(cases)}))


def plan_and_preprocess(preprocessed: Path, n_processes: int) -> float:
    """nnU-Net's fingerprint, plan and preprocessing; returns the seconds. Done once for each output folder."""
    finished = preprocessed / "baseline_seconds.json"
    if finished.exists():
        say(f"preprocessed data of an earlier run are used: {preprocessed}")
        return float(json.loads(finished.read_text()))
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    started = time.monotonic()
    say("planning and preprocessing")
    extract_fingerprints([1], num_processes=n_processes, show_progress_bar=False)
    plan_experiments([1])
    preprocess([1], configurations=(CONFIGURATION,), num_processes=(n_processes,), show_progress_bar=False)
    seconds = round(time.monotonic() - started, 1)
    finished.write_text(json.dumps(seconds))
    say(f"planned and preprocessed in {seconds} s")
    return seconds


def make_trainer(fold: int, device: str, n_workers: int) -> Any:
    """A trainer of one fold, ready to run."""
    import torch
    from nnunetv2.paths import nnUNet_preprocessed

    from benchmarks.nnunet_budget import BudgetTrainer

    os.environ.update({"nnUNet_n_proc_DA": str(n_workers)})  # read when the loaders are made
    preprocessed = Path(nnUNet_preprocessed) / NAME
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    description = json.loads((preprocessed / "dataset.json").read_text())
    return BudgetTrainer(plans, CONFIGURATION, fold, description, torch.device(device))


def pilot(fold: int, device: str, n_workers: int, seconds: float) -> float:
    """Seconds per iteration with a number of augmentation workers, validation's share included."""
    trainer = make_trainer(fold, device, n_workers)
    try:
        return trainer.measure(seconds)
    finally:
        trainer.stop_workers()


def copy_masks(source: Path, target: Path) -> float:
    """Copy nnU-Net's validation masks; returns the mean foreground Dice of its own summary."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix != ".json":
            shutil.copy2(path, target)
    summary = json.loads((source / "summary.json").read_text())
    return round(float(summary["foreground_mean"]["Dice"]), 4)


def save_report(out: Path, args: argparse.Namespace, report: dict[str, Any]) -> None:
    """OUT/run.json: what was measured, with the versions it was measured with."""
    packages = ("nnunetv2", "dynamic-network-architectures", "batchgeneratorsv2", "torch", "numpy")
    settings = {"dataset": args.dataset.name, "fold": args.fold, "minutes": args.minutes, "seed": args.seed}
    settings |= {"device": args.device, "threads": args.threads}
    versions = {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in packages}
    (out / "run.json").write_text(json.dumps(settings | report | {"versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
