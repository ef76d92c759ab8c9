"""Progress of long work: a bar on a terminal, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from segpipe.core.errors import ResourceError, SegpipeError, SetupError
from segpipe.core.machine import rank
from segpipe.core.text import duration_text, printable

Item = TypeVar("Item")
Result = TypeVar("Result")
_SECONDS_BETWEEN_LINES = 20.0


_SHOWN_AS: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("_SHOWN_AS", default=())


@contextmanager
def show_as(folder: Path, name: Path) -> Iterator[None]:
    """Show `name`, which users know, instead of `folder`, a private copy, in lines and errors while the body runs."""
    token = _SHOWN_AS.set((*_SHOWN_AS.get(), (str(folder), str(name))))
    try:
        yield
    except (SetupError, ResourceError):  # about the copy itself
        raise
    except SegpipeError as fault:
        raise type(fault)(str(fault).replace(str(folder), str(name))) from fault
    finally:
        _SHOWN_AS.reset(token)


_LINES: ContextVar[list[str] | None] = ContextVar("_LINES", default=None)


@contextmanager
def collect_lines() -> Iterator[list[str]]:
    """While the body runs, lines for the user are collected instead of printed, and no progress is shown.

    For callers from Python, who get the lines with the result.
    """
    lines: list[str] = []
    token = _LINES.set(lines)
    try:
        yield lines
    finally:
        _LINES.reset(token)


def say(text: str) -> None:
    """Print a line for the person who waits; of processes that work together, only the first prints."""
    for folder, name in _SHOWN_AS.get():
        text = text.replace(folder, name)
    text = printable(text)
    if (lines := _LINES.get()) is not None:
        lines.append(text)
    elif rank() == 0:
        print(text, file=sys.stderr, flush=True)


def track(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Yield `items` and show how many of `total` are done."""
    if total == 0:
        return
    if _LINES.get() is not None:
        yield from items
        return
    if sys.stderr.isatty() and rank() == 0:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            yield from bar.track(items, total=total, description=escape(printable(what)))
        return
    pace = Pace(what, total)
    for item in items:
        yield item
        pace.step()
    say(f"{what}: {total}/{total} in {time.monotonic() - pace.started:.1f} s")


class Pace:
    """Prints a line now and then about one long piece of work; none about a short one.

    Args:
        what: The work, for people.
        total: Its number of steps.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.started = self._last = time.monotonic()

    def step(self) -> None:
        """One more step is done."""
        self.done += 1
        now = time.monotonic()
        if now - self._last > _SECONDS_BETWEEN_LINES and self.done < self.total:
            self._last = now
            left = duration_text((now - self.started) / self.done * (self.total - self.done))
            say(f"{self.what}: {self.done}/{self.total}, about {left} left")


def map_threads(function: Callable[[Item], Result], items: Sequence[Item], what: str, n_workers: int) -> list[Result]:
    """`[function(item) for item in items]` on threads, in order, with progress; the first error stops it.

    Threads and not processes: the work (decompression, matrix products) leaves Python's lock, errors arrive as
    they are, and nothing is pickled or dies unseen in a container with little shared memory.
    """
    with ThreadPoolExecutor(max_workers=max(1, n_workers)) as pool:
        futures = {pool.submit(function, item): index for index, item in enumerate(items)}
        results: dict[int, Result] = {}
        try:
            for future in track(as_completed(futures), what, len(items)):
                results[futures[future]] = future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [results[index] for index in range(len(items))]
