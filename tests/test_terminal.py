"""What commands show on a terminal: tables of at most 80 columns whatever the names, colours only where they belong."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import write_nnunet
from test_report_compare import method

from segpipe.cli.main import run
from segpipe.cli.tables import summary_text
from segpipe.compare.comparison import Question, compare, parse_margins
from segpipe.compare.comparison_text import comparison_text
from segpipe.evaluate.scores import Score, ScoreTable
from segpipe.evaluate.summary import SummaryRow, summarise

WIDTH = 80
NAMES = (
    "left_ventricle_myocardium_basal_inferolateral_segment",
    "right_ventricle_cavity_with_trabeculae_and_papillary_muscles",
)
CASES = [f"patient_with_a_long_name_from_the_university_hospital_of_somewhere_{n:04d}" for n in range(3)]
QUICK = "--set training.epochs=1 --set training.iterations_per_epoch=1 --set training.validation_iterations=1"
COMMANDS = [  # that print a table or several lines; each needs what those before it wrote
    "check data",
    f"plan data -o work --n-folds 2 --no-report {QUICK}",
    "train work --dry-run",
    "prepare work --dry-run",
    "train work",
    "train work --profile",
    "select work",
    "predict -m work -i data/imagesTr -o none --dry-run",
    "evaluate -r data/labelsTr -p data/labelsTr -o scores.csv",
    "compare a_method_whose_name_is_long_indeed=work/runs/3d_fullres another_method_with_a_name=work/runs/3d_fullres",
    "info work",
    "pack work -o m.segpipe.zip",
    "info m.segpipe.zip",
    "doctor work",
]
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("terminal")
    labels = {"background": 0} | {name: value for value, name in enumerate(NAMES, 1)}
    name = "A dataset whose name is far longer than anybody would believe that it could ever be"
    return write_nnunet(here / "data", CASES, name=name, labels=labels, channel_names={"0": "T1_" + "weighted_" * 7})


def test_no_line_on_stdout_is_wider_than_a_terminal(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data.parent)
    for command in COMMANDS:
        assert run(command.split()) == 0, command
        wide = [line for line in capsys.readouterr().out.splitlines() if len(line) > WIDTH]
        assert not wide, f"{command}: {wide}"


def rows_with(**changes: object) -> list[SummaryRow]:
    scores = [
        Score("r", f"c{n}", f"p{n}", 0, 0, label, "volume_difference", 5.0 * n, "mm3", "ok", 9, 9)
        for n in range(3)
        for label in NAMES
    ]
    return [row.model_copy(update=changes) for row in summarise(ScoreTable(tuple(scores)))]


@pytest.mark.parametrize("size", [1, 1e5, 1e7, 1e12, 1e15])
def test_names_are_cut_and_numbers_never(size: float) -> None:
    text = summary_text(rows_with(mean=1.5 * size, low=-2.5 * size, high=3.5 * size, n_spurious=1234))
    for number in (1.5, -2.5, 3.5):
        assert f"{number * size / 1000:.3f}" in text
    assert "1234" in text and "spu-" in text and "rious" in text
    table = text.split("\n\n")[0].splitlines()
    if size <= 1e7:
        assert "left_" in text and max(map(len, table)) <= WIDTH
    assert NAMES[0] not in "\n".join(table) and "…" in text


def test_of_188_labels_the_worst_ten_the_best_ten_and_the_means_are_printed() -> None:
    scores = [
        Score("r", f"c{n}", f"p{n}", 0, 0, f"l{label:03d}", metric, value, unit, "ok", 9, 9)
        for n in range(3)
        for label in range(188)
        for metric, value, unit in (("dice", (187 - label) / 200, "1"), ("hd95", 13.0 + label, "mm"))
    ]
    lines = summary_text(summarise(ScoreTable(tuple(scores)))).splitlines()
    named = [word for line in lines for word in line.split() if re.fullmatch(r"l\d{3}|\(mean\)", word)]
    worst, best = [f"l{n:03d}" for n in range(187, 177, -1)], [f"l{n:03d}" for n in range(9, -1, -1)]
    assert named == [*worst, *best, "(mean)", "(mean)"]
    assert any("168 more" in line for line in lines) and len(lines) < 40
    assert max(map(len, lines)) <= WIDTH


def test_short_names_are_not_cut() -> None:
    assert "…" not in summary_text([row.model_copy(update={"label": "organ"}) for row in rows_with()])


def test_a_comparison_of_long_names_fits() -> None:
    first, second = (replace(method("x", shift, 40), name=NAMES[place]) for place, shift in enumerate((0, 0.1)))
    text = comparison_text(compare([first, second], Question(parse_margins(["dice=0.01"]))))
    assert max(map(len, text.splitlines())) <= WIDTH


def shown(arguments: list[str], **environment: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "segpipe", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, env=kept | {"TERM": "xterm-256color"} | environment,
    )  # fmt: skip
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux ends a terminal that nobody writes to so
            break
        if not part:
            break
        text += part
    os.close(ours)
    process.wait()
    return text.decode("utf-8")


def test_a_terminal_gets_colours_unless_it_wants_none(data: Path) -> None:
    coloured = shown(["check", str(data)])
    assert COLOUR.search(coloured)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", coloured).splitlines()
    assert max(map(len, (line.split("\r")[-1] for line in lines))) <= WIDTH
    assert not COLOUR.search(shown(["check", str(data)], NO_COLOR="1"))


def test_a_file_gets_no_colours(data: Path) -> None:
    command = [sys.executable, "-m", "segpipe", "check", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"TERM": "xterm"})
    assert "\x1b" not in done.stdout + done.stderr
