"""DICOM series: read as the same image in NIfTI would be, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from datasets import SHAPE_ZYX
from dicom import write_series

from segpipe.core.errors import DataError, GeometryError
from segpipe.core.itk import series_choice
from segpipe.core.volume import read_header, read_image, write_mask
from segpipe.data.check import check_dataset
from segpipe.data.faults import KINDS
from segpipe.data.inputs import list_inputs


def voxels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, SHAPE_ZYX, np.int16)


def test_a_series_is_an_image_in_the_order_of_its_places(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", voxels(), intercept=-1024)
    volume = read_image(folder)
    assert np.array_equal(volume.voxels_czyx[0], voxels())  # Hounsfield units, whatever the names of the files
    assert volume.grid.spacing_mm == (2.5, 1.5, 1.0)
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    expected = np.diag([-1.0, -1.0, 1.0]) @ turn * (1.0, 1.5, 2.5)  # by hand: LPS to RAS turns x and y round
    assert np.allclose(volume.grid.affine_ras_mm[:3, :3], expected, atol=1e-6)
    assert np.allclose(volume.grid.affine_ras_mm[:3, 3], (5.0, -7.0, 11.0))


def test_a_series_that_was_written_again_in_files_of_the_same_size_is_read_again(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", voxels())
    assert read_header(folder).grid.affine_ras_mm[0, 3] == 5.0
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"-5\\7", b"-6\\7"))
    assert read_header(folder).grid.affine_ras_mm[0, 3] == 6.0


def test_folders_of_series_are_cases_and_channels(tmp_path: Path) -> None:
    for name in ("p1/study.2", "p2/study.2", "p2/study.3"):
        write_series(tmp_path / "one" / name, voxels()[:2])
    (tmp_path / "one" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    found = list_inputs(tmp_path / "one", ("CT",))
    assert [case.case_id for case in found] == ["p1_study.2", "p2_study.2", "p2_study.3"]
    (alone,) = list_inputs(tmp_path / "one" / "p1" / "study.2", ("CT",))
    assert alone.case_id == "study.2"
    for name in ("a_0000", "a_0001"):
        write_series(tmp_path / "two" / name, voxels()[:2])
    (both,) = list_inputs(tmp_path / "two", ("T1", "T2"))
    assert both.case_id == "a" and [path.name for path in both.image_paths] == ["a_0000", "a_0001"]
    with pytest.raises(DataError, match=r"case a: found a_0000, a_0001; expected 3 DICOM folders"):
        list_inputs(tmp_path / "two", ("T1", "T2", "FLAIR"))
    with pytest.raises(DataError, match="one file of a DICOM series, expected all"):
        list_inputs(tmp_path / "two" / "a_0000" / "IM0000.dcm", ("CT",))


def test_two_series_in_a_folder_are_named(tmp_path: Path) -> None:
    write_series(tmp_path, voxels())
    write_series(tmp_path / "b", voxels()[:3], series="1.2.3", description="localizer")
    for file in (tmp_path / "b").iterdir():
        file.rename(tmp_path / f"b{file.name}")
    with pytest.raises(
        DataError, match=r"2 DICOM series, expected one\. Choose one with --series(?s:.)*8 files  axial"
    ):
        read_header(tmp_path)


def test_missing_and_double_slices_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, voxels())
    first, third = tmp_path / "IM0000.dcm", tmp_path / "IM0010.dcm"
    saved = third.read_bytes()
    third.unlink()
    with pytest.raises(GeometryError, match=r"slices 1 and 2 .* are 5 mm apart, the others 2.5 mm"):
        read_header(tmp_path)
    third.write_bytes(saved)
    (tmp_path / "copy.dcm").write_bytes(first.read_bytes())
    with pytest.raises(GeometryError, match="are 0 mm apart"):
        read_header(tmp_path)


def test_a_tilted_gantry_is_a_sheared_grid(tmp_path: Path) -> None:
    write_series(tmp_path, voxels(), angle=0.0, tilt=0.8)
    with pytest.raises(GeometryError, match="sheared"):
        read_image(tmp_path)


def test_what_is_no_slice_is_named(tmp_path: Path) -> None:
    write_series(tmp_path, voxels())
    (tmp_path / "report.dcm").write_bytes(bytes(128) + b"DICM" + b"no image")
    with pytest.raises(DataError, match=r"report.dcm: cannot be read as an image, expected a slice"):
        read_header(tmp_path)
    (tmp_path / "report.dcm").unlink()
    (tmp_path / "notes.txt").write_text("nothing of the series")
    assert read_header(tmp_path).grid.shape_zyx == SHAPE_ZYX


def test_one_slice_and_an_empty_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "one", voxels()[:1])
    assert read_image(tmp_path / "one").voxels_czyx.shape == (1, 1, *SHAPE_ZYX[1:])
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="without DICOM files"):
        read_header(tmp_path / "none")


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    write_series(tmp_path, voxels())
    (tmp_path / "._IM0000.dcm").write_bytes(b"\x00\x05\x16\x07" + bytes(100))  # AppleDouble
    assert read_header(tmp_path).grid.shape_zyx == SHAPE_ZYX
    assert len(list_inputs(tmp_path, ("CT",))) == 1


@pytest.mark.parametrize("n_without", [1, 8])
def test_slices_without_a_position_are_named_as_such(tmp_path: Path, n_without: int) -> None:
    write_series(tmp_path, voxels())
    for file in sorted(tmp_path.iterdir())[:n_without]:  # the tag after it means nothing
        file.write_bytes(file.read_bytes().replace(b"\x20\x00\x32\x00", b"\x20\x00\x33\x00", 1))
    with pytest.raises(GeometryError, match=rf"{n_without} of 8 slices without a position .ImagePositionPatient"):
        read_header(tmp_path)


def test_several_echoes_in_a_folder_are_named(tmp_path: Path) -> None:
    for prefix, echo in (("a", "90"), ("b", "10")):
        write_series(tmp_path, voxels(), prefix=prefix, extra={"0018|0081": echo})
    with pytest.raises(GeometryError, match="every place occurs twice: EchoTime 10, 90; expected one volume"):
        read_header(tmp_path)
    write_series(tmp_path, voxels(), prefix="c", extra={"0018|0081": "200"})
    with pytest.raises(GeometryError, match="every place occurs 3 times: EchoTime 10, 90, 200;"):
        read_header(tmp_path)


@pytest.mark.parametrize("number", ["88.33", "66.4", "481.3", "104.1", "11.1"])  # SR, SEG, RTSTRUCT, PDF, PR
def test_reports_and_segmentations_beside_a_series_do_not_block_it(tmp_path: Path, number: str) -> None:
    write_series(tmp_path / "scan", voxels())
    uid = f"1.2.840.10008.5.1.4.1.1.{number}"
    uid += "\0" * (len(uid) % 2)
    element = b"\x02\x00\x02\x00UI" + len(uid).to_bytes(2, "little") + uid.encode()
    (tmp_path / "scan" / "other").write_bytes(bytes(128) + b"DICM" + element)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "other.dcm").write_bytes(bytes(128) + b"DICM" + element)
    assert read_header(tmp_path / "scan").grid.shape_zyx == SHAPE_ZYX
    assert [case.case_id for case in list_inputs(tmp_path, ("CT",))] == ["scan"]
    (tmp_path / "scan" / "other").rename(tmp_path / "scan" / "other.dcm")
    assert [one.kind for one in check_dataset(tmp_path, 1).faults] == ["no_labels"]  # no word on what is left out


def test_check_tells_what_to_do_with_several_volumes_in_a_folder(tmp_path: Path) -> None:
    for prefix, echo in (("a", "90"), ("b", "10")):
        write_series(tmp_path / "echoes", voxels(), prefix=prefix, extra={"0018|0081": echo})
    for prefix, description in (("a", "axial"), ("b", "coronal")):
        write_series(
            tmp_path / "series", voxels(), prefix=prefix, series=f"1.2.{len(description)}", description=description
        )
    found = {one.case_id: one for one in check_dataset(tmp_path, 1).faults if one.kind == "several_volumes"}
    assert found["echoes"].found == "every place occurs twice: EchoTime 10, 90"
    assert found["series"].found == "2 DICOM series"
    remedy = KINDS["several_volumes"].remedy
    assert "a folder of its own" in remedy and "--series" in remedy


def test_a_file_with_all_frames_is_a_case(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(voxels().clip(0).astype(np.uint16))
    image.SetSpacing((1.0, 1.5, 2.5))
    sitk.WriteImage(image, str(tmp_path / "scan.dcm"))
    (case,) = list_inputs(tmp_path / "scan.dcm", ("CT",))
    assert case.case_id == "scan" and np.array_equal(read_image(case.image_paths[0]).voxels_czyx[0], voxels().clip(0))
    write_mask(tmp_path / "mask.nii.gz", (voxels() > 0).astype(np.uint8), case.image_paths[0])
    content = (tmp_path / "scan.dcm").read_bytes()  # frames without the tags that say where they are
    (tmp_path / "scan.dcm").write_bytes(content.replace(b"\x28\x00\x09\x00", b"\x28\x00\x0b\x00", 1))
    with pytest.raises(GeometryError, match="8 frames without positions"):
        list_inputs(tmp_path / "scan.dcm", ("CT",))


def test_one_of_several_series_is_chosen_by_its_description_or_uid(tmp_path: Path) -> None:
    write_series(tmp_path, voxels())
    write_series(tmp_path / "b", voxels()[:3], series="1.2.3", description="Localizer")
    for file in (tmp_path / "b").iterdir():
        file.rename(tmp_path / f"b{file.name}")
    (tmp_path / "b").rmdir()
    for text, n_slices in (("AXIAL", 8), ("local", 3), ("2.3", 3)):
        with series_choice(text):
            assert read_header(tmp_path).grid.shape_zyx[0] == n_slices
            assert read_image(tmp_path).voxels_czyx.shape[1] == n_slices
        with pytest.raises(DataError, match="2 DICOM series"):  # the choice ended with the block
            read_header(tmp_path)
    for text in ("", "coronal", "al"):  # none; unknown; in both descriptions
        with (
            series_choice(text),
            pytest.raises(DataError, match=r"2 DICOM series, expected one.*(?s:.)*8 files  axial .*\n +3 files  Local"),
        ):
            read_header(tmp_path)
