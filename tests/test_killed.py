"""kill -9 in the middle of prepare, train and predict: the same command goes on, and nothing half-written is read."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import write_nnunet
from stages import plan_data, prepare, train
from test_loop import is_same, what_lasts
from test_pipeline import MACHINE, QUICK

from plans import small_plan
from segpipe.core.files import TEMPORARY_PREFIX
from segpipe.core.work import FoldFolder, Work
from segpipe.pipeline.pretrain import WEIGHTS_FILE, pretrain
from segpipe.pipeline.requests import PretrainRequest
from segpipe.predict.outputs import PredictionTable
from segpipe.prepare.store import open_cases

CASES = [f"case_{i:03d}" for i in range(60)]

pytestmark = pytest.mark.slow


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def command_of(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "segpipe", *arguments, "-j", "1", "--device", "cpu"]


def kill_in_the_middle(arguments: list[str], n_done: Callable[[], int]) -> int:
    """Start a command, kill it as soon as some but not all of its files are there; returns how many were."""
    before = n_done()
    process = subprocess.Popen(command_of(arguments), env=ONE_THREAD, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while n_done() <= before + 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return n_done()


def finish(arguments: list[str]) -> None:
    """Run the same command to its end."""
    subprocess.run(command_of(arguments), check=True)


def test_prepare_goes_on(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "data", CASES)
    for name in ("whole", "killed"):
        plan_data(tmp_path / "data", tmp_path / name, MACHINE, n_folds=2)
    expected = prepare(tmp_path / "whole", None, MACHINE)
    folder = tmp_path / "killed" / "prepared" / expected.name
    arguments = ["prepare", str(tmp_path / "killed")]
    counts = [kill_in_the_middle(arguments, lambda: len(list(folder.glob("case_*")))) for _ in range(2)]
    assert 0 < counts[0] < counts[1] < len(CASES)
    finish(arguments)
    assert sorted(p.name for p in folder.iterdir()) == CASES  # and no leftovers
    for first, second in zip(open_cases(expected, CASES, 1), open_cases(folder, CASES, 1), strict=True):
        assert np.array_equal(first.image, second.image) and np.array_equal(first.indices, second.indices)


def kill_training(arguments: list[str], folder: FoldFolder, *, while_saving: bool, more_seconds: float) -> int:
    """Start a training and kill it after it has saved, or while it saves; returns the iteration that is saved."""
    before = folder.state.stat().st_mtime_ns if folder.state.is_file() else 0
    process = subprocess.Popen(command_of(arguments), env=ONE_THREAD, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        has_saved = folder.state.is_file() and folder.state.stat().st_mtime_ns != before
        if has_saved and (not while_saving or list(folder.path.glob(f"{TEMPORARY_PREFIX}*state.pt"))):
            break
        time.sleep(0.0002)
    time.sleep(more_seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = torch.load(folder.state if folder.state.is_file() else folder.previous_state, weights_only=True)
    assert not state["finished"], "it was too fast to be killed"
    return int(state["iteration"])


def test_train_goes_on_bit_for_bit(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "data", CASES[:5])
    edits = (
        *QUICK[2:],
        "training.epochs=3",
        "training.iterations_per_epoch=20",
        "training.weight_average=0.9",
        "training.checkpoint_minutes=1e-9",  # after every step
        "configurations.3d_fullres.network.parts.dropout_fraction=0.2",
    )
    for name in ("whole", "killed"):
        plan_data(tmp_path / "data", tmp_path / name, MACHINE, n_folds=2, edits=edits)
    train(tmp_path / "whole", None, [0], MACHINE)
    folder = Work(tmp_path / "killed").fold("3d_fullres", "0")
    arguments = ["train", str(tmp_path / "killed"), "-f", "0"]
    moment = random.Random().uniform(0, 0.3)
    first = kill_training(arguments, folder, while_saving=True, more_seconds=0)
    second = kill_training(arguments, folder, while_saving=False, more_seconds=moment)
    assert 0 < first <= second, moment
    train(tmp_path / "killed", None, [0], MACHINE)
    expected = Work(tmp_path / "whole").fold("3d_fullres", "0")
    assert is_same(what_lasts(folder), what_lasts(expected)), (first, second)
    assert [line.split(",")[:2] for line in folder.history.read_text("utf-8").splitlines()[1:]] == [
        ["1", "20"],
        ["2", "40"],
        ["3", "60"],
    ]
    assert [folder.log.read_text("utf-8").count(f"epoch {n}/3  loss") for n in (1, 2, 3)] == [1, 1, 1]
    assert not list(folder.path.glob(f"{TEMPORARY_PREFIX}*"))


def test_pretrain_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Killed while it saves, and again later: the weights are those of an undisturbed run to the last byte."""
    write_nnunet(tmp_path / "data", CASES[:4])
    edits = (*QUICK[2:], "training.weight_average=0.9", "training.checkpoint_minutes=1e-9")
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=2, edits=edits)
    images, plan = str(tmp_path / "data" / "imagesTr"), str(tmp_path / "work")
    killed = ["pretrain", images, "-o", str(tmp_path / "killed"), "--for", plan, "--iterations", "40"]
    pretrain(PretrainRequest(Path(images), tmp_path / "whole", Path(plan), MACHINE, iterations=40))
    folder = FoldFolder(tmp_path / "killed" / "training")
    first = kill_training(killed, folder, while_saving=True, more_seconds=0)
    moment = random.Random().uniform(0, 0.3)
    second = kill_training(killed, folder, while_saving=False, more_seconds=moment)
    assert 0 < first <= second, moment
    assert not (tmp_path / "killed" / WEIGHTS_FILE).exists()
    pretrain(PretrainRequest(Path(images), tmp_path / "killed", Path(plan), MACHINE, iterations=40))
    assert (tmp_path / "killed" / WEIGHTS_FILE).read_bytes() == (tmp_path / "whole" / WEIGHTS_FILE).read_bytes()
    expected = FoldFolder(tmp_path / "whole" / "training")
    assert is_same(what_lasts(folder), what_lasts(expected)), (first, second)
    assert not list((tmp_path / "killed").rglob(f"{TEMPORARY_PREFIX}*"))


def test_predict_goes_on(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "data", CASES)
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=2, edits=QUICK)
    train(tmp_path / "work", None, [0], MACHINE)
    common = ["predict", "-m", str(tmp_path / "work"), "-i", str(tmp_path / "data" / "imagesTr"), "-o"]
    finish([*common, str(tmp_path / "whole")])
    folder = tmp_path / "killed"
    counts = [
        kill_in_the_middle([*common, str(folder)], lambda: len(list(folder.glob("case_*.nii.gz")))) for _ in range(2)
    ]
    assert 0 < counts[0] < counts[1] < len(CASES)
    finish([*common, str(folder)])
    for case in CASES:
        assert (folder / f"{case}.nii.gz").read_bytes() == (tmp_path / "whole" / f"{case}.nii.gz").read_bytes()
    assert not list(folder.glob(".partial-*"))
    tables = [PredictionTable(place, small_plan().labels).rows for place in (folder, tmp_path / "whole")]
    assert list(tables[0]) == CASES and [row.sizes for row in tables[0].values()] == [
        row.sizes for row in tables[1].values()
    ]
