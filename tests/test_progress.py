"""core/progress.py: lines on stderr, work on threads."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.core.machine import cpu_count
from segpipe.core.progress import map_threads, say, track


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_square(n: int) -> int:
        time.sleep(0.01 * (5 - n))  # the last item is done first
        return n * n

    assert map_threads(slow_square, [0, 1, 2, 3, 4], "squares", 5) == [0, 1, 4, 9, 16]


@given(st.lists(st.integers()), st.integers(-1, 4))
def test_the_number_of_workers_changes_nothing(items: list[int], n_workers: int) -> None:
    assert map_threads(str, items, "text", n_workers) == [str(i) for i in items]


def test_the_first_error_stops_the_rest_and_arrives_as_it_is() -> None:
    started: list[int] = []

    def work(n: int) -> None:
        started.append(n)
        if n == 1:
            raise ZeroDivisionError("one")
        time.sleep(0.02)

    with pytest.raises(ZeroDivisionError, match="one"):
        map_threads(work, list(range(50)), "work", 2)
    assert len(started) < 50


def test_work_runs_on_other_threads_side_by_side() -> None:
    both_there = threading.Barrier(2, timeout=10)  # passes only if two items are worked on at once
    assert map_threads(lambda _: both_there.wait() >= 0, [0, 1], "pair", 2) == [True, True]


def test_off_a_terminal_there_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(["a", "b"], "reading", 2)) == ["a", "b"]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("reading: 2/2 in ") and err.count("\n") == 1


def test_nothing_to_do_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([], "reading", 0)) == []
    assert capsys.readouterr() == ("", "")


def test_say_leaves_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    say("five cases")
    assert capsys.readouterr() == ("", "five cases\n")


def test_there_is_a_processor() -> None:
    assert cpu_count() >= 1
