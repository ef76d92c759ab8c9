"""What a user gets from `pip install segpipe`: the wheel, in an environment that knows nothing of the source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import yaml

import segpipe

REPOSITORY = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
_FOR_USERS = {name: texts for name, texts in PROJECT["optional-dependencies"].items() if name != "test"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of an earlier build gets in; asks nothing of the network."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPOSITORY / "segpipe", folder / "segpipe", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", *PROJECT["license-files"]):
        shutil.copy(REPOSITORY / name, folder)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-w", folder / "dist", folder], check=True)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path) -> Path:
    """`bin` of a new environment with the wheel and nothing else.

    A `.pth` lends it the packages of this one, whose own `.pth` files, so an editable segpipe, are not followed.
    """
    folder = wheel.parent.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder, "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    lent = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site / "lent.pth").write_text("\n".join(lent), encoding="utf-8")
    lend_compiled_loops(site)
    return folder / "bin"


def lend_compiled_loops(site: Path) -> None:
    """What numba compiled of these sources already, half a minute of it; it is known by name and time of its source."""
    for kept in (REPOSITORY / "segpipe").rglob("__pycache__/*.nb[ci]"):
        module = kept.parent.parent / f"{kept.name.split('.')[0]}.py"
        own = site / module.relative_to(REPOSITORY)
        if own.is_file() and own.read_bytes() == module.read_bytes():
            shutil.copy(kept, own.parent / "__pycache__")
            shutil.copystat(module, own)


def called(command: list[str | Path], folder: Path) -> str:
    """Standard output of a command that runs in `folder` without anything of this process's environment for Python."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(opened.read(name).decode())


def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = called([installed / "python", "-c", "import segpipe; print(segpipe.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    printed = called(
        [installed / "segpipe", "demo", "--cases", "4", "--time-budget", "10s", "--device", "cpu"], tmp_path
    )
    report = tmp_path / "segpipe-demo" / "work" / "report" / "index.html"
    assert f"Report: {report.relative_to(tmp_path)}" in printed
    assert "</html>" in report.read_text("utf-8")


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    source = wheel.parent.parent
    files = {path.relative_to(source).as_posix(): path for path in source.rglob("segpipe/**/*") if path.is_file()}
    expected = {name: path.read_bytes() for name, path in files.items() if not name.startswith("build/")}
    with zipfile.ZipFile(wheel) as opened:
        found = {name: opened.read(name) for name in opened.namelist() if ".dist-info/" not in name}
    assert sorted(found) == sorted(expected)
    assert found == expected
    assert "segpipe/py.typed" in found


def test_the_wheel_says_what_it_is(wheel: Path, installed: Path, tmp_path: Path) -> None:
    about = metadata_of(wheel)
    assert (about["Name"], about["Version"]) == ("segpipe", segpipe.__version__)
    assert about["License-Expression"] == "Apache-2.0"
    assert about.get_all("License-File") == ["LICENSE", "THIRD_PARTY_NOTICES.md"]
    assert about.get_all("Provides-Extra") == list(PROJECT["optional-dependencies"])
    assert called([installed / "segpipe", "--version"], tmp_path) == f"segpipe, version {segpipe.__version__}\n"
    assert "Usage: segpipe" in called([installed / "segpipe", "-h"], tmp_path)


def test_the_version_is_written_once(wheel: Path) -> None:
    """In segpipe/__init__.py; what must repeat it agrees."""
    assert "version" not in PROJECT and "version" in PROJECT["dynamic"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == segpipe.__version__
    assert re.search(rf"^## {re.escape(segpipe.__version__)}\b", (REPOSITORY / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert metadata_of(wheel)["Version"] == segpipe.__version__


def test_the_citation_has_what_its_format_requires() -> None:
    """The keys that schema 1.2.0 requires; the whole was validated by cffconvert."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == PROJECT["license"]
    assert all(citation[key] for key in ("authors", "message", "title"))


def package_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements} - {"segpipe"}


def noticed(section: str) -> set[str]:
    """First column of a table of the notices."""
    text = (REPOSITORY / "THIRD_PARTY_NOTICES.md").read_text("utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    return {row.split("|")[1].strip(" `") for row in text.splitlines() if row.startswith("|")} - {
        "File",
        "Package",
        "---",
    }


def test_the_notices_name_all_that_users_install() -> None:
    needed = package_names([*PROJECT["dependencies"], *(text for texts in _FOR_USERS.values() for text in texts)])
    assert noticed("Installed beside segpipe by pip") == needed


def test_the_notices_name_all_that_was_made_by_others() -> None:
    """A file that came from elsewhere is minified or says so; of ours no line is that long."""
    foreign = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "segpipe").rglob("*.*")
        if path.suffix in {".js", ".css", ".html", ".jinja", ".txt"}
        and max(map(len, path.read_text("utf-8").splitlines())) > 300
    }
    assert foreign - {"segpipe/view/niivue_licence.txt"} == noticed("In this repository and in the wheel")
