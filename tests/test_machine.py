"""core/machine.py: memory and processors."""

from __future__ import annotations

from pathlib import Path

import pytest

from segpipe.core.machine import free_bytes

KIB = 1024


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    """1000 KiB can be taken, though only 10 are unused."""
    path = tmp_path / "meminfo"
    path.write_text(
        "MemTotal:        2000 kB\nMemFree:           10 kB\nMemAvailable:    1000 kB\nHugePages_Total: 0\n"
    )
    return path


def test_memory_that_only_holds_copies_of_files_is_free(meminfo, tmp_path):
    assert free_bytes(meminfo, tmp_path / "groups") == 1000 * KIB


@pytest.mark.parametrize(
    ("names", "cached"),
    [
        (("memory.max", "memory.current", "memory.stat"), "inactive_file"),
        (("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"), "total_inactive_file"),
    ],
)
@pytest.mark.parametrize(("limit", "expected_kib"), [(f"{500 * KIB}\n", 500 - 450 + 200), ("max\n", 1000)])
def test_a_container_has_no_more_than_its_limit(meminfo, tmp_path, names, cached, limit, expected_kib):
    (tmp_path / "memory").mkdir()
    for name, text in zip(names, (limit, f"{450 * KIB}\n", f"anon 5\n{cached} {200 * KIB}\n"), strict=True):
        (tmp_path / name).write_text(text)
    assert free_bytes(meminfo, tmp_path) == expected_kib * KIB


def test_a_container_beyond_its_limit_has_none(meminfo, tmp_path):
    for name, text in (("memory.max", "1"), ("memory.current", "5000"), ("memory.stat", "inactive_file 0")):
        (tmp_path / name).write_text(text)
    assert free_bytes(meminfo, tmp_path) == 0


def test_a_system_that_does_not_say_has_none(tmp_path):
    assert free_bytes(tmp_path / "nothing", tmp_path) == 0
