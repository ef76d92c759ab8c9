"""Files and folders that may not be read: reported as that, never as damaged, and no reason to stop."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import write_nnunet

from segpipe.cli.main import run
from segpipe.core.errors import DataError
from segpipe.core.volume import read_header
from segpipe.data.check import check_dataset
from segpipe.data.fix import fix_dataset

_NOBODY = 65534
CASES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of a user whom permissions bind: root, as whom containers run, reads everything."""
    path = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    if is_root:
        assert run(["check", str(write_nnunet(tmp_path, CASES)), "-j", "1"]) == 0  # imports what only root may read
        os.chown(path, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, 0)
    try:
        yield path
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        for inner in path.rglob("*"):
            inner.chmod(0o700)
        shutil.rmtree(path)


@pytest.mark.parametrize("name", ["imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(folder: Path, name: str):
    data = write_nnunet(folder / "data", CASES)
    (data / name).chmod(0)
    with pytest.raises(DataError, match="no permission to read it"):
        read_header(data / name)
    (fault,) = check_dataset(data, n_workers=1).faults
    assert (fault.kind, fault.case_id, fault.found) == ("no_permission", "b", "no permission to read it")
    (repair,) = fix_dataset(data, folder / "out", n_workers=1)
    assert (repair.file, repair.done, repair.is_repaired) == (name, "not copied", False)


@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_a_folder_that_may_not_be_read_is_named(folder: Path, capsys: pytest.CaptureFixture[str], mode: int):
    """Without the right to read it cannot be listed, without the right to enter its files cannot be looked at."""
    data = write_nnunet(folder / "data", CASES)
    (data / "imagesTr").chmod(mode)
    assert run(["check", str(data), "-j", "1"]) == 3
    printed = capsys.readouterr()
    assert "imagesTr" in printed.out + printed.err
    assert "Traceback" not in printed.err
