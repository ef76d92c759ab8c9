"""kill -9 in the middle of prepare and predict: the same command goes on, and nothing half-written is read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import write_nnunet
from test_pipeline import MACHINE, QUICK

from segpipe.pipeline.planning import Choices, plan_data
from segpipe.pipeline.stages import prepare, train
from segpipe.prepare.store import open_cases

CASES = [f"case_{i:03d}" for i in range(60)]

pytestmark = pytest.mark.slow


def kill_in_the_middle(arguments: list[str], n_done: Callable[[], int]) -> int:
    """Start a command, kill it as soon as some but not all of its files are there; returns how many were."""
    command = [sys.executable, "-m", "segpipe", *arguments, "-j", "1", "--device", "cpu"]
    before = n_done()
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while n_done() <= before + 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return n_done()


def finish(arguments: list[str]) -> None:
    """Run the same command to its end."""
    subprocess.run([sys.executable, "-m", "segpipe", *arguments, "-j", "1", "--device", "cpu"], check=True)


def test_prepare_goes_on(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "data", CASES)
    for name in ("whole", "killed"):
        plan_data(tmp_path / "data", tmp_path / name, MACHINE, Choices(n_folds=2))
    expected = prepare(tmp_path / "whole", None, MACHINE)
    folder = tmp_path / "killed" / "prepared" / expected.name
    arguments = ["prepare", str(tmp_path / "killed")]
    counts = [kill_in_the_middle(arguments, lambda: len(list(folder.glob("case_*")))) for _ in range(2)]
    assert 0 < counts[0] < counts[1] < len(CASES)
    finish(arguments)
    assert sorted(p.name for p in folder.iterdir()) == CASES  # and no leftovers
    for first, second in zip(open_cases(expected, CASES, 1), open_cases(folder, CASES, 1), strict=True):
        assert np.array_equal(first.image, second.image) and np.array_equal(first.indices, second.indices)


def test_predict_goes_on(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "data", CASES)
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, Choices(n_folds=2, edits=QUICK))
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
