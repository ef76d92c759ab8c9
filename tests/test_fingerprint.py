"""fingerprint/measure.py and fingerprint/record.py"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from datasets import oblique_affine, tiny_image, tiny_labels, write_json, write_nnunet, write_tiny
from pydantic import ValidationError

from segpipe.core.errors import DataError
from segpipe.core.volume import write_image
from segpipe.data.load import load_dataset
from segpipe.fingerprint.measure import measure
from segpipe.fingerprint.record import Fingerprint, LabelMeasure


def measured(folder, n_workers=1) -> Fingerprint:
    return measure(load_dataset(folder), n_workers)


def test_a_tiny_dataset_by_hand(tmp_path):
    found = measured(write_nnunet(tmp_path, ["c0", "c1"]), 2)
    assert found.orientation == "RAS"
    case = found.cases[0]
    assert case.spacing_mm == (2.5, 1.5, 1.0) and case.shape_zyx == (8, 10, 12) == case.cropped_shape_zyx
    # 2 × 4 × 3 voxels of 2.5 × 1.5 × 1 mm: 24 of 3.75 mm³, 5 × 6 × 3 mm
    block = LabelMeasure(voxels=24, volume_mm3=90.0, n_components=1, extent_mm=(5.0, 6.0, 3.0))
    assert case.labels == {"a": block, "b": block}
    assert case.label_voxels == {"a": 24, "b": 24} and case.present == {"a", "b"}
    inside = [image[tiny_labels() > 0].astype(np.float64) for image in (tiny_image(0), tiny_image(100))]
    seen = found.intensities[0]
    assert seen.mean == pytest.approx(np.mean([v.mean() for v in inside]))
    assert seen.std == pytest.approx(np.concatenate(inside).std())  # cases of equal size: the pooled SD
    assert (seen.min, seen.max) == (min(v.min() for v in inside), max(v.max() for v in inside))
    assert found.median_relative_size_after_cropping == 1 and found.declared_cases is None


def test_what_is_asked_of_all_cases_by_hand(tmp_path):
    folder = write_nnunet(tmp_path, ["c0", "c1", "c2", "c3"])
    only_a = np.where(tiny_labels() == 1, 1, 0).astype(np.uint8)
    write_tiny(folder / "labelsTr" / "c1.nii.gz", only_a)
    turn(folder, "c2")
    dataset = load_dataset(folder)
    sited = [
        case.model_copy(update={"site": site}) for case, site in zip(dataset.cases, ("X", "Y", "X", None), strict=True)
    ]
    found = measure(dataset.model_copy(update={"cases": tuple(sited)}), 2)
    assert found.prevalence == {"a": 1.0, "b": 0.75}
    assert found.sites == {"X": 2, "Y": 1}
    assert found.orientations == {"RAS": 3, "LPS": 1}
    assert found.cases[1].labels["b"] == LabelMeasure(
        voxels=0, volume_mm3=0.0, n_components=0, extent_mm=(0.0, 0.0, 0.0)
    )


def test_ignored_voxels_are_no_foreground(tmp_path):
    folder = write_nnunet(tmp_path, ["c0", "c1"], labels={"background": 0, "a": 1, "ignore": 2})
    image = tiny_image(0)
    image[tiny_labels() == 2] = 1e6
    write_tiny(folder / "imagesTr" / "c0_0000.nii.gz", image)
    assert measured(folder).intensities[0].max < 1e3


def test_labels_beyond_the_crop_are_counted_but_their_zeros_are_no_intensities(tmp_path):
    folder = write_nnunet(tmp_path, ["c0"])
    image = tiny_image(0)
    image[:, :, 6:] = 0  # label b lies at x 4, 5 (kept) and 6 (cropped away)
    write_tiny(folder / "imagesTr" / "c0_0000.nii.gz", image)
    found = measured(folder)
    assert found.cases[0].cropped_shape_zyx == (8, 10, 6) and found.cases[0].label_voxels["b"] == 24
    assert found.intensities[0].min > 0
    assert found.median_relative_size_after_cropping == 0.5


def turn(folder, case_id):
    """Store a case with y as the first axis and x, y running backwards: LPS becomes its orientation."""
    turned = np.diag([-1.0, -1.0, 2.0, 1.0])
    write_tiny(folder / "imagesTr" / f"{case_id}_0000.nii.gz", tiny_image(5), turned)
    write_tiny(folder / "labelsTr" / f"{case_id}.nii.gz", tiny_labels(), turned)


def test_zeros_are_cropped_and_orientation_is_the_most_frequent(tmp_path):
    folder = write_nnunet(tmp_path, ["c0", "c1", "c2"])
    image = np.zeros_like(tiny_image(0))
    image[1:5, 2:9, 3:12] = 7
    write_tiny(folder / "imagesTr" / "c0_0000.nii.gz", image)
    turn(folder, "c1")
    found = measured(folder)
    assert found.cases[0].cropped_shape_zyx == (4, 7, 9)
    assert [c.orientation for c in found.cases] == ["RAS", "LPS", "RAS"] and found.orientation == "RAS"


def test_edges_of_a_case_with_other_axes_are_those_of_the_dataset(tmp_path):
    folder = write_nnunet(tmp_path, ["c0", "c1", "c2"])
    voxels, affine = tiny_image(7).transpose(2, 1, 0), oblique_affine()[:, [2, 1, 0, 3]]  # x and z exchanged
    write_image(folder / "imagesTr" / "c1_0000.nii.gz", voxels[None], affine)
    write_image(folder / "labelsTr" / "c1.nii.gz", tiny_labels().transpose(2, 1, 0)[None], affine)
    found = measured(folder)
    plain, turned = found.cases[:2]
    assert turned.orientation == "SAR" and found.orientation == "RAS"
    assert (turned.spacing_mm, turned.shape_zyx) == (plain.spacing_mm, plain.shape_zyx)
    assert turned.labels == plain.labels


def test_the_same_data_give_the_same_bytes_whatever_the_workers(tmp_path):
    folder = write_nnunet(tmp_path, ["c0", "c1", "c2"])
    assert measured(folder, 1).to_json() == measured(folder, 3).to_json()


def test_a_copy_of_the_data_has_the_same_content_and_another_voxel_has_not(tmp_path):
    folder = write_nnunet(tmp_path / "here", ["c0", "c1"])
    here = measured(folder)
    there = measured(shutil.copytree(folder, tmp_path / "there", copy_function=shutil.copyfile))
    assert here.digest() != there.digest() and here.content_digest() == there.content_digest()
    image = tiny_image(0)
    image[0, 0, 0] += 1  # outside every label: no number of the fingerprint moves but the content
    write_tiny(tmp_path / "there" / "imagesTr" / "c0_0000.nii.gz", image)
    assert measured(tmp_path / "there").content_digest() != here.content_digest()


def test_one_case_is_measured(tmp_path):
    found = measured(write_nnunet(tmp_path, ["only"]))
    assert len(found.cases) == 1 and found.prevalence == {"a": 1.0, "b": 1.0}


def test_regions_are_measured_as_such(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    found = measured(write_nnunet(tmp_path, ["c0"], labels=labels, regions_class_order=[1, 2]))
    whole, core = found.cases[0].labels["whole"], found.cases[0].labels["core"]
    assert (whole.voxels, whole.n_components, whole.extent_mm) == (48, 1, (5.0, 6.0, 6.0))
    assert (core.voxels, core.n_components, core.extent_mm) == (24, 1, (5.0, 6.0, 3.0))


def test_a_fingerprint_is_read_back_and_another_version_is_refused(tmp_path):
    found = measured(write_nnunet(tmp_path / "data", ["c0"]))
    found.save(tmp_path / "f.json")
    assert Fingerprint.load(tmp_path / "f.json") == found
    write_json(tmp_path / "f.json", json.loads(found.to_json()) | {"segpipe_fingerprint": 1})
    with pytest.raises(DataError, match="was written by an older version of segpipe"):
        Fingerprint.load(tmp_path / "f.json")


@pytest.mark.parametrize(
    "update",
    [
        {"cases": ()},
        {"median_relative_size_after_cropping": 0.0},
        {"channels": ("a", "b")},
        {"declared_cases": 0},
    ],
)
def test_a_fingerprint_that_cannot_be_is_refused(tmp_path, update):
    found = measured(write_nnunet(tmp_path, ["c0"]))
    with pytest.raises(ValidationError):
        Fingerprint.model_validate(dict(found) | update)
    assert Fingerprint.model_validate(dict(found) | {"intensities": ()}).intensities == ()


def test_no_labelled_voxel_at_all_is_an_error(tmp_path):
    folder = write_nnunet(tmp_path, ["c0", "c1"])
    for case in ("c0", "c1"):
        write_tiny(folder / "labelsTr" / f"{case}.nii.gz", np.zeros_like(tiny_labels()))
    with pytest.raises(DataError, match="no labelled voxel in 2 cases"):
        measured(folder)


@pytest.mark.parametrize(
    "more",
    [
        {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}},
        {"labels": {"background": 0, "all": [1, 2], "c": [3, 4]}, "regions_class_order": [1, 3]},
    ],
)
def test_a_label_or_region_in_no_case_is_named(tmp_path, more):
    with pytest.raises(DataError, match=r"1 label occurs in none of the 2 cases \(c\), and so cannot be learned"):
        measured(write_nnunet(tmp_path, ["c0", "c1"], **more))


def break_case(folder, case_id, how):
    image = folder / "imagesTr" / f"{case_id}_0000.nii.gz"
    voxels = tiny_image(1)
    if how == "nan":
        voxels[1, 2, 3] = np.nan
        write_tiny(image, voxels)
    elif how == "infinite":
        voxels[1, 2, 3] = np.inf
        write_tiny(image, voxels)
    elif how == "channels":
        write_image(image, np.stack([voxels, voxels]), oblique_affine())
    elif how == "no voxel edge":
        tiny = np.diag([1e-8, 1e-8, 1e-8, 1.0])
        write_tiny(image, voxels, tiny)
        write_tiny(folder / "labelsTr" / f"{case_id}.nii.gz", tiny_labels(), tiny)
    elif how == "cut short":
        image.write_bytes(image.read_bytes()[:-200])
    elif how == "unknown value":
        write_tiny(folder / "labelsTr" / f"{case_id}.nii.gz", tiny_labels((1, 7)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "c1: 1 voxel is NaN or infinite, expected finite numbers"),
        ("infinite", "c1: 1 voxel is NaN or infinite"),
        ("channels", r"c1: 2 channels, expected 1 \(MR0\)"),
        ("no voxel edge", "c1: .*(expected above 0|not invertible|pixdim)"),
        ("cut short", "c1: .*c1_0000.nii.gz: cannot be read as an image"),
        ("unknown value", r"c1: .*label values \[7\] are not in"),
    ],
)
def test_a_case_that_cannot_be_measured_is_named(tmp_path, how, message):
    folder = write_nnunet(tmp_path, ["c0", "c1"])
    break_case(folder, "c1", how)
    with pytest.raises(DataError, match=message) as caught:
        measured(folder)
    assert "\n" not in str(caught.value)


def test_all_wrong_cases_are_reported_together_and_ten_are_named(tmp_path):
    folder = write_nnunet(tmp_path, [f"c{i:02d}" for i in range(14)])
    for number in range(12):
        break_case(folder, f"c{number:02d}", "nan" if number % 2 else "cut short")
    with pytest.raises(DataError) as caught:
        measured(folder, 3)
    head, *named, more = str(caught.value).split("\n  ")
    assert "12 of 14 cases cannot be measured" in head
    assert [line[:4] for line in named] == [f"c{i:02d}:" for i in range(10)] and more == "… and 2 more."


def test_a_file_that_is_gone_is_named(tmp_path):
    folder = write_nnunet(tmp_path, ["c0", "c1"])
    dataset = load_dataset(folder)
    (folder / "imagesTr" / "c1_0000.nii.gz").unlink()
    with pytest.raises(DataError, match=r"c1: .*No such file"):
        measure(dataset, 1)
