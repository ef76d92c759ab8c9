"""prepare/store.py"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from datasets import SHAPE_ZYX, tiny_image, tiny_labels, write_nnunet, write_tiny

from plans import small_plan
from segpipe.core.errors import DataError
from segpipe.core.work import Work
from segpipe.data.layouts import load_dataset
from segpipe.fingerprint.measure import measure
from segpipe.prepare.dataset import prepare_dataset
from segpipe.prepare.store import open_cases


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Three tiny cases, measured."""
    dataset = load_dataset(write_nnunet(tmp_path / "data", ["c0", "c1", "c2"]))
    result = Work(tmp_path / "work")
    measure(dataset, 1).save(result.fingerprint)
    return result


def prepared(work: Work, **training: object) -> Path:
    dataset = load_dataset(work.path.parent / "data")
    return prepare_dataset(work, dataset, small_plan(**training), "3d_fullres", 1)


def test_stored_cases_are_what_was_prepared(work):
    first, *_ = open_cases(prepared(work), ["c0"], 1)
    expected = tiny_image(0)
    assert first.image[0] == pytest.approx((expected - expected.mean()) / expected.std(), abs=1e-4)
    assert (first.indices == tiny_labels()).all() and first.shape_zyx == SHAPE_ZYX
    assert {name: len(voxels) for name, voxels in first.locations.items()} == {"0": 24, "1": 24}
    assert all(tiny_labels()[tuple(v)] == 2 for v in first.locations["1"])


def test_a_case_that_is_missing_is_prepared_again_and_the_others_are_left(work):
    folder = prepared(work)
    shutil.rmtree(folder / "c1")
    (folder / f".partial-999999999@{socket.gethostname()}@c1").mkdir()  # what a killed run leaves
    kept = (folder / "c0" / "case.json").stat().st_mtime_ns
    assert prepared(work) == folder
    assert sorted(p.name for p in folder.iterdir()) == ["c0", "c1", "c2"]
    assert (folder / "c0" / "case.json").stat().st_mtime_ns == kept


def test_another_way_of_preparing_is_another_folder_and_another_recipe_is_not(work):
    dataset = load_dataset(work.path.parent / "data")
    finer = prepare_dataset(work, dataset, small_plan(spacing_mm=(2.5, 1.0, 1.0)), "3d_fullres", 1)
    assert finer != prepared(work)
    assert prepared(work, learning_rate=0.5) == prepared(work)


def test_data_that_changed_after_planning_are_refused(work):
    prepared(work)
    write_tiny(work.path.parent / "data" / "imagesTr" / "c1_0000.nii.gz", tiny_image(77))
    with pytest.raises(DataError, match=r"1 cases changed since they were planned for \(c1\)"):
        prepared(work)


def test_a_damaged_case_is_named(work):
    folder = prepared(work)
    (folder / "c2" / "image.b2nd").write_bytes(b"nothing")
    with pytest.raises(DataError, match="c2: the prepared case cannot be read"):
        open_cases(folder, ["c2"], 1)


def test_patches_are_cut_alike_from_disk_and_memory(work, monkeypatch):
    folder = prepared(work)
    in_memory = open_cases(folder, ["c0"], 1)[0]
    monkeypatch.setattr("segpipe.prepare.store._MEMORY_SHARE", 0.0)
    on_disk = open_cases(folder, ["c0"], 1)[0]
    assert isinstance(in_memory.image, np.ndarray) and not isinstance(on_disk.image, np.ndarray)
    box = (slice(None), slice(2, 5), slice(0, 10), slice(3, 9))
    assert (in_memory.image[box] == on_disk.image[box]).all()
