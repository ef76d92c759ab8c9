"""core/volume.py: what is read is what is in the file, and masks lie where their image lies."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from segpipe.core.errors import DataError, GeometryError, ResourceError
from segpipe.core.grid import require_same_grid
from segpipe.core.header import reading_fault
from segpipe.core.volume import (
    read_header,
    read_image,
    read_image_channels,
    read_label_values,
    read_labels,
    write_image,
    write_mask,
    write_shares,
)

SHAPE_ZYX = (8, 10, 12)


def oblique_affine() -> NDArray[np.float64]:
    """x to the back, y up, z to the left, all tilted; voxels of 0.8 × 1.5 × 3 mm (x, y, z)."""
    c, s = np.cos(0.3), np.sin(0.3)
    tilt = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    axes = np.array([[0.0, 0, -1], [-1, 0, 0], [0, 1, 0]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ axes * (0.8, 1.5, 3.0)
    affine[:3, 3] = (-20.0, 31.0, 7.0)
    return affine


def voxels(n_channels: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(n_channels, *SHAPE_ZYX)).astype(np.float32)


@pytest.mark.parametrize("n_channels", [1, 2])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_an_image_is_written_and_read(tmp_path: Path, n_channels: int, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    write_image(path, voxels(n_channels), oblique_affine())
    volume = read_image(path)
    np.testing.assert_array_equal(volume.voxels_czyx, voxels(n_channels))
    np.testing.assert_allclose(volume.grid.affine_ras_mm, oblique_affine(), atol=1e-5)
    assert volume.grid.shape_zyx == SHAPE_ZYX
    assert volume.grid.spacing_mm == pytest.approx((3.0, 1.5, 0.8), abs=1e-5)
    assert read_header(path).n_channels == n_channels


def test_x_is_the_last_axis(tmp_path: Path) -> None:
    data_xyz = np.zeros((12, 10, 8), np.int16)
    data_xyz[11, 1, 2] = 5
    nib.save(nib.Nifti1Image(data_xyz, np.eye(4)), tmp_path / "a.nii")
    assert read_image(tmp_path / "a.nii").voxels_czyx[0, 2, 1, 11] == 5
    assert read_labels(tmp_path / "a.nii")[0][2, 1, 11] == 5


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_simpleitk_formats_agree_with_nifti(tmp_path: Path, ending: str) -> None:
    write_image(tmp_path / "a.nii.gz", voxels(), oblique_affine())
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))  # SimpleITK's own reading of the same file
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    nifti, other = read_image(tmp_path / "a.nii.gz"), read_image(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(other.voxels_czyx, nifti.voxels_czyx)
    np.testing.assert_allclose(other.grid.affine_ras_mm, nifti.grid.affine_ras_mm, atol=1e-4)
    require_same_grid(nifti.grid, other.grid, "x")
    assert other.grid.spacing_mm == pytest.approx(nifti.grid.spacing_mm, abs=1e-5)


def test_vectors_in_nrrd_are_channels(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.moveaxis(voxels(3), 0, -1), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.nrrd").voxels_czyx, voxels(3))


@pytest.mark.parametrize("like", ["a.nrrd", "a.mha"])
def test_a_mask_like_an_itk_image_lies_on_its_grid(tmp_path: Path, like: str) -> None:
    write_image(tmp_path / "a.nii.gz", voxels(), oblique_affine())
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / like))
    mask = (voxels()[0] > 0).astype(np.uint8)
    write_mask(tmp_path / "m.nii.gz", mask, tmp_path / like)
    values, grid = read_labels(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(values, mask)
    require_same_grid(read_header(tmp_path / like).grid, grid, "m")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "m.nii.gz"))), mask)


GEOMETRY_FIELDS = (
    *("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"),
)


def assert_geometry_is_equal(mask: Path, image: Path) -> None:
    found, expected = nib.load(mask), nib.load(image)
    for field in GEOMETRY_FIELDS:
        np.testing.assert_array_equal(found.header[field], expected.header[field], err_msg=f"{image}: {field}")
    np.testing.assert_array_equal(found.header["pixdim"][:4], expected.header["pixdim"][:4], err_msg=str(image))
    np.testing.assert_array_equal(found.affine, expected.affine, err_msg=str(image))
    assert type(found) is type(expected)
    assert found.header.endianness == expected.header.endianness


def test_masks_carry_the_exact_geometry_of_odd_images(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "odd_nifti"
    n_written, refused = 0, []
    for entry in json.loads((folder / "index.json").read_text("utf-8")):
        image = folder / entry["path"]
        try:
            shape_zyx = read_header(image).grid.shape_zyx
        except DataError as fault:
            refused.append(str(fault))
            continue
        mask = np.random.default_rng(n_written).integers(0, 9, shape_zyx).astype(np.uint8)
        write_mask(tmp_path / "mask.nii.gz", mask, image)
        assert_geometry_is_equal(tmp_path / "mask.nii.gz", image)
        np.testing.assert_array_equal(read_label_values(read_header(tmp_path / "mask.nii.gz")), mask)
        assert float(nib.load(tmp_path / "mask.nii.gz").dataobj.slope) == 1.0
        n_written += 1
    assert n_written > 40
    assert all("colour" in text or ".mgz" in text or "hdr" in text or "Pair" in text for text in refused), refused


def image_with(tmp_path: Path, **fields: Any) -> Path:
    """A NIfTI image whose header fields were set by hand."""
    image = nib.Nifti1Image(np.arange(12 * 10 * 8, dtype=np.int16).reshape(12, 10, 8), oblique_affine())
    for field, value in fields.items():
        image.header[field] = value
    path = tmp_path / "odd.nii"
    image.to_filename(path)
    raw = bytearray(path.read_bytes())
    header = image.header.copy()
    for field, value in fields.items():  # nibabel corrects some fields when it saves; put them back
        header[field] = value
    raw[:348] = header.binaryblock
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    "fields",
    [
        {"sform_code": 0},
        {"qform_code": 0},
        {"sform_code": 4, "qform_code": 1},
        {"qform_code": 1, "qoffset_x": 99.0},  # the two forms disagree, both are kept
        {"xyzt_units": 0},
        {"xyzt_units": 2 | 8},
    ],
)
def test_masks_keep_what_the_header_says(tmp_path: Path, fields: dict[str, Any]) -> None:
    image = image_with(tmp_path, **fields)
    write_mask(tmp_path / "mask.nii.gz", np.ones(SHAPE_ZYX, np.uint8), image)
    assert_geometry_is_equal(tmp_path / "mask.nii.gz", image)


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii", voxels(), oblique_affine())
    with pytest.raises(ValueError, match="is not on the grid"):
        write_mask(tmp_path / "m.nii", np.zeros((8, 10, 11), np.uint8), tmp_path / "a.nii")


def test_a_mask_holds_no_scaling_of_its_image(tmp_path: Path) -> None:
    image = image_with(tmp_path, scl_slope=0.5, scl_inter=-3.0, cal_max=7.0)
    write_mask(tmp_path / "m.nii", np.full(SHAPE_ZYX, 2, np.uint8), image)
    assert np.unique(read_labels(tmp_path / "m.nii")[0]).tolist() == [2]
    assert float(nib.load(tmp_path / "m.nii").header["cal_max"]) == 0.0
    slope, intercept = np.frombuffer((tmp_path / "m.nii").read_bytes()[112:120], "<f4")  # scl_slope, scl_inter
    assert (slope, intercept) == (1.0, 0.0)


def test_scaled_labels_are_rounded(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full((12, 10, 8), 3, np.int16), np.eye(4))
    image.header.set_slope_inter(0.333333, 0.0)  # 3 × 0.333333 = 0.999999, which cut off would be 0
    nib.save(image, tmp_path / "a.nii")
    values, _ = read_labels(tmp_path / "a.nii")
    assert np.unique(values).tolist() == [1] and values.dtype == np.int32


@pytest.mark.parametrize("value", [0.5, 1.01, -2.4, np.nan, np.inf, 3e9])
def test_values_that_are_no_labels_are_refused(tmp_path: Path, value: float) -> None:
    data = np.zeros((12, 10, 8), np.float32)
    data[3, 4, 5] = value
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"a\.nii: label values are not whole numbers \(such as "):
        read_labels(tmp_path / "a.nii")


def test_a_label_beyond_32_bits_is_refused_not_wrapped(tmp_path: Path) -> None:
    data = np.full((12, 10, 8), 2**32 + 1, np.int64)  # would become 1
    nib.save(nib.Nifti1Image(data, np.eye(4), dtype=np.int64), tmp_path / "a.nii")
    with pytest.raises(DataError, match="below 2³¹"):
        read_labels(tmp_path / "a.nii")


def test_a_label_map_has_one_volume(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii", voxels(3), np.eye(4))
    with pytest.raises(DataError, match="3 volumes"):
        read_labels(tmp_path / "a.nii")


def test_channels_in_files_are_stacked(tmp_path: Path) -> None:
    for channel in range(2):
        write_image(tmp_path / f"a_{channel}.nii", voxels(2)[channel : channel + 1], oblique_affine())
    volume = read_image_channels([tmp_path / "a_0.nii", tmp_path / "a_1.nii"])
    np.testing.assert_array_equal(volume.voxels_czyx, voxels(2))
    write_image(tmp_path / "b.nii", voxels(), np.eye(4))
    with pytest.raises(GeometryError, match=r"b\.nii against a_0\.nii: same shape, but a corner voxel"):
        read_image_channels([tmp_path / "a_0.nii", tmp_path / "b.nii"])


def test_a_header_that_contradicts_itself_is_read_but_its_image_refused(tmp_path: Path, shared_data: Path) -> None:
    del tmp_path
    path = shared_data / "odd_nifti" / "acdc_unit_sform" / "img_patient001_frame01.nii.gz"
    assert "1.562 × 1.562 × 10 mm in pixdim" in read_header(path).contradiction
    with pytest.raises(GeometryError, match="--fix"):
        read_image(path)


def test_a_sheared_image_is_refused(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), affine)
    image.header["pixdim"][2] = np.hypot(1, 0.3)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(GeometryError, match=r"a\.nii: the grid is sheared"):
        read_image(tmp_path / "a.nii")


def test_an_image_without_orientation_says_so(tmp_path: Path) -> None:
    assert not read_header(image_with(tmp_path, sform_code=0, qform_code=0)).has_world
    assert read_header(image_with(tmp_path, sform_code=0, qform_code=1)).has_world


def broken(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
@pytest.mark.parametrize(
    "content",
    [b"", b"patient,age\n1,50\n", b"\0" * 400, gzip.compress(b"x" * 1000)],
    ids=["empty", "text", "zeros", "gzipped"],
)
def test_what_is_no_image_is_a_data_fault(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(DataError, match=rf"{name}"):
        read_image(broken(tmp_path, name, content))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_the_mask_of_a_file_with_two_axes_has_two(tmp_path: Path, ending: str) -> None:
    image = sitk.GetImageFromArray(np.arange(12, dtype=np.int16).reshape(3, 4))
    image.SetSpacing((0.5, 0.75))
    image.SetOrigin((-3, 8))
    sitk.WriteImage(image, str(tmp_path / f"flat{ending}"))
    mask = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    for written in (".nii.gz", ending):
        write_mask(tmp_path / f"mask{written}", mask, tmp_path / f"flat{ending}")
        back = sitk.ReadImage(str(tmp_path / f"mask{written}"))
        assert (back.GetSize(), back.GetSpacing(), back.GetOrigin()) == ((4, 3), (0.5, 0.75), (-3, 8))
        assert np.array_equal(sitk.GetArrayFromImage(back), mask[0])
        assert np.array_equal(read_labels(tmp_path / f"mask{written}")[0], mask)
    write_shares(tmp_path / "shares.nii.gz", mask, tmp_path / f"flat{ending}")
    assert sitk.ReadImage(str(tmp_path / "shares.nii.gz")).GetDimension() == 2


def test_a_file_gzipped_against_its_name_is_to_be_renamed(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii", voxels(), oblique_affine())
    plain = (tmp_path / "a.nii").read_bytes()
    with pytest.raises(DataError, match=r"b\.nii: is compressed with gzip, contrary .* should be b\.nii\.gz"):
        read_image(broken(tmp_path, "b.nii", gzip.compress(plain)))
    with pytest.raises(DataError, match=r"b\.nii\.gz: is not compressed .* should be b\.nii\. Rename it"):
        read_image(broken(tmp_path, "b.nii.gz", plain))


def test_values_beyond_float32_become_infinite_without_a_warning(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii", voxels().astype(np.float64) * 1e300, oblique_affine())
    assert np.isinf(read_image(tmp_path / "a.nii").voxels_czyx).all()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_file_cut_short_is_a_data_fault(tmp_path: Path, ending: str, share: float) -> None:
    write_image(tmp_path / "a.nii", voxels(), oblique_affine())
    whole = tmp_path / f"b{ending}"
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(whole))
    content = whole.read_bytes()
    with pytest.raises(DataError, match=rf"c\{ending}: cannot be read as an image"):
        read_image(broken(tmp_path, f"c{ending}", content[: int(share * len(content))]))


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_damaged_file_is_a_data_fault(tmp_path: Path, place: float) -> None:
    write_image(tmp_path / "a.nii.gz", voxels(), oblique_affine())
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    start = int(place * len(content))
    content[start : start + 40] = b"\xff" * 40
    with pytest.raises(DataError, match=r"b\.nii\.gz: cannot be read as an image"):
        read_image(broken(tmp_path, "b.nii.gz", bytes(content)))


@pytest.mark.parametrize(
    ("name", "message"),
    [("brain.mgz", "not a format that segpipe reads"), ("notes.txt", "not a format"), ("gone.nii", "no such file")],
)
def test_other_names_are_refused(tmp_path: Path, name: str, message: str) -> None:
    if name != "gone.nii":
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        read_header(tmp_path / name)


def test_a_folder_named_like_an_image_is_a_data_fault(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").mkdir()
    with pytest.raises(DataError, match=r"a\.nii\.gz: "):
        read_header(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("dtype", "message"), [([("R", "u1"), ("G", "u1"), ("B", "u1")], "colour"), ("c8", "complex")])
def test_voxels_are_single_numbers(tmp_path: Path, dtype: Any, message: str) -> None:
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), dtype), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(DataError, match=message):
        read_header(tmp_path / "a.nii")


def test_big_endian_files_are_read_as_they_are(tmp_path: Path) -> None:
    data = np.arange(60, dtype=">i2").reshape(3, 4, 5)
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(data, np.eye(4), header), tmp_path / "a.nii")
    assert nib.load(tmp_path / "a.nii").header.endianness == ">"
    np.testing.assert_array_equal(read_labels(tmp_path / "a.nii")[0], np.arange(60).reshape(3, 4, 5).T)


def test_pixdim_says_nothing_of_an_axis_the_file_has_not(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((12, 10), np.int16), np.diag([0.8, 1.5, 5.0, 1.0])), tmp_path / "a.nii")
    assert read_header(tmp_path / "a.nii").pixdim_zyx_mm == pytest.approx((5.0, 1.5, 0.8))  # slices of 5 mm
    assert read_image(tmp_path / "a.nii").voxels_czyx.shape == (1, 1, 10, 12)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_exaggerates_is_refused_before_memory_is_asked_for(tmp_path: Path, ending: str) -> None:
    content = bytearray(image_with(tmp_path).read_bytes())
    content[42:48] = np.array([30_000] * 3, "<i2").tobytes()  # dim[1] to dim[3]: 54 TB
    path = broken(tmp_path, f"a{ending}", gzip.compress(content) if ending == ".nii.gz" else bytes(content))
    with pytest.raises(DataError, match=r"too few for the 30000 × 30000 × 30000 voxels .*54000000000000 bytes"):
        read_image(path)


def test_the_best_compression_there_is_does_not_look_exaggerated(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii", np.zeros((1, 300, 300, 300), np.uint8), np.eye(4))
    path = broken(tmp_path, "b.nii.gz", gzip.compress((tmp_path / "a.nii").read_bytes(), 9))
    assert path.stat().st_size < 300**3 / 1000
    assert read_labels(path)[0].shape == (300, 300, 300)


def write_contradiction(path: Path, n_held: int, n_said: int) -> None:
    """A file of two-digit `n_held` slices whose header says `n_said`."""
    array = np.arange(n_held * 20 * 16, dtype=np.int16).reshape(n_held, 20, 16)
    if path.suffix in (".nii", ".gz"):
        content = nib.Nifti1Image(array.transpose(2, 1, 0), np.eye(4)).to_bytes()
        cut = content[:46] + n_said.to_bytes(2, "little") + content[48:]  # dim[3]
        path.write_bytes(gzip.compress(cut) if path.suffix == ".gz" else cut)
        return
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), path.name.startswith("z"))
    path.write_bytes(path.read_bytes().replace(b"16 20 %d" % n_held, b"16 20 %d" % n_said))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "z.nrrd", "a.mha", "z.mha"])
def test_a_file_that_holds_more_than_its_header_says_is_refused(tmp_path: Path, name: str) -> None:
    write_contradiction(tmp_path / name, 24, 12)
    with pytest.raises(DataError, match=rf"{name}: .*holds more than the .*12.* voxels of its header"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "z.nrrd", "a.mha", "z.mha"])
def test_a_file_that_holds_less_than_its_header_says_is_refused(tmp_path: Path, name: str) -> None:
    write_contradiction(tmp_path / name, 12, 24)
    with pytest.raises(DataError, match=rf"{name}: cannot be read as an image"):
        read_image(tmp_path / name)


def test_one_byte_too_few_or_too_many_is_refused(tmp_path: Path) -> None:
    content = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)).to_bytes()
    (tmp_path / "a.nii").write_bytes(content)
    assert read_image(tmp_path / "a.nii").voxels_czyx.shape == (1, 6, 5, 4)
    for wrong in (content[:-1], content + b"\0"):
        (tmp_path / "b.nii").write_bytes(wrong)
        with pytest.raises(DataError, match=r"b\.nii: cannot be read as an image"):
            read_image(tmp_path / "b.nii")


NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
META = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"


@pytest.mark.parametrize(("name", "text"), [
    ("a.nrrd", f"{NRRD}data file: /etc/passwd\n\n"),
    ("a.nrrd", f"{NRRD}DataFile:../secret\n\n"),
    ("a.nrrd", f"{NRRD}data file: LIST\nx.raw\n/etc/passwd\n"),
    ("a.nrrd", f"{NRRD}data file: /etc/pass%03d 1 2 1\n\n".replace("\n", "\r\n")),
    ("a.mhd", f"{META}ElementDataFile = /etc/passwd\n"),
    ("a.mhd", f"{META}ElementDataFile =  LIST\n/etc/passwd\n"),
    ("a.mhd", f"Comment = ElementDataFile = LOCAL\n{META}ElementDataFile = sub/../../x\n"),
    ("a.mha", f"{META}ElementDataFile = ..\\\\\\secret\n"),
    ("a.mha", f"{META}ElementDataFile = C:\\\\\\secret\n"),
])  # fmt: skip
def test_a_header_takes_no_voxels_from_outside_its_folder(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    with pytest.raises(
        DataError, match=rf"{name}: takes its voxels from .*, outside its folder; expected a file beside"
    ):
        read_image(tmp_path / name)


def test_voxels_beside_their_header_are_read(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    assert read_image(tmp_path / "a.mhd").voxels_czyx.ravel().tolist() == list(range(60))


def test_a_header_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mhd").write_text(f"Comment = {'x' * 2**20}\n{META}ElementDataFile = /etc/passwd\n")
    with pytest.raises(DataError, match=r"a\.mhd: its header does not end within"):
        read_image(tmp_path / "a.mhd")


@pytest.mark.parametrize("fault", [
    RuntimeError("ITK ERROR: Failed to allocate memory for image."), OSError(12, "Cannot allocate memory"),
    MemoryError("Unable to allocate 3 GiB"),
])  # fmt: skip
def test_no_memory_to_read_an_image_is_not_the_fault_of_the_image(tmp_path: Path, fault: Exception) -> None:
    shown = reading_fault(tmp_path / "a.nii", fault)
    assert isinstance(shown, ResourceError) and "damaged" not in str(shown)
