"""Makefile, CI and containers: one way to install, and images that can be rebuilt."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))
SCRIPT = REPOSITORY / "docker" / "install.sh"
INSTALL = ".venv/bin/python -m pip install --disable-pip-version-check --no-input  -e '.[test]'"


def instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and its text, continuation lines joined, comments left out."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0].upper(), line.split(maxsplit=1)[1]) for line in lines]


def faults_of(text: str) -> list[str]:
    """What a careful reader would object to in a Dockerfile."""
    steps, faults = instructions(text), []
    bases = [value for name, value in steps if name == "FROM"]
    faults += [f"FROM {base} is not pinned" for base in bases if ":" not in base or base.endswith(":latest")]
    user = "root"
    for name, value in steps:
        if name == "USER":
            user = value
        if name == "RUN" and value != ("segpipe-install system" if user == "root" else "segpipe-install package"):
            faults.append(f"RUN {value}: {user} does what the script does not, or not as that user")
        if name == "ADD":
            faults.append("ADD where COPY is meant")
    if user in {"root", "0"}:
        faults.append("runs as root")
    if [value for name, value in steps if name == "RUN"] != ["segpipe-install system", "segpipe-install package"]:
        faults.append("does not take both steps of the script")
    return faults


def faults_of_script(text: str) -> list[str]:
    """What a careful reader would object to in the steps of the images."""
    expected = {
        "make install": "does not install as the Makefile does",
        "apt-get update": "asks apt for packages of the day the base was made",
        "--no-install-recommends": "installs what is only recommended",
        "rm -rf /var/lib/apt/lists/*": "leaves apt's lists",
        "set -eu": "goes on after a step that failed",
    }
    return [fault for needed, fault in expected.items() if needed not in text] + (
        ["installs by its own command"] if "pip install" in text else []
    )


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_an_image_is_pinned_runs_as_a_user_and_is_made_by_the_script(path: Path) -> None:
    assert faults_of(path.read_text("utf-8")) == []


def test_the_script_installs_by_make_and_is_one_for_both_images() -> None:
    assert faults_of_script(SCRIPT.read_text("utf-8")) == []
    for path in DOCKERFILES:
        assert ("COPY", "docker/install.sh /usr/local/bin/segpipe-install") in instructions(path.read_text("utf-8"))
    assert os.access(SCRIPT, os.X_OK)
    wrong = subprocess.run([SCRIPT, "pakage"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "install.sh: found 'pakage', expected system or package\n")


def test_there_is_an_image_with_and_without_cuda() -> None:
    assert [path.name for path in DOCKERFILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FROM python:3.12-slim-bookworm", "FROM python"),
        ("FROM python:3.12-slim-bookworm", "FROM python:latest"),
        ("USER 10001", "USER root"),
        ("USER 10001", ""),
        ("RUN segpipe-install system", "RUN segpipe-install system && apt-get install -y git"),
        ("RUN segpipe-install package", "RUN pip install ."),
        ("RUN segpipe-install package", ""),
        ("COPY --chown", "ADD --chown"),
    ],
)
def test_an_offending_image_is_found(old: str, new: str) -> None:
    text = (REPOSITORY / "docker" / "cpu.Dockerfile").read_text("utf-8")
    assert old in text
    assert faults_of(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rm -rf /var/lib/apt/lists/*", "true"),
        ("--no-install-recommends", ""),
        ("make install", "pip install ."),
        ("set -eu", ""),
    ],
)
def test_an_offending_script_is_found(old: str, new: str) -> None:
    text = SCRIPT.read_text("utf-8")
    assert old in text
    assert faults_of_script(text.replace(old, new))


def dry_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--dry-run", "--always-make", *arguments]
    outside = {name: value for name, value in os.environ.items() if "MAKE" not in name}  # these tests run in a make
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=outside)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_both_commands_install_first(target: str) -> None:
    lines = dry_run(target).stdout.splitlines()
    assert INSTALL in lines
    assert lines.index(INSTALL) < len(lines) - 1


def test_ci_runs_what_a_developer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKELEVEL", "1")  # as in `make test`, where make names the folder it leaves
    lines = (REPOSITORY / ".ci" / "run").read_text("utf-8").splitlines()
    assert lines[-1] == "make test" and "set -euo pipefail" in lines
    assert dry_run("test").stdout.splitlines()[-5:] == [
        ".venv/bin/ruff format --check .",
        ".venv/bin/ruff check .",
        ".venv/bin/mypy",
        ".venv/bin/mkdocs build --strict --quiet",
        ".venv/bin/pytest -n auto --maxprocesses 4 --dist loadfile",
    ]


@pytest.mark.parametrize(
    ("python", "message"), [("no-such-python", "was not found"), ("./old-python", "needs Python 3.11 or newer")]
)
def test_an_unusable_python_is_named(tmp_path: Path, python: str, message: str) -> None:
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 || exit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_text((REPOSITORY / name).read_text("utf-8"))
    done = subprocess.run(["make", "test", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_the_makefile_allows_the_python_that_the_package_asks_for() -> None:
    asked = re.search(r'requires-python = ">=3\.(\d+)"', (REPOSITORY / "pyproject.toml").read_text("utf-8"))
    assert asked is not None
    assert f"sys.version_info < (3, {asked[1]})" in (REPOSITORY / "Makefile").read_text("utf-8")


def test_torch_is_not_pinned_to_a_build() -> None:
    for path in (REPOSITORY / "pyproject.toml", REPOSITORY / "Makefile", SCRIPT, *DOCKERFILES):
        assert not re.search(r"\+cpu|\+cu\d|--index-url|--extra-index-url", path.read_text("utf-8")), path
