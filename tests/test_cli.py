"""cli/main.py: help at once, one exit code for each kind of fault."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from segpipe import __version__
from segpipe.cli.main import COMMANDS, run
from segpipe.cli.options import shared
from segpipe.core.errors import DataError, GeometryError, Interrupted, PlanError, ResourceError, SetupError

HEAVY = (
    "torch",
    "numpy",
    "nibabel",
    "SimpleITK",
    "scipy",
    "pydantic",
    "yaml",
    "matplotlib",
    "monai",
    "nnunetv2",
    "rich",
)


def segpipe(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "segpipe", *args], capture_output=True, text=True)


def test_alone_it_prints_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([flag]) == 0
    assert "Usage: segpipe" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from segpipe.cli.main import run; code = run(['-h'])\n"
        f"print('imported:', sorted(set({HEAVY!r}) & set(sys.modules)), code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "imported: [] 0\n"


def test_the_module_runs_as_the_command() -> None:
    done = segpipe("--version")
    assert (done.returncode, done.stdout) == (0, f"segpipe, version {__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "-h"]) == 0
    assert f"Usage: segpipe {name}" in capsys.readouterr().out


def test_a_mistyped_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trian"]) == 2
    assert "no command 'trian'. Did you mean 'train'?" in capsys.readouterr().err


def test_an_unknown_option_is_a_usage_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--frobnicate"]) == 2
    assert "--frobnicate" in capsys.readouterr().err


FAULTS = [  # what a command raises, exit code, first words
    (PlanError("p"), 2, "Not possible: p"),
    (DataError("d"), 3, "Data: d"),
    (GeometryError("g"), 3, "Data: g"),
    (SetupError("s"), 4, "Setup: s"),
    (ResourceError("r"), 5, "Memory or disk: r"),
    (MemoryError(), 5, "Memory: ran out of memory"),
    (Interrupted("i"), 75, "Interrupted: i"),
    (KeyboardInterrupt(), 130, "Stopped; the same command goes on."),
    (PermissionError(13, "Permission denied", "/x"), 4, "Setup: /x: not writable"),
    (OSError(28, "No space left on device", "/x"), 5, "Memory or disk: /x: the disk is full"),
]


def failing_with(fault: BaseException) -> click.Command:
    """A command with the shared options that meets a fault."""

    @click.command()
    @shared
    def failing(**_: object) -> None:
        raise fault

    return failing


@pytest.mark.parametrize(("fault", "code", "words"), FAULTS, ids=lambda v: type(v).__name__)
def test_each_kind_of_fault_has_its_exit_code(
    fault: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([], failing_with(fault)) == code
    out, err = capsys.readouterr()
    assert out == "" and err.strip().startswith(words)


def test_with_json_a_fault_is_machine_readable_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--json"], failing_with(DataError("case 3: no label."))) == 3
    assert capsys.readouterr().out == '{"error": "DataError", "message": "case 3: no label.", "exit_code": 3}\n'


def test_a_fault_of_the_program_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run([], failing_with(ZeroDivisionError()))
