"""train/signals.py"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import write_nnunet
from stages import plan_data
from test_pipeline import MACHINE

from segpipe.core.work import FoldFolder, Work
from segpipe.train.signals import crash_noted, crash_text, mark_step

DIES = """
import os, signal, sys
from pathlib import Path
from segpipe.core.work import FoldFolder
from segpipe.train.signals import crash_noted, mark_step
with crash_noted(FoldFolder(Path(sys.argv[1]))):
    mark_step(41)
    os.kill(os.getpid(), int(sys.argv[2]))
"""


def die(folder: Path, number: int) -> None:
    ended = subprocess.run([sys.executable, "-c", DIES, str(folder), str(number)], check=False)
    assert ended.returncode == -number


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL"])
def test_a_fatal_signal_is_named_with_its_step(tmp_path: Path, name: str) -> None:
    die(tmp_path, signal.Signals[name])
    text = crash_text(FoldFolder(tmp_path))
    assert f"died in step 42 of {name}" in text and str(tmp_path) in text and "precision=fp32" in text


def test_a_killed_training_is_said_to_have_died_without_a_word(tmp_path: Path) -> None:
    die(tmp_path, signal.SIGKILL)
    assert "died in step 42 without a message, as after SIGKILL" in crash_text(FoldFolder(tmp_path))


def test_the_next_training_tells_it_and_is_given_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    die(tmp_path, signal.SIGSEGV)
    with crash_noted(FoldFolder(tmp_path)) as found:
        assert "SIGSEGV" in found and 'File "<string>", line 8' in found
    assert "warning: " in capsys.readouterr().err
    assert not FoldFolder(tmp_path).crash.exists()


def test_what_ends_in_another_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), crash_noted(FoldFolder(tmp_path)) as found:
        mark_step(3)
        raise KeyError
    assert not found and not FoldFolder(tmp_path).crash.exists()


@pytest.mark.slow
def test_a_crash_in_a_step_of_a_real_training_is_told_and_logged(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "data", [f"case_{i:03d}" for i in range(6)])
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=2)
    fold = Work(tmp_path / "work").fold("3d_fullres", "0")
    command = [
        sys.executable,
        "-m",
        "segpipe",
        "train",
        str(tmp_path / "work"),
        "-f",
        "0",
        "-j",
        "1",
        "--device",
        "cpu",
    ]
    command += ["--iterations", "100000", "--no-tensorboard", "--set", "training.checkpoint_minutes=0.001"]
    training = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not fold.state.is_file() and training.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    training.send_signal(signal.SIGSEGV)
    assert training.wait() == -signal.SIGSEGV
    again = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert again.stderr is not None
    told = next(line for line in again.stderr if "died in step" in line)
    while "died in step" not in fold.log.read_text(encoding="utf-8") and time.monotonic() < deadline:
        time.sleep(0.01)
    again.terminate()
    again.communicate()
    assert "SIGSEGV" in told and "fold_0" in told
    log = fold.log.read_text(encoding="utf-8")
    assert "SIGSEGV" in log and "Fatal Python error" in log
    assert not fold.crash.exists()
