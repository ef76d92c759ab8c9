"""Time and peak memory from logits to a mask on the image's grid, compared with nnunetv2's export of the same logits.

    python benchmarks/bench_export.py [--shape 200 256 256] [--labels 117] [--rounds 3] [--threads 1]
    python benchmarks/bench_export.py --full

The image has voxels of 1 × 0.75 × 0.75 mm. Logits at 3 mm and at 1.5 mm are smooth noise, so that every label wins
somewhere. Each call is a process of its own, and the two take turns. Seconds are those of the call alone, the median
over rounds. Memory is the peak above that of the idle process, logits included. `--full` reads, prepares, predicts
and exports an image of 600 × 512 × 512 voxels with a small network of 117 outputs and random weights; its memory is
the peak of the whole process. nnunetv2 would not fit into most machines. Prints Markdown.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segpipe.core.grid import Box
from segpipe.core.labels import Label, LabelSet
from segpipe.prepare.case import Trace

SPACING_MM = (1.0, 0.75, 0.75)
TARGETS_MM = (3.0, 1.5)
FULL_SHAPE, FULL_PATCH = (600, 512, 512), (128, 128, 128)


def label_set(n_labels: int) -> LabelSet:
    return LabelSet(labels=tuple(Label(name=f"structure {v}", values=(v,)) for v in range(1, n_labels)))


def trace_of(shape: tuple[int, int, int], target_mm: float) -> Trace:
    z, y, x = (round(n * edge / target_mm) for n, edge in zip(shape, SPACING_MM, strict=True))
    return Trace(
        shape_zyx=shape,
        axes_zyx=(0, 1, 2),
        flips_zyx=(False, False, False),
        spacing_mm=SPACING_MM,
        box=Box(start_zyx=(0, 0, 0), stop_zyx=shape),
        target_mm=(target_mm,) * 3,
        prepared_shape_zyx=(z, y, x),
    )


def smooth_noise(n_outputs: int, shape: tuple[int, int, int]) -> np.ndarray:
    torch.manual_seed(0)
    coarse = torch.randn(1, n_outputs, *(max(2, n // 8) for n in shape))
    return torch.nn.functional.interpolate(coarse, shape, mode="trilinear")[0].mul_(5).numpy()


def ours(logits: np.ndarray, trace: Trace) -> np.ndarray:
    from segpipe.predict.restore import restore

    return restore(torch.from_numpy(logits).unbind(1), trace, label_set(len(logits))).mask_zyx


def nnunets(logits: np.ndarray, trace: Trace) -> np.ndarray:
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "spacing": list(trace.target_mm),
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": {},
    }
    plans = PlansManager(
        {
            "plans_name": "export",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {"3d_fullres": configuration},
        }
    )
    labels = {"background": 0, **{label.name: label.values[0] for label in label_set(len(logits)).labels}}
    properties = {
        "spacing": list(trace.spacing_mm),
        "shape_before_cropping": trace.shape_zyx,
        "shape_after_cropping_and_before_resampling": trace.shape_zyx,
        "bbox_used_for_cropping": [[0, n] for n in trace.shape_zyx],
    }
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits,
        plans,
        plans.get_configuration("3d_fullres"),
        LabelManager(labels, None),
        properties,
        num_threads_torch=torch.get_num_threads(),
    )


ARMS = {"segpipe": ours, "nnunetv2": nnunets}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_arm(arm: str, folder: Path, shape: tuple[int, int, int], target_mm: float) -> dict[str, float]:
    """Turn the folder's logits into a mask in it; runs in a process of its own."""
    trace = trace_of(shape, target_mm)
    logits = np.load(folder / "logits.npy")
    small = trace_of((4, 4, 4), target_mm)
    ARMS[arm](np.ascontiguousarray(logits[:, : small.prepared_shape_zyx[0], :1, :1]), _shaped(small))  # imports
    before = peak_bytes() - logits.nbytes
    started = time.perf_counter()
    mask = ARMS[arm](logits, trace)
    seconds = time.perf_counter() - started
    np.save(folder / f"{arm}.npy", np.asarray(mask))
    return {"seconds": seconds, "bytes": peak_bytes() - before}


def _shaped(trace: Trace) -> Trace:
    return trace.model_copy(update={"prepared_shape_zyx": (trace.prepared_shape_zyx[0], 1, 1)})


def run_full(folder: Path, target_mm: float) -> dict[str, float]:
    """Turn an image file into a mask file; runs in a process of its own."""
    from segpipe.core.volume import write_mask
    from segpipe.data.dataset import Case
    from segpipe.networks.build import build, ready_to_predict
    from segpipe.networks.spec import NetworkSpec
    from segpipe.plan.schema import Configuration, Normalisation, Plan
    from segpipe.plan.training import Training
    from segpipe.predict.model import Model
    from segpipe.predict.options import PredictOptions
    from segpipe.predict.restore import restore
    from segpipe.predict.segment import Batching, logit_rows
    from segpipe.prepare.case import prepare_case

    network = NetworkSpec(
        kind="plain",
        features=(8, 16),
        strides_zyx=((1, 1, 1), (2, 2, 2)),
        kernels_zyx=((3, 3, 3),) * 2,
        blocks=(1, 1),
        decoder_convolutions=(1,),
    )
    configuration = Configuration(
        spacing_mm=(target_mm,) * 3,
        median_shape_zyx=FULL_PATCH,
        patch_zyx=FULL_PATCH,
        batch_size=2,
        batch_dice=False,
        network=network,
    )
    plan = Plan(
        preset="nnunet",
        dataset="full",
        fingerprint="0",
        channels=("CT",),
        labels=label_set(117),
        orientation="RAS",
        axis_order=(0, 1, 2),
        normalisation=(Normalisation(scheme="ct", low=-1000, high=1000, mean=0, std=300),),
        mirror_axes=(),
        configurations={"3d_fullres": configuration},
        training=Training(precision="fp32"),
        reasons={},
    )
    torch.manual_seed(0)
    ready = ready_to_predict(build(network, 1, 117), network.kind, network.n_axes, torch.device("cpu"))
    model = Model(plan, configuration, (ready,), "0")
    image = folder / "image.nii.gz"
    started = time.perf_counter()
    prepared = prepare_case(Case(case_id="c", patient_id="c", images=(str(image),)), plan, configuration)
    ready = time.perf_counter()
    waited = 0.0

    def timed_rows() -> Any:
        nonlocal waited
        rows = logit_rows(model, prepared, PredictOptions(), Batching())
        while True:
            asked = time.perf_counter()
            row = next(rows, None)
            waited += time.perf_counter() - asked
            if row is None:
                return
            yield row

    mask = restore(timed_rows(), prepared.trace, plan.labels).mask_zyx
    done = time.perf_counter()
    write_mask(folder / "mask.nii.gz", mask, image)
    written = time.perf_counter()
    return {
        "prepare": ready - started,
        "windows": waited,
        "export": done - ready - waited,
        "write": written - done,
        "bytes": peak_bytes(),
    }


def write_full_image(path: Path) -> None:
    """Make a body of noise in air."""
    from segpipe.core.volume import write_image

    generator = np.random.default_rng(0)
    image = np.full(FULL_SHAPE, -1024, np.int16)
    image[20:-20, 60:-60, 60:-60] = generator.integers(
        -100, 200, (FULL_SHAPE[0] - 40, *(n - 120 for n in FULL_SHAPE[1:])), dtype=np.int16
    )
    write_image(path, image[None], np.diag([*SPACING_MM[::-1], 1.0]))


def child(options: argparse.Namespace, *arguments: object) -> dict[str, float]:
    """Return what another process of this script measured."""
    command = [sys.executable, __file__, "--threads", str(options.threads), "--shape", *map(str, options.shape)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(options: argparse.Namespace, folder: Path) -> None:
    shape = tuple(options.shape)
    print("| logits at | logits, GB | segpipe, s | nnunetv2, s | ratio | segpipe, GB | nnunetv2, GB | equal voxels |")
    print("|---|---|---|---|---|---|---|---|")
    for target_mm in TARGETS_MM:
        logits = smooth_noise(options.labels, trace_of(shape, target_mm).prepared_shape_zyx)
        np.save(folder / "logits.npy", logits)
        size_gb = logits.nbytes / 1e9
        del logits
        found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
        for _ in range(options.rounds):
            for arm in ARMS:
                found[arm].append(child(options, "--arm", arm, "--folder", folder, "--target", target_mm))
        seconds = {arm: statistics.median(run["seconds"] for run in runs) for arm, runs in found.items()}
        peak_gb = {arm: max(run["bytes"] for run in runs) / 1e9 for arm, runs in found.items()}
        one, other = (np.load(folder / f"{arm}.npy") for arm in ARMS)
        print(
            f"| {target_mm} mm | {size_gb:.2f} | {seconds['segpipe']:.2f} | {seconds['nnunetv2']:.1f} | "
            f"{seconds['nnunetv2'] / seconds['segpipe']:.1f} | {peak_gb['segpipe']:.2f} | {peak_gb['nnunetv2']:.2f} | "
            f"{(one == other).mean():.6%} |",
            flush=True,
        )


def full(options: argparse.Namespace, folder: Path) -> None:
    write_full_image(folder / "image.nii.gz")
    print("| plan's spacing | prepare, s | windows, s | export, s | write, s | peak, GB |")
    print("|---|---|---|---|---|---|")
    for target_mm in TARGETS_MM:
        run = child(options, "--full", "--folder", folder, "--target", target_mm)
        cells = " | ".join(f"{run[part]:.0f}" for part in ("prepare", "windows", "export", "write"))
        print(f"| {target_mm} mm | {cells} | {run['bytes'] / 1e9:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 256, 256), metavar=("Z", "Y", "X"))
    parser.add_argument("--labels", type=int, default=117, help="background included")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.folder is not None:
        if options.full:
            run = run_full(options.folder, options.target)
        else:
            run = run_arm(options.arm, options.folder, tuple(options.shape), options.target)
        print(json.dumps(run))
        return
    shape = FULL_SHAPE if options.full else tuple(options.shape)
    print(f"image {shape}, {117 if options.full else options.labels} outputs, {options.threads} threads, ", end="")
    print(f"torch {torch.__version__}, {platform.machine()}, load {os.getloadavg()[0]:.0f}\n")
    with tempfile.TemporaryDirectory() as folder:
        (full if options.full else compare)(options, Path(folder))


if __name__ == "__main__":
    main()
