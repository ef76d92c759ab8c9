"""Errors that a user can meet. Each class carries the exit code of the command line.

    SegpipeError
    ├── UsageError      2  the command is wrong: an option, the wrong kind of folder
    ├── PlanError       2  the plan is wrong: unknown key, value out of range
    ├── DataError       3  images, labels or the dataset's description are wrong
    │   └── GeometryError  a grid is wrong: sheared, contradictory, not the one expected
    │       └── SeveralVolumesError  a folder of slices holds more than one
    ├── SetupError      4  the machine is not ready: not writable, no such device, package missing
    ├── ResourceError   5  out of memory or disk
    └── Interrupted    75  stopped on request; rerun the same command to resume

A message says where, what was found, what was expected and what to do.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = tuple(  # requests to stop: a cluster's, a closed terminal's, Ctrl-C; no system has all of them
    getattr(signal, name)
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGBREAK", "SIGINT")
    if hasattr(signal, name)
)


class SegpipeError(Exception):
    """An error of the input or the machine, not of the program."""

    exit_code = 1


class UsageError(SegpipeError):
    """The command cannot be carried out as given."""

    exit_code = 2


class PlanError(SegpipeError):
    """The plan holds a key or value that is not allowed."""

    exit_code = 2


class DataError(SegpipeError):
    """Images, labels or a description of them are wrong."""

    exit_code = 3


class GeometryError(DataError):
    """A grid is sheared, contradicts itself, or is not the one expected."""


class SeveralVolumesError(GeometryError):
    """A folder of slices holds several volumes, such as series, echoes or phases."""


class SetupError(SegpipeError):
    """The machine lacks something: a permission, a device, a package."""

    exit_code = 4


class ResourceError(SegpipeError):
    """Memory or disk ran out."""

    exit_code = 5


class Interrupted(SegpipeError):
    """Stopped on request, state saved."""

    exit_code = 75


_OUT_OF_MEMORY = (  # what libraries and the system say
    "allocate memory",
    "not enough memory",
    "out of memory",
    "status_alloc_failed",  # cuBLAS, cuDNN
    "unable to allocate",
    "bad_alloc",
    "bad allocation",
    "can't start new thread",
)


def is_out_of_memory(fault: BaseException) -> bool:
    """True if memory ran out, whatever a library calls that."""
    text = str(fault).lower()
    is_refusal = isinstance(fault, RuntimeError | OSError | ImportError | ValueError | SystemError)
    return isinstance(fault, MemoryError) or (is_refusal and any(words in text for words in _OUT_OF_MEMORY))


@contextmanager
def package_needed(name: str, what: str) -> Iterator[None]:
    """Import a package that most work can do without.

    Args:
        name: As pip knows it.
        what: What needs it, for the message.

    Raises:
        SetupError: If it is not installed.
        ResourceError: If there is no memory for it.
    """
    try:
        yield
    except ImportError as fault:
        if is_out_of_memory(fault):
            raise ResourceError(f"{what}: ran out of memory while the Python package {name} was loaded.") from fault
        raise SetupError(
            f"{what} needs the Python package {name}, which cannot be imported ({fault}). Install it: "
            f"pip install {name}"
        ) from fault
