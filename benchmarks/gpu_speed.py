"""The checks of the second call of gpu_accept.py: how fast a GPU trains and predicts, and what holds it up."""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import bench_training
import torch
from gpu_correct import ROOT
from gpu_outcome import Outcome, Setting, judged, unmeasured
from gpu_setting import CUDA, NAME, made_model, made_plan, network, of_values

from segpipe.core.history import History
from segpipe.core.prefetch import Prefetch
from segpipe.core.work import FoldFolder, Work
from segpipe.data.splits import Splits
from segpipe.pipeline import plan, prepare, train
from segpipe.pipeline.requests import Machine, PlanRequest, PrepareRequest, TrainRequest
from segpipe.plan.schema import Plan
from segpipe.predict.memory import budget_for, windows_at_once
from segpipe.predict.options import PredictOptions
from segpipe.predict.segment import Batching, logit_rows, segment
from segpipe.prepare.dataset import prepared_folder
from segpipe.prepare.store import PatchCase, load_case, on_device, open_case
from segpipe.train.fold import TRAIN, FoldData, FoldTraining
from segpipe.train.loop import BATCHES_AHEAD, loading_threads, train_fold

_SMALL_HEAD = (20, 24, 20)
_EMPTY_MODULE = '''"""Stands in for SimpleITK, which nnunetv2 imports and NIfTI does not need."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
'''


def beside_nnunetv2(setting: Setting, name: str, least: float) -> Outcome:
    """N: iterations a second beside nnunetv2's own trainer, in turns, by bench_training.py."""
    if name != bench_training.PHANTOM and setting.data is None:
        return Outcome("SKIP", "no such dataset was given (--data)")
    n_steps = setting.pick("40" if name == bench_training.PHANTOM else "200", "1")
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_training.py"), "--work", str(setting.work / "training")]
    command += [bench_training.PHANTOM if name == bench_training.PHANTOM else str(setting.data), "--cuda"]
    command += ["--ours", "auto", "--threads", setting.pick("4", "1"), "--rounds", setting.pick("3", "1")]
    command += ["--iterations", n_steps]
    if setting.quick:
        command += ["--workers", "1", "--phantom-shape", *map(str, _SMALL_HEAD)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=_with_nnunetv2(setting))
    rows = [tuple(line.strip("| ").split(" | ")) for line in done.stdout.splitlines() if line.startswith("| ")]
    ours = next((row for row in rows if "segpipe" in row[2]), None)
    if done.returncode or ours is None:
        return judged(False, f"bench_training.py ended with {done.returncode}", rows)
    times = float(ours[5])
    found = f"{ours[4]} iterations a second, {times:.2f} times nnunetv2's; GPU busy {ours[9]} of the steps"
    return unmeasured(setting, "the speed of a CPU", judged(times >= least, found, rows))


def _with_nnunetv2(setting: Setting) -> dict[str, str]:
    """The environment of nnunetv2's arm, with an empty SimpleITK where there is none."""
    environment = dict(os.environ)
    if importlib.util.find_spec("SimpleITK") is None:
        stub = setting.work / "empty" / "SimpleITK" / "__init__.py"
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(_EMPTY_MODULE)
        environment["PYTHONPATH"] = os.pathsep.join([str(stub.parent.parent), environment.get("PYTHONPATH", "")])
    return environment


def head(setting: Setting) -> tuple[Work, Plan, Path]:
    """The made-up heads, planned with two patches of 128³ and prepared."""
    data = bench_training.phantom(setting.work / "head", setting.pick(bench_training.PHANTOM_SHAPE_ZYX, _SMALL_HEAD))
    folder, on = setting.work / "head_work", Machine("cuda", 4)
    if not Work(folder).plan.is_file():
        plan.run(plan.resolve(PlanRequest(folder, on, data, preset="nnunet", gpu_memory_gib=8.0, predicts_costs=False)))
    prepare.run(prepare.resolve(PrepareRequest(folder, on, NAME)))
    found = Plan.load(Work(folder).plan)
    return Work(folder), found, prepared_folder(Work(folder), found, found.configurations[NAME])


def _with_training(plan_: Plan, **changes: Any) -> Plan:
    return plan_.model_copy(update={"training": plan_.training.model_copy(update=changes)})


def variants(setting: Setting) -> Outcome:
    """O: what choices cost, each against the first row."""
    work, plan_, folder = head(setting)
    split = Splits.load(work.splits).folds[0]
    compiled = None if not setting.quick else False
    on_disk = [open_case(folder / case_id) for case_id in split.train]
    in_memory = [load_case(case) for case in on_disk]
    there = [on_device(case, CUDA) for case in in_memory]
    usual = {"precision": "bf16", "compiled": compiled}
    arms: dict[str, tuple[dict[str, Any], Sequence[PatchCase]]] = {
        "bf16, compiled, cases on the GPU": (usual, there),
        "cases in memory": (usual, in_memory),
        "cases on disk": (usual, on_disk),
        "not compiled": (usual | {"compiled": False}, there),
        "channels last": (usual | {"channels_last": True}, there),
        "fp16": (usual | {"precision": "fp16"}, there),
    }
    rows, first = [("training", "iterations a second", "times the first", "waiting for data", "MiB reserved")], 0.0
    for name, (changes, cases) in arms.items():
        if time.time() > setting.ends - 60:
            rows.append((name, *["no time left"] * 4))
            continue
        fold = FoldTraining(
            *(_with_training(plan_, **changes), plan_.configurations[NAME], FoldData(0, split, cases, []), CUDA),
            is_new=True,
        )
        torch.cuda.reset_peak_memory_stats()
        rate, waiting = _rate(fold, setting.pick((3, 20, 20, 20), (1, 1)))
        first = first or rate
        peak = torch.cuda.max_memory_reserved() / 2**20
        rows.append((name, f"{rate:.2f}", f"{rate / first:.2f}", f"{waiting:.1%}", f"{peak:.0f}"))
        del fold
        torch._dynamo.reset()
        torch.cuda.empty_cache()
    return unmeasured(setting, "the speed of a CPU", Outcome("INFO", f"{len(arms)} trainings", tuple(rows)))


def _rate(fold: FoldTraining, rounds: Sequence[int]) -> tuple[float, float]:
    """Return steps a second, median of rounds of so many steps, and the share of their time spent waiting for data.

    The first round compiles and chooses kernels, and does not count.
    """
    rates, waited, whole = [], 0.0, 0.0
    with Prefetch(partial(fold.draw, TRAIN), loading_threads(CUDA), BATCHES_AHEAD) as batches:
        for number, n_steps in enumerate(rounds):
            torch.cuda.synchronize()
            begun, before = time.perf_counter(), batches.wait_seconds
            for _ in range(n_steps):
                fold.step(batches.get(fold.at.iteration), 0.01)
            torch.cuda.synchronize()
            if number:
                seconds = time.perf_counter() - begun
                rates.append(n_steps / seconds)
                waited, whole = waited + batches.wait_seconds - before, whole + seconds
    return statistics.median(rates), waited / whole


def busy(setting: Setting) -> Outcome:
    """Q: a training with epochs that end, and the share of the time in which the GPU computed."""
    work, plan_, folder = head(setting)
    split = Splits.load(work.splits).folds[0]
    n_epochs, n_steps, n_validation = setting.pick((4, 100, 20), (2, 1, 1))
    own = _with_training(
        plan_, iterations=n_epochs * n_steps, iterations_per_epoch=n_steps, validation_iterations=n_validation
    )
    cases = [
        [on_device(load_case(open_case(folder / i)), CUDA) for i in ids] for ids in (split.train, split.validation)
    ]
    place = FoldFolder(setting.work / "busy" / "fold_0")
    log = setting.work / "nvidia_smi.csv"
    watch = None
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "500"]
        watch = subprocess.Popen(query, stdout=log.open("w"))
    begun = time.monotonic()
    try:
        train_fold(own, NAME, FoldData(0, split, *cases), place, CUDA, begun)
    finally:
        if watch:
            watch.terminate()
            watch.wait()
    history = History.load(place.history)
    waiting = max(history.column("wait_share")[1:])
    later = history.seconds[-1] - history.seconds[0]  # epochs behind the first, which compiles
    if watch is None:
        return unmeasured(setting, "no nvidia-smi", judged(False, f"waiting for data {waiting:.1%}"))
    percent = [float(line) for line in log.read_text().splitlines() if line.strip().isdigit()]
    chosen = percent[-max(1, round(later / 0.5)) :]
    mean = statistics.mean(chosen)
    found = f"GPU busy {mean:.0f} % of {later:.0f} s with {n_epochs - 1} validations; waiting for data {waiting:.1%}"
    return unmeasured(setting, "no GPU", judged(mean >= 85 and waiting < 0.02, found))


def large_image(setting: Setting) -> Outcome:
    """P: predict a volume, and how long it takes to bring logits back to its grid."""
    shape, seen, patch = setting.pick(
        ((300, 512, 512), (200, 400, 400), (128, 128, 128)), ((24, 24, 24), (16, 20, 20), (8, 16, 16))
    )
    spec = network("plain", setting.pick((32, 64, 128, 256, 320, 320), (4, 8)))
    rows, worst = [("outputs", "mirrored", "windows at once", "seconds", "of them restoring", "share")], 0.0
    for n_outputs in setting.pick((3, 117), (3, 17)):
        training = {"precision": "auto"}
        own = made_plan(setting, of_values(n_outputs - 1), patch_zyx=patch, spec=spec, training=training)
        ensemble, prepared = made_model(own, CUDA, shape, seen)
        (model,) = ensemble.members
        batching = Batching(windows_at_once(model, budget_for(CUDA, None)))
        for mirrors in (False, True):
            options = PredictOptions(mirror=mirrors)
            segment(ensemble, [prepared], options, "first", batching) if not mirrors else None
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in logit_rows(model, prepared, options, batching):
                pass
            torch.cuda.synchronize()
            network_seconds = time.perf_counter() - begun
            begun = time.perf_counter()
            segment(ensemble, [prepared], options, "volume", batching)
            seconds = time.perf_counter() - begun
            restoring = max(0.0, seconds - network_seconds)
            worst = max(worst, restoring / seconds) if mirrors else worst
            cells = (f"{seconds:.2f}", f"{restoring:.2f}", f"{restoring / seconds:.0%}")
            rows.append((str(n_outputs), "yes" if mirrors else "no", str(batching.n_windows), *cells))
        del ensemble, model
        torch.cuda.empty_cache()
    found = f"{' × '.join(map(str, shape))}: restoring takes {worst:.0%} of a mirrored prediction at most"
    return unmeasured(setting, "the speed of a CPU", judged(worst < 0.1, found, rows))


def phases(setting: Setting) -> Outcome:
    """R: `segpipe train --profile` on the heads."""
    work, _, _ = head(setting)
    profile = train.profile(TrainRequest(work.path, Machine("cuda", 4), NAME, (0,)))
    rows = [("part of a step", "ms", "share")]
    rows += [
        (name, f"{1000 * seconds:.2f}", f"{profile.shares[name]:.1%}") for name, seconds in profile.seconds.items()
    ]
    found = f"{profile.bottleneck}: {profile.advice}"
    return unmeasured(setting, "the speed of a CPU", Outcome("INFO", found, tuple(rows)))
