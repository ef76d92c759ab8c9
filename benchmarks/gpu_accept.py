"""Acceptance on a GPU: whether segpipe is right there (call 1) and fast (call 2); a line for each check.

    python benchmarks/gpu_accept.py 1 -o OUT --minutes 8.5
    python benchmarks/gpu_accept.py 2 -o OUT --minutes 8.5 --data DATA/hippocampus
    python benchmarks/gpu_accept.py 1 -o OUT --quick               # without a GPU: on the CPU and on tests/cuda

Checks run in a process of their own, in order. One that fails, dies or does not end costs its own time and no other
check; what is left when the minutes are over says so. OUT gets call_1.json or call_2.json after every check, the output
of the checks as call_1.log, and gpu.md, which is meant for benchmarks/results/. `benchmarks/gpu_accept.sh` brings the
packages that a bare machine has not.

With --quick everything is tiny and runs on a stand-in for CUDA, to see that it runs at all. What only a GPU can answer
is run as far as it goes, and says SKIP with the reason; so no number of quick.md is a number of a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_outcome import Setting

ROOT = Path(__file__).parent.parent
_WORST_FIRST = ("FAIL", "SKIP", "INFO", "PASS")
_START_SECONDS = 90.0  # for a process to import torch and segpipe
_LEAST_SECONDS = 5.0  # a check is not begun with less
_SLOWER = 20  # a rehearsal on a CPU, which other work may share
_STAND_IN = """import sys

if not any("multiprocessing" in word for word in sys.orig_argv):  # helpers of pools compute nothing there
    from cuda import stand_in

    stand_in.install()
"""


@dataclass(frozen=True)
class Check:
    """One line of the result.

    Args:
        key: Letters, the number of the call not among them.
        title: What is compared.
        threshold: When it passes.
        function: `module:function`.
        seconds: It is given up after so many.
        arguments: Of the function, behind the setting.
        alone: Whether it needs a process in which nothing ran before.
        on_cpu: Whether its rehearsal needs the CPU as it is.
    """

    key: str
    title: str
    threshold: str
    function: str
    seconds: float
    arguments: tuple[Any, ...] = ()
    alone: bool = False
    on_cpu: bool = False


def _memory(number: int, preset: str) -> Check:
    threshold = "predicted is 5 % less to 15 % more than reserved; no retries of the allocator"
    return Check(f"I{number}", f"memory of a step of {preset}", threshold, "gpu_correct:memory_of", 60, (preset,), True)


_PRESETS = ("nnunet", "resenc_l", "convnext_b", "effnet_b0")
_FIRST = (
    Check("A", "machine and versions", "a GPU, no warning of `segpipe doctor`", "gpu_correct:machine", 60),
    Check("C", "losses on CPU and GPU", "first within 1e-5, all within 1e-3", "gpu_correct:same_losses", 90),
    Check(
        "D",
        "bf16 and fp16 beside fp32",
        "last losses within 2 %, at most 3 steps skipped after 10",
        "gpu_correct:low_precision",
        90,
    ),
    Check(
        "E",
        "augmentation on CPU and GPU",
        "images within 1e-3, 99.9 % of the labels",
        "gpu_correct:same_augmentation",
        60,
    ),
    Check("F", "steps that wait for the GPU", "none", "gpu_correct:no_waits", 60, alone=True),
    Check("G", "training that is resumed", "equal bit for bit, else within 1e-4", "gpu_correct:resumed", 45),
    Check(
        "H",
        "masks of CPU and GPU",
        "fp32: 99.99 % of the voxels; bf16: 99.9 %, Dice 0.999",
        "gpu_correct:same_masks",
        120,
    ),
    *(_memory(number, preset) for number, preset in enumerate(_PRESETS, 1)),
    Check(
        "J",
        "too little memory",
        "training says what to change, prediction succeeds with less at a time",
        "gpu_correct:little_memory",
        60,
        alone=True,
    ),
    Check("L", "2D, cascade, strong, 117 labels, regions", "finite", "gpu_correct:finite", 60),
    Check("B", "pytest -m gpu", "all pass, none is skipped", "gpu_correct:gpu_tests", 150),
    Check(
        "K",
        "compiled training",
        "no graph breaks, at most 2 graphs of a function",
        "gpu_correct:compiled",
        180,
        alone=True,
        on_cpu=True,
    ),
    Check("M", "bench_memory.py", "none: the constants of `CUDA`", "gpu_correct:calibration", 120),
)
_SECOND = (
    Check(
        "N1",
        "training on 128³ beside nnunetv2",
        "at least as fast",
        "gpu_speed:beside_nnunetv2",
        240,
        ("phantom", 1.0),
    ),
    Check("P", "prediction of 512 × 512 × 300", "restoring below 10 %", "gpu_speed:large_image", 100, alone=True),
    Check(
        "N2",
        "training on the dataset beside nnunetv2",
        "1.5 times as fast",
        "gpu_speed:beside_nnunetv2",
        200,
        ("data", 1.5),
    ),
    Check("Q", "busy GPU", "85 % with validation; waiting for data below 2 %", "gpu_speed:busy", 120, alone=True),
    Check("O", "choices of training", "none: a table", "gpu_speed:variants", 240, alone=True),
    Check("R", "train --profile", "none: a table", "gpu_speed:phases", 60, alone=True),
)
CHECKS = {1: _FIRST, 2: _SECOND}


def main() -> None:
    args = _arguments()
    if args.worker:
        _work(args)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the worker with us
    out = args.output.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_accept_") as folder:
        call = _Call(args, out, Path(folder))
        for check in CHECKS[args.call]:
            if not args.only or check.key in args.only:
                call.run(check)
        call.end_worker()
    print(f"\n{call.summary()}", flush=True)
    sys.exit(not call.is_passed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", type=int, choices=sorted(CHECKS))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.5, help="for all checks together")
    parser.add_argument("--data", type=Path, help="a dataset in nnU-Net's layout, e.g. the hippocampus")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="some of the checks")
    parser.add_argument("--quick", action="store_true", help="a rehearsal without a GPU")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


class _Call:
    """Runs checks, and writes what is known after each.

    Args:
        args: The command line.
        out: Folder of the results.
        work: Folder for the files of the checks.
    """

    def __init__(self, args: argparse.Namespace, out: Path, work: Path) -> None:
        self.args, self.out, self.work = args, out, work
        self.slower = _SLOWER if args.quick else 1
        self.ends = time.time() + 60 * args.minutes * self.slower
        self.log = (out / f"call_{args.call}.log").open("w", encoding="utf-8")
        self.worker: subprocess.Popen[bytes] | None = None
        self.is_plain = False  # whether the worker sees the CPU as it is
        self.stand_in = _stand_in(work) if args.quick else {}
        self.results: list[dict[str, Any]] = []

    def run(self, check: Check) -> None:
        """Run a check in a worker, in a new one if it must be."""
        begun = time.time()
        plain = self.args.quick and check.on_cpu
        if (check.alone and not self.args.quick) or plain != self.is_plain:
            self.end_worker()
        seconds = min(check.seconds * self.slower, self.ends - begun)
        if seconds < _LEAST_SECONDS:
            found: Mapping[str, Any] = {"verdict": "SKIP", "found": "no time left", "table": []}
        else:
            found = self._ask(check, seconds, plain=plain)
        result = {"key": check.key, "title": check.title, "threshold": check.threshold, **found}
        self.results.append(result | {"seconds": round(time.time() - begun, 1)})
        print(f"{result['verdict']} {check.key} {check.title} [{check.threshold}]: {result['found']}", flush=True)
        self._write()

    def _ask(self, check: Check, seconds: float, *, plain: bool) -> Mapping[str, Any]:
        if self.worker is None:
            self.worker, self.is_plain = self._start(plain=plain), plain
            seconds += _START_SECONDS * self.slower
        worker = self.worker
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(json.dumps([check.key, min(self.ends, time.time() + seconds)]).encode() + b"\n")
            worker.stdin.flush()
            is_there, _, _ = select.select([worker.stdout], [], [], min(seconds, max(1.0, self.ends - time.time())))
            line = worker.stdout.readline() if is_there else b""
        except BrokenPipeError:
            is_there, line = [worker.stdout], b""
        if line:
            answer: Mapping[str, Any] = json.loads(line)
            if answer["verdict"] == "FAIL":  # a fault of CUDA would stay in the process
                self.end_worker()
            return answer
        said = f"its process ended with {worker.wait()}" if is_there else f"given up after {seconds:.0f} s"
        self.end_worker()
        last = Path(self.log.name).read_text(encoding="utf-8", errors="replace")[-500:]
        return {"verdict": "FAIL", "found": f"{said}; last words: {' '.join(last.split())}", "table": []}

    def _start(self, *, plain: bool) -> subprocess.Popen[bytes]:
        args = self.args
        command = [sys.executable, sys.argv[0], str(args.call), "-o", str(self.out), "--worker", str(self.work)]
        command += [*(["--quick"] if args.quick else []), *(["--data", str(args.data.resolve())] if args.data else [])]
        environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", **({} if plain else self.stand_in)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        return subprocess.Popen(command, env=environment, bufsize=0, start_new_session=True, **pipes)  # type: ignore[call-overload]

    def end_worker(self) -> None:
        """End the worker and all that it started."""
        if self.worker is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.worker.pid, signal.SIGKILL)  # its own session
        self.worker.wait()
        self.worker = None

    @property
    def is_passed(self) -> bool:
        """Whether nothing failed and, on a GPU, nothing that was possible was left out."""
        allowed = {"PASS", "INFO", "SKIP"} if self.args.quick else {"PASS", "INFO"}
        return all(r["verdict"] in allowed or (r["key"] == "N2" and self.args.data is None) for r in self.results)

    def summary(self) -> str:
        """Numbers of verdicts, the worst first."""
        verdicts = [result["verdict"] for result in self.results]
        return ", ".join(f"{verdicts.count(name)} {name}" for name in _WORST_FIRST if name in verdicts)

    def _write(self) -> None:
        call = self.args.call
        told = {"command": _command(self.args), "machine": _machine(), "checks": self.results}
        (self.out / f"call_{call}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        name = "quick.md" if self.args.quick else "gpu.md"
        (self.out / name).write_text(page(self.out, quick=self.args.quick), encoding="utf-8")


def _stand_in(work: Path) -> dict[str, str]:
    """Build tests/cuda; the environment in which every Python process has it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from cuda.stand_in import NotHere, build

    try:
        environment = build(work / "stand_in")
    except NotHere as fault:
        sys.exit(f"--quick: no stand-in for CUDA: {fault}")
    (work / "start").mkdir()
    (work / "start" / "sitecustomize.py").write_text(_STAND_IN, encoding="utf-8")
    path = os.pathsep.join([str(work / "start"), str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    off = {"nnUNet_compile": "f", "TORCHDYNAMO_DISABLE": "1", "SEGPIPE_SELF_TEST": "off", "OMP_NUM_THREADS": "1"}
    return environment | {"PYTHONPATH": path} | off


def _work(args: argparse.Namespace) -> None:
    """Run the checks that standard input names, and answer with a line for each."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints, its children too, prints into the log
    checks = {check.key: check for check in CHECKS[args.call]}
    for line in sys.stdin:
        (key, ends), before = json.loads(line), sum(os.times()[:4])
        print(f"\n===== {key} {checks[key].title}", file=sys.stderr, flush=True)
        module, _, function = checks[key].function.partition(":")
        try:
            call = getattr(importlib.import_module(module), function)
            answer = asdict(call(Setting(args.worker, args.data, args.quick, ends), *checks[key].arguments))
        except Exception as fault:  # noqa: BLE001 (any fault is this check's result)
            traceback.print_exc()
            last = traceback.extract_tb(fault.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            text = f"{type(fault).__name__} at {where}: {' '.join(str(fault).split())[:300]}"
            answer = {"verdict": "FAIL", "found": text, "table": []}
        spent = sum(os.times()[:4])
        print(f"===== {key} took {spent - before:.1f} processor seconds", file=sys.stderr, flush=True)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _command(args: argparse.Namespace) -> str:
    more = (f" --data {args.data.name}" if args.data else "") + (f" --only {' '.join(args.only)}" if args.only else "")
    quick = " --quick" if args.quick else f" --minutes {args.minutes:g}"
    return f"python benchmarks/gpu_accept.py {args.call} -o OUT{quick}{more}"


def _machine() -> str:
    gpu = "no GPU"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True).stdout.strip().replace("\n", "; ") or gpu
    from importlib.metadata import version

    return f"{gpu}; {os.cpu_count()} processors, Python {platform.python_version()}, torch {version('torch')}"


def page(out: Path, *, quick: bool) -> str:
    """The results of both calls as Markdown."""
    title = "Rehearsal of the acceptance on a GPU" if quick else "Acceptance on a GPU"
    lines = [f"# {title}", ""]
    if quick:
        lines += ["Nothing here was measured on a GPU: this shows that every check runs.", ""]
    tables: list[str] = []
    for file in sorted(out.glob("call_[12].json")):
        told = json.loads(file.read_text(encoding="utf-8"))
        lines += [f"## Call {file.stem[-1]}", "", f"{told['machine']}. `{told['command']}`", ""]
        rows = [("", "check", "passes if", "", "found", "s")]
        for result in told["checks"]:
            names = ("key", "title", "threshold", "verdict", "found", "seconds")
            rows.append(tuple(str(result[name]).replace("|", "/") for name in names))
            if result["table"]:
                tables += [f"## {result['key']}: {result['title']}", "", *_table(result["table"]), ""]
        lines += [*_table(rows), ""]
    return "\n".join([*lines, *tables])


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = [[cell.replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest)]


if __name__ == "__main__":
    main()
