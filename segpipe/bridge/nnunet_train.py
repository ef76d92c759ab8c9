"""nnunetv2's own trainer on one fold for a given budget: the baseline segpipe is measured against.

    python -m segpipe.bridge.nnunet_train DATASET SPLITS --fold 0 --minutes 10 -o OUT

Everything is nnunetv2's: fingerprint, plan, preprocessing, network, augmentation, loss, optimiser, final prediction
with mirroring. Only the schedule is fitted to the budget, as its users would by hand: the number of epochs is such
that an epoch has about five iterations, and before each epoch the number of iterations is chosen from the seconds that
the last ones took, so that the last epoch (learning rate almost 0) ends with the budget. Pictures and checkpoints
during training are off, which leaves more of the minutes to training. The clock runs from the first iteration to the
end of the last epoch, validation iterations included; planning, preprocessing, the pilot and the final prediction have
their own times in OUT/run.json.

It runs in a process of its own, since nnunetv2 reads its folders from the environment when it is imported.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from segpipe.bridge.nnunet_raw import link_dataset, read_folds
from segpipe.core.errors import DataError, SegpipeError, SetupError, UsageError, package_needed
from segpipe.core.files import make_folder, write_text
from segpipe.core.machine import cpu_count
from segpipe.core.progress import say
from segpipe.core.records import Record, read_mapping
from segpipe.data.load import load_dataset

_NAME = "Dataset001_Baseline"
_CONFIGURATION = "3d_fullres"
_PACKAGES = ("nnunetv2", "dynamic-network-architectures", "batchgeneratorsv2", "torch", "numpy")
_SECONDS_TO_END = 30.0  # for the augmentation workers to go when a run is stopped
_MODULE = "segpipe.bridge.nnunet_train"
RUN_FILE = "run.json"


class NnunetJob(Record):
    """One training of nnunetv2.

    Args:
        fold: Which of the splits.
        seed: Of the weights; nnunetv2's augmentation workers seed themselves.
        minutes: Wall-clock time of training.
        steps: Instead: iterations.
        device: cpu or cuda.
        n_threads: Of torch, and processes of preprocessing and export.
    """

    fold: int
    seed: int
    minutes: float | None
    steps: int | None
    device: str
    n_threads: int


def train_nnunet(data: Path, splits: Path, job: NnunetJob, output: Path, shared: Path) -> Path:
    """Train in a process of its own and predict the fold's validation cases; returns the folder of the masks.

    Args:
        data: The dataset, in any layout with one file for each channel.
        splits: segpipe's splits.json or nnU-Net's splits_final.json.
        job: What to train.
        output: Folder for the masks and run.json.
        shared: Folder for nnU-Net's own files; preprocessed data in it are used again.

    Raises:
        SetupError: If nnunetv2 is not installed, or failed.
    """
    _require_nnunetv2()
    budget = ["--steps", str(job.steps)] if job.minutes is None else ["--minutes", str(job.minutes)]
    command = [sys.executable, "-m", _MODULE, str(data), str(splits), "--fold", str(job.fold), *budget]
    command += ["-o", str(output), "--nnunet-folder", str(shared), "--seed", str(job.seed)]
    process = subprocess.Popen([*command, "--device", job.device, "--threads", str(job.n_threads)], stdout=sys.stderr)
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(_SECONDS_TO_END)
    if code:
        raise SetupError(f"nnunetv2, fold {job.fold}: ended with code {code}; see its output above.")
    return output / "validation"


def main(arguments: list[str] | None = None) -> None:
    """Train one fold as the command line says."""
    args = _arguments(arguments)
    end_in_order()
    try:
        _run(args)
    except SegpipeError as fault:
        sys.exit(f"{fault}")


def end_in_order() -> None:
    """Exit on SIGTERM as after an error, which ends the augmentation workers; workers that are forked just end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if hasattr(os, "register_at_fork"):  # pools end workers by SIGTERM, and one that waits for a lock runs no Python
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _require_nnunetv2() -> None:
    with package_needed("nnunetv2", "the baseline of nnU-Net"):  # found, not imported: that reads the environment
        if importlib.util.find_spec("nnunetv2") is None:
            raise ImportError("No module named 'nnunetv2'")


def _run(args: argparse.Namespace) -> None:
    _require_nnunetv2()
    out = make_folder(args.output.resolve())
    shared = (args.nnunet_folder or out / "nnunet").resolve()
    dataset = load_dataset(args.dataset.resolve())
    folds = read_folds(args.splits, dataset)
    if not 0 <= args.fold < len(folds):
        raise UsageError(f"{args.splits}: has folds 0 to {len(folds) - 1}, --fold is {args.fold}.")
    _set_environment(shared, args.threads)
    link_dataset(dataset, shared / "raw" / _NAME)
    planning_seconds = _plan_and_preprocess(shared / "preprocessed" / _NAME, args.threads)
    write_text(shared / "preprocessed" / _NAME / "splits_final.json", json.dumps(folds))

    import numpy as np
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 (nnunetv2 draws from numpy's global state)
    started = time.monotonic()
    pilots = _pilots(args, shared)
    n_workers = min(pilots, key=lambda n: pilots[n])
    say(f"nnunetv2: seconds per iteration by augmentation workers: {pilots}; taking {n_workers}")
    report: dict[str, Any] = {"augmentation_workers": n_workers, "pilot_seconds_per_iteration": pilots}
    report |= {
        "planning_and_preprocessing_seconds": planning_seconds,
        "pilot_seconds": round(time.monotonic() - started, 1),
    }
    trainer = _make_trainer(args.fold, args.device, int(n_workers))
    if args.steps is None:
        trainer.fit_to_budget(60 * args.minutes, pilots[n_workers])
    else:
        trainer.fit_to_steps(args.steps)
    trainer.run_training()
    report |= trainer.report()
    _save_report(out, args, report)  # before prediction: a killed prediction loses no measurement
    started = time.monotonic()
    trainer.perform_actual_validation()
    report["prediction_seconds"] = round(time.monotonic() - started, 1)
    report["nnunet_foreground_dice"] = _copy_masks(Path(trainer.output_folder) / "validation", out / "validation")
    _save_report(out, args, report)
    say(f"nnunetv2: masks in {out / 'validation'}")


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="dataset in any layout with one file for each channel")
    parser.add_argument("splits", type=Path, help="segpipe's splits.json or nnU-Net's splits_final.json")
    parser.add_argument("--fold", type=int, default=0)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="wall time of training")
    budget.add_argument("--steps", type=int, help="iterations of training")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--nnunet-folder", type=Path, help="nnU-Net's own files; default: OUTPUT/nnunet")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=cpu_count(), help="of torch; and processes")
    parser.add_argument("--workers", default="auto", help="augmentation processes; auto tries 0, 1 and 2")
    parser.add_argument("--pilot-seconds", type=float, default=30, help="of each number of workers tried")
    parser.add_argument("--seed", type=int, default=0, help="of the weights; nnunetv2's workers seed themselves")
    return parser.parse_args(given)


def _set_environment(shared: Path, n_threads: int) -> None:
    """Must run before nnunetv2 and torch are imported: both read it at import."""
    folders = {f"nnUNet_{name}": make_folder(shared / name) for name in ("raw", "preprocessed", "results")}
    settings = {"nnUNet_def_n_proc": n_threads, "OMP_NUM_THREADS": n_threads, "MPLBACKEND": "Agg"}
    os.environ.update({name: str(value) for name, value in (folders | settings).items()})


def _plan_and_preprocess(preprocessed: Path, n_processes: int) -> float:
    """nnU-Net's fingerprint, plan and preprocessing; returns the seconds. Done once for each folder."""
    finished = preprocessed / "baseline_seconds.json"
    if finished.exists():
        say(f"nnunetv2: reusing the preprocessed data of an earlier run: {preprocessed}")
        return float(read_mapping(finished, DataError)["seconds"])
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    started = time.monotonic()
    say("nnunetv2: planning and preprocessing")
    extract_fingerprints([1], num_processes=n_processes, show_progress_bar=False)
    plan_experiments([1])
    preprocess([1], configurations=(_CONFIGURATION,), num_processes=(n_processes,), show_progress_bar=False)
    seconds = round(time.monotonic() - started, 1)
    write_text(finished, json.dumps({"seconds": seconds}))
    say(f"nnunetv2: planned and preprocessed in {seconds} s")
    return seconds


def _pilots(args: argparse.Namespace, shared: Path) -> dict[str, float]:
    """Seconds per iteration by number of augmentation workers; kept in the folder for the next fold."""
    kept = shared / "pilots.json"
    candidates = ("0", "1", "2") if args.workers == "auto" else (args.workers,)
    known = read_mapping(kept, DataError) if kept.is_file() else {}
    if not set(candidates) <= set(known):
        known = {n: round(_pilot(args.fold, args.device, int(n), args.pilot_seconds), 3) for n in candidates}
        write_text(kept, json.dumps(known))
    return {n: known[n] for n in candidates}


def _pilot(fold: int, device: str, n_workers: int, seconds: float) -> float:
    """Seconds per iteration with a number of augmentation workers, validation's share included."""
    trainer = _make_trainer(fold, device, n_workers)
    try:
        return float(trainer.measure(seconds))
    finally:
        trainer.stop_workers()


def _make_trainer(fold: int, device: str, n_workers: int) -> Any:
    """A trainer of one fold, ready to run."""
    import torch
    from nnunetv2.paths import nnUNet_preprocessed

    from segpipe.bridge.nnunet_budget import BudgetTrainer

    os.environ.update({"nnUNet_n_proc_DA": str(n_workers)})  # read when the loaders are made
    preprocessed = Path(nnUNet_preprocessed) / _NAME
    plans = read_mapping(preprocessed / "nnUNetPlans.json", DataError) | {"continue_training": False}
    description = read_mapping(preprocessed / "dataset.json", DataError)
    return BudgetTrainer(plans, _CONFIGURATION, fold, description, torch.device(device))


def _copy_masks(source: Path, target: Path) -> float:
    """Copy nnU-Net's validation masks; returns the mean foreground Dice of its own summary."""
    make_folder(target)
    for path in source.iterdir():
        if path.suffix != ".json":
            shutil.copy2(path, target)
    return round(float(read_mapping(source / "summary.json", DataError)["foreground_mean"]["Dice"]), 4)


def _save_report(out: Path, args: argparse.Namespace, report: dict[str, Any]) -> None:
    """OUT/run.json: what was measured, with the versions it was measured with."""
    names = ("fold", "minutes", "steps", "seed", "device", "threads")
    settings = {"dataset": args.dataset.name} | {name: getattr(args, name) for name in names}
    versions = {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in _PACKAGES}
    write_text(out / RUN_FILE, json.dumps(settings | report | {"versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
