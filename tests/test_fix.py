"""Repaired copies: only what needs no judgement, and the input stays as it was."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from datasets import oblique_affine, tiny_image, tiny_labels, write_nnunet, write_tiny

from segpipe.cli.main import run
from segpipe.core.errors import DataError, UsageError
from segpipe.core.header_repair import repair_edges
from segpipe.core.volume import read_header, read_image, read_labels
from segpipe.data.check import check_dataset
from segpipe.data.fix import REPAIRS_FILE, fix_dataset

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
    assert [(fix.file, fix.kind, fix.done) for fix in fixes] == [
        (
            "imagesTr/b_0000.nii.gz",
            "header_contradiction",
            "sform of 1 × 1 × 1 mm rescaled to 1 × 1.5 × 2.5 mm as in pixdim",
        ),
        (
            "labelsTr/b.nii.gz",
            "header_contradiction",
            "sform of 1 × 1 × 1 mm rescaled to 1 × 1.5 × 2.5 mm as in pixdim",
        ),
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
    assert (out / REPAIRS_FILE).read_text(encoding="utf-8").splitlines()[0] == "case_id,file,kind,found,done,is_repaired"
    assert check_dataset(out, n_workers=1).faults == ()


def test_a_unit_pixdim_gets_the_edges_of_the_sform(tmp_path: Path):
    path = write_tiny(tmp_path / "x.nii.gz", tiny_image(1), unit_affine())
    set_srow(path, oblique_affine())
    assert read_header(path).contradiction
    done = repair_edges(read_header(path), path)
    assert done == "pixdim 1 × 1 × 1 became 1 × 1.5 × 2.5 mm as in the sform"
    assert not read_header(path).contradiction
    np.testing.assert_allclose(read_image(path).grid.affine_ras_mm, oblique_affine(), atol=1e-6)


@pytest.mark.parametrize("order", ["<", ">"])
def test_second_version_and_other_byte_order(tmp_path: Path, order: str):
    """nibabel writes and reads; we change bytes in between."""
    import nibabel as nib

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
    (fix,) = fix_dataset(data, tmp_path / "out", n_workers=1)
    assert (fix.file, fix.is_repaired) == ("labelsTr/a.nii.gz", False)
    assert fix.done == "copied as it was"
    assert (tmp_path / "out/imagesTr/b_0000.nii.gz").read_text() == "no image"


@pytest.mark.parametrize("out", ["data", "data/fixed", ".", "full"])
def test_places_that_would_lose_something_are_refused(tmp_path: Path, out: str):
    data = write_nnunet(tmp_path / "data", CASES)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("precious")
    before = digests(tmp_path)
    with pytest.raises(UsageError, match=r"lies in the dataset|is not empty"):
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
    with pytest.raises(DataError, match=r"names 2 file\(s\) outside its folder"):
        fix_dataset(manifest, tmp_path / "out", n_workers=1)


def test_command_checks_the_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_nnunet(tmp_path / "data", CASES)
    for path in (data / "imagesTr/b_0000.nii.gz", data / "labelsTr/b.nii.gz"):
        set_srow(path, unit_affine())
    assert run(["check", str(data), "-j", "1"]) == 3
    assert "sform and pixdim disagree" in capsys.readouterr().out
    assert run(["check", str(data), "--fix", str(tmp_path / "out"), "-j", "1"]) == 0
    assert "2 file(s) repaired" in capsys.readouterr().err


def test_published_contradiction(shared_data: Path, tmp_path: Path):
    source = shared_data / "odd_nifti/acdc_unit_sform/img_patient001_frame01.nii.gz"
    fix_dataset(source, tmp_path / "out", n_workers=1)
    grid = read_image(tmp_path / "out" / source.name).grid
    assert grid.spacing_mm == pytest.approx((10.0, 1.5625, 1.5625))
