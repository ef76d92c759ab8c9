"""Batches drawn ahead on threads: in order, whatever their number; what goes wrong reaches the consumer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from segpipe.train.sampling import Batch


class Loader:
    """Draws the batches of iterations `first`, `first + 1`, … in the background while the consumer computes.

    Threads and not processes: nothing is pickled, no shared memory is used, no worker dies unseen, and cutting is short
    beside a step, which leaves Python's lock to it. A batch is a function of its iteration, so their number changes
    nothing.

    Args:
        draw: Gives the batch of an iteration; called on the threads, so it must not change anything.
        first: Iteration of the first batch.
        n_threads: 0 draws in the calling thread when a batch is asked for.
        n_ahead: Batches drawn or being drawn beyond those given out; at least one for each thread.

    Attributes:
        wait_seconds: Time that the consumer has spent in `next` so far.

    Example:
        with Loader(draw, first=0, n_threads=1) as batches:
            step(batches.next())
    """

    def __init__(self, draw: Callable[[int], Batch], first: int, n_threads: int, n_ahead: int = 2) -> None:
        self.wait_seconds = 0.0
        self._draw, self._next = draw, first
        self._n_ahead = max(n_ahead, n_threads)
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="loader") if n_threads else None
        self._waiting: deque[Future[Batch]] = deque()

    def __enter__(self) -> Loader:
        self._fill(self._n_ahead)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Waits for the batches that are being drawn; those that are not begun are dropped."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._waiting.clear()

    def next(self) -> Batch:
        """The batch of the next iteration.

        Raises:
            DataError: If a case cannot be read; whatever else `draw` raised for this iteration comes as it is.
        """
        began = time.monotonic()
        try:
            if self._pool is None:
                self._next += 1
                return self._draw(self._next - 1)
            self._fill(self._n_ahead + 1)
            return self._waiting.popleft().result()
        finally:
            self.wait_seconds += time.monotonic() - began

    def _fill(self, n_waiting: int) -> None:
        while self._pool and len(self._waiting) < n_waiting:
            self._waiting.append(self._pool.submit(self._draw, self._next))
            self._next += 1
