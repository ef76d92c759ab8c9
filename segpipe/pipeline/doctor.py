"""`segpipe doctor`: whether this machine is ready, looked at piece by piece."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from segpipe.core.findings import Finding, finding
from segpipe.core.folder_findings import folder_findings
from segpipe.core.memory import free_bytes
from segpipe.core.progress import cpu_count
from segpipe.networks.doctor import torch_findings

_GB = 2**30
_FEW_BYTES = 4 * _GB  # preparing one large CT takes about as much
_FEW_SHARED_BYTES = 2**28  # processes that train together exchange gradients there
_BUSY = 1.5  # tasks a processor


def examine(folder: Path) -> list[Finding]:
    """Look at Python and packages, processors, memory, devices and the file system of a folder.

    Args:
        folder: Where results are to lie. Small files are written into it and removed again.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return [
        finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        package_finding(requirements()),
        extras_finding(requirements()),
        processor_finding(cpu_count(), os.cpu_count() or 1, os.getloadavg()[0], threads),
        memory_finding(),
        shared_memory_finding(),
        *torch_findings(),
        *folder_findings(folder),
    ]


def requirements() -> list[str]:
    """What segpipe's own description asks for, e.g. `numpy>=2.0`; empty where it is not installed as a package."""
    try:
        return requires("segpipe") or []
    except PackageNotFoundError:
        return []


def package_finding(needed: Sequence[str]) -> Finding:
    """Whether every package is there, and neither too old nor too new.

    Args:
        needed: Requirements; those of extras are passed over.
    """
    always = [text for text in needed if "extra ==" not in text]
    if not always:
        return finding("packages", "segpipe is not installed as a package", warning="Install it: pip install segpipe.")
    wrong = [text for text in map(_mismatch, always) if text]
    found = "; ".join(wrong) if wrong else f"all {len(always)} are there, in versions that fit"
    return finding("packages", found, fault="Install what fits: pip install --upgrade segpipe." if wrong else "")


def extras_finding(needed: Sequence[str]) -> Finding:
    """Which of the optional parts are usable; missing ones are no fault."""
    by_extra: dict[str, list[str]] = {}
    for text in needed:
        requirement, _, marker = text.partition(";")
        if match := re.search(r"extra == [\"'](\w+)[\"']", marker):
            by_extra.setdefault(match[1], []).append(requirement)
    usable = {name: not any(map(_mismatch, texts)) for name, texts in by_extra.items() if name != "test"}
    return finding("extras", ", ".join(f"{name}: {'yes' if is_in else 'no'}" for name, is_in in usable.items()) or "–")


def _mismatch(requirement: str) -> str:
    """What is wrong with an installed package, or nothing.

    Example:
        >>> _mismatch("numpy>=999"), _mismatch("no-such-thing>=1")  # doctest: +ELLIPSIS
        ('numpy ... (needed >=999)', 'no-such-thing is missing (needed >=1)')
    """
    match = re.match(r"([\w.-]+)\s*([^;]*)", requirement)
    assert match is not None
    name, bounds = match[1], match[2].strip()
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is missing (needed {bounds or 'any'})"
    for operator, bound in re.findall(r"(>=|<)\s*([\d.]+)", bounds):
        if (_numbers(found) >= _numbers(bound)) != (operator == ">="):
            return f"{name} {found} (needed {bounds})"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    """`2.11.0+cpu` as (2, 11); zeros at the end say nothing."""
    numbers = [int(part) for part in re.match(r"[\d.]*", text)[0].split(".") if part]  # type: ignore[index]  # matches ""
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def processor_finding(usable: int, there: int, load: float, threads: str) -> Finding:
    """How many processors may be used, and whether others use them.

    Args:
        usable: By this process.
        there: In the machine.
        load: Tasks that wanted to compute, mean of the last minute.
        threads: What OMP_NUM_THREADS says, or nothing.
    """
    found = f"{usable} of {there} usable, load {load:.1f}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    if load > _BUSY * there:
        return finding("processors", found, warning="Others compute here now; training will be slower.")
    if threads.isdecimal() and int(threads) > usable:
        return finding("processors", found, warning=f"More threads than processors: export OMP_NUM_THREADS={usable}.")
    return finding("processors", found)


def memory_finding(groups: Path = Path("/sys/fs/cgroup")) -> Finding:
    """Memory of the machine, of its container, and what is free."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_limit(groups / name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    limit = min((limit for limit in limits if limit and limit < total), default=None)
    free = free_bytes(groups=groups)
    found = f"{total / _GB:.1f} GiB" + (f", container limited to {limit / _GB:.1f} GiB" if limit else "")
    if not free:  # the system does not say
        return finding("memory", found)
    few = "Preparing large images may not fit: end other programs, use -j 1, or give the container more."
    return finding("memory", f"{found}, {free / _GB:.1f} GiB free", warning=few if free < _FEW_BYTES else "")


def _limit(path: Path) -> int | None:
    text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None


def shared_memory_finding(folder: Path = Path("/dev/shm")) -> Finding:
    """Shared memory, which containers are given little of; one process does not use it."""
    if not folder.is_dir():
        return finding("shared memory", "none")
    size = shutil.disk_usage(folder).total
    few = "Too little to train on several GPUs: docker run --shm-size=1g (one process does not use it)."
    return finding("shared memory", f"{size / 2**20:.0f} MiB", warning=few if size < _FEW_SHARED_BYTES else "")
