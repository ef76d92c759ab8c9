"""`segpipe doctor`: what is found of a machine, and what is said of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from segpipe.cli.main import run
from segpipe.core.machine import finding
from segpipe.networks.device import torch_findings
from segpipe.pipeline.doctor import (
    extras_finding,
    file_system,
    folder_findings,
    memory_finding,
    package_finding,
    processor_finding,
    requirements,
    shared_memory_finding,
)


def test_this_machine_is_looked_at_and_the_folder_left_as_it_was(tmp_path, capsys):
    assert run(["doctor", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"folder {tmp_path.anchor}" in " ".join(out.split()) and "Ready: 0 faults" in out
    assert max(map(len, out.splitlines())) <= 80 or str(tmp_path) in out  # a long path is not cut
    assert "\x1b" not in out and not list(tmp_path.iterdir())


def test_as_json(tmp_path, capsys):
    assert run(["doctor", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    about = [one["about"] for one in found["findings"]]
    assert about[:3] == ["Python", "packages", "extras"] and {"torch", "locks", "file system"} <= set(about)
    assert found["n_faults"] == 0 and found["n_warnings"] == sum(o["state"] == "warning" for o in found["findings"])


def test_a_fault_ends_with_exit_code_4(tmp_path, capsys):
    (tmp_path / "read-only").mkdir(mode=0o555)
    is_root = os.access(tmp_path / "read-only", os.W_OK)  # who may write everywhere but into a file system like /proc
    assert run(["doctor", "/proc" if is_root else str(tmp_path / "read-only")]) == 4
    out = capsys.readouterr().out
    assert "FAULT" in out and "not writable" in out and "Choose another folder for results." in out


def test_advice_decides_the_state():
    assert [finding("a", "b", **advice).state for advice in ({}, {"warning": "w"}, {"fault": "f", "warning": "w"})] == [
        "ok", "warning", "fault",
    ]  # fmt: skip
    assert finding("a", "b", fault="f", warning="w").advice == "f"


@pytest.mark.parametrize(
    ("needed", "state", "words"),
    [
        (["numpy>=1.0", "click>=8.2,<99"], "ok", "all 2 are there"),
        (["numpy>=999"], "fault", "(needed >=999)"),
        (["numpy>=1.0,<1.1"], "fault", "(needed >=1.0,<1.1)"),
        (["no-such-package>=1.2"], "fault", "no-such-package is missing (needed >=1.2)"),
        (["numpy>=1.0", 'no-such-package; extra == "dicom"'], "ok", "all 1 are there"),
        ([], "warning", "not installed as a package"),
    ],
)
def test_packages_are_compared_with_their_bounds(needed, state, words):
    found = package_finding(needed)
    assert found.state == state and words in found.found


def test_an_extra_is_usable_if_all_of_it_is_there():
    needed = ["numpy", 'numpy>=1; extra == "a"', 'no-such-package; extra == "b"', 'numpy; extra == "b"']
    assert extras_finding(needed).found == "a: yes, b: no"
    assert extras_finding([]).found == "–"


def test_our_own_requirements_are_read_and_met():
    assert any(text.startswith("torch") for text in requirements())
    assert package_finding(requirements()).state == "ok", package_finding(requirements()).found


@pytest.mark.parametrize(
    ("load", "threads", "state", "advice"),
    [
        (0.0, "", "ok", ""),
        (0.0, "4", "ok", ""),
        (0.0, "5", "warning", "More threads than processors: export OMP_NUM_THREADS=4."),
        (12.0, "1", "ok", ""),  # 1.5 tasks for each of the 8 that are there
        (12.1, "1", "warning", "Others compute here now; training will be slower."),
    ],
)
def test_processors_are_counted_and_their_load(load, threads, state, advice):
    found = processor_finding(usable=4, there=8, load=load, threads=threads)
    assert (found.state, found.advice) == (state, advice) and found.found.startswith(f"4 of 8 usable, load {load}")


def test_a_containers_limit_is_told(tmp_path):
    for name, text in (("memory.max", f"{2**30}"), ("memory.current", "0"), ("memory.stat", "inactive_file 0")):
        (tmp_path / name).write_text(text)
    found = memory_finding(tmp_path)
    assert "container limited to 1.0 GiB, 1.0 GiB free" in found.found and found.state == "warning"
    (tmp_path / "memory.max").write_text("max")
    assert "container" not in memory_finding(tmp_path).found


def test_shared_memory_may_be_absent(tmp_path):
    assert shared_memory_finding(tmp_path / "none").found == "none"


def test_a_driver_without_a_device_is_a_fault(tmp_path):
    import torch

    if torch.cuda.is_available():
        assert any(one.about == "GPU 0" for one in torch_findings())
        return
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    *_, found = torch_findings(driver)
    assert found.state == "fault" and "550.54.15" in found.found
    *_, without = torch_findings(tmp_path / "none")
    assert without.state == "warning" and "--preset cpu" in without.advice


def test_a_folder_that_is_still_to_be_made_is_judged_by_the_one_above(tmp_path):
    assert folder_findings(tmp_path / "a" / "b")[0].about == f"folder {tmp_path}"


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("/", "ext4"), ("/data/x", "nfs4"), ("/database", "ext4"), ("/my disk/x", "xfs"), ("/twice", "tmpfs")],
)
def test_the_file_system_is_the_nearest_above(folder, kind, tmp_path):
    table = tmp_path / "mounts"
    lines = [
        "/dev/a / ext4 rw",
        "host:/x /data nfs4 rw",
        "/dev/b /my\\040disk xfs rw",
        "/dev/c /twice ext4",
        "t /twice tmpfs",
    ]
    table.write_text("\n".join(lines) + "\n")
    assert file_system(Path(folder), table) == kind
    assert file_system(Path(folder), tmp_path / "none") == "unknown"


def test_a_network_file_system_is_a_warning(tmp_path):
    (tmp_path / "mounts").write_text("host:/x / nfs4 rw\n")
    *_, kind = folder_findings(tmp_path, tmp_path / "mounts")
    assert (kind.found, kind.state) == ("nfs4", "warning")
