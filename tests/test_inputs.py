"""Images to predict: files, folders and datasets in any layout become cases with the model's channels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import (
    file_names,
    oblique_affine,
    tiny_image,
    tiny_labels,
    write_cases,
    write_csv,
    write_json,
    write_nnunet,
    write_tiny,
)

from segpipe.core.errors import DataError
from segpipe.core.volume import write_image
from segpipe.data.inputs import list_inputs


def test_list_inputs_of_every_shape(tmp_path: Path):
    write_nnunet(tmp_path, ["a", "b"])
    images = tmp_path / "imagesTr"
    for path in (tmp_path, images):
        assert [case.case_id for case in list_inputs(path, ("MR0",))] == ["a", "b"]
    assert [case.case_id for case in list_inputs(images / "b_0000.nii.gz", ("MR0",))] == ["b"]
    shutil.copy(images / "a_0000.nii.gz", images / "other.nii.gz")
    found = [case.case_id for case in list_inputs(images, ("MR0",))]
    assert found == ["a_0000", "b_0000", "other"]  # not all are numbered: the digits are names


def test_list_inputs_with_several_channels(tmp_path: Path):
    write_cases(tmp_path, ["a", "b"], n_channels=2)
    images = tmp_path / "imagesTr"
    write_image(images / "c.nii.gz", np.stack([tiny_image(1), tiny_image(2)]), oblique_affine())
    cases = list_inputs(images, ("T1", "T2"))
    assert [file_names(case.images) for case in cases] == [
        ["a_0000.nii.gz", "a_0001.nii.gz"],
        ["b_0000.nii.gz", "b_0001.nii.gz"],
        ["c.nii.gz"],
    ]
    assert file_names(list_inputs(images / "b_0001.nii.gz", ("T1", "T2"))[0].images) == [
        "b_0000.nii.gz",
        "b_0001.nii.gz",
    ]
    (images / "a_0001.nii.gz").unlink()
    write_tiny(images / "d.nii.gz", tiny_image(9))
    faults: dict[str, str] = {}
    cases = list_inputs(images, ("T1", "T2"), faults.__setitem__)
    assert [case.case_id for case in cases] == ["b", "c"] and sorted(faults) == ["a", "d"]
    with pytest.raises(DataError, match="2 faults"):
        list_inputs(images, ("T1", "T2"))
    for name in ("b_0000", "b_0001", "c"):
        (images / f"{name}.nii.gz").unlink()
    with pytest.raises(DataError) as caught:
        list_inputs(images, ("T1", "T2"), faults.__setitem__)  # nothing is left
    assert "case a: channel 0001 (T2) is missing; found a_0000.nii.gz" in str(caught.value)
    assert "case d: channel 0000 (T1), 0001 (T2) is missing; found d.nii.gz" in str(caught.value)


def test_list_inputs_refuses_too_many_channels_and_twins(tmp_path: Path):
    write_cases(tmp_path, ["a", "b"], n_channels=2)
    with pytest.raises(DataError, match="case a has channels 0000, 0001, the model needs one"):
        list_inputs(tmp_path / "imagesTr", ("T1",))
    twins = tmp_path / "twins"
    write_tiny(twins / "x.nii", tiny_image(1))
    write_tiny(twins / "x.nii.gz", tiny_image(1))
    with pytest.raises(DataError, match=r"also x\.nii"):
        list_inputs(twins, ("T1",))


def test_list_inputs_of_a_numbered_series(tmp_path: Path):
    for number in range(3):
        write_tiny(tmp_path / f"img_{number:04d}.nii.gz", tiny_image(number))
    assert [case.case_id for case in list_inputs(tmp_path, ("T1",))] == ["img_0000", "img_0001", "img_0002"]


def test_list_inputs_orders_channels_by_name(tmp_path: Path):
    write_cases(tmp_path, ["a"], n_channels=2)
    rows = [["case_id", "image_T2", "image_T1"], ["a", "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"]]
    path = write_csv(tmp_path / "new.csv", rows)
    assert file_names(list_inputs(path, ("T1", "T2"))[0].images) == ["a_0001.nii.gz", "a_0000.nii.gz"]
    with pytest.raises(DataError, match=r"2 channels \(T2, T1\), the model needs 1"):
        list_inputs(path, ("T1",))


@pytest.mark.parametrize("given", ["", "imagesTs", "imagesTs/a_0000.nii.gz"])
def test_a_description_beside_the_images_names_their_channels(tmp_path: Path, given: str):
    write_cases(tmp_path, ["a"], n_channels=2, subfolders=("imagesTs", "labelsTs"))
    write_json(tmp_path / "dataset.json", {"channel_names": {"0": "T2", "1": "T1"}, "labels": {"a": 1, "b": 2}})
    for wanted in (("T1", "T2"), ("t1", "T2w")):
        assert file_names(list_inputs(tmp_path / given, wanted)[0].images) == ["a_0001.nii.gz", "a_0000.nii.gz"]
    assert file_names(list_inputs(tmp_path / given, ("channel_0", "channel_1"))[0].images)[0] == "a_0000.nii.gz"
    with pytest.raises(DataError, match=r"dataset.json: channels T2, T1, the model was trained with T1, FLAIR"):
        list_inputs(tmp_path / given, ("T1", "FLAIR"))


def test_a_description_in_the_folder_of_the_images_names_their_channels(tmp_path: Path):
    write_cases(tmp_path, ["a"], n_channels=2, subfolders=(".", "labelsTs"))
    write_json(tmp_path / "dataset.json", {"channel_names": {"0": "T2", "1": "T1"}, "labels": {"a": 1, "b": 2}})
    assert file_names(list_inputs(tmp_path, ("T1", "T2"))[0].images) == ["a_0001.nii.gz", "a_0000.nii.gz"]


def test_names_that_contradict_the_models_are_refused_in_every_layout(tmp_path: Path):
    table = [["case_id", "image_FLAIR", "image_T1"], ["a", "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"]]
    write_cases(tmp_path / "csv", ["a"], n_channels=2)
    write_csv(tmp_path / "csv" / "new.csv", table)
    write_nnunet(tmp_path / "nnunet", ["a"], channel_names={"0": "CT"})
    for suffix in ("T1w", "T2w"):
        write_tiny(tmp_path / f"bids/sub-1/anat/sub-1_{suffix}.nii.gz", tiny_image(1))
    for layout, wanted in (("csv", ("T1", "T2")), ("nnunet", ("MR",)), ("bids", ("T1", "FLAIR"))):
        with pytest.raises(DataError, match=f"the model was trained with {wanted[0]}"):
            list_inputs(tmp_path / layout, wanted)
    assert file_names(list_inputs(tmp_path / "bids", ("T2", "T1"))[0].images) == [
        "sub-1_T2w.nii.gz",
        "sub-1_T1w.nii.gz",
    ]


def test_channels_in_one_file_are_not_taken_in_another_order(tmp_path: Path):
    write_image(tmp_path / "imagesTr" / "a.nii.gz", np.stack([tiny_image(0), tiny_image(1)]), np.eye(4))
    training = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    write_tiny(tmp_path / "labelsTr" / "a.nii.gz", tiny_labels())
    values = {"modality": {"0": "T2", "1": "T1"}, "labels": {"0": "background", "1": "a"}, "training": training}
    write_json(tmp_path / "dataset.json", values)
    for place in (tmp_path, tmp_path / "imagesTr"):
        assert list_inputs(place, ("T2", "T1"))
        with pytest.raises(DataError, match="a holds the channels T2, T1 in one file, the model needs T1, T2"):
            list_inputs(place, ("T1", "T2"))


@pytest.mark.parametrize("make", ["nothing", "empty", "text"])
def test_list_inputs_without_an_image(tmp_path: Path, make: str):
    path = tmp_path / "in"
    if make == "empty":
        path.mkdir()
    if make == "text":
        path.write_text("no image")
    with pytest.raises(DataError, match=str(path)):
        list_inputs(path, ("T1",))


def test_one_case_with_a_fault_leaves_the_others_to_be_predicted(tmp_path: Path):
    write_nnunet(tmp_path, ["a", "b", "c"], n_channels=2)
    rows = [f"{case},imagesTr/{case}_0000.nii.gz,imagesTr/{case}_0001.nii.gz,labelsTr/{case}.nii.gz" for case in "abc"]
    head = "case_id,image_MR0,image_MR1,label"
    (tmp_path / "labelsTr" / "a.nii.gz").unlink()  # is not needed to predict

    def faults_of(path: Path) -> dict[str, str]:
        found: dict[str, str] = {}
        left = {case.case_id for case in list_inputs(path, ("MR0", "MR1"), found.__setitem__)}
        assert left | set(found) >= {"a", "c"} and not left & set(found)
        return found

    for second, expected in {
        rows[1]: {},
        "b,imagesTr/b_0000.nii.gz,,labelsTr/b.nii.gz": {"b": "image_MR1 is empty"},
        "b,imagesTr/b_0000.nii.gz": {"b": "2 cells"},
        rows[1].replace("b_0001", "gone"): {"b": "gone.nii.gz: no such file"},
        rows[1].replace("b,", "b/1,"): {"line 3": "'b/1'"},
        f"{rows[1]}\n{rows[1]}": {"b": "again in line 4"},
    }.items():
        (tmp_path / "list.csv").write_text("\n".join([head, rows[0], second, rows[2]]))
        found = faults_of(tmp_path / "list.csv")
        assert found.keys() == expected.keys() and all(text in found[case] for case, text in expected.items()), second
    (tmp_path / "list.csv").unlink()
    shutil.copy(tmp_path / "imagesTr" / "c_0001.nii.gz", tmp_path / "imagesTr" / "c_0002.nii.gz")
    assert "0002" in faults_of(tmp_path)["c"]
    assert "more files than channels" in faults_of(tmp_path / "imagesTr")["c"]
    (tmp_path / "imagesTr" / "b_0001.nii.gz").unlink()
    assert "0001 is missing" in faults_of(tmp_path)["b"]
    with pytest.raises(DataError, match="b: channel 0001 is missing"):
        list_inputs(tmp_path, ("MR0", "MR1"))
