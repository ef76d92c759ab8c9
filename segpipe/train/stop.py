"""Requests to stop: SIGTERM, SIGUSR1 and SIGUSR2 (a cluster's notice), SIGHUP (a closed terminal), Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segpipe.core.errors import STOP_SIGNALS, Interrupted


class Stop:
    """Remembers a request to stop, so that training can finish its step and save its state."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals inside the context; outside of the main thread there are none."""

        def note(number: int, _: object) -> None:
            self.signal = number

        try:
            heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores
            old = {number: signal.signal(number, note) for number in heard}
        except ValueError:  # not in the main thread
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def obey(self, folder: Path, iteration: int) -> None:
        """End the training, whose state is saved, if there was a request.

        Raises:
            Interrupted: After any other signal than Ctrl-C.
            KeyboardInterrupt: After Ctrl-C.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise Interrupted(
                f"{folder}: stopped by {signal.Signals(self.signal).name} at iteration {iteration}, state saved. "
                "Rerun the same command to resume."
            )
