"""Numbers and nouns agree; memory is printed in the unit it is computed in."""

from __future__ import annotations

import csv
import io
import json
from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.core.text import count, csv_cells, csv_text, duration_text, escape_control, printable, size_text


@pytest.mark.parametrize(
    ("n", "words", "text"),
    [
        (1, ("image",), "1 image"),
        (2, ("image",), "2 images"),
        (0, ("image",), "0 images"),
        (1, ("axis", "axes"), "1 axis"),
        (2, ("axis", "axes"), "2 axes"),
        (21, ("case is left out", "cases are left out"), "21 cases are left out"),
    ],
)
def test_a_number_agrees_with_its_noun(n, words, text):
    assert count(n, *words) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 KiB"),
        (1, "1 KiB"),
        (2**20, "1.0 MiB"),
        (1_000_000_000, "954 MiB"),  # 1e9 / 1048576 = 953.7: a GB is not a GiB
        (2**30 - 1, "1.0 GiB"),
        (4_080_218_931, "3.8 GiB"),  # 3.8 × 1073741824
        (24 * 2**30, "24.0 GiB"),
        (137 * 2**30, "137 GiB"),
    ],
)
def test_sizes_are_binary(n_bytes, text):
    assert size_text(n_bytes) == text


def test_durations_by_hand():
    texts = [duration_text(s) for s in (0.2, 99, 100, 5940, 6000, 90_000, 172_000, nan)]  # the last: 2867 min
    assert texts == ["0 s", "99 s", "2 min", "99 min", "1 h 40 min", "25 h 00 min", "2 d 0 h", "?"]


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x07", "\r", "\x7f", "\x9b", "\u202e", "\u2066", "\ud800"])
def test_nothing_printed_acts_on_a_terminal(character: str) -> None:
    shown = printable(f"a{character}ß\n\tb")
    assert character not in shown and shown.startswith("a\\") and shown.endswith("ß\n\tb")
    assert json.loads(escape_control(json.dumps(f"a{character}", ensure_ascii=False), as_json=True)) == f"a{character}"


FORMULAS = ["=1+1", "+x", "@SUM(A1)", "-x", "-", "\t=1", "'=1", "''-x", "-2+3+cmd|' /C calc'!A0"]


@pytest.mark.parametrize("text", [*FORMULAS[:6], FORMULAS[-1]])
def test_no_cell_of_a_table_is_a_formula(text: str) -> None:
    (line,) = csv.reader(io.StringIO(csv_text([[text, "a"]])))
    assert line == [f"'{text}", "a"]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\x00")) | st.sampled_from(FORMULAS), min_size=1))
def test_cells_are_read_as_they_were_written(cells: list[str]) -> None:
    (line,) = csv.reader(io.StringIO(csv_text([cells])))
    assert csv_cells(line) == cells


@pytest.mark.parametrize("value", [-0.5, float("-inf"), -3, "-0.5", "-inf", "-.5", "a=b", ""])
def test_numbers_and_usual_text_stay_as_they_are(value: object) -> None:
    assert csv_text([[value, 1]]) == f"{value},1\n"
