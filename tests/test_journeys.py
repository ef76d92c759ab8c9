"""The pages of docs/journeys: their commands are run, one after the other, and print what the pages show."""

from __future__ import annotations

import doctest
import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import numpy as np
import pytest
import SimpleITK as sitk
from datasets import tiny_image, tiny_labels, write_json, write_nnunet, write_tiny
from models import plan_of, write_fold, write_scores
from test_compare_results import summary

from segpipe.cli.main import root, run

PAGES = Path(__file__).resolve().parent.parent / "docs" / "journeys"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Language and text of each code block: `console` and `pycon` are run, of `sh` the options are read."""
    blocks = _BLOCK.findall(page)
    assert page.count("```") == 2 * len(blocks)
    return blocks


def run_page(page: str) -> None:
    """Run a page in the current folder; what it shows must be printed, `…` standing for anything."""
    spoken = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    for language, text in blocks_of(page):
        if language == "console":
            steps = _COMMAND.findall(text)
            assert "".join(f"$ {command}\n{shown}" for command, shown in steps) == text
            for command, shown in steps:
                assert_printed(shown, printed_by(command.replace("\\\n", "")), command)
        elif language == "pycon":
            example = doctest.DocTestParser().get_doctest(text.replace("…", "..."), {}, "page", None, 0)
            complaints: list[str] = []
            assert spoken.run(example, out=complaints.append).failed == 0, "".join(complaints)
        else:
            assert language == "sh"
            for line in text.splitlines():
                assert_possible(line)


def printed_by(command: str) -> str:
    """Everything that a command printed; segpipe's are run in this process, which has imported torch already."""
    program, *arguments = shlex.split(command)
    if program != "segpipe":
        return subprocess.run(["bash", "-ec", command], check=True, capture_output=True, text=True).stdout
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = run(arguments)
    assert code == 0, f"{command} ended with {code}\n{printed.getvalue()}"
    return printed.getvalue()


def assert_printed(shown: str, printed: str, command: str) -> None:
    lines = [re.escape(line.strip()).replace("…", ".*") for line in shown.splitlines()]
    found = "\n".join(line.strip() for line in printed.splitlines())
    assert re.search("\n".join(lines), found, re.DOTALL), f"{command}\nshown:\n{shown}\nprinted:\n{printed}"


def assert_possible(line: str) -> None:
    """A command that takes hours, or ends at Ctrl-C: its options exist."""
    program, name, *arguments = shlex.split(line, comments=True)
    command = root.get_command(click.Context(root, **root.context_settings), name)
    assert program == "segpipe" and command is not None, line
    command.make_context(name, arguments)


def write_nrrd(path: Path, voxels_zyx: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels_zyx)
    image.SetSpacing((1.0, 1.5, 2.5))
    image.SetOrigin((-5.0, 7.0, 11.0))
    sitk.WriteImage(image, str(path), useCompression=True)


def two_folders_of_nrrd() -> None:
    for number in range(1, 7):
        write_nrrd(Path(f"study/CT/p{number:02d}.nrrd"), tiny_image(number))
        write_nrrd(Path(f"study/Segmentations/p{number:02d}.seg.nrrd"), tiny_labels())
    for number in (7, 8):
        write_nrrd(Path(f"new/p{number:02d}.nrrd"), tiny_image(number))


def a_raw_folder_of_nnunet() -> None:
    names = [f"liver_{number:03d}" for number in range(1, 7)]
    raw = write_nnunet(Path("nnUNet_raw/Dataset007_Liver"), names)
    for name in ("liver_101", "liver_102"):
        write_tiny(raw / "imagesTs" / f"{name}_0000.nii.gz", tiny_image(int(name[-3:])))
        write_tiny(raw / "labelsTs" / f"{name}.nii.gz", tiny_labels())
    folds = [{"train": [n for n in names if n not in pair], "val": pair} for pair in (names[:2], names[2:4], names[4:])]
    write_json(Path("nnUNet_preprocessed/Dataset007_Liver/splits_final.json"), folds)
    trainer = Path("nnUNet_results/Dataset007_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres")
    write_json(trainer / "dataset.json", json.loads((raw / "dataset.json").read_text("utf-8")))
    cases = {name: {"1": (0.8, 24, 24), "2": (0.7, 24, 24)} for name in names[:2]}
    summary(trainer / "fold_0" / "validation" / "summary.json", cases)


def one_ct_and_a_model() -> None:
    plan = plan_of().model_copy(update={"channels": ("CT",), "dataset": "Liver"})
    for number in (0, 1):
        write_scores(write_fold(Path("elsewhere"), plan, number), number, (0.91, 0.88, 0.93))
    assert run(["pack", "elsewhere", "-o", "liver.segpipe.zip", "--licence", "CC-BY-4.0"]) == 0
    write_tiny(Path("ct.nii.gz"), tiny_image(1))


JOURNEYS: dict[str, Callable[[], None]] = {
    "nrrd_folders": two_folders_of_nrrd,
    "from_nnunet": a_raw_folder_of_nnunet,
    "one_ct": one_ct_and_a_model,
}


@pytest.mark.parametrize("name", JOURNEYS)
def test_a_journey_goes_as_its_page_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    JOURNEYS[name]()
    run_page((PAGES / f"{name}.md").read_text("utf-8"))


def test_every_page_is_a_journey() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(JOURNEYS)


@pytest.mark.parametrize(
    "page",
    [
        "```console\n$ echo one\ntwo\n```\n",
        "```console\n$ printf '1\\n2\\n3\\n'\n1\n3\n```\n",
        "```console\n$ segpipe predict\n```\n",
        "```console\n$ false\n```\n",
        "```pycon\n>>> 1 + 1\n3\n```\n",
        "```sh\nsegpipe run data --no-such-option\n```\n",
        "```text\nsegpipe run data -o work\n```\n",
        "```console\n$ true\n",
    ],
)
def test_a_page_that_promises_too_much_is_found(page: str) -> None:
    with pytest.raises((AssertionError, click.UsageError, subprocess.CalledProcessError)):
        run_page(page)
