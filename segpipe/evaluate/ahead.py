"""Reading the next files while the last ones are worked on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class ReadAhead(Generic[Item, Result]):
    """`function(items[index])` for indices asked for about in order; those to come next are already being read.

    Args:
        function: What reads an item; its error is raised where the item is asked for.
        items: All of them.
        n_ahead: How many to begin with beyond the one asked for; together with those being worked on, these are in
            memory.
    """

    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item], n_ahead: int) -> None:
        self._function, self._items, self._n_ahead = function, items, n_ahead
        self._pool = ThreadPoolExecutor(n_ahead)
        self._begun: dict[int, Future[Result]] = {}
        self._next, self._lock = 0, Lock()

    def __enter__(self) -> ReadAhead[Item, Result]:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, index: int) -> Result:
        """The result of one item, which is then forgotten."""
        with self._lock:
            while self._next < min(index + self._n_ahead + 1, len(self._items)):
                self._begun[self._next] = self._pool.submit(self._function, self._items[self._next])
                self._next += 1
            reading = self._begun.pop(index)
        return reading.result()
