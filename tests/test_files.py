"""core/files.py: files are whole or absent, whatever happens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from segpipe.core.errors import ResourceError, SetupError, UsageError
from segpipe.core.files import make_folder, only_process, remove_leftovers, whole_file, whole_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "mask.nii.gz"
    with whole_file(target) as temporary:
        temporary.write_bytes(b"half")
        assert not target.exists()
        assert temporary.name.endswith("mask.nii.gz")  # writers choose the format by the ending
    assert target.read_bytes() == b"half"
    assert names(target.parent) == ["mask.nii.gz"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, fault: type[BaseException]) -> None:
    with pytest.raises(fault), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise fault
    assert names(tmp_path) == []


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old\n")
    with pytest.raises(ValueError), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        raise ValueError
    assert (tmp_path / "a.txt").read_text("utf-8") == "old\n"
    assert names(tmp_path) == ["a.txt"]


def test_text_has_the_same_bytes_everywhere(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "größe\n")
    assert (tmp_path / "a.txt").read_bytes() == b"gr\xc3\xb6\xc3\x9fe\n"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "prepared"
    for content in ("one", "two"):
        with whole_folder(target) as temporary:
            (temporary / content).touch()
    assert names(target) == ["two"]
    assert names(tmp_path) == ["prepared"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_exception_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "prepared"
    with whole_folder(target) as temporary:
        (temporary / "one").touch()
    with pytest.raises(ValueError), whole_folder(target) as temporary:
        (temporary / "two").touch()
        raise ValueError
    assert names(target) == ["one"]
    assert names(tmp_path) == ["prepared"]


def test_a_full_disk_is_named_as_such(tmp_path: Path) -> None:
    full = Path("/dev/full")  # every write fails with "no space left"
    with (
        pytest.raises(ResourceError, match=r"a\.txt: the disk is full \(.* [GM]iB free\)"),
        whole_file(tmp_path / "a.txt"),
    ):
        full.write_bytes(b"x" * 10_000)
    assert names(tmp_path) == []


_WRITE_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
import numpy as np
from segpipe.core.errors import ResourceError
from segpipe.core.volume import write_image
from segpipe.core.files import write_text

voxels = np.random.default_rng(0).integers(0, 2**15, (1, 60, 60, 60)).astype(np.int16)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
for write in (
    lambda: write_image(Path(sys.argv[1], "a.nii.gz"), voxels, np.eye(4)),
    lambda: write_image(Path(sys.argv[1], "a.nii"), voxels, np.eye(4)),
    lambda: write_text(Path(sys.argv[1], "a.txt"), "x" * 100_000),
):
    try:
        write()
    except ResourceError as fault:
        print("refused", fault)
"""


def test_a_file_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    # the kernel cuts every write at 64 KiB, as a full disk or a quota would
    command = [sys.executable, "-c", _WRITE_UNDER_A_LIMIT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("refused") == 3, done.stdout
    assert done.stderr == ""
    assert names(tmp_path) == []


def test_a_file_where_a_folder_is_needed_is_a_setup_fault(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for make in (make_folder, lambda p: write_text(p / "a.txt", "")):
        with pytest.raises(SetupError, match="a file is in the way of a folder"):
            make(tmp_path / "taken")


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".partial-{dead.pid}@{socket.gethostname()}@a.nii.gz").touch()
    (tmp_path / ".partial-1-a.nii.gz").touch()
    (tmp_path / ".partial-folder").mkdir()
    (tmp_path / ".partial-folder" / "b").touch()
    (tmp_path / "partial.txt").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["partial.txt"]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    alive = subprocess.Popen(["sleep", "60"])
    try:
        busy = tmp_path / f".partial-{alive.pid}@{socket.gethostname()}@a.nii.gz"
        elsewhere = tmp_path / ".partial-1@another-machine@b.nii.gz"
        for file in (busy, elsewhere):
            file.touch()
        remove_leftovers(tmp_path)
        assert sorted(names(tmp_path)) == sorted([busy.name, elsewhere.name])
        os.utime(elsewhere, (0, 0))  # long ago
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [busy.name]
    finally:
        alive.kill()
        alive.wait()


_HOLD = """
import sys
from pathlib import Path
from segpipe.core.files import only_process
with only_process(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_holds_is_refused_until_it_dies(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match="another process is working in it"), only_process(tmp_path):
        pass
    other.kill()
    other.communicate()
    with only_process(tmp_path):
        pass
