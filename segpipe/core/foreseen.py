"""The estimate of a long command: printed by `--dry-run`, which does nothing else."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

from pydantic import NonNegativeFloat, NonNegativeInt

from segpipe.core.records import Record
from segpipe.core.text import duration_text, size_text

_WIDTH = 80


class Foreseen(Record):
    """The time, disk and memory that a command would take.

    Args:
        command: Which.
        todo: What is left to do, one sentence.
        seconds: About how long; None if that is not known.
        seconds_from: How that was estimated, or why it is not known.
        disk_bytes, free_disk_bytes: About what will be written, and what there is.
        memory_bytes, free_memory_bytes: The most at any moment, and what is free; 0 if not known.
        memory_of: Whose memory, `CPU` or `GPU`.
        notes: What else to know; a fault would end the command, and is not noted but raised.
        exit_code: That the command would end with, as far as is known: of single cases that cannot be predicted.
    """

    command: str
    todo: str
    seconds: NonNegativeFloat | None
    seconds_from: str
    disk_bytes: NonNegativeInt
    free_disk_bytes: NonNegativeInt
    memory_bytes: NonNegativeInt
    free_memory_bytes: NonNegativeInt
    memory_of: str
    notes: tuple[str, ...] = ()
    exit_code: int = 0

    def text(self) -> str:
        """For people, at most 80 columns wide."""
        time = "not known" if self.seconds is None else f"about {duration_text(self.seconds)}"
        memory = (
            f"about {size_text(self.memory_bytes)} of {self.memory_of} memory" if self.memory_bytes else "not known"
        )
        free = f" ({size_text(self.free_memory_bytes)} free)" if self.free_memory_bytes else ""
        lines = [
            f"{self.command}: {self.todo}",
            f"  time    {time}; {self.seconds_from}",
            f"  disk    about {size_text(self.disk_bytes)} ({size_text(self.free_disk_bytes)} free)",
            f"  memory  {memory}{free}",
            *(f"  note    {note}" for note in (*self.notes, *self._warnings())),
            "Nothing was done.",
        ]
        return "\n".join(piece for line in lines for piece in textwrap.wrap(line, _WIDTH, subsequent_indent=" " * 10))

    def _warnings(self) -> list[str]:
        found = []
        if self.disk_bytes > self.free_disk_bytes:
            found.append("the disk is too small for it")
        if self.free_memory_bytes and self.memory_bytes > self.free_memory_bytes:
            found.append("less memory is free than it takes")
        return found


def free_disk_bytes(folder: Path) -> int:
    """Free space where a folder lies or will lie."""
    absolute = folder.absolute()
    return shutil.disk_usage(next(path for path in (absolute, *absolute.parents) if path.exists())).free
