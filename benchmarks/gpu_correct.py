"""The checks of the first call of gpu_accept.py: whether a GPU computes what the CPU does, and what it takes for it."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import bench_training
import numpy as np
import torch
from gpu_outcome import Outcome, Setting, judged, unmeasured
from gpu_setting import (
    CPU,
    CUDA,
    LABELS,
    NAME,
    REGIONS,
    fold_of,
    largest_difference,
    made_cases,
    made_model,
    made_plan,
    network,
    of_values,
    shape_for,
    steps,
)

from segpipe import load
from segpipe.core.errors import ResourceError
from segpipe.core.volume import read_image_channels
from segpipe.core.work import FoldFolder, Work
from segpipe.data.phantom import make_phantom
from segpipe.networks.cost import CUDA as CALIBRATION
from segpipe.pipeline import doctor, plan, prepare, train
from segpipe.pipeline.requests import Machine, PlanRequest, PrepareRequest, TrainRequest
from segpipe.plan.augmentation import AUGMENTATIONS
from segpipe.plan.schema import Plan
from segpipe.predict.options import PredictOptions
from segpipe.predict.segment import Batching, segment
from segpipe.train.fold import TRAIN, FoldTraining
from segpipe.train.loop import train_fold

ROOT = Path(__file__).parent.parent
_GIB, _MIB = 2**30, 2**20
TINY = (  # the smallest training of a dataset
    "training.validation_iterations=1",
    f"configurations.{NAME}.patch_zyx=[8,16,16]",
    f"configurations.{NAME}.network.features=[4,8]",
    f"configurations.{NAME}.network.strides_zyx=[[1,1,1],[2,2,2]]",
    f"configurations.{NAME}.network.kernels_zyx=[[3,3,3],[3,3,3]]",
    f"configurations.{NAME}.network.blocks=[1,1]",
    f"configurations.{NAME}.network.decoder_convolutions=[1]",
)
_SMALL_HEAD = (32, 32, 32)


def machine(setting: Setting) -> Outcome:
    """A: what is there, as `segpipe doctor` sees it."""
    found = [f for f in doctor.examine(setting.work) if f.about.startswith(("Python", "torch", "GPU", "compiling"))]
    rows = [("about", "found", "advice"), *((f.about, f.found, f.advice) for f in found)]
    no_fault = all(f.state == "ok" for f in found) and any(f.about.startswith("GPU") for f in found)
    return judged(no_fault, f"{torch.cuda.get_device_name(CUDA)}, torch {torch.__version__}", rows)


def gpu_tests(setting: Setting) -> Outcome:
    """B: the tests that need a GPU; on a stand-in those are left out that measure its memory."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "@pytest.mark.gpu" in path.read_text()]
    report = setting.work / "gpu_tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [*(["-k", "not predicted_gpu_memory"] if setting.quick else []), *map(str, files)]
    done = subprocess.run(command, cwd=ROOT)
    if not report.is_file():
        return judged(False, f"pytest ended with {done.returncode}")
    cases = ElementTree.parse(report).findall(".//testcase")
    kinds = Counter(next((child.tag for child in case if child.tag != "properties"), "passed") for case in cases)
    failed = [
        case.attrib["name"] for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    found = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) + "".join(f"; {name}" for name in failed)
    return judged(bool(cases) and set(kinds) == {"passed"} and done.returncode == 0, found)


def same_losses(setting: Setting) -> Outcome:
    """C: the same training on both."""
    plan_ = made_plan(setting)
    n_steps = setting.pick(20, 3)
    expected, found = (steps(fold_of(plan_, device), n_steps) for device in (CPU, CUDA))
    first, any_ = largest_difference(found[:1], expected[:1]), largest_difference(found, expected)
    return judged(
        first <= 1e-5 and any_ <= 1e-3, f"first loss differs by {first:.1e}, the most different by {any_:.1e}"
    )


def low_precision(setting: Setting) -> Outcome:
    """D: bf16 and fp16 learn as fp32 does; fp16 finds its loss scale in a few steps."""
    n_steps, n_last = setting.pick((100, 20), (6, 3))
    means, n_skipped = {}, 0
    for precision in ("fp32", "bf16", "fp16"):
        losses = steps(fold_of(made_plan(setting, training={"precision": precision}), CUDA), n_steps)
        means[precision] = float(np.mean([loss for loss in losses[-n_last:] if math.isfinite(loss)]))
        if precision == "fp16":
            n_skipped = sum(not math.isfinite(loss) for loss in losses[10:])
    worst = max(abs(means[p] / means["fp32"] - 1) for p in ("bf16", "fp16"))
    text = ", ".join(f"{precision} {mean:.4f}" for precision, mean in means.items())
    return judged(
        worst <= 0.02 and n_skipped <= 3, f"{text}: {worst:.2%} apart; fp16 skipped {n_skipped} after 10 steps"
    )


def same_augmentation(setting: Setting) -> Outcome:
    """E: the same numbers give the same images; noise is left out, since devices draw it differently."""
    rows, ok = [("augmentation", "largest difference of a voxel", "equal labels")], True
    for name in AUGMENTATIONS:
        if name == "none":
            continue
        plan_ = made_plan(setting, training={"augmentation": {"preset": name, "p_noise": 0.0}})
        cases = made_cases(plan_, shape_for(plan_.configurations[NAME].patch_zyx))
        folds = [fold_of(plan_, device, cases) for device in (CPU, CUDA)]
        apart, n_equal, n_all = 0.0, 0, 0
        for iteration in range(setting.pick(16, 4)):
            (image, labels), (image_there, labels_there) = (
                fold._augment(*fold.draw(TRAIN, iteration)) for fold in folds
            )
            apart = max(apart, float((image - image_there.cpu()).abs().max()))
            n_equal, n_all = n_equal + int((labels == labels_there.cpu()).sum()), n_all + labels.numel()
        rows.append((name, f"{apart:.1e}", f"{n_equal / n_all:.4%}"))
        ok &= apart <= 1e-3 and n_equal / n_all >= 0.999
    return judged(ok, f"{len(rows) - 1} augmentations", rows)


@contextmanager
def refusing_waits(setting: Setting) -> Iterator[Callable[[], str]]:
    """What in this block makes the host wait for the GPU: torch's own alarm, or what the stand-in has seen."""
    if setting.quick:
        from cuda.stand_in import FOUND

        FOUND.clear()
        yield lambda: "; ".join(FOUND.waits)
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield lambda: ""
    finally:
        torch.cuda.set_sync_debug_mode("default")


def no_waits(setting: Setting) -> Outcome:
    """F: no step waits for the GPU, but for its loss at the end."""
    rows = [("training", "waits")]
    recipes = {
        "labels": (LABELS, {"augmentation": "nnunet", "precision": "bf16"}),
        "regions": (REGIONS, {"augmentation": "light", "optimizer": "adamw"}),
        "strong": (of_values(2, ignore_value=9), {"augmentation": "strong", "precision": "fp16"}),
    }
    for name, (labels, training) in recipes.items():
        fold = fold_of(made_plan(setting, labels, training=training), CUDA)
        steps(fold, 2)  # the first ones choose kernels and make the optimizer's state
        batches = [fold.draw(TRAIN, fold.at.iteration + n) for n in range(5)]
        try:
            with refusing_waits(setting) as seen:
                for batch in batches:
                    fold.step(batch, 0.01)
                found = seen()
        except RuntimeError as fault:
            found = str(fault).splitlines()[0]
        rows.append((name, found or "none"))
    return judged(all(row[1] == "none" for row in rows[1:]), f"{len(recipes)} trainings of 5 steps", rows)


def resumed(setting: Setting) -> Outcome:
    """G: a training that stopped and went on ends as one that did not."""
    n_steps, plan_ = setting.pick(10, 4), made_plan(setting, training={"augmentation": "light"})
    torch.use_deterministic_algorithms(True, warn_only=True)

    def new() -> FoldTraining:
        fold = fold_of(plan_, CUDA)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        return fold

    whole, stopped, goes_on = new(), new(), new()
    steps(whole, n_steps)
    steps(stopped, n_steps // 2)
    file = setting.work / "state.pt"
    torch.save(stopped.state(finished=False), file)
    goes_on.restore(torch.load(file, map_location="cpu", weights_only=True))
    steps(goes_on, n_steps - n_steps // 2)
    torch.use_deterministic_algorithms(False)
    expected, found = (
        torch.cat([p.detach().cpu().flatten() for p in f.network.parameters()]) for f in (whole, goes_on)
    )
    apart = float((found - expected).abs().max() / expected.abs().max())
    same = "equal bit for bit" if torch.equal(found, expected) else f"not equal bit for bit: {apart:.1e} apart"
    return judged(apart <= 1e-4, f"{n_steps} steps or {n_steps // 2} and the rest: {same}")


def trained(setting: Setting) -> tuple[Work, Path]:
    """A fold of the phantom that a GPU has trained, and the folder of its images."""
    data, folder = make_phantom(setting.work / "phantom", setting.pick(6, 3), 0), setting.work / "trained"
    on = Machine("cuda", 4)
    edits = ("training.compiled=false", *(TINY if setting.quick else ()))
    plan.run(plan.resolve(PlanRequest(folder, on, data, preset="nnunet", predicts_costs=False, edits=edits, n_folds=3)))
    prepare.run(prepare.resolve(PrepareRequest(folder, on, NAME)))
    n_steps = setting.pick(200, 4)
    train.train(TrainRequest(folder, on, NAME, (0,), iterations=n_steps))
    return Work(folder), data / "imagesTr"


def same_masks(setting: Setting) -> Outcome:
    """H: train and predict on a GPU; the same weights predict the same on the CPU."""
    work, images = trained(setting)
    ids = sorted({path.name.rsplit("_", 1)[0] for path in images.iterdir()})[: setting.pick(4, 1)]
    stored = work.fold(NAME, "0").plan
    masks: dict[tuple[str, str], list[np.ndarray]] = {}
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")):
        own = Plan.load(stored)
        own.model_copy(update={"training": own.training.model_copy(update={"precision": precision})}).save(stored)
        predictor = load(work.path, device=device, folds=[0], mirror=not setting.quick)
        volumes = [
            read_image_channels([images / f"{case}_{channel:04d}.nii.gz" for channel in range(2)]) for case in ids
        ]
        masks[device, precision] = [predictor.predict(v.voxels_czyx, affine=v.grid.affine_ras_mm).mask for v in volumes]
    rows, expected = [("prediction", "equal voxels", "smallest Dice with the CPU's mask")], masks["cpu", "fp32"]
    ok, untrained = True, ("bf16", 0.98, 0.98)  # of which a rehearsal predicts: many voxels are almost ties
    for precision, least, least_dice in (("fp32", 0.9999, 0.0), setting.pick(("bf16", 0.999, 0.999), untrained)):
        pairs = list(zip(masks["cuda", precision], expected, strict=True))
        equal, dice = min(float((a == b).mean()) for a, b in pairs), min(_dice(a, b) for a, b in pairs)
        ok &= equal >= least and dice >= least_dice
        rows.append((f"cuda {precision}", f"{equal:.4%}", f"{dice:.4f}"))
    n_labels = len(np.unique(np.concatenate([mask.ravel() for mask in expected])))
    return judged(ok, f"{len(ids)} images, {n_labels} values in the CPU's masks", rows)


def _dice(found: np.ndarray, expected: np.ndarray) -> float:
    """Smallest Dice of a value that is in either mask; 1 if there is none."""
    values = (set(np.unique(found)) | set(np.unique(expected))) - {0}
    pairs = [(found == value, expected == value) for value in values]
    return min((2 * float((a & b).sum()) / float(a.sum() + b.sum()) for a, b in pairs), default=1.0)


def memory_of(setting: Setting, preset: str) -> Outcome:
    """I: three steps of a preset's plan for a head, beside what the planner foretold."""
    head = bench_training.phantom(setting.work / "head", setting.pick(bench_training.PHANTOM_SHAPE_ZYX, _SMALL_HEAD))
    edits = ("training.compiled=false", *((f"configurations.{NAME}.batch_size=2",) if setting.quick else ()))
    request = PlanRequest(setting.work / preset, Machine("cuda", 4), head, preset=preset, edits=edits)
    planned = plan.run(plan.resolve(request))
    (cost,) = [cost for cost in planned.costs if cost.configuration == NAME]
    chosen = planned.plan.configurations[NAME]
    shape = tuple(map(round, chosen.median_shape_zyx))
    fold = fold_of(planned.plan, CUDA, made_cases(planned.plan, shape))  # type: ignore[arg-type]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    steps(fold, setting.pick(3, 1))
    predicted = cost.training_gib * _GIB - CALIBRATION.context_bytes
    measured, n_retries = torch.cuda.max_memory_reserved(), torch.cuda.memory_stats()["num_alloc_retries"]
    apart = predicted / measured - 1
    patch = " × ".join(map(str, chosen.patch_zyx))
    found = (
        f"{patch}, {chosen.batch_size}, {fold.dtype}: predicted {predicted / _MIB:.0f} MiB, reserved "
        f"{measured / _MIB:.0f} MiB ({apart:+.1%}), allocated {torch.cuda.max_memory_allocated() / _MIB:.0f} MiB; "
        f"{n_retries} retries"
    )
    outcome = judged(-0.05 <= apart <= 0.15 and not n_retries, found)
    return unmeasured(setting, "a stand-in has no cuDNN, which takes memory of its own", outcome)


@contextmanager
def limited(n_bytes: int) -> Iterator[None]:
    """Let torch hold so much of the GPU's memory."""
    total = torch.cuda.mem_get_info(CUDA)[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(n_bytes / total, CUDA)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)


def little_memory(setting: Setting) -> Outcome:
    """J: training that does not fit says so; prediction takes less at a time and gives the same mask."""
    edge, features = setting.pick((96, (32, 64, 128)), (32, (8, 16)))
    plan_ = made_plan(setting, patch_zyx=(edge,) * 3, spec=network("plain", features))
    fold = fold_of(plan_, CPU)
    folder = FoldFolder(setting.work / "does_not_fit")
    said = "training did not run out of memory"
    with limited(setting.pick(512, 8) * _MIB):
        try:
            train_fold(plan_, NAME, fold.data, folder, CUDA, time.monotonic())
        except ResourceError as fault:
            said = str(fault)
    model, prepared = made_model(plan_, CUDA, tuple(2 * edge for _ in range(3)))
    n_many, options, notes = 8, PredictOptions(mirror=False), list[str]()
    peaks, masks = [], []
    for n in (1, n_many):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        masks.append(segment(model, [prepared], options, "case", Batching(n))[0].mask_zyx)
        peaks.append(torch.cuda.max_memory_reserved())
    with limited(sum(peaks) // 2):
        mask = segment(model, [prepared], options, "case", Batching(n_many), note=notes.append)[0].mask_zyx
    equal = float((mask == masks[0]).mean())
    ok = "not enough" in said and "Use a smaller" in said and bool(notes) and equal >= 0.9999
    again = f"{len(notes)} further tries, {equal:.4%} of the mask equal"
    return judged(ok, f"training: {said[:120]} Prediction ({peaks[0] >> 20} and {peaks[1] >> 20} MiB): {again}")


def compiled(setting: Setting) -> Outcome:
    """K: a compiled network has one graph without breaks to train, and one to validate."""
    from torch._dynamo.utils import counters, get_compilation_metrics

    blocks = setting.pick((1, 3, 4, 6, 6, 6), (1, 1))
    features = setting.pick((32, 64, 128, 256, 320, 320), (4, 8))
    spec = network("residual", features).model_copy(
        update={"blocks": blocks, "decoder_convolutions": (1,) * (len(blocks) - 1)}
    )
    patch = setting.pick((128, 128, 128), (8, 16, 16))
    training = {"compiled": not setting.quick, "precision": "auto", "augmentation": "nnunet"}
    begun = time.monotonic()
    fold = fold_of(made_plan(setting, patch_zyx=patch, spec=spec, training=training), setting.pick(CUDA, CPU))
    if setting.quick:
        fold.network.compile(backend="eager")
    steps(fold, 1)
    first = time.monotonic() - begun
    steps(fold, 2)
    fold.validate(2)
    steps(fold, 3)
    total = time.monotonic() - begun
    graphs = Counter(m.co_name for m in get_compilation_metrics() if m.fail_reason is None and m.co_name)
    n_breaks = sum(counters["graph_break"].values())
    reasons = "; ".join(counters["graph_break"])[:300]
    found = (
        f"{n_breaks} breaks, graphs {dict(graphs)}; first step after {first:.0f} s, all after {total:.0f} s {reasons}"
    )
    outcome = judged(not n_breaks and bool(graphs) and max(graphs.values()) <= 2, found)
    return unmeasured(setting, "kernels are not compiled without a GPU: graphs are traced on the CPU", outcome)


def finite(setting: Setting) -> Outcome:
    """L: what the other checks leave out takes three steps and a validation."""
    rows = [("training", "losses", "validation")]
    slice_ = setting.pick((1, 256, 256), (1, 16, 16))
    flat = network("plain", setting.pick((32, 64, 128, 256), (4, 8)), n_axes=2)
    recipes = {
        "2D": made_plan(setting, patch_zyx=slice_, spec=flat, training={"augmentation": "nnunet"}),
        "cascade": made_plan(setting, guided=True, training={"augmentation": "nnunet"}),
        "strong": made_plan(setting, training={"augmentation": "strong", "precision": "bf16"}),
        "117 labels": made_plan(setting, of_values(setting.pick(117, 20)), training={"augmentation": "nnunet"}),
        "regions, Muon": made_plan(setting, REGIONS, training={"augmentation": "light", "optimizer": "muon"}),
    }
    ok = True
    for name, plan_ in recipes.items():
        fold = fold_of(plan_, CUDA)
        losses = steps(fold, 3)
        validation, _ = fold.validate(1)
        ok &= all(map(math.isfinite, (*losses, validation)))
        rows.append((name, ", ".join(f"{loss:.3f}" for loss in losses), f"{validation:.3f}"))
    return judged(ok, f"{len(recipes)} trainings", rows)


def calibration(setting: Setting) -> Outcome:
    """M: bench_memory.py, whose last lines name the constants for `CUDA` in segpipe/networks/cost.py."""
    networks = setting.pick(["plain_4", "residual_4", "segresnet"], ["plain_4"])
    script = str(ROOT / "benchmarks" / "bench_memory.py")
    command = [sys.executable, script, "--device", "cuda", *(["--smallest"] if setting.quick else [])]
    done = subprocess.run([*command, "--networks", *networks], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return judged(False, f"bench_memory.py ended with {done.returncode}")
    _, _, told = done.stdout.partition("best calibration: ")
    best, *lines = told.splitlines()
    names = (
        "network",
        "patch",
        "precision",
        "tensors predicted",
        "measured",
        "error",
        "predicted",
        "reserved",
        "error",
    )
    rows = [names, *(tuple(line.strip("| ").split(" | ")) for line in lines if line.startswith("|"))]
    return unmeasured(
        setting, "a stand-in has no cuDNN, which takes memory of its own", Outcome("INFO", best, tuple(rows))
    )
