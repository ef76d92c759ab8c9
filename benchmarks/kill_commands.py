"""kill -9 at random moments of every command: its rerun ends as if nothing had happened, and leaves nothing behind.

python benchmarks/kill_commands.py [-n 90] [--seed 0] [--commands plan,train,worker,…]

A tiny dataset goes through the commands once, undisturbed. Then, again and again, a command is started on a copy of
what the one before it had left, killed at a random moment of its time, and rerun to its end. A kill counts as

- lost, if the rerun fails, or its result differs from the undisturbed one (masks, scores, weights, plans, tables);
- hanging, if the rerun does not end within its time;
- leftover, if a temporary file remains beside the results or among the system's.

`worker` kills one of two processes that train a fold together: the command has to end by itself, then it is rerun.
Commands run in forks of this process, which has imported torch, so that kills hit work and not imports. Linux alone.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from segpipe.core.volume import write_image

_EDITS = ("training.epochs=2", "training.iterations_per_epoch=3", "training.validation_iterations=1")
_EDITS += ("training.precision=fp32", "training.checkpoint_minutes=1e-9")
_SETS = [part for edit in _EDITS for part in ("--set", edit)]
_COMMANDS = {  # in their order: each starts from what the ones before it left
    "plan": ["plan", "data", "-o", "work", "--no-report", "--no-cost", "--n-folds", "2", *_SETS],
    "prepare": ["prepare", "work"],
    "train": ["train", "work", "-f", "0,1"],
    "predict": [
        "predict",
        "-m",
        "work",
        "-i",
        "data/imagesTr",
        "-o",
        "masks",
        "--save-probabilities",
        "--save-uncertainty",
    ],
    "evaluate": ["evaluate", "-r", "data", "-p", "masks", "-o", "scored/scores.csv", "--metrics", "all"],
    "pack": ["pack", "work", "-o", "packed/m.segpipe.zip"],
    "report": ["report", "work"],
    "run": ["run", "data", "-o", "another", "-f", "0", *_SETS],
    "pretrain": ["pretrain", "data/imagesTr", "-o", "pretrained", "--for", "work"],
    "prune": ["prune", "work", "-o", "small", "--ratio", "0.5", "--candidates", "2", "--trial-iterations", "3"],
}
_WORKER = ["train", "work", "-f", "0", "--devices", "2", "--device", "cpu"]
_MOST_SECONDS = 240.0
_UNSURE = {"seconds", "iterations_per_second", "wait_share", "peak_memory_bytes", "seconds_left", "interrupted"}
_UNSURE |= {f"seconds_{part}" for part in ("prepare", "network", "export")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=90, help="number of kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(_COMMANDS))
    wanted = parser.parse_args()
    names, rng = wanted.commands.split(","), random.Random(wanted.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as root:
        os.chdir(root)
        trial = _Trials(Path(root))
        trial.prepare()
        found: Counter[str] = Counter()
        for number in range(wanted.n):
            name = names[number % len(names)]
            faults = trial.kill(name, rng)
            found.update(fault.partition(":")[0] for fault in faults)
            found["kills"] += 1
            print(f"{number + 1}/{wanted.n} {name} {trial.said}: {'; '.join(faults) or 'whole'}", flush=True)
        print(
            json.dumps({name: found[name] for name in ("kills", "lost", "hanging", "leftover", "in work")} | trial.hits)
        )
    sys.exit(bool(found["lost"] + found["hanging"] + found["leftover"]))


class _Trials:
    """The undisturbed results, and one folder in which commands are killed: always the same, since plans name paths."""

    def __init__(self, root: Path) -> None:
        self.root, self.now, self.said = root, root / "now", ""
        self.before: dict[str, Path] = {}
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, str]] = {}
        self.hits: Counter[str] = Counter()

    def prepare(self) -> None:
        """Run every command once, keeping what each starts from."""
        _write_data(self.now / "data")
        for name, command in (_COMMANDS | {"worker": _WORKER}).items():
            if name == "worker":
                self._restore("train")
            self.before[name] = self.root / "before" / name
            shutil.copytree(self.now, self.before[name], symlinks=True)
            started = time.monotonic()
            code = self._finish(command)
            if code:
                sys.exit(f"{name} ends with {code} undisturbed:\n{(self.root / 'log').read_text()}")
            self.seconds[name] = time.monotonic() - started
            self.expected[name] = _contents(self.now)
            print(f"{name}: {self.seconds[name]:.1f} s, {len(self.expected[name])} results", flush=True)

    def kill(self, name: str, rng: random.Random) -> list[str]:
        """Kill a command and rerun it; what is wrong then."""
        command = _WORKER if name == "worker" else _COMMANDS[name]
        self._restore(name)
        moment = rng.uniform(0, self.seconds[name])
        process = _start(command, self.now, self.root / "log")
        time.sleep(moment)
        victim = rng.choice(_children(process) or [process]) if name == "worker" else process
        os.kill(victim, signal.SIGKILL)
        if victim != process and _wait(process, _MOST_SECONDS) is None:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return ["hanging: the command whose worker was killed"]
        was_running = victim != process or os.waitpid(process, 0)[1] == signal.SIGKILL
        left = [path.name for path in self.now.rglob(".partial-*")]
        self.hits["in work"] += was_running
        self.hits["with leftovers"] += bool(left)
        self.said = f"after {moment:.2f} s" + (f" ({len(left)} leftovers)" if left else "")
        code = self._finish(command)
        return list(self._faults(name, code))

    def _faults(self, name: str, code: int | None) -> Iterator[str]:
        if code is None:
            yield "hanging: the rerun"
            return
        if code:
            yield f"lost: the rerun ends with {code}: {(self.root / 'log').read_text()[-400:]}"
        found, expected = _contents(self.now), self.expected[name]
        if differing := [p for p in sorted(found.keys() | expected.keys()) if found.get(p) != expected.get(p)]:
            yield f"lost: {', '.join(differing[:5])}"
        caches = ("torchinductor", "matplotlib")  # of libraries, which keep them
        others = [path for path in (self.root / "tmp").iterdir() if not path.name.startswith(caches)]
        temporary = [*self.now.rglob(".partial-*"), *others]
        if temporary:
            yield f"leftover: {', '.join(path.name for path in temporary[:5])}"

    def _restore(self, name: str) -> None:
        shutil.rmtree(self.now)
        shutil.copytree(self.before[name], self.now, symlinks=True)
        shutil.rmtree(self.root / "tmp", ignore_errors=True)

    def _finish(self, command: list[str]) -> int | None:
        process = _start(command, self.now, self.root / "log")
        code = _wait(process, _MOST_SECONDS)
        if code is None:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
        return code


def _write_data(folder: Path) -> None:
    """Four cases of 24 × 20 × 16 voxels in nnU-Net's layout: a bright block in noise."""
    rng = np.random.default_rng(0)
    for case in range(4):
        image = rng.normal(0, 1, (1, 16, 20, 24)).astype(np.float32)
        labels = np.zeros((1, 16, 20, 24), np.uint8)
        z, y, x = rng.integers(2, 6, 3)
        labels[0, z : z + 6, y : y + 8, x : x + 8] = 1
        write_image(folder / "imagesTr" / f"c{case}_0000.nii.gz", image + 4 * labels, np.diag([1.0, 1.0, 1.5, 1.0]))
        write_image(folder / "labelsTr" / f"c{case}.nii.gz", labels, np.diag([1.0, 1.0, 1.5, 1.0]))
    text = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "block": 1},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(text))


def _start(command: list[str], folder: Path, log: Path) -> int:
    """Run a command in a fork, in a group of its own; returns the process."""
    process = os.fork()
    if process:
        return process
    with _ending():
        os.setsid()
        os.chdir(folder)
        temporary = folder.parent / "tmp"
        temporary.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = str(temporary)
        tempfile.tempdir = str(temporary)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        from segpipe.cli.main import run

        more = [] if command[0] in ("pack", "report", "evaluate") or "--device" in command else ["--device", "cpu"]
        more += [] if command[0] in ("pack", "report", "plan") else ["-j", "1"]
        os._exit(run([*command, *more]))


@contextmanager
def _ending() -> Iterator[None]:
    """Never return from a fork."""
    try:
        yield
    finally:
        import traceback

        traceback.print_exc()
        os._exit(99)


def _wait(process: int, seconds: float) -> int | None:
    """Exit code; None if it has not ended by then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def _children(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def _contents(folder: Path) -> dict[str, str]:
    """What results say, by path, without what depends on the clock."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith("data/") or path.name.startswith("."):
            continue
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            found[name] = _digest(b"".join(tensors[key].tobytes() for key in sorted(tensors)))
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                rows = [[row[key] for key in row if key not in _UNSURE] for row in csv.DictReader(file)]
            found[name] = _digest(json.dumps(rows).encode())
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                found[name] = f"{archive.testzip()} {sorted(archive.namelist())}"
        elif path.name.endswith((".nii.gz", ".npz", "splits.json", "fingerprint.json", "plan.yaml", "selection.yaml")):
            found[name] = _digest(path.read_bytes())
        elif path.suffix in (".html", ".json", ".b2nd", ".npy"):
            found[name] = "there"
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"

    main()
