"""fingerprint.py"""

from __future__ import annotations

import numpy as np
import pytest
from datasets import tiny_image, tiny_labels, write_nnunet, write_tiny

from segpipe.core.errors import DataError
from segpipe.data.layouts import load_dataset
from segpipe.fingerprint.measure import measure


def test_a_tiny_dataset_by_hand(tmp_path):
    dataset = load_dataset(write_nnunet(tmp_path, ["c0", "c1"]))
    found = measure(dataset, 2)
    assert found.orientation == "RAS"
    case = found.cases[0]
    assert case.spacing_mm == (2.5, 1.5, 1.0) and case.shape_zyx == (8, 10, 12) == case.cropped_shape_zyx
    assert case.label_voxels == {"a": 24, "b": 24} and case.present == {"a", "b"}
    images = [tiny_image(0), tiny_image(100)]
    inside = [image[tiny_labels() > 0].astype(np.float64) for image in images]
    seen = found.intensities[0]
    assert seen.mean == pytest.approx(np.mean([v.mean() for v in inside]))
    assert seen.std == pytest.approx(np.concatenate(inside).std())  # cases of equal size: the pooled SD
    assert (seen.min, seen.max) == (min(v.min() for v in inside), max(v.max() for v in inside))
    assert found.median_relative_size_after_cropping == 1


def test_ignored_voxels_are_no_foreground(tmp_path):
    folder = write_nnunet(tmp_path, ["c0", "c1"], labels={"background": 0, "a": 1, "ignore": 2})
    image = tiny_image(0)
    image[tiny_labels() == 2] = 1e6
    write_tiny(folder / "imagesTr" / "c0_0000.nii.gz", image)
    seen = measure(load_dataset(folder), 1).intensities[0]
    assert seen.max < 1e3


def test_zeros_are_cropped_and_orientation_is_the_most_frequent(tmp_path):
    folder = write_nnunet(tmp_path, ["c0", "c1", "c2"])
    image = np.zeros_like(tiny_image(0))
    image[1:5, 2:9, 3:12] = 7
    write_tiny(folder / "imagesTr" / "c0_0000.nii.gz", image)
    turned = np.diag([-1.0, -1.0, 2.0, 1.0])
    write_tiny(folder / "imagesTr" / "c1_0000.nii.gz", tiny_image(5), turned)
    write_tiny(folder / "labelsTr" / "c1.nii.gz", tiny_labels(), turned)
    found = measure(load_dataset(folder), 1)
    assert found.cases[0].cropped_shape_zyx == (4, 7, 9)
    assert [c.orientation for c in found.cases] == ["RAS", "LPS", "RAS"] and found.orientation == "RAS"


def test_the_same_data_give_the_same_bytes_whatever_the_workers(tmp_path):
    dataset = load_dataset(write_nnunet(tmp_path, ["c0", "c1", "c2"]))
    assert measure(dataset, 1).to_json() == measure(dataset, 3).to_json()


def test_no_labelled_voxel_at_all_is_an_error(tmp_path):
    folder = write_nnunet(tmp_path, ["c0", "c1"])
    for case in ("c0", "c1"):
        write_tiny(folder / "labelsTr" / f"{case}.nii.gz", np.zeros_like(tiny_labels()))
    with pytest.raises(DataError, match="no case has a labelled voxel"):
        measure(load_dataset(folder), 1)
