"""Predicted and measured peak memory of predictions on a CPU.

python benchmarks/bench_predict_memory.py [--cases NAME …]
python benchmarks/bench_predict_memory.py --works NAME=WORK … > benchmarks/results/predict_memory.md

Every case runs in a fresh process: random weights and one image, with `segpipe predict`'s own functions from file to
mask. The image has one value except for an empty slice, so that windows are computed once and a run takes seconds.
With --works the command `segpipe predict` itself is measured: the default configuration of planned work folders, with
random weights and without mirroring, and the largest image of the dataset; predicted is what --dry-run says.
Predicted: the memory of the program itself, plus the case with the windows of the network (`segpipe.predict.memory`).
Measured: the most resident memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

from segpipe.core.labels import Label, LabelSet
from segpipe.core.volume import write_image
from segpipe.core.work import FoldFolder, Work
from segpipe.data.dataset import Case, Dataset
from segpipe.networks.build import build, ready_to_predict
from segpipe.networks.cost import CPU
from segpipe.networks.spec import NetworkSpec
from segpipe.pipeline.plan import default_configuration
from segpipe.plan.schema import Configuration, Normalisation, Plan, Training
from segpipe.predict.memory import prediction_bytes, readable_grids, window_bytes
from segpipe.predict.model import Ensemble, Model
from segpipe.predict.options import PredictOptions
from segpipe.predict.run import predict_cases
from segpipe.train.checkpoint import save_weights

_MALLOC = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once


@dataclass(frozen=True)
class Setting:
    """One prediction.

    Args:
        shape_zyx: Shape of the image, with voxels of 1 mm.
        target_mm: Edges of the voxels that the network sees.
        n_labels: Number of labels without background.
        n_channels: Number of channels of the image.
        n_folds: Number of networks to average.
        mirror, probabilities, uncertainty: As for `segpipe predict`.
        dtype: Type of the voxels in the file.
        patch_zyx: Shape of a window.
        precision: Precision of the network.
    """

    shape_zyx: tuple[int, int, int]
    target_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    n_labels: int = 2
    n_channels: int = 1
    n_folds: int = 1
    mirror: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    dtype: str = "int16"
    patch_zyx: tuple[int, int, int] = (64, 96, 96)
    precision: str = "fp32"


_LARGE = (200, 320, 320)
SETTINGS = {
    "small": Setting((40, 56, 40)),
    "mirrored": Setting((40, 56, 40), mirror=True),
    "large": Setting(_LARGE),
    "large float64": Setting(_LARGE, dtype="float64"),
    "to 2 mm": Setting(_LARGE, (2.0, 2.0, 2.0)),
    "to 0.7 mm": Setting((120, 224, 224), (0.7, 0.7, 0.7)),
    "anisotropic": Setting((40, 320, 320), (1.0, 0.8, 0.8), patch_zyx=(8, 160, 160)),
    "4 channels": Setting((155, 240, 240), n_channels=4),
    "30 labels": Setting((160, 224, 224), n_labels=30),
    "30 labels to 2 mm": Setting(_LARGE, (2.0, 2.0, 2.0), n_labels=30),
    "30 labels, probabilities": Setting((160, 224, 224), (2.0, 2.0, 2.0), n_labels=30, probabilities=True),
    "3 folds, uncertainty": Setting((160, 224, 224), n_folds=3, uncertainty=True),
    "bf16": Setting((160, 224, 224), precision="bf16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--works", nargs="*", metavar="NAME=WORK")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(SETTINGS[options.measure])))
        return
    if options.works:
        print_works(options.works)
        return
    print("# Memory of predictions\n\nMiB; one CPU thread; a fresh process for each.\n")
    print("| case | image | labels | predicted | measured | predicted / measured |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in options.cases:
        command = [sys.executable, __file__, "--measure", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | _MALLOC)
        foretold, peak = (value / 2**20 for value in json.loads(done.stdout))
        setting = SETTINGS[name]
        image = " × ".join(map(str, (setting.n_channels, *setting.shape_zyx)))
        row = [name, image, setting.n_labels, f"{foretold:.0f}", f"{peak:.0f}", f"{foretold / peak:.2f}"]
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def print_works(works: Sequence[str]) -> None:
    """Print a row for each NAME=WORK: what `segpipe predict --dry-run` says, and the most that the command held."""
    print("# Memory of predictions\n\nGiB; one CPU thread.\n")
    print("| dataset | configuration | image, voxels (z, y, x) | predicted | measured | error |")
    print("|---|---|---|---|---|---|", flush=True)
    for text in works:
        name, _, folder = text.partition("=")
        work = Work(Path(folder))
        plan = Plan.load(work.plan)
        configuration = default_configuration(plan, None)
        grids = readable_grids(Dataset.load(work.dataset).cases)
        largest = max(grids, key=lambda case_id: prod(grids[case_id].shape_zyx))
        images = Dataset.load(work.dataset).by_id[largest].images
        with tempfile.TemporaryDirectory() as scratch:
            fold, inputs = FoldFolder(Path(scratch) / "model" / "fold_0"), Path(scratch) / "images"
            inputs.mkdir()
            for channel, image in enumerate(images):
                ending = "".join(Path(image).suffixes[-2:])
                (inputs / f"image_{channel:04d}{ending}").symlink_to(image)
            write_random(plan, configuration, fold)
            command = [sys.executable, "-m", "segpipe", "predict", "-m", str(fold.path), "-i", str(inputs),
                       "-o", str(Path(scratch) / "out"), "--device", "cpu", "-j", "1", "--no-tta"]  # fmt: skip
            said = subprocess.run([*command, "--dry-run", "--json"], check=True, stdout=subprocess.PIPE, text=True)
            foretold = json.loads(said.stdout)["memory_bytes"] / 2**30
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
                _, status, used = os.wait4(running.pid, 0)
                running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode:
            raise SystemExit(f"{name}: segpipe predict ended with {running.returncode}")
        peak = used.ru_maxrss / 2**20
        shape = " × ".join(map(str, grids[largest].shape_zyx))
        row = (name, configuration, shape, f"{foretold:.2f}", f"{peak:.2f}", f"{100 * (foretold / peak - 1):+.0f} %")
        print(f"| {' | '.join(row)} |", flush=True)


def write_random(plan: Plan, name: str, fold: FoldFolder) -> None:
    """Write a fold with random weights, and what a cascade is guided by."""
    for one in dict.fromkeys([name, *filter(None, [plan.configurations[name].previous])]):
        own = plan.configurations[one]
        place = fold if one == name else FoldFolder(fold.path.parent.parent / one / "fold_0")
        place.path.mkdir(parents=True)
        plan.save(place.plan)
        network = build(own.network, plan.n_inputs(own), plan.labels.n_outputs)
        save_weights(place.weights, network, {"configuration": one, "fold": "0", "finished": "1"})


def measured(setting: Setting) -> tuple[int, int]:
    """Return the predicted bytes and the most that this process held."""
    model = model_of(setting)
    options = PredictOptions(
        mirror=setting.mirror, probabilities=setting.probabilities, uncertainty=setting.uncertainty, any_size=True
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "image.nii.gz"
        voxels = np.full((setting.n_channels, *setting.shape_zyx), 100, setting.dtype)
        voxels[:, 0] = 0  # is cropped; nearly all is left
        write_image(path, voxels, np.eye(4))
        del voxels
        case = Case(case_id="image", patient_id="image", images=(str(path),))
        (grid,) = readable_grids([case]).values()
        of_case = prediction_bytes(grid, Ensemble((model,)), options, windows_bytes=window_bytes(model, 1), spools=True)
        foretold = CPU.context_bytes + of_case
        predict_cases(model, [case], Path(scratch) / "out", options).require_all()
    return foretold, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def model_of(setting: Setting) -> Model:
    """Make a small network, so that the case takes more memory than its windows."""
    labels = LabelSet(labels=tuple(Label(name=f"l{n}", values=(n,)) for n in range(1, setting.n_labels + 1)))
    spec = NetworkSpec(
        kind="plain",
        features=(8, 16, 32),
        strides_zyx=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        kernels_zyx=((3, 3, 3),) * 3,
        blocks=(1, 1, 1),
        decoder_convolutions=(1, 1),
    )
    configuration = Configuration(
        spacing_mm=setting.target_mm,
        median_shape_zyx=setting.shape_zyx,
        patch_zyx=setting.patch_zyx,
        batch_size=2,
        batch_dice=False,
        network=spec,
    )
    plan = Plan(
        preset="nnunet",
        dataset="noise",
        fingerprint="0",
        channels=tuple(f"MR{n}" for n in range(setting.n_channels)),
        labels=labels,
        orientation="RAS",
        axis_order=(0, 1, 2),
        normalisation=(Normalisation(scheme="zscore"),) * setting.n_channels,
        mirror_axes=(0, 1, 2),
        configurations={"3d_fullres": configuration},
        training=Training.model_validate({"precision": setting.precision}),
        reasons={},
    )
    torch.manual_seed(0)
    built = [build(spec, setting.n_channels, labels.n_outputs) for _ in range(setting.n_folds)]
    networks = [ready_to_predict(network, spec.kind, spec.n_axes, torch.device("cpu")) for network in built]
    return Model(plan, configuration, tuple(networks), "0")


if __name__ == "__main__":
    main()
