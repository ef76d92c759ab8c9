"""How much memory can still be taken here."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.processes import n_sharing

_GROUP_FILES = (  # of a container, by version of control groups: limit, use, the name of what is only cached in it
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_bytes(meminfo: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that can be taken without swapping: what is free, and what only holds copies of files.

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
