"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segpipe.core.errors import UsageError
from segpipe.core.files import disk_fault

LOCK_NAME = ".lock"


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Hold a folder; the kernel lets go of it when the process ends, however it ends.

    Raises:
        UsageError: If another process holds it.
    """
    path = folder / LOCK_NAME
    try:
        lock = path.open("w")
    except OSError as fault:
        raise disk_fault(fault, path) from fault
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: another process works on it now. Wait for it, or stop it first.") from None
        yield
