"""What a user gets from `pip install segpipe`: the wheel, in an environment that knows nothing of the source tree."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
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

_NOBODYS = 54321  # user and group that no machine knows


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Not one of pytest's, into which others may not look."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    """Built from a copy, so that nothing of an earlier build gets in; asks nothing of the network."""
    shutil.copytree(REPOSITORY / "segpipe", folder / "segpipe", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", *PROJECT["license-files"]):
        shutil.copy(REPOSITORY / name, folder)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-w", folder / "dist", folder], check=True)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(folder: Path, wheel: Path) -> Path:
    """`bin` of a new environment with the wheel and nothing else.

    A `.pth` lends it the packages of this one, whose own `.pth` files, so an editable segpipe, are not followed.
    """
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", environment, "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    lent = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site / "lent.pth").write_text("\n".join(lent), encoding="utf-8")
    lend_compiled_loops(site)
    return environment / "bin"


def lend_compiled_loops(site: Path) -> None:
    """What numba compiled of these sources already, half a minute of it; it is known by name and time of its source."""
    for kept in (REPOSITORY / "segpipe").rglob("__pycache__/*.nb[ci]"):
        module = kept.parent.parent / f"{kept.name.split('.')[0]}.py"
        own = site / module.relative_to(REPOSITORY)
        if own.is_file() and own.read_bytes() == module.read_bytes():
            shutil.copy(kept, own.parent / "__pycache__")
            shutil.copystat(module, own)
            (own.parent / "__pycache__").chmod(0o777)  # numba reads only where it may write


def called(command: Sequence[str | Path], folder: Path, **settings: str) -> str:
    """Standard output of a command that runs in `folder` without anything of this process's environment for Python."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | settings
    done = subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def stranger(folder: Path, installed: Path) -> tuple[list[str], Path]:
    """What makes a command that of a user without name, home or network, and the one folder that is his.

    Root may become another and cut the network off, elsewhere the command stays one's own. As a rule he may not look
    where root keeps its files, which a container's user may; if it can be granted, he is allowed that.
    """
    home = folder / "his"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, _NOBODYS, _NOBODYS)
    become = ["setpriv", f"--reuid={_NOBODYS}", f"--regid={_NOBODYS}", "--clear-groups"]
    may_read = [f"--{kind}-caps=-all,+dac_read_search" for kind in ("inh", "ambient")]
    for network, user in itertools.product([["unshare", "--net"], []], [[*become, *may_read], become]):
        probe = [*network, *user, str(installed / "python"), "-c", "open('probe', 'w')"]
        if shutil.which(probe[0]) and not subprocess.run(probe, cwd=home, capture_output=True).returncode:
            return [*network, *user], home
    return [], home


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(opened.read(name).decode())


def test_the_demo_runs_from_the_wheel_by_a_user_without_a_name(
    installed: Path, stranger: tuple[list[str], Path]
) -> None:
    """As in a container with `--user`: no entry in passwd, no home, nothing to write to but the folder he is in."""
    become, home = stranger
    run = [*become, installed / "python", "-c", "import os, segpipe; print(os.getuid(), segpipe.__file__)"]
    user, where = called(run, home).split()
    assert int(user) == (_NOBODYS if become else os.getuid())
    assert Path(where).is_relative_to(installed.parent)
    options = ["--cases", "4", "--time-budget", "10s", "--device", "cpu"]
    printed = called([*become, installed / "segpipe", "demo", *options], home, HOME="/nonexistent")
    report = home / "segpipe-demo" / "work" / "report" / "index.html"
    assert f"Report: {report.relative_to(home)}" in printed
    assert "</html>" in report.read_text("utf-8")


def test_the_wheel_holds_every_file_of_the_package_and_no_other(folder: Path, wheel: Path) -> None:
    files = {path.relative_to(folder).as_posix(): path for path in (folder / "segpipe").rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as opened:
        found = {name: opened.read(name) for name in opened.namelist() if ".dist-info/" not in name}
    assert sorted(found) == sorted(files)
    assert found == {name: path.read_bytes() for name, path in files.items()}
    assert {"segpipe/py.typed", "segpipe/pipeline/model_card.md.jinja", "segpipe/view/niivue.umd.js"} <= found.keys()


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


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {"tensorboard", "timm"} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without

from torch import nn
from segpipe.core.errors import SetupError
from segpipe.networks.initial_weights import start_from
from segpipe.networks.parts import InitialWeights
from segpipe.train.tensorboard import wants_tensorboard

assert wants_tensorboard(None) is False
weights = InitialWeights(source="timm:efficientnet_b0.ra_in1k", licence="Apache-2.0")
for use in (lambda: wants_tensorboard(True), lambda: start_from(weights, nn.Identity())):
    try:
        use()
    except SetupError as fault:
        print(fault)
"""


def test_what_is_missing_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    """An extra that is not installed is not used, or named where it was asked for."""
    track, timm = called([sys.executable, "-c", WITHOUT], tmp_path).splitlines()
    assert "the package tensorboard is not installed. Install it (pip install 'segpipe[track]')" in track
    assert "the package timm is not installed. `pip install 'segpipe[timm]'`" in timm


def test_every_extra_that_a_text_names_is_there() -> None:
    texts = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "segpipe").rglob("*.py")]
    named = {extra for path in texts for extra in re.findall(r"(?:segpipe|'\.)\[(\w+)\]", path.read_text("utf-8"))}
    assert {"track", "timm"} <= named <= PROJECT["optional-dependencies"].keys()
