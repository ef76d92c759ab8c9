"""Results computed ahead on threads while the consumer works on earlier ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Prefetch(Generic[Result]):
    """Gives `make(first)`, `make(first + 1)`, … on request; the next ones are already being made.

    The rules, for every user:

    - Each index is asked for once, about in order, from one thread or several. Its result is then forgotten.
    - What `make` raises is raised by `get` for that index, and by no other; the others can still be asked for.
    - `get` begins results ahead once its own is there, so that no more than `n_ahead` wait in memory.
    - Leaving the context drops what has not begun and waits for what has, whether the body succeeded or not.

    Threads and not processes: nothing is pickled, no shared memory is used, and no worker dies unnoticed. `make` spends
    its time in reading and in numpy, which leave Python's lock to others.

    Args:
        make: Computes the result of an index; called on the threads, so it must change nothing that others read.
        n_threads: Threads that compute; 0 computes in the calling thread when a result is asked for.
        n_ahead: Results made or being made beyond the last one asked for; at least one for each thread.
        first: The first index.
        stop: The index after the last one; None for no end.
        may_begin: Whether an index may be begun ahead of its turn, e.g. because memory suffices; None for always.

    Attributes:
        wait_seconds: Time that consumers have spent in `get` so far.

    Example:
        >>> with Prefetch("abc".__getitem__, n_threads=1, n_ahead=1, stop=3) as letters:
        ...     letters.get(0), letters.get(1)
        ('a', 'b')
    """

    def __init__(
        self,
        make: Callable[[int], Result],
        n_threads: int,
        n_ahead: int,
        *,
        first: int = 0,
        stop: int | None = None,
        may_begin: Callable[[int], bool] | None = None,
    ) -> None:
        self.wait_seconds = 0.0
        self._make, self._may_begin = make, may_begin
        self._n_ahead, self._stop = max(n_ahead, n_threads), stop
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="prefetch") if n_threads else None
        self._begun: dict[int, Future[Result]] = {}
        self._first = self._next = first
        self._lock = Lock()

    def __enter__(self) -> Prefetch[Result]:
        self._begin_ahead(self._first + self._n_ahead)
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._begun.clear()

    def get(self, index: int) -> Result:
        """The result of one index.

        Raises:
            Exception: What `make` raised for this index.
            KeyError: If the index was asked for before, or is past the end.
        """
        began = time.monotonic()
        try:
            if self._pool is None:
                return self._make(index)
            with self._lock:
                self._begin(index + 1)
                result = self._begun.pop(index)
            return result.result()
        finally:
            self._begin_ahead(index + 1 + self._n_ahead)
            with self._lock:
                self.wait_seconds += time.monotonic() - began

    def _begin(self, end: int) -> None:
        """Begin every index below `end` that is not; under the lock."""
        while self._pool and self._next < (end if self._stop is None else min(end, self._stop)):
            self._begun[self._next] = self._pool.submit(self._make, self._next)
            self._next += 1

    def _begin_ahead(self, end: int) -> None:
        """Begin what may be begun below `end`, up to the first index that may not."""
        with self._lock:
            while self._next < end and (self._may_begin is None or self._may_begin(self._next)):
                before = self._next
                self._begin(self._next + 1)
                if self._next == before:  # without threads, or past the end
                    return
