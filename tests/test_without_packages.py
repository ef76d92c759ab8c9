"""NIfTI goes from images to scores without nnunetv2, MONAI and SimpleITK; what needs one of them says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import tiny_image, write_nnunet

from segpipe.cli.main import run
from segpipe.core.errors import ResourceError, SetupError, package_needed

BLOCKED = ("nnunetv2", "monai", "SimpleITK", "dynamic_network_architectures", "batchgenerators", "batchgeneratorsv2")
BLOCK = """
import os
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in os.environ.get("BLOCKED", "").split():
            raise ImportError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocker())
"""
PROGRAM = f"""{BLOCK}
from segpipe.cli.main import run

for arguments in sys.argv[1].splitlines():
    code = run(arguments.split("|"))
    if code:
        sys.exit(code)
print("imported:", sorted({{name.split(".")[0] for name in sys.modules}} & set({BLOCKED!r})))
"""
WINDOWS = """
import multiprocessing
import signal

multiprocessing.set_start_method("spawn")
LACKING = {
    signal: "SIGUSR1 SIGUSR2 SIGHUP SIGKILL SIGALRM setitimer alarm",
    os: "fork forkpty pwrite pread getloadavg sched_getaffinity geteuid setsid killpg wait3 fchmod",
}
for module, names in LACKING.items():
    for name in names.split():
        delattr(module, name)

def uname(real=os.uname):  # numpy asks for it on Linux
    if sys._getframe(1).f_globals["__name__"].startswith("segpipe"):
        raise AttributeError("uname")
    return real()

os.uname = uname
"""
WITHOUT_POSIX = "fcntl resource termios"
QUICK = "--set training.epochs=1 --set training.iterations_per_epoch=2 --set training.validation_iterations=1"


def run_blocked(*commands: str, also: str = "") -> subprocess.CompletedProcess[str]:
    """Run commands, one after the other, in a Python that cannot import the packages."""
    lines = "\n".join("|".join(command.split()) for command in commands)
    return python_blocked(PROGRAM, lines, also=also)


def python_blocked(program: str, *arguments: str, also: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"BLOCKED": " ".join((*BLOCKED, also))}
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, and `work` with a trained fold: made without the packages."""
    folder = tmp_path_factory.mktemp("blocked")
    write_nnunet(folder / "data", ["p0", "p1", "p2", "p3"])
    done = run_blocked(
        f"check {folder}/data -j 1",
        f"plan {folder}/data -o {folder}/work --no-report {QUICK} --device cpu -j 1",
        f"train {folder}/work -f 0 --device cpu -j 1",
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_nifti_goes_from_images_to_scores_without_them(folder: Path, tmp_path: Path) -> None:
    done = run_blocked(
        f"predict -m {folder}/work -i {folder}/data/imagesTr -o {tmp_path}/masks --device cpu -j 1",
        f"evaluate -r {folder}/data/labelsTr -p {tmp_path}/masks -o {tmp_path}/scores -j 1",
        f"info {folder}/work",
    )
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 4


def test_everything_runs_without_what_windows_lacks(tmp_path: Path) -> None:
    """Modules, signals and functions that Windows lacks are hidden; a manifest of there, with CRLF and backslashes."""
    write_nnunet(tmp_path / "data", ["p0", "p1", "p2", "p3"])
    rows = [f"p{i},imagesTr\\p{i}_0000.nii.gz,labelsTr\\p{i}.nii.gz" for i in range(4)]
    (tmp_path / "data" / "list.csv").write_bytes("\r\n".join(["case_id,image,label", *rows, ""]).encode())
    work, masks = tmp_path / "work", tmp_path / "masks"
    commands = (
        f"run {tmp_path}/data/list.csv -o {work} -f 0 {QUICK} --device cpu -j 2",
        f"predict -m {work} -i {tmp_path}/data/imagesTr -o {masks} --save-uncertainty --device cpu -j 2",
        f"evaluate -r {tmp_path}/data/labelsTr -p {masks} -o {tmp_path}/scores.csv -j 1",
        f"pack {work} -o {tmp_path}/m.segpipe.zip",
        f"info {tmp_path}/m.segpipe.zip",
    )
    program = PROGRAM.replace("from segpipe.cli.main import run", f"{WINDOWS}\nfrom segpipe.cli.main import run", 1)
    lines = "\n".join("|".join(command.split()) for command in commands)
    done = python_blocked(program, lines, also=WITHOUT_POSIX)
    assert done.returncode == 0, done.stderr
    assert len(list(masks.glob("p*.nii.gz"))) == 4 and (work / "report" / "index.html").is_file()
    assert not list(tmp_path.rglob(".partial-*"))


def test_looking_around_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "m.segpipe.zip"
    assert run(["pack", str(folder / "work"), "-o", str(packed)]) == 0
    commands = (f"check {folder}/data -j 1", f"info {folder}/work", f"info {packed}", "info -h", "-h")
    done = run_blocked(*commands, also="torch")
    assert done.returncode == 0, done.stderr


def test_a_file_that_needs_simpleitk_says_so(folder: Path, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(tiny_image(1)), str(tmp_path / "in" / "t.nrrd"))
    done = run_blocked(f"predict -m {folder}/work -i {tmp_path}/in -o {tmp_path}/out --device cpu -j 1")
    assert done.returncode == 4, done.stderr
    assert "t.nrrd: this format needs the Python package SimpleITK" in done.stderr
    assert "pip install SimpleITK" in done.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("build.segresnet(None, 1, 2)", "network.kind: segresnet needs the Python package monai"),
        ("losses.cldice(None)", "training.loss with the term cldice needs the Python package monai"),
    ],
)
def test_a_part_that_needs_monai_says_so(call: str, message: str) -> None:
    program = f"{BLOCK}from segpipe.networks import build\nfrom segpipe.train import losses\n{call}"
    done = python_blocked(program)
    assert f"SetupError: {message}" in done.stderr and "pip install monai" in done.stderr


def test_the_baseline_of_nnunet_says_that_it_needs_nnunetv2() -> None:
    program = f"{BLOCK}from segpipe.bridge.nnunet_train import main\nmain(sys.argv[1:])\n"
    done = python_blocked(program, "data", "splits.json", "--minutes", "1", "-o", "out")
    assert done.returncode != 0 and "pip install nnunetv2" in done.stderr


def test_the_message_names_package_and_command() -> None:
    expected = r"^x\.nrrd: this format needs the Python package nowhere, which .* pip install nowhere$"
    with pytest.raises(SetupError, match=expected), package_needed("nowhere", "x.nrrd: this format"):
        raise ImportError("No module named 'nowhere'")
    with (
        pytest.raises(ResourceError, match="ran out of memory while"),
        package_needed("nowhere", "x.nrrd: this format"),
    ):
        raise ImportError("libx.so: failed to map segment from shared object: Cannot allocate memory")
