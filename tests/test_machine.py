"""core/machine.py: memory and processors."""

from __future__ import annotations

from pathlib import Path

import pytest

from segpipe.core.machine import cpu_count, default_workers, free_bytes

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


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, None), ({"OMP_NUM_THREADS": "1"}, 1), ({"OMP_NUM_THREADS": "1,4"}, 1), ({"OMP_NUM_THREADS": "999"}, None)]
    + [({"OMP_NUM_THREADS": wrong}, None) for wrong in ("0", "-2", "all", "")],
)
def test_the_usual_variable_limits_the_workers_and_torchrun_does_not(monkeypatch, variables, expected):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_workers() == (cpu_count() if expected is None else expected)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun sets the other variable to 1 by itself
    assert default_workers() == cpu_count()
