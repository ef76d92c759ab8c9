"""pipeline/train_processes.py: processes of `segpipe train`, on devices of which a CPU has as many."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from datasets import write_nnunet
from stages import estimate_training, plan_data, train
from test_pipeline import MACHINE, QUICK

from segpipe.core.errors import DataError, Interrupted, SetupError, UsageError
from segpipe.core.work import Work
from segpipe.networks.device import resolve_devices
from segpipe.pipeline.train_processes import Ended, Job, devices_for, raise_first, run_jobs
from segpipe.plan.schema import Plan

NAME = "3d_fullres"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned work folder."""
    folder = tmp_path_factory.mktemp("devices")
    write_nnunet(folder / "data", ["p1", "p2", "p3", "p4"])
    plan_data(folder / "data", folder / "work", MACHINE, n_folds=2, edits=QUICK)
    return folder / "work"


@pytest.fixture
def work(planned: Path, tmp_path: Path) -> Work:
    """A copy that a test may train in."""
    shutil.copytree(planned, tmp_path / "work")
    return Work(tmp_path / "work")


@pytest.mark.slow
def test_folds_train_side_by_side_and_one_that_fails_does_not_stop_the_other(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    work.run(NAME).mkdir(parents=True)
    work.fold(NAME, "0").path.write_text("in the way")
    with pytest.raises(SetupError, match=r"1 of 2 folds failed.*\n  fold 0: Setup error: .*a file is in the way"):
        train(work.path, None, None, MACHINE, devices="cpu,cpu")
    assert work.fold(NAME, "1").scores.is_file()
    told = capsys.readouterr().err
    assert "2 folds, 2 in parallel on cpu, cpu." in told and re.search(r"^fold 1 \| .*epoch 2/2", told, re.MULTILINE)
    assert Plan.load(work.fold(NAME, "1").plan).configurations == Plan.load(work.plan).configurations


@pytest.mark.slow
def test_who_is_asked_to_stop_asks_all_folds(work: Work) -> None:
    folds = [work.fold(NAME, number) for number in "01"]

    def ask() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not all(fold.history.is_file() for fold in folds):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Interrupted, match="stopped by SIGTERM, and so were all processes"):
        train(work.path, None, None, MACHINE, devices="2", edits=["training.epochs=9999"])
    asking.join()
    for fold in folds:
        assert torch.load(fold.state, weights_only=True)["iteration"] > 0


@pytest.mark.slow
def test_a_fold_that_cannot_go_on_in_one_process_ends_in_all_with_the_reason(
    work: Work, capfd: pytest.CaptureFixture[str]
) -> None:
    fold = 1 if "p1" in train_cases(work, 1) else 0
    train(work.path, None, [1 - fold], MACHINE, edits=["training.epochs=1"])  # prepares the cases of both
    (case,) = (work.path / "prepared").glob("*/p1")
    (case / "image.b2nd").write_bytes(b"damaged")
    capfd.readouterr()
    with pytest.raises(DataError, match=r"one process of the fold failed.*\n  process \d on cpu: exit code 3"):
        train(work.path, None, [fold], MACHINE, devices="2")
    assert "the prepared case p1 cannot be read" in capfd.readouterr().err


def train_cases(work: Work, fold: int) -> list[str]:
    return list(json.loads(work.splits.read_text("utf-8"))["folds"][fold]["train"])


@pytest.mark.slow
def test_torchrun_trains_a_fold_and_one_process_answers(work: Work) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "segpipe", "train"]
    found = subprocess.run(
        [sys.executable, *command, str(work.path), "-f", "1", "--device", "cpu", "-j", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    assert json.loads(found.stdout)["configuration"] == NAME
    before, after = (Plan.load(path).configurations[NAME].batch_size for path in (work.plan, work.fold(NAME, "1").plan))
    assert after == 2 * before
    assert f"2 processes train together, {before} patches each: as one with a batch of {after}" in found.stderr
    assert found.stderr.count("epoch 2/2  loss") == 1 and work.scores(NAME).is_file()
    with pytest.raises(UsageError, match=rf"on 2 devices with {before} patches each.*batch_size={after} for the same"):
        train(work.path, None, [1], MACHINE)
    edits = [f"configurations.{NAME}.batch_size={after}"]
    assert estimate_training(work.path, None, [1], MACHINE, edits=edits).todo.startswith(f"{NAME}, 0 of 1 fold,")
    assert estimate_training(work.path, None, [1], MACHINE, devices="2").todo.startswith(f"{NAME}, 0 of 1 fold,")
    assert estimate_training(work.path, None, [1], MACHINE, restart=True).todo.startswith(f"{NAME}, 1 of 1 fold,")


def test_devices_on_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_devices("cpu", "3") == ["cpu"] * 3 and resolve_devices("cpu", "cpu,cpu") == ["cpu", "cpu"]
    assert resolve_devices("cpu", "all") == resolve_devices("cpu", None) == resolve_devices("cpu", "1") == ["cpu"]
    with pytest.raises(UsageError, match="--devices 0: expected 1 or more, all"):
        resolve_devices("cpu", "0")
    with pytest.raises(SetupError, match="--device two: unknown"):
        resolve_devices("cpu", "two")
    assert devices_for([0, 1, 2], MACHINE, None) == ["cpu"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert devices_for([0], MACHINE, None) == ["cpu"]
    with pytest.raises(UsageError, match="--devices 2: 2 processes are started already"):
        devices_for([0], MACHINE, "2")


@pytest.mark.gpu
def test_devices_on_a_machine_with_gpus() -> None:
    there = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    assert resolve_devices("auto", "all") == resolve_devices("cuda", "all") == there
    assert resolve_devices("cuda:0", "all") == ["cuda:0"] and resolve_devices("cuda", None) == ["cuda"]
    with pytest.raises(SetupError, match=f"--devices 99: found {len(there)} CUDA device"):
        resolve_devices("cuda", "99")
    with pytest.raises(UsageError, match="--devices 2: --device cuda:0 is one device"):
        resolve_devices("cuda:0", "2")


def test_more_jobs_than_devices_wait_and_the_failed_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [Job(f"job {n}", ("check", f"nowhere_{n}"), {}, has_prefix=True) for n in range(3)]
    failed = run_jobs([*jobs, Job("good", ("plan", "--help"), {}, has_prefix=True)], ["cpu", "cpu"], end_together=False)
    assert sorted(ended.title for ended in failed) == ["job 0", "job 1", "job 2"]
    assert "job 2 | " in capfd.readouterr().err


def test_the_process_with_the_reason_comes_before_those_that_lost_it() -> None:
    lost, asked = Ended("process 0", 4, ""), Ended("process 1", 75, "")
    killed = Ended("process 2", -9, "")
    with pytest.raises(DataError, match=r"why\n  a: exit code 3, its message is above\n  process 0"):
        raise_first([Ended("a", 3, ""), lost, asked], "why")
    assert "ended by SIGKILL; perhaps the system had no more memory" in str(killed)
    with pytest.raises(KeyboardInterrupt):
        raise_first([Ended("b", 130, "")], "why")
    raise_first([], "nothing")
