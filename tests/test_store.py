"""prepare/store.py"""

from __future__ import annotations

import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import SHAPE_ZYX, tiny_image, tiny_labels, write_nnunet, write_tiny

from plans import small_plan
from segpipe.core.errors import DataError
from segpipe.core.grid import Box
from segpipe.core.labels import Label, LabelSet
from segpipe.core.prefetch import Prefetch
from segpipe.core.work import Work
from segpipe.data.load import load_dataset
from segpipe.fingerprint.measure import measure
from segpipe.prepare.case import Prepared, Trace
from segpipe.prepare.dataset import prepare_dataset
from segpipe.prepare.store import DiskArray, StoredCase, on_device, open_cases, store_case
from segpipe.train.sampling import Sampling, cut_batch, draw_places


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
    assert first.indices.dtype == np.int8
    assert {label: places.n_voxels for label, places in first.places.items()} == {0: 24, 1: 24}
    assert (tiny_labels().flat[first.places[1].voxels] == 2).all()


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
    with pytest.raises(DataError, match=r"1 case changed since planning \(c1\)"):
        prepared(work)


@pytest.mark.parametrize("name", ["image.b2nd", "indices.b2nd", "voxels.npy", "components.npy", "crc32.npy"])
@pytest.mark.parametrize("content", ["nothing", "empty", "half"])
def test_a_damaged_case_is_named(work, name, content):
    folder = prepared(work)
    whole = (folder / "c2" / name).read_bytes()
    (folder / "c2" / name).write_bytes({"nothing": b"nothing", "empty": b"", "half": whole[: len(whole) // 2]}[content])
    with pytest.raises(DataError, match=r"c2.*the prepared case c2 cannot be read.*Delete .*c2 and rerun the command"):
        open_cases(folder, ["c0", "c2"], 1)


@pytest.mark.parametrize("name", ["image.b2nd", "indices.b2nd"])
def test_one_wrong_bit_is_found_when_a_case_is_loaded(work, name):
    path = prepared(work) / "c1" / name
    content = bytearray(path.read_bytes())
    content[-100] ^= 1  # far from the head of the file: it opens
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: the prepared case c1 cannot be read \(its checksum"):
        open_cases(path.parent.parent, ["c1"], 1)


def test_a_case_that_is_not_there_is_named(work):
    with pytest.raises(
        DataError, match=r"the prepared case c9\.1 cannot be read .* Delete .*c9\.1 and rerun the command"
    ):
        open_cases(prepared(work), ["c9.1"], 1)


@pytest.fixture
def on_disk(monkeypatch) -> None:
    """Nothing fits into memory."""
    monkeypatch.setattr("segpipe.prepare.store.KEPT_SHARE", 0.0)


@pytest.mark.usefixtures("on_disk")
def test_patches_are_cut_alike_from_disk_and_memory(work):
    (case,) = open_cases(prepared(work), ["c0"], 1)
    assert isinstance(case.image, DiskArray) and not isinstance(case.image, np.ndarray)
    box = (slice(None), slice(2, 5), slice(0, 10), slice(3, 9))
    assert (case.image[box] == case.image[...][box]).all() and (case.indices[box[1:]] == tiny_labels()[box[1:]]).all()


@pytest.mark.usefixtures("on_disk")
def test_damage_to_a_chunk_on_disk_reaches_the_consumer_of_batches_with_the_name_of_case_and_file(work):
    folder = prepared(work)
    cases = open_cases(folder, ["c0", "c1"], 1)
    path = folder / "c1" / "image.b2nd"
    path.write_bytes(path.read_bytes()[:-2000])  # while training runs
    sampling = Sampling((8, 8, 12), 4, 0.5)

    def read(index: int):
        return cut_batch(draw_places(cases, sampling, np.random.default_rng(index)), sampling.patch_zyx)

    named = pytest.raises(DataError, match=r"image\.b2nd: the prepared case c1 cannot be read")
    with named, Prefetch(read, 2, 2) as batches:
        for index in range(20):
            batches.get(index)


@pytest.mark.usefixtures("on_disk")
def test_threads_that_read_one_case_do_not_disturb_each_other(work):
    (case,) = open_cases(prepared(work), ["c0"], 1)
    expected = case.image[...]
    boxes = [
        tuple(slice(int(a), int(a) + 5) for a in start) for start in np.random.default_rng(0).integers(0, 3, (99, 3))
    ]
    with ThreadPoolExecutor(4) as pool:
        for box, found in zip(boxes, pool.map(lambda box: case.image[(slice(None), *box)], boxes), strict=True):
            assert (found == expected[(slice(None), *box)]).all()


def test_labels_that_need_more_than_a_byte_get_two(tmp_path):
    labels = LabelSet(labels=tuple(Label(name=f"l{v}", values=(v,)) for v in range(1, 201)))
    indices = np.arange(-1, 199, dtype=np.int16).reshape(2, 10, 10)
    trace = Trace(
        shape_zyx=(2, 10, 10),
        axes_zyx=(0, 1, 2),
        flips_zyx=(False,) * 3,
        spacing_mm=(1.0,) * 3,
        box=Box(start_zyx=(0, 0, 0), stop_zyx=(2, 10, 10)),
        target_mm=(1.0,) * 3,
        prepared_shape_zyx=(2, 10, 10),
    )
    image = np.zeros((1, 2, 10, 10), np.float32)
    about = StoredCase(case_id="many", signature="", content="", trace=trace)
    store_case(tmp_path / "many", Prepared(image, indices, trace), about, labels, (64, 64, 64))
    (case,) = open_cases(tmp_path, ["many"], 1)
    assert case.indices.dtype == np.int16 and (case.indices == indices).all()


def test_cases_on_a_device_are_tensors_of_the_same_values(work):
    (case,) = open_cases(prepared(work), ["c0"], 1, torch.device("cpu"))
    assert isinstance(case.image, np.ndarray)  # the CPU's memory is the machine's: nothing to choose
    placed = on_device(case, torch.device("cpu"))
    assert torch.equal(placed.image, torch.from_numpy(case.image)) and placed.shape_zyx == case.shape_zyx


@pytest.mark.gpu
def test_cases_that_fit_lie_on_the_training_device(work):
    cases = open_cases(prepared(work), ["c0", "c1"], 1, torch.device("cuda"))
    places = draw_places(cases, Sampling((8, 8, 12), 2, 0.5), np.random.default_rng(0))
    assert cut_batch(places, (8, 8, 12), pins=True).images.flat.is_cuda
