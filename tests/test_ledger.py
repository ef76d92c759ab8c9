"""The ledger: a line for each scoring, chained; changed, removed and torn lines are found and named."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from datasets import write_nnunet

from segpipe.cli.main import run
from segpipe.evaluate.ledger import (
    LEDGER_FILE,
    LedgerLine,
    Scoring,
    append_scoring,
    find_ledger,
    ledger_sentences,
    looks_at,
    read_ledger,
)


def scoring(name: str, masks: str = "m", event: str = "test set", cases: tuple[str, ...] = ("a",)) -> Scoring:
    return Scoring(event=event, name=name, masks=masks, cases=dict.fromkeys(cases, "0" * 12))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four lines: a fold, a test set scored twice with other masks and once again with the same."""
    append_scoring(tmp_path, scoring("3d fold 0", "f", "fold", ("c1", "c2")))
    for name, masks in (("first", "m1"), ("second", "m2"), ("again", "m2")):
        append_scoring(tmp_path, scoring(name, masks))
    return tmp_path


def test_a_ledger_tells_how_often_a_test_set_was_scored(folder):
    state = read_ledger(folder / LEDGER_FILE)
    assert [line.number for line in state.lines] == [1, 2, 3, 4] and not state.faults and not state.torn
    assert ledger_sentences(state) == (
        "Test set scored 3 times, 2 different sets of masks.",
        "Masks of folds scored: 1 set.",
    )
    assert looks_at(state.scorings, "test set", ["b"]).n_scorings == 0  # other cases
    assert looks_at(state.scorings, "fold", ["c2", "c9"]).n_scorings == 1  # one of the cases is enough
    assert find_ledger(folder / "runs" / "x" / "scores.csv") == folder


def changed(folder: Path, change) -> tuple[str, ...]:
    file = folder / LEDGER_FILE
    lines = file.read_bytes().split(b"\n")[:-1]
    change(lines)
    file.write_bytes(b"\n".join(lines) + b"\n")
    return read_ledger(file).faults


def _rewrite(lines: list[bytes], number: int, /, **values: object) -> None:
    line = json.loads(lines[number])
    lines[number] = json.dumps(line | values, separators=(",", ":")).encode()


def _forge(lines: list[bytes], number: int) -> None:
    line = LedgerLine.parse(json.loads(lines[number]), "")
    forged = line.model_copy(update={"scoring": scoring("another")})
    _rewrite(lines, number, scoring=forged.scoring.model_dump(), hash=forged.content_hash)


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (lambda lines: _rewrite(lines, 1, time="2020-01-01T00:00:00+00:00"), [2]),
        (lambda lines: _rewrite(lines, 3, number=9), [4]),
        (lambda lines: _forge(lines, 1), [3]),  # with a hash that fits: the line after it tells
        (lambda lines: lines.pop(1), [2]),
        (lambda lines: lines.insert(1, lines[2]), [2, 3, 4]),
        (lambda lines: lines.__setitem__(2, b"gone"), [3, 4]),
    ],
)
def test_a_changed_ledger_is_named_by_line(folder, change, lines):
    faults = changed(folder, change)
    assert [int(fault.split(":")[0].removeprefix("line ")) for fault in faults][: len(lines)] == lines
    assert run(["info", str(folder), "--ledger"]) == 3
    before = len(read_ledger(folder / LEDGER_FILE).faults)
    append_scoring(folder, scoring("later"))  # goes on, and repairs nothing
    assert len(read_ledger(folder / LEDGER_FILE).faults) == before


def test_the_line_after_a_broken_one_holds_to_it(folder):
    assert len(changed(folder, lambda lines: lines.__setitem__(3, b"gone"))) == 1
    append_scoring(folder, scoring("later"))
    assert len(changed(folder, lambda lines: lines.__setitem__(3, b"lost"))) == 2  # the broken line and the next


@pytest.mark.parametrize("n_kept", [1, 40, -2])
def test_a_torn_last_line_is_removed_by_the_next_scoring(folder, n_kept, capsys):
    file = folder / LEDGER_FILE
    whole = file.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    file.write_bytes(whole[:last] + whole[last:][:n_kept])
    state = read_ledger(file)
    assert state.torn and not state.faults and len(state.lines) == 3
    assert run(["info", str(folder), "--ledger"]) == 0
    assert "The last line is incomplete" in capsys.readouterr().out
    append_scoring(folder, Scoring(event="test set", name="next"))  # a shorter line
    state = read_ledger(file)
    assert [line.scoring.name for line in state.lines] == ["3d fold 0", "first", "second", "next"]
    assert not state.torn and not state.faults


def test_folds_that_end_at_once_take_turns(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: append_scoring(tmp_path, scoring(str(n))), range(24)))
    state = read_ledger(tmp_path / LEDGER_FILE)
    assert sorted(int(line.scoring.name) for line in state.lines) == list(range(24)) and not state.faults


def test_evaluate_notes_test_sets_and_info_shows_them(tmp_path, capsys):
    write_nnunet(tmp_path / "data", ["p0", "p1"])
    command = ["evaluate", "-r", str(tmp_path / "data" / "labelsTr"), "-p", str(tmp_path / "data" / "labelsTr")]
    assert run([*command, "--ledger", str(tmp_path / "nowhere")]) == 2
    assert run(command) == 0 and not list(tmp_path.rglob(LEDGER_FILE))  # no work folder is known
    work = tmp_path / "work"
    work.mkdir()
    for n_times in ("once", "2 times, the same masks"):
        capsys.readouterr()
        assert run([*command, "--ledger", str(work)]) == 0
        assert f"Test set scored {n_times}." in capsys.readouterr().err
    assert run(["info", str(work), "--ledger", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["lines"][0]["scoring"]["cases"]) == {"p0", "p1"} and not found["faults"]
