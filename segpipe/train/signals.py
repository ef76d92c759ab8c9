"""Signals in a training: requests to stop, and a record of one that ends it.

While a fold trains, `crash.txt` is in its folder: the step in a line of fixed width, and behind it what `faulthandler`
writes when the processor or the C library ends the process. A training that ends in any other way removes the file, so
whoever finds one there, under the fold's lock, has found a training that died.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segpipe.core.errors import STOP_SIGNALS, Interrupted
from segpipe.core.progress import say
from segpipe.core.work import FoldFolder


class Stop:
    """Remembers a request to stop, so that training can finish its step and save its state."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listen(self) -> Iterator[None]:
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


_SIGNALS = {  # what faulthandler calls them, and what the signal is called
    "Segmentation fault": "SIGSEGV",
    "Bus error": "SIGBUS",
    "Aborted": "SIGABRT",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}
_MEMORY_FAULT = "Memory was overwritten or the processor refused an instruction"
_open_file: int | None = None  # of the fold that this process trains


@contextmanager
def crash_noted(folder: FoldFolder) -> Iterator[str]:
    """Report a training that died in this folder before; record the end of this process while the body runs.

    To be entered by the one process that writes into the folder, under its lock.

    Yields:
        What is to be logged of the training that died; empty if none did.
    """
    global _open_file
    found = ""
    if folder.crash.is_file():
        text = crash_text(folder)
        say(f"warning: {text}")
        found = f"{text}\n{_details(folder.crash)}"
    with folder.crash.open("wb", buffering=0) as file:
        _open_file = file.fileno()
        mark_step(0)
        was_enabled = faulthandler.is_enabled()
        faulthandler.enable(file)
        try:
            yield found
        finally:
            faulthandler.disable()
            if was_enabled and sys.__stderr__:  # as by python -X faulthandler
                faulthandler.enable(sys.__stderr__)
            _open_file = None
            folder.crash.unlink(missing_ok=True)


def mark_step(iteration: int) -> None:
    """Note that the step after `iteration` steps begins; nothing if no fold is trained here."""
    if _open_file is not None:
        os.lseek(_open_file, 0, os.SEEK_SET)
        os.write(_open_file, f"step {iteration + 1:>12}\n".encode())
        os.lseek(_open_file, 0, os.SEEK_END)  # where faulthandler writes


def crash_text(folder: FoldFolder) -> str:
    """A sentence on what happened to the training that left a `crash.txt`, where, and what to try."""
    text = folder.crash.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"Fatal Python error: ([^\n]+)", text)
    step = re.search(r"step +(\d+)", text)
    where = f"{folder.path}: the training before this one died in step {step[1] if step else '?'}"
    if not found:
        return (
            f"{where} without a message, as after SIGKILL or a power cut. If memory ran out (see `dmesg`), use a "
            "smaller batch_size or patch_zyx. Training resumes from the last saved state."
        )
    signal = _SIGNALS.get(found[1], found[1])
    return (
        f"{where} of {signal}. {_MEMORY_FAULT}; its traceback is in {folder.log}. Training resumes from the last saved "
        "state. If it happens again, run `segpipe doctor`, or train with --set training.precision=fp32."
    )


def _details(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    return "\n".join(f"    {line}" for line in lines)
