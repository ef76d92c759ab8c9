"""Ctrl-C by a real signal in the middle of the long commands: exit 130, what to do next, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import write_nnunet
from stages import plan_data
from test_pipeline import MACHINE

from segpipe.core.files import TEMPORARY_PREFIX
from segpipe.core.work import Work
from segpipe.train.weights_header import about_weights

pytestmark = pytest.mark.slow

CASES = [f"case_{number:03d}" for number in range(30)]
STOPPED = "Stopped. Rerun the same command to resume."
ENDLESS = (
    "training.epochs=100000",
    "training.iterations_per_epoch=3",
    "training.validation_iterations=1",
    "training.checkpoint_minutes=1e-9",
)


def _hears_ctrl_c() -> None:
    """Shells let what they start in the background ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def stopped(arguments: list[str], is_far_enough: Callable[[], bool]) -> str:
    """Press Ctrl-C once a command is so far; what it says of that."""
    command = [sys.executable, "-m", "segpipe", *arguments, "-j", "1", "--device", "cpu"]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=_hears_ctrl_c,
    ) as process:
        try:
            deadline = time.monotonic() + 240
            while not is_far_enough() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.0005)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    return said


def n_files(folder: Path, pattern: str) -> int:
    return len(list(folder.glob(pattern)))


def test_every_long_command_can_be_stopped_and_goes_on(tmp_path: Path) -> None:
    data, folder, masks = tmp_path / "data", tmp_path / "work", tmp_path / "masks"
    write_nnunet(data, CASES)
    plan_data(data, folder, MACHINE, n_folds=2, edits=ENDLESS)
    fold = Work(folder).fold("3d_fullres", "0")

    prepared = folder / "prepared"
    assert stopped(["prepare", str(folder)], lambda: n_files(prepared, "*/case_*") > 3).endswith(f"{STOPPED}\n")
    assert 3 < n_files(prepared, "*/case_*") < len(CASES)

    assert stopped(["run", str(data), "-o", str(folder)], fold.history.is_file).endswith(f"{STOPPED}\n")
    assert n_files(prepared, "*/case_*") == len(CASES)  # what was prepared before the stop was gone on with
    iteration = int(about_weights(fold.weights)["iteration"])
    assert iteration >= 3 and fold.state.is_file()

    history = fold.history.read_text("utf-8")
    said = stopped(["train", str(folder), "-f", "0"], lambda: len(fold.history.read_text("utf-8")) > len(history))
    assert f"resumes at iteration {iteration}" in said and said.endswith(f"{STOPPED}\n")
    assert int(about_weights(fold.weights)["iteration"]) > iteration
    assert fold.history.read_text("utf-8").startswith(history.splitlines()[0])

    command = ["predict", "-m", str(folder), "-f", "0", "-i", str(data / "imagesTr"), "-o", str(masks)]
    assert stopped(command, lambda: n_files(masks, "case_*.nii.gz") > 3).endswith(f"{STOPPED}\n")
    assert 3 < n_files(masks, "case_*.nii.gz") < len(CASES)
    assert not [path for path in tmp_path.rglob(f"{TEMPORARY_PREFIX}*") if path.is_file()]
