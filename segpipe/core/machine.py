"""This machine and this process on it: its rank, processors, free memory and versions; findings of `segpipe doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Literal

from segpipe._version import __version__
from segpipe.core.records import Record

_GROUP_FILES = (  # of a container, by version of control groups: limit, use, and the name of the cached part of it
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
_PACKAGES = ("torch", "numpy", "scipy", "monai", "nnunetv2", "dynamic-network-architectures", "nibabel", "SimpleITK")


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def n_processes() -> int:
    """Number of processes that work together, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Number of this process among those on this machine, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def n_sharing() -> int:
    """Processes that share this machine's processors and memory, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cpu_count() -> int:
    """Processors this process may use, those it shares divided evenly."""
    n_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, n_processors // n_sharing())


def default_workers() -> int:
    """Processors to use unless told otherwise: `OMP_NUM_THREADS` if it is set, as torch has it, else all of them.

    Under torchrun the variable is not read: torchrun itself sets it to 1.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # the standard allows a list, by nesting
    is_set = first.isdecimal() and int(first) > 0 and n_sharing() == 1
    return min(int(first), cpu_count()) if is_set else cpu_count()


def free_bytes(meminfo: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that can be taken without swapping: free memory, and memory that only caches files.

    Args:
        meminfo: The machine's account.
        groups: The container's.

    Returns:
        The smaller of both, divided by the processes that share it; 0 where the system does not say, as on macOS.
    """
    if not meminfo.is_file():
        return 0
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for limit, use, account, cached in _GROUP_FILES:
        if (groups / limit).is_file() and (text := (groups / limit).read_text().strip()).isdecimal():
            values = dict(line.split() for line in (groups / account).read_text().splitlines())
            free = min(free, int(text) - int((groups / use).read_text()) + int(values[cached]))
    return max(0, free) // n_sharing()


def total_bytes(meminfo: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory of this machine, or of its container if that has less; 0 where the system does not say.

    Args:
        meminfo: The machine's account.
        groups: The container's.
    """
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        total = int(fields["MemTotal"].split()[0]) * 1024
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:  # macOS
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return 0
    for limit, *_ in _GROUP_FILES:
        if (groups / limit).is_file() and (text := (groups / limit).read_text().strip()).isdecimal():
            total = min(total, int(text))
    return total // n_sharing()


class Environment(Record):
    """The software and device of a computation.

    Args:
        versions: Of segpipe, Python and packages; `not installed` for missing ones.
        system: The operating system.
        device: Processor or GPU; empty if it does not matter.
    """

    versions: dict[str, str]
    system: str
    device: str

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Name and value of each known fact."""
        device = (("Device", self.device),) if self.device else ()
        return (*device, *self.versions.items(), ("System", self.system))


def environment_here(device: str = "") -> Environment:
    """The environment of this process, in which `device` computes."""
    versions = {"segpipe": __version__, "Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return Environment(versions=versions, system=platform.platform(), device=device)


class Finding(Record):
    """One thing that was examined.

    Args:
        about: What, e.g. `memory`.
        state: `ok`; `warning` (works, but slowly or with limits); `fault` (something will fail).
        found: The finding, with units.
        advice: The remedy; empty if nothing needs to be done.
    """

    about: str
    state: Literal["ok", "warning", "fault"]
    found: str
    advice: str = ""


def finding(about: str, found: str, *, fault: str = "", warning: str = "") -> Finding:
    """Make a finding whose state follows from the advice: `fault` outranks `warning`."""
    return Finding(
        about=about,
        state="fault" if fault else "warning" if warning else "ok",
        found=found,
        advice=fault or warning,
    )
