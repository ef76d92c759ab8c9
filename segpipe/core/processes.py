"""One of several processes that do one thing together, as torchrun tells each of them in its environment."""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def n_processes() -> int:
    """Processes that do one thing together, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Number of this process among those on this machine, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def n_sharing() -> int:
    """Processes that share this machine's processors and memory, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
