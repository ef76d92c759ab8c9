"""benchmarks/gpu_accept.py: the acceptance on a GPU, rehearsed without one in an environment like that machine's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from cuda.stand_in import NotHere, build

ROOT = Path(__file__).parent.parent
SCRIPT, SHELL = ROOT / "benchmarks" / "gpu_accept.py", ROOT / "benchmarks" / "gpu_accept.sh"
# What a machine for deep learning has; what follows from these as well. SimpleITK, monai and others are missing.
THERE = """
absl-py attrs certifi charset-normalizer click contourpy cuda-bindings cuda-pathfinder cuda-toolkit cycler einops
execnet filelock fonttools fsspec grpcio httpx hypothesis idna imageio iniconfig jinja2 joblib kiwisolver
lazy-loader llvmlite markdown markdown-it-py markupsafe matplotlib mdurl mpmath msgpack networkx numba numpy
nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile
nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink
nvidia-nvshmem-cu13 nvidia-nvtx packaging pandas pillow pip pluggy protobuf psutil py-cpuinfo pygments pyparsing
pytest pytest-xdist python-dateutil pytz pyyaml requests rich safetensors scikit-image scikit-learn scipy seaborn
setuptools six sortedcontainers sympy tensorboard tensorboard-data-server threadpoolctl tifffile torch tqdm triton
typing-extensions tzdata urllib3 werkzeug wheel
"""
# Checks of a rehearsal, without those that take longest or that tests/test_cuda.py has as well.
QUICK = {1: ("A", "C", "D", "E", "F", "G", "H", "I1", "L", "K"), 2: ("P", "Q", "O")}
MEASURED_ON_A_GPU = {"I1", "K", "P", "Q", "O"}


def carried() -> list[str]:
    """Packages that the machine is brought as wheels."""
    found = re.findall(r'^(?:OURS|THEIRS)="([^"]+)"', SHELL.read_text("utf-8"), re.MULTILINE)
    return [name for names in found for name in names.split()]


_ODD = """
import os, time
from gpu_outcome import Outcome, judged

def good(setting, word):
    print("noise", flush=True)
    return Outcome("PASS", word, (("a", "b"), ("1", "2")))

def wrong(setting):
    return judged(False, "1 is not 2")

def raises(setting):
    raise ValueError("odd | number")

def dies(setting):
    print("the last word")
    os._exit(7)

def hangs(setting):
    time.sleep(600)
"""
_TABLE = """
import gpu_accept
from gpu_accept import Check

names = ("wrong", "hangs", "raises", "dies")
gpu_accept.CHECKS = {1: (
    Check("first", "t", "x", "odd:good", 60, ("well",)),
    *(Check(name, "t", "x", "odd:" + name, 5.0 if name == "hangs" else 60.0) for name in names),
    Check("last", "t", "x", "odd:good", 60, ("again",), alone=True),
)}
if __name__ == "__main__":
    gpu_accept._START_SECONDS = 0.0
    gpu_accept.main()
"""


def run_odd(folder: Path, *more: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code and results of a call whose checks go wrong in every way."""
    (folder / "odd.py").write_text(_ODD)
    (folder / "accept_odd.py").write_text(_TABLE)
    path = os.pathsep.join(map(str, (folder, ROOT / "benchmarks", ROOT)))
    command = [sys.executable, folder / "accept_odd.py", "1", "-o", folder / "out", *more]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    told = json.loads((folder / "out" / "call_1.json").read_text("utf-8"))
    return done.returncode, {result["key"]: result for result in told["checks"]}


def test_a_check_that_fails_dies_or_hangs_costs_no_other(tmp_path: Path) -> None:
    code, found = run_odd(tmp_path)
    assert code == 1
    assert [r["verdict"] for r in found.values()] == ["PASS", "FAIL", "FAIL", "FAIL", "FAIL", "PASS"]
    assert found["wrong"]["found"] == "1 is not 2"
    assert found["hangs"]["found"].startswith("given up after 5 s")
    assert found["raises"]["found"] == "ValueError at odd.py:13: odd | number"
    assert re.search("its process ended with 7; last words: .*the last word", found["dies"]["found"])
    page = (tmp_path / "out" / "gpu.md").read_text("utf-8")
    assert "| raises | t | x | FAIL | ValueError at odd.py:13: odd / number | " in page  # its own | is no cell
    assert "## last: t\n\n| a | b |\n| --- | --- |\n| 1 | 2 |" in page


def test_checks_without_time_say_so_and_do_not_pass(tmp_path: Path) -> None:
    code, found = run_odd(tmp_path, "--minutes", "0", "--only", "first", "last")
    assert code == 1
    assert [(r["verdict"], r["found"]) for r in found.values()] == [("SKIP", "no time left")] * 2


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with these packages, linked to those of this one, and no others."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    for name in [*THERE.split(), *carried()]:
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # a platform's own, such as pytz: its absence is found by what imports it
        for top in {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "__pycache__")}:
            link = Path(paths["purelib"]) / top
            if not link.exists():
                link.symlink_to(found.locate_file(top))
    return folder / "bin" / "python"


def accept(python: Path, out: Path, *arguments: str) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Exit code, results by check, and what was printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, SCRIPT, *arguments, "-o", out, "--quick"],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    file = out / f"call_{arguments[0]}.json"
    assert file.is_file(), done.stderr[-3000:]
    results = {result["key"]: result for result in json.loads(file.read_text("utf-8"))["checks"]}
    return done.returncode, results, done.stdout


@pytest.fixture(scope="module")
def _stand_in(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        build(tmp_path_factory.mktemp("cuda") / "stand_in")
    except NotHere as fault:
        pytest.skip(f"no stand-in for CUDA: {fault}")


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2])
def test_every_check_runs_where_only_the_wheels_are(bare: Path, tmp_path: Path, call: int, _stand_in: None) -> None:
    code, results, told = accept(bare, tmp_path, str(call), "--only", *QUICK[call])
    assert code == 0, told + (tmp_path / f"call_{call}.log").read_text("utf-8")[-3000:]
    assert list(results) == list(QUICK[call])
    for key, result in results.items():
        assert result["verdict"] == ("SKIP" if key in MEASURED_ON_A_GPU else "PASS"), result
        assert "; ran: " in result["found"] or key not in MEASURED_ON_A_GPU
    page = (tmp_path / "quick.md").read_text("utf-8")
    assert "Nothing here was measured on a GPU" in page
    assert all(f"| {key} | " in page for key in results)


def test_the_environment_lacks_what_the_machine_lacks(bare: Path) -> None:
    missing = "import importlib.util as u; print([n for n in ('SimpleITK', 'monai', 'playwright') if u.find_spec(n)])"
    done = subprocess.run([bare, "-c", missing], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
