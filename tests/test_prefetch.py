"""Reading ahead: in order, no more in memory than said, errors where they belong, a clean end."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from segpipe.core.prefetch import Prefetch


def test_the_next_result_is_made_while_one_is_worked_on():
    second_was_made = threading.Event()

    def make(index):
        if index == 1:
            second_was_made.set()
        return "ABC"[index]

    with Prefetch(make, n_threads=1, n_ahead=1, stop=3) as ahead:
        assert ahead.get(0) == "A"
        assert second_was_made.wait(10)  # without being asked for
        assert [ahead.get(1), ahead.get(2)] == ["B", "C"]


@pytest.mark.parametrize("n_threads", [0, 1, 3])
def test_the_number_of_threads_changes_no_result(n_threads):
    with Prefetch(lambda index: index**2, n_threads, n_ahead=2, first=5, stop=9) as ahead:
        assert [ahead.get(index) for index in range(5, 9)] == [25, 36, 49, 64]


def test_no_more_is_made_than_said():
    made = []
    with Prefetch(made.append, n_threads=1, n_ahead=2) as ahead:
        ahead.get(0)
        time.sleep(0.1)  # a third one would be made now
    assert made == [0, 1, 2]


def test_an_error_is_raised_for_its_own_index_alone():
    with Prefetch([1, 0, 1].__getitem__, n_threads=1, n_ahead=1, stop=3) as ahead:
        assert ahead.get(0) == 1
    with Prefetch(lambda index: 1 // (index - 1), n_threads=1, n_ahead=1, stop=3) as ahead:
        assert ahead.get(0) == -1
        with pytest.raises(ZeroDivisionError):
            ahead.get(1)
        assert ahead.get(2) == 1


def test_a_result_that_may_not_begin_ahead_is_made_when_asked_for():
    made = []
    with Prefetch(made.append, n_threads=1, n_ahead=1, stop=3, may_begin=lambda index: index != 1) as ahead:
        ahead.get(0)
        time.sleep(0.1)  # the next one would be made now
        assert made == [0]
    made.clear()
    with Prefetch(made.append, n_threads=1, n_ahead=1, stop=3, may_begin=lambda index: index != 1) as ahead:
        for index in range(3):
            ahead.get(index)
    assert made == [0, 1, 2]


def test_leaving_by_an_error_drops_what_has_not_begun():
    made, may_end, n_before = [], threading.Event(), threading.active_count()

    def make(index):
        made.append(index)
        if index == 1:
            may_end.wait(10)

    with pytest.raises(RuntimeError, match="the consumer's own"), Prefetch(make, n_threads=1, n_ahead=3) as ahead:
        ahead.get(0)
        threading.Timer(0.2, may_end.set).start()
        raise RuntimeError("the consumer's own")
    assert set(made) <= {0, 1} and threading.active_count() <= n_before + 1  # the timer may still end


def test_a_result_is_given_once():
    with Prefetch(str, n_threads=1, n_ahead=1) as ahead:
        ahead.get(0)
        with pytest.raises(KeyError):
            ahead.get(0)


def test_several_threads_may_ask():
    results = {}
    with Prefetch(lambda index: -index, n_threads=2, n_ahead=2, stop=40) as ahead:

        def ask(indices):
            for index in indices:
                results[index] = ahead.get(index)

        threads = [threading.Thread(target=ask, args=(range(start, 40, 2),)) for start in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {index: -index for index in range(40)}


def test_waiting_is_measured_and_making_ahead_is_not_waiting():
    made = []

    def slow(index):
        time.sleep(0.1)
        made.append(index)

    with Prefetch(slow, n_threads=0, n_ahead=2) as ahead:
        ahead.get(0), ahead.get(1)
        assert ahead.wait_seconds >= 0.2
    with Prefetch(slow, n_threads=1, n_ahead=2) as ahead:
        deadline = time.monotonic() + 10
        while made != [0, 1, 0, 1] and time.monotonic() < deadline:  # the consumer computes meanwhile
            time.sleep(0.001)
        ahead.get(0), ahead.get(1)
        assert ahead.wait_seconds < 0.1


def _make_in_a_process(maps):
    with Prefetch(float, n_threads=2, n_ahead=2) as ahead:
        assert [ahead.get(index) for index in range(3)] == [0.0, 1.0, 2.0]
        if maps.is_file():  # on Linux
            assert "/dev/shm" not in maps.read_text("utf-8")


def test_it_runs_in_a_spawned_process_without_shared_memory():
    spawned = multiprocessing.get_context("spawn").Process(target=_make_in_a_process, args=(Path("/proc/self/maps"),))
    spawned.start()
    spawned.join(120)
    assert spawned.exitcode == 0
