"""train/loader.py"""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import pytest
import torch

from segpipe.core.errors import DataError
from segpipe.train.loader import Loader
from segpipe.train.sampling import Batch


def numbered(iteration: int) -> Batch:
    """A batch that holds its iteration."""
    return Batch(torch.full((1, 1, 1, 1, 1), float(iteration)), torch.zeros((1, 1, 1, 1), dtype=torch.int8), ("a",))


def numbers(loader: Loader, n_batches: int) -> list[float]:
    return [loader.next().images.item() for _ in range(n_batches)]


@pytest.mark.parametrize("n_threads", [0, 1, 3])
def test_batches_come_in_the_order_of_iterations_whatever_the_number_of_threads(n_threads):
    def slower_when_even(iteration: int) -> Batch:
        time.sleep(0.01 if iteration % 2 == 0 else 0.0)  # later ones are ready first
        return numbered(iteration)

    with Loader(slower_when_even, first=7, n_threads=n_threads) as loader:
        assert numbers(loader, 6) == [7, 8, 9, 10, 11, 12]


def test_no_more_than_n_ahead_are_drawn_beyond_those_given_out():
    drawn: list[int] = []

    def noted(iteration: int) -> Batch:
        drawn.append(iteration)
        return numbered(iteration)

    with Loader(noted, first=0, n_threads=1, n_ahead=3) as loader:
        _wait_until(lambda: len(drawn) == 3)
        time.sleep(0.02)
        assert drawn == [0, 1, 2]  # nobody asked yet
        loader.next()
        _wait_until(lambda: len(drawn) == 4)
        time.sleep(0.02)
        assert drawn == [0, 1, 2, 3]


def _wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


@pytest.mark.parametrize("n_threads", [0, 2])
def test_a_fault_reaches_the_consumer_at_its_iteration(n_threads):
    def faulty(iteration: int) -> Batch:
        if iteration == 2:
            raise DataError("case_017: the prepared case cannot be read")
        return numbered(iteration)

    with Loader(faulty, first=0, n_threads=n_threads) as loader:
        assert numbers(loader, 2) == [0, 1]
        with pytest.raises(DataError, match="case_017"):
            loader.next()


def test_leaving_drops_what_is_not_begun_and_ends_the_threads():
    begun, go = [], threading.Event()

    def held(iteration: int) -> Batch:
        begun.append(iteration)
        go.wait(10)
        return numbered(iteration)

    with pytest.raises(KeyboardInterrupt), Loader(held, first=0, n_threads=1, n_ahead=5):
        _wait_until(lambda: begun == [0])
        threading.Timer(0.02, go.set).start()
        raise KeyboardInterrupt
    assert begun == [0] and not [t for t in threading.enumerate() if t.name.startswith("loader")]


def test_waiting_is_measured_and_drawing_ahead_is_not_waiting():
    drawn: list[int] = []

    def slow(iteration: int) -> Batch:
        time.sleep(0.1)
        drawn.append(iteration)
        return numbered(iteration)

    with Loader(slow, first=0, n_threads=0) as loader:
        numbers(loader, 2)
        assert loader.wait_seconds >= 0.2
    with Loader(slow, first=0, n_threads=1) as loader:
        _wait_until(lambda: drawn == [0, 1, 0, 1])  # the consumer computes meanwhile
        numbers(loader, 2)
        assert loader.wait_seconds < 0.1


def _draw_in_a_process(maps: Path) -> None:
    with Loader(numbered, first=0, n_threads=2) as loader:
        assert numbers(loader, 3) == [0, 1, 2]
        if maps.is_file():  # on Linux
            assert "/dev/shm" not in maps.read_text("utf-8")


def test_it_runs_in_a_spawned_process_without_shared_memory():
    maps = Path("/proc/self/maps")
    process = multiprocessing.get_context("spawn").Process(target=_draw_in_a_process, args=(maps,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
