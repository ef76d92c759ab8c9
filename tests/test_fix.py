"""Repaired copies: only what needs no judgement, and the input stays as it was."""

from __future__ import annotations

import gzip
import hashlib
import socket
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from datasets import SHAPE_ZYX, oblique_affine, tiny_image, tiny_labels, write_json, write_nnunet, write_tiny

from segpipe.cli.main import run
from segpipe.core.errors import DataError, GeometryError, UsageError
from segpipe.core.grid import Grid, Reorientation, turned_grid
from segpipe.core.volume import read_header, read_image, read_labels, write_image
from segpipe.data.check import check_dataset
from segpipe.data.fix import REPAIRS_FILE, fix_dataset
from segpipe.data.load import load_dataset
from segpipe.data.placement import repair_edges

CASES = ["a", "b", "c", "d", "e"]


def set_srow(path: Path, affine: np.ndarray) -> None:
    """Write another sform into a NIfTI-1 file, leaving pixdim."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<12f", content, 280, *affine[:3].ravel())
    path.write_bytes(gzip.compress(content))


def unit_affine() -> np.ndarray:
    """The tiny dataset's directions and origin with edges of 1 mm: what some tools write as sform."""
    affine = oblique_affine()
    affine[:3, :3] /= np.linalg.norm(affine[:3, :3], axis=0)
    return affine


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_unit_sform_gets_the_edges_of_pixdim(tmp_path: Path):
    data, out = write_nnunet(tmp_path / "data", CASES), tmp_path / "fixed"
    for path in (data / "imagesTr/b_0000.nii.gz", data / "labelsTr/b.nii.gz"):
        set_srow(path, unit_affine())
    write_tiny(data / "labelsTr/c.nii.gz", tiny_labels() * np.float32(0.9999))
    before = digests(data)
    fixes = fix_dataset(data, out, n_workers=2)
    assert digests(data) == before
    rescaled = ("header_contradiction", "sform rescaled from 1 × 1 × 1 mm to 1 × 1.5 × 2.5 mm of pixdim")
    assert [(fix.file, fix.kind, fix.done) for fix in fixes] == [
        ("imagesTr/b_0000.nii.gz", *rescaled),
        ("labelsTr/b.nii.gz", *rescaled),
        ("labelsTr/c.nii.gz", "label_float", "stored as uint8"),
    ]
    repaired = read_image(out / "imagesTr/b_0000.nii.gz")
    np.testing.assert_allclose(repaired.grid.affine_ras_mm, oblique_affine(), atol=1e-6)
    np.testing.assert_array_equal(repaired.voxels_czyx[0], tiny_image(100))
    labels, _ = read_labels(out / "labelsTr/c.nii.gz")
    np.testing.assert_array_equal(labels, tiny_labels())
    assert read_header(out / "labelsTr/c.nii.gz").dtype == np.uint8
    untouched = {name: digest for name, digest in before.items() if name not in {fix.file for fix in fixes}}
    after = digests(out)
    assert {name: after[name] for name in untouched} == untouched
    assert (out / REPAIRS_FILE).read_text(encoding="utf-8").splitlines()[
        0
    ] == "case_id,file,kind,found,done,is_repaired"
    assert check_dataset(out, n_workers=1).faults == ()


def test_a_unit_pixdim_gets_the_edges_of_the_sform(tmp_path: Path):
    path = write_tiny(tmp_path / "x.nii.gz", tiny_image(1), unit_affine())
    set_srow(path, oblique_affine())
    assert read_header(path).contradiction
    done = repair_edges(read_header(path), path)
    assert done == "pixdim 1 × 1 × 1 replaced by 1 × 1.5 × 2.5 mm of the sform"
    assert not read_header(path).contradiction
    np.testing.assert_allclose(read_image(path).grid.affine_ras_mm, oblique_affine(), atol=1e-6)


@pytest.mark.parametrize("order", ["<", ">"])
def test_second_version_and_other_byte_order(tmp_path: Path, order: str):
    """nibabel writes and reads; we change bytes in between."""
    for kind, places in ((nib.Nifti1Header, "f"), (nib.Nifti2Header, "d")):
        header = kind(endianness=order)
        header.set_data_shape((12, 10, 8))
        header.set_data_dtype(np.int16)
        header.set_zooms((1.0, 1.5, 2.5))
        header.set_sform(unit_affine(), code=1)
        voxels = np.arange(960, dtype=np.int16).reshape(12, 10, 8)
        image_kind = nib.Nifti1Image if places == "f" else nib.Nifti2Image
        path = tmp_path / f"{places}.nii"
        with path.open("wb") as stream:
            header["vox_offset"] = 352 if places == "f" else 544
            header["magic"] = header.single_magic
            header.write_to(stream)
            stream.write(voxels.astype(np.dtype(np.int16).newbyteorder(order)).tobytes(order="F"))
        repair_edges(read_header(path), tmp_path / "out.nii")
        again = image_kind.from_filename(tmp_path / "out.nii")
        np.testing.assert_allclose(again.affine, oblique_affine(), atol=1e-5)
        np.testing.assert_array_equal(np.asarray(again.dataobj), voxels)


def test_what_cannot_be_repaired_is_copied_and_said(tmp_path: Path):
    data = write_nnunet(tmp_path / "data", CASES)
    write_tiny(data / "labelsTr/a.nii.gz", tiny_labels() * np.float32(0.6))
    (data / "imagesTr/b_0000.nii.gz").write_text("no image")
    cut = write_tiny(data / "labelsTr/c.nii.gz", tiny_labels().astype(np.float32))
    cut.write_bytes(gzip.compress(gzip.decompress(cut.read_bytes())[:-400]))
    fix, unreadable = fix_dataset(data, tmp_path / "out", n_workers=1)
    assert (fix.file, fix.is_repaired) == ("labelsTr/a.nii.gz", False)
    assert (fix.kind, fix.done) == ("label_not_integer", "copied unchanged")
    assert (unreadable.kind, unreadable.case_id, unreadable.is_repaired) == ("unreadable", "c", False)
    assert (tmp_path / "out/imagesTr/b_0000.nii.gz").read_text("utf-8") == "no image"


@pytest.mark.parametrize("out", ["data", "data/fixed", ".", "full"])
def test_places_that_would_lose_something_are_refused(tmp_path: Path, out: str):
    data = write_nnunet(tmp_path / "data", CASES)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("precious")
    before = digests(tmp_path)
    with pytest.raises(UsageError, match=r"is inside the dataset|is not empty"):
        fix_dataset(data, tmp_path / out, n_workers=1)
    assert digests(tmp_path) == before


def test_one_file_and_a_manifest(tmp_path: Path):
    data = write_nnunet(tmp_path / "data", ["a", "b"])
    set_srow(data / "imagesTr/a_0000.nii.gz", unit_affine())
    fix_dataset(data / "imagesTr/a_0000.nii.gz", tmp_path / "one", n_workers=1)
    assert sorted(digests(tmp_path / "one")) == ["a_0000.nii.gz", REPAIRS_FILE]
    manifest = data / "cases.csv"
    manifest.write_text("case_id,image,label\na,imagesTr/a_0000.nii.gz,labelsTr/a.nii.gz\n")
    fix_dataset(manifest, tmp_path / "some", n_workers=1)
    assert sorted(digests(tmp_path / "some")) == [
        "cases.csv",
        "imagesTr/a_0000.nii.gz",
        "labelsTr/a.nii.gz",
        REPAIRS_FILE,
    ]


def test_files_outside_the_folder_are_refused(tmp_path: Path):
    write_nnunet(tmp_path / "data", ["a"])
    (tmp_path / "lists").mkdir()
    manifest = tmp_path / "lists/cases.csv"
    manifest.write_text("case_id,image,label\na,../data/imagesTr/a_0000.nii.gz,../data/labelsTr/a.nii.gz\n")
    with pytest.raises(DataError, match=r"names 2 files outside its folder"):
        fix_dataset(manifest, tmp_path / "out", n_workers=1)


def test_command_checks_the_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_nnunet(tmp_path / "data", CASES)
    for path in (data / "imagesTr/b_0000.nii.gz", data / "labelsTr/b.nii.gz"):
        set_srow(path, unit_affine())
    assert run(["check", str(data), "-j", "1"]) == 3
    assert "sform and pixdim disagree" in capsys.readouterr().out
    assert run(["check", str(data), "--fix", str(tmp_path / "out"), "-j", "1"]) == 0
    assert "2 files repaired" in capsys.readouterr().err


def test_published_contradiction(shared_data: Path, tmp_path: Path):
    source = shared_data / "odd_nifti/acdc_unit_sform/img_patient001_frame01.nii.gz"
    fix_dataset(source, tmp_path / "out", n_workers=1)
    grid = read_image(tmp_path / "out" / source.name).grid
    assert grid.spacing_mm == pytest.approx((10.0, 1.5625, 1.5625))


def turned_label(path: Path, values: np.ndarray | None = None, suffix: str = ".nii.gz") -> Path:
    """The tiny label map with x and z exchanged and y backwards, at the same place."""
    turn = Reorientation((2, 1, 0), (False, True, False))
    grid = turned_grid(Grid(SHAPE_ZYX, oblique_affine()), turn)
    voxels = turn.apply(tiny_labels() if values is None else values)
    return (
        write_itk(path, voxels, grid.affine_ras_mm)
        if suffix != ".nii.gz"
        else write_tiny(path, voxels, grid.affine_ras_mm)
    )


def write_itk(path: Path, voxels_zyx: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Written by SimpleITK itself, LPS."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ (oblique_affine() if affine is None else affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels_zyx))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


def shifted_affine() -> np.ndarray:
    affine = oblique_affine()
    affine[:3, 3] += (3.0, 0.0, 4.0)
    return affine


def test_label_maps_are_turned_and_moved_to_their_images(tmp_path: Path):
    data, out = write_nnunet(tmp_path / "data", CASES), tmp_path / "out"
    turned_label(data / "labelsTr/a.nii.gz")
    write_tiny(data / "labelsTr/b.nii.gz", tiny_labels() * np.float32(0.9999), shifted_affine())
    write_tiny(data / "labelsTr/c.nii.gz", tiny_labels(), np.eye(4))  # cannot be told
    before = digests(data)
    repairs = fix_dataset(data, out, n_workers=2)
    assert digests(data) == before
    assert [(one.case_id, one.kind, one.done) for one in repairs] == [
        ("a", "label_turned", "reoriented to the image's axes and given its header; voxels keep their position"),
        ("b", "label_float", "stored as uint8"),
        ("b", "label_shifted", "given the image's header: moved by 5 mm"),
    ]
    for case in ("a", "b"):
        labels, grid = read_labels(out / f"labelsTr/{case}.nii.gz")
        np.testing.assert_array_equal(labels, tiny_labels())
        np.testing.assert_allclose(grid.affine_ras_mm, oblique_affine(), atol=1e-6)
    assert [(one.kind, one.case_id) for one in check_dataset(out, n_workers=1).faults] == [("place_mismatch", "c")]


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_other_formats_are_repaired_as_well(tmp_path: Path, ending: str):
    """SimpleITK writes and reads what we repair in between; regions and ignored voxels keep their values."""
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 9}
    data = write_nnunet(tmp_path / "data", [], labels=labels, regions_class_order=[1, 2], file_ending=ending)
    values = tiny_labels((1, 2, 9))
    for index, case in enumerate(CASES):
        for folder in ("imagesTr", "labelsTr"):
            (data / folder).mkdir(exist_ok=True)
        write_itk(data / f"imagesTr/{case}_0000{ending}", tiny_image(index))
        write_itk(data / f"labelsTr/{case}{ending}", values)
    turned_label(data / f"labelsTr/a{ending}", values, ending)
    write_itk(data / f"labelsTr/b{ending}", values.astype(np.float32), shifted_affine())
    assert len(check_dataset(data, n_workers=1).faults) == 3
    repairs = fix_dataset(data, tmp_path / "out", n_workers=1)
    assert [one.kind for one in repairs] == ["label_turned", "label_float", "label_shifted"]
    assert check_dataset(tmp_path / "out", n_workers=1).faults == ()
    image = sitk.ReadImage(str(tmp_path / f"out/imagesTr/b_0000{ending}"))
    for case in ("a", "b"):
        again = sitk.ReadImage(str(tmp_path / f"out/labelsTr/{case}{ending}"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(again), values)
        np.testing.assert_allclose(again.GetDirection(), image.GetDirection(), atol=1e-9)
        np.testing.assert_allclose(again.GetOrigin(), image.GetOrigin(), atol=1e-9)


def test_integers_that_are_scaled_are_stored_as_what_they_mean(tmp_path: Path):
    data = write_nnunet(tmp_path / "data", CASES)
    content = bytearray(gzip.decompress((data / "labelsTr/a.nii.gz").read_bytes()))
    struct.pack_into("<f", content, 112, 0.99999997)  # scl_slope; the next float32 below 1
    (data / "labelsTr/a.nii.gz").write_bytes(gzip.compress(content))
    assert [one.kind for one in check_dataset(data, n_workers=1).faults] == ["label_float"]
    (repair,) = fix_dataset(data, tmp_path / "out", n_workers=1)
    assert (repair.found, repair.done) == ("stored as uint8 and scaled", "stored as uint8")
    assert not read_header(tmp_path / "out/labelsTr/a.nii.gz").is_scaled
    np.testing.assert_array_equal(read_labels(tmp_path / "out/labelsTr/a.nii.gz")[0], tiny_labels())


def with_unit(path: Path, code: int, affine: np.ndarray) -> Path:
    write_tiny(path, tiny_image(1), affine)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[123] = code | 8  # seconds stay
    path.write_bytes(gzip.compress(content))
    return path


@pytest.mark.parametrize(
    ("code", "factor", "done"),
    [
        (1, 1e-3, "voxels of 0.001 × 0.0015 × 0.0025 m converted to 1 × 1.5 × 2.5 mm"),
        (3, 1e3, "voxels of 1000 × 1500 × 2500 µm converted to 1 × 1.5 × 2.5 mm"),
        (1, 1.0, "unit m replaced by mm: voxels of 1000 × 1500 × 2500 mm are implausible"),
    ],
)
def test_lengths_in_other_units(tmp_path: Path, code: int, factor: float, done: str):
    affine = oblique_affine()
    affine[:3] *= factor
    path = with_unit(tmp_path / "x.nii.gz", code, affine)
    with pytest.raises(GeometryError, match="expected mm"):
        read_image(path)
    assert "unit" in {one.kind for one in check_dataset(path, n_workers=1).faults}
    (repair,) = fix_dataset(path, tmp_path / "out", n_workers=1)
    assert (repair.kind, repair.done) == ("unit", done)
    again = nib.load(tmp_path / "out/x.nii.gz")
    assert again.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(again.header.get_zooms(), (1, 1.5, 2.5), rtol=1e-6)
    np.testing.assert_allclose(again.affine, oblique_affine(), rtol=1e-6)
    np.testing.assert_array_equal(read_image(tmp_path / "out/x.nii.gz").voxels_czyx[0], tiny_image(1))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_second_place_is_switched_off(tmp_path: Path, kind: type):
    """nibabel reads the sform, SimpleITK may read the qform: after the repair both say the same."""
    image = kind(tiny_image(1).transpose(2, 1, 0), oblique_affine())
    image.set_sform(oblique_affine(), code=1)
    image.set_qform(shifted_affine(), code=1)
    nib.save(image, tmp_path / "x.nii.gz")
    (warning,) = [one for one in check_dataset(tmp_path / "x.nii.gz", n_workers=1).faults if one.kind == "two_places"]
    assert (warning.severity, warning.found) == (
        "warning",
        "the positions of a corner voxel by sform and by qform are 5 mm apart",
    )
    (repair,) = fix_dataset(tmp_path / "x.nii.gz", tmp_path / "out", n_workers=1)
    assert repair.kind == "two_places"
    np.testing.assert_allclose(nib.load(tmp_path / "out/x.nii.gz").affine, oblique_affine(), atol=1e-6)
    if kind is nib.Nifti1Image:  # SimpleITK reads no other
        origin = sitk.ReadImage(str(tmp_path / "out/x.nii.gz")).GetOrigin()
        np.testing.assert_allclose(origin, oblique_affine()[:3, 3] * (-1, -1, 1), atol=1e-5)


def test_files_that_only_may_be_read_are_repaired_in_the_copy(tmp_path: Path):
    data = write_nnunet(tmp_path / "data", CASES)
    turned_label(data / "labelsTr/a.nii.gz")
    set_srow(data / "imagesTr/b_0000.nii.gz", unit_affine())
    for path in data.rglob("*.gz"):
        path.chmod(0o444)
    assert len(fix_dataset(data, tmp_path / "out", n_workers=1)) == 2
    assert check_dataset(tmp_path / "out", n_workers=1).faults == ()


@pytest.mark.parametrize("name", ["list.csv", "dataset.json"])
def test_lists_with_absolute_paths_are_refused_and_nothing_is_left(tmp_path: Path, name: str):
    """Their copy would name the input's files, and later edits would reach them."""
    data = write_nnunet(tmp_path / "data", ["a"])
    image, label = data / "imagesTr/a_0000.nii.gz", data / "labelsTr/a.nii.gz"
    if name == "list.csv":
        (data / "dataset.json").unlink()
        (data / name).write_text(f"case_id,image,label\na,{image},{label}\n")
    else:
        mapped = {"a": {"images": [str(image)], "label": str(label)}}
        write_nnunet(data, ["a"], dataset=mapped)
    with pytest.raises(DataError, match=r"names 2 files by absolute paths"):
        fix_dataset(data, tmp_path / "out", n_workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_described_file_stands_for_its_folder(tmp_path: Path):
    data = write_nnunet(tmp_path / "data", CASES)
    with pytest.raises(UsageError, match="is inside the dataset"):
        fix_dataset(data / "dataset.json", data / "out", n_workers=1)
    turned_label(data / "labelsTr/a.nii.gz")
    assert run(["check", str(data / "dataset.json"), "--fix", str(tmp_path / "out"), "-j", "1"]) == 0


def test_a_manifest_brings_what_its_files_need(tmp_path: Path):
    """The voxels of a `.mhd` lie beside it, patients in a file of their own."""
    write_itk(tmp_path / "a.mhd", tiny_image(1))
    write_itk(tmp_path / "m.mhd", tiny_labels())
    (tmp_path / "list.csv").write_text("case_id,image,label\na,a.mhd,m.mhd\n")
    write_json(tmp_path / "patients.json", {"a": "p"})
    fix_dataset(tmp_path / "list.csv", tmp_path / "out", n_workers=1)
    assert sorted(digests(tmp_path / "out")) == [
        "a.mhd",
        "a.raw",
        "list.csv",
        "m.mhd",
        "m.raw",
        "patients.json",
        REPAIRS_FILE,
    ]
    assert [one.kind for one in check_dataset(tmp_path / "out", n_workers=1).faults] == ["one_patient"]


def test_four_dimensional_images_keep_their_channels(tmp_path: Path):
    data = write_nnunet(tmp_path / "data", CASES, n_channels=2)
    for index, case in enumerate(CASES):
        for channel in range(2):
            (data / f"imagesTr/{case}_{channel:04d}.nii.gz").unlink()
        write_image(
            data / f"imagesTr/{case}.nii.gz", np.stack([tiny_image(index), tiny_image(9 + index)]), oblique_affine()
        )
    turned_label(data / "labelsTr/a.nii.gz")
    assert [one.kind for one in fix_dataset(data, tmp_path / "out", n_workers=1)] == ["label_turned"]
    assert check_dataset(tmp_path / "out", n_workers=1).faults == ()
    assert nib.load(tmp_path / "out/labelsTr/a.nii.gz").shape == (12, 10, 8)


def test_a_label_map_of_two_cases_stays_as_it_is(tmp_path: Path):
    """It lies on the grid of one image; turned to the other's it would leave the first."""
    data = write_nnunet(tmp_path / "data", ["a", "b"])
    turned = turned_grid(Grid(SHAPE_ZYX, oblique_affine()), Reorientation((0, 1, 2), (True, False, False)))
    write_tiny(data / "imagesTr/b_0000.nii.gz", tiny_image(5), turned.affine_ras_mm)
    (data / "dataset.json").unlink()
    rows = [f"{case},imagesTr/{case}_0000.nii.gz,labelsTr/a.nii.gz" for case in ("a", "b")]
    (data / "list.csv").write_text("\n".join(["case_id,image,label", *rows]))
    assert fix_dataset(data, tmp_path / "out", n_workers=1) == ()


def test_what_a_killed_run_left_is_removed(tmp_path: Path):
    data = write_nnunet(tmp_path / "data", CASES)
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = tmp_path / f".partial-{int(process.stdout)}@{socket.gethostname()}@x"
    left.mkdir()
    fix_dataset(data, tmp_path / "out", n_workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


@pytest.mark.parametrize("n_channels", [1, 2])
def test_nan_outside_the_body_becomes_the_lowest_value(tmp_path: Path, n_channels: int):
    data = write_nnunet(tmp_path / "data", ["a", "b"], n_channels, labels={"background": 0, "a": 1, "b": 2})
    voxels = np.stack([tiny_image(seed) for seed in range(n_channels)])
    voxels[-1, :, :, 0] = voxels[-1, 0, 0, 1] = np.nan
    for channel in range(n_channels):
        (data / "imagesTr" / f"a_{channel:04d}.nii.gz").unlink()
    write_image(data / "imagesTr" / "a.nii.gz", voxels, oblique_affine())
    (repair,) = fix_dataset(data, tmp_path / "out", 1)
    lowest = [float(np.nanmin(channel)) for channel in voxels]
    assert (repair.kind, repair.is_repaired) == ("not_finite", True)
    assert repair.text.endswith(
        f"81 voxels NaN outside the body; replaced by the lowest value, {', '.join(f'{v:g}' for v in lowest)}"
    )
    fixed = read_image(tmp_path / "out" / "imagesTr" / "a.nii.gz")
    assert np.array_equal(fixed.voxels_czyx, np.where(np.isnan(voxels), lowest[-1], voxels).astype(np.float32))
    assert np.allclose(fixed.grid.affine_ras_mm, oblique_affine(), atol=1e-5)
    assert {one.severity for one in check_dataset(tmp_path / "out", 1).faults} <= {"warning"}


@pytest.mark.parametrize("place", [(3, 3, 3), (2, 2, 1)])  # a hole; a labelled voxel, beside NaN up to the border
def test_nan_inside_the_body_is_left(tmp_path: Path, place: tuple[int, int, int]):
    data = write_nnunet(tmp_path / "data", ["a", "b"])
    voxels = tiny_image(0)
    voxels[:, :, 0] = voxels[place] = np.nan
    file = write_tiny(data / "imagesTr" / "a_0000.nii.gz", voxels)
    (repair,) = fix_dataset(data, tmp_path / "out", 1)
    assert not repair.is_repaired and "inside the body" in repair.done
    assert (tmp_path / "out" / "imagesTr" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("values", "dtype"), [((0, 255), np.uint8), ((0, 1 / 255), np.float32), ((0, 0.5), np.float64)]
)
def test_a_scaled_binary_mask_gets_the_value_of_the_only_label(
    tmp_path: Path, values: tuple[float, float], dtype: type
):
    data = write_nnunet(tmp_path / "data", ["a", "b"], labels={"background": 0, "a": 1})
    for case in ("a", "b"):
        write_tiny(data / "labelsTr" / f"{case}.nii.gz", tiny_labels((1,)))
    write_tiny(data / "labelsTr" / "b.nii.gz", np.array(values, dtype)[tiny_labels((1,))])
    assert [one.kind for one in check_dataset(data, 1).faults if one.case_id] == ["label_scaled"]
    (repair,) = fix_dataset(data, tmp_path / "out", 1)
    assert (repair.kind, repair.done) == ("label_scaled", "stored as 1")
    assert np.array_equal(read_labels(tmp_path / "out" / "labelsTr" / "b.nii.gz")[0], tiny_labels((1,)))
    assert not check_dataset(tmp_path / "out", 1).is_fatal


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_a_cropped_label_map_is_padded_to_its_image(tmp_path: Path, ending: str):
    data = write_nnunet(tmp_path / "data", ["a", "b"])
    affine = oblique_affine()
    affine[:3, 3] = (affine @ [1, 2, 2, 1])[:3]  # begins at voxel (x, y, z) = (1, 2, 2), as the labels do
    whole = data / "labelsTr" / "b.nii.gz"
    write_tiny(whole, tiny_labels()[2:4, 2:6, 1:7], affine)
    sitk.WriteImage(sitk.ReadImage(str(whole)), str(tmp_path / f"b{ending}"))
    whole.unlink()
    (tmp_path / f"b{ending}").rename(data / "labelsTr" / f"b{ending}")
    (found,) = [one for one in check_dataset(data, 1).faults if one.case_id]
    assert (found.kind, found.found) == (
        "label_cropped",
        "6 × 4 × 2 voxels (x, y, z), from voxel (1, 2, 2) of the image on",
    )
    (repair,) = fix_dataset(data, tmp_path / "out", 1)
    assert repair.kind == "label_cropped" and "padded with background" in repair.done
    assert np.array_equal(read_labels(tmp_path / "out" / "labelsTr" / f"b{ending}")[0], tiny_labels())
    assert not check_dataset(tmp_path / "out", 1).is_fatal


def test_masks_of_0_and_255_beside_those_of_0_and_1_are_one_structure(tmp_path: Path):
    data = tmp_path / "data"
    for case in ("a", "b", "c"):
        write_tiny(data / "images" / f"{case}.nii.gz", tiny_image(ord(case)))
        factor = 255 if case == "b" else 1
        write_tiny(data / "labels" / f"{case}.nii.gz", (tiny_labels((1,)) * factor).astype(np.uint8))
    (fault,) = [one for one in check_dataset(data, 1).faults if one.kind.startswith("label_")]
    assert (fault.kind, fault.case_id) == ("label_scaled", "b")
    with pytest.raises(DataError, match=r"b\.nii\.gz: 0 and 255 are its only values"):
        load_dataset(data, 1)
    (repair,) = fix_dataset(data, tmp_path / "out", 1)
    assert (repair.case_id, repair.done) == ("b", "stored as 1")
    assert load_dataset(tmp_path / "out", 1).labels.values == (1,)


def test_a_link_to_itself_is_told_and_not_copied(tmp_path: Path):
    data = write_nnunet(tmp_path / "data", CASES)
    link = data / "labelsTr" / "b.nii.gz"
    link.unlink()
    link.symlink_to(link)
    repairs = fix_dataset(data, tmp_path / "out", n_workers=1)
    assert [(one.file, one.kind) for one in repairs] == [("labelsTr/b.nii.gz", "file_missing")]
