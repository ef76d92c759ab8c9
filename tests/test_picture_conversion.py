"""Pictures with a stated voxel size become a dataset; everything that a picture can hide is refused or told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from segpipe.cli.main import run
from segpipe.core.errors import DataError
from segpipe.core.volume import read_header, read_image, read_labels
from segpipe.data.check import check_dataset
from segpipe.data.picture_conversion import convert_pictures, holds_pictures

SPACING = (3.0, 0.5, 0.7)
CASES = ["a", "b", "c", "d"]


def grey(seed: int, shape: tuple[int, ...] = (12, 10), dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def organ(seed: int, shape: tuple[int, ...] = (12, 10), value: int = 255) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[..., 3 : 6 + seed % 3, 2:7] = value
    return mask


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_stacks(root: Path, n_slices: int = 11, mode: type = np.uint8) -> Path:
    """A folder for each case; slice 2 is `s2.png`, so the order of letters is not the order of slices."""
    for number, case in enumerate(CASES):
        for z in range(n_slices):
            save(root / "images" / case / f"s{z}.png", grey(100 * number + z, dtype=mode))
            save(root / "labels" / case / f"s{z}.png", organ(number + z))
    return root


def write_flat(root: Path, ending: str = ".png") -> Path:
    for number, case in enumerate(CASES):
        save(root / "images" / f"{case}{ending}", grey(number))
        save(root / "labels" / f"{case}.png", organ(number))
    return root


def convert(root: Path, spacing: tuple[float, ...] | None = SPACING) -> tuple[Path, dict[tuple[str, str], str]]:
    out = root.parent / "out"
    repairs = convert_pictures(root, out, spacing, n_workers=2)
    return out, {(one.file, one.kind): f"{one.found}; {one.done}" for one in repairs}


@pytest.mark.parametrize("mode", [np.uint8, np.uint16])
def test_a_folder_of_numbered_slices_for_each_case_is_a_stack(tmp_path: Path, mode: type):
    root = write_stacks(tmp_path / "data", mode=mode)
    assert holds_pictures(root)
    out, told = convert(root)
    image = read_image(out / "imagesTr" / "b_0000.nii")
    expected = np.stack([grey(100 + z, dtype=mode) for z in range(11)])
    np.testing.assert_array_equal(image.voxels_czyx[0], expected)  # s10 is the last slice, not the third
    assert image.grid.spacing_mm == pytest.approx(SPACING)
    header = read_header(out / "imagesTr" / "b_0000.nii")
    assert (header.dtype, header.has_world) == (np.dtype(mode), False)
    values, grid = read_labels(out / "labelsTr" / "b.nii")
    assert set(np.unique(values)) == {0, 1} and grid.spacing_mm == pytest.approx(SPACING)
    assert told["labels/b", "label_scaled"] == "values 0, 255; stored as 0, 1"
    kinds = {one.kind for one in check_dataset(out, n_workers=2).faults}
    assert kinds == {"no_orientation", "few_patients"}


def test_from_pictures_to_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, out = write_stacks(tmp_path / "data", n_slices=8), tmp_path / "out"
    assert run(["check", str(data)]) == 3
    assert "--fix OUT --spacing" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert run(["check", str(data), "--fix", str(out), "--spacing", "3,0.5,0.7", "-j", "1"]) == 0
    printed = capsys.readouterr()
    assert "8 files converted to NIfTI" in printed.err and "Ready for training." in printed.out
    assert run(["plan", str(out), "-o", str(tmp_path / "work"), "--no-cost", "--no-report", "--n-folds", "2"]) == 0
    assert "repairs.csv" in {file.name for file in out.iterdir()}


def test_single_pictures_are_2d_images_and_need_no_z(tmp_path: Path):
    out, _ = convert(write_flat(tmp_path / "data"), (0.5, 0.7))
    image = nib.load(out / "imagesTr" / "a_0000.nii")
    assert image.shape == (10, 12) and image.header.get_zooms() == pytest.approx((0.7, 0.5))
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, grey(0))
    assert not any(one.severity == "fatal" for one in check_dataset(out, n_workers=1).faults)


def test_pages_of_a_tiff_file_are_slices_with_the_spacing_of_a_file_beside_it(tmp_path: Path):
    root = tmp_path / "data"
    for number, case in enumerate(CASES):
        for folder, name, make in (("imagesTr", f"{case}_0000", grey), ("labelsTr", case, organ)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            pages = [Image.fromarray(make(number + z)) for z in range(5)]
            pages[0].save(root / folder / f"{name}.tif", save_all=True, append_images=pages[1:])
        (root / "imagesTr" / f"{case}.json").write_text('\ufeff{"spacing": [3, 0.5, 0.7]}', "utf-8")
    labels = {"background": 0, "organ": 1}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 4, "file_ending": ".tif"}
    (root / "dataset.json").write_text(json.dumps(description))
    assert re.search(r"file_ending '\.tif'.*--spacing", check_dataset(root, n_workers=1).faults[0].found)
    out, _ = convert(root, None)
    assert read_image(out / "imagesTr" / "a_0000.nii").grid.spacing_mm == pytest.approx(SPACING)
    written = json.loads((out / "dataset.json").read_text())
    assert (written["channel_names"], written["labels"], written["file_ending"]) == ({"0": "CT"}, labels, ".nii")
    with pytest.raises(DataError, match=r"3 × 0.5 × 0.7 mm in a.json and 1 × 1 × 1 mm in --spacing"):
        convert_pictures(root, tmp_path / "other", (1.0, 1.0, 1.0), n_workers=1)


@pytest.mark.parametrize(
    ("values", "stored"),
    [([0, 255], [0, 1]), ([0, 127, 255], [0, 1, 2]), ([0, 128, 255], [0, 1, 2]), ([0, 85, 255], [0, 1, 3])],
)
def test_label_values_spread_over_the_range_of_a_picture(tmp_path: Path, values: list[int], stored: list[int]):
    root = write_flat(tmp_path / "data")
    for case in CASES:
        save(root / "labels" / f"{case}.png", np.resize(np.array(values, np.uint8), (12, 10)))
    out, told = convert(root)
    assert np.unique(read_labels(out / "labelsTr" / "a.nii")[0]).tolist() == stored
    text = ", ".join(map(str, values))
    assert told["labels/a.png", "label_scaled"] == f"values {text}; stored as {', '.join(map(str, stored))}"


def test_label_values_that_are_numbers_stay(tmp_path: Path):
    root = write_flat(tmp_path / "data")
    for case in CASES:
        save(root / "labels" / f"{case}.png", np.resize(np.array([0, 1, 2, 255], np.uint8), (12, 10)))
    out, told = convert(root)
    assert np.unique(read_labels(out / "labelsTr" / "a.nii")[0]).tolist() == [0, 1, 2, 255]
    assert not [kind for _, kind in told if kind == "label_scaled"]


def test_colours_become_channels_and_grey_stored_as_colours_one(tmp_path: Path):
    root = write_flat(tmp_path / "grey")
    save(root / "images" / "a.png", np.stack([grey(0)] * 3, -1))
    save(root / "images" / "b.png", np.stack([grey(1), np.full((12, 10), 255, np.uint8)], -1))  # opaque
    out, _ = convert(root)
    assert [file.name for file in sorted((out / "imagesTr").iterdir())] == [f"{case}_0000.nii" for case in CASES]
    np.testing.assert_array_equal(read_image(out / "imagesTr/b_0000.nii").voxels_czyx[0, 0], grey(1))
    root, out = write_flat(tmp_path / "colour"), tmp_path / "rgb"
    colours = {case: grey(number, (12, 10, 3)) for number, case in enumerate(CASES)}
    for case in CASES:
        save(root / "images" / f"{case}.png", colours[case])
    convert_pictures(root, out, SPACING, n_workers=1)
    np.testing.assert_array_equal(read_image(out / "imagesTr/c_0002.nii").voxels_czyx[0, 0], colours["c"][..., 2])
    assert json.loads((out / "dataset.json").read_text())["channel_names"] == {"0": "red", "1": "green", "2": "blue"}


def test_indices_of_a_palette_are_label_values(tmp_path: Path):
    root = write_flat(tmp_path / "data")
    for case in CASES:
        picture = Image.fromarray(organ(0, value=2)).convert("L")
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette([0, 0, 0, 0, 255, 0, 255, 0, 0])
        picture.save(root / "labels" / f"{case}.png")
    out, told = convert(root)
    assert np.unique(read_labels(out / "labelsTr" / "a.nii")[0]).tolist() == [0, 2]
    assert "indices of the palette" in told["labels/a.png", "picture"]


def test_pictures_without_label_maps_are_for_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / "new"
    for number, case in enumerate(CASES):
        save(root / f"{case}.png", grey(number))
    out = tmp_path / "out"
    assert run(["check", str(root), "--fix", str(out), "--spacing", "0.5,0.5", "-j", "1"]) == 0
    assert "Ready for prediction." in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {"repairs.csv", *(f"{case}_0000.nii" for case in CASES)}
    single = tmp_path / "single"
    assert run(["check", str(root / "a.png"), "--fix", str(single), "--spacing", "0.5,0.5"]) == 0
    assert (single / "a_0000.nii").is_file()


def test_a_missing_label_is_a_fault_of_the_result(tmp_path: Path):
    root = write_flat(tmp_path / "data")
    (root / "labels" / "b.png").unlink()
    save(root / "labels" / "z.png", organ(0))
    out, _ = convert(root)
    faults = {(one.kind, one.case_id) for one in check_dataset(out, n_workers=1).faults if one.severity == "fatal"}
    assert faults == {("image_without_label", "b"), ("label_without_image", "z")}


def _other_size(root: Path) -> None:
    save(root / "images/a/s3.png", grey(0, (12, 11)))


def _gap(root: Path) -> None:
    (root / "images/a/s3.png").unlink()


def _double(root: Path) -> None:
    save(root / "images/a/s03.png", grey(0))


def _no_number(root: Path) -> None:
    (root / "images/a/s3.png").rename(root / "images/a/last.png")


def _mixed_types(root: Path) -> None:
    save(root / "images/a/s3.png", grey(0, dtype=np.uint16))


def _short_label(root: Path) -> None:
    (root / "labels/a/s10.png").unlink()


def _single(root: Path) -> None:
    save(root / "images/e.png", grey(0))


def _transparent(root: Path) -> None:
    save(root / "images/a/s3.png", np.stack([grey(0)] * 2, -1))


def _colours(root: Path) -> None:
    save(root / "labels/a/s3.png", grey(0, (12, 10, 3)))


def _shades(root: Path) -> None:
    save(root / "labels/a/s3.png", np.arange(120, dtype=np.uint8).reshape(12, 10))


def _jpeg(root: Path) -> None:
    for z in range(11):
        (root / f"labels/a/s{z}.png").unlink()
        blobs = np.kron(np.random.default_rng(z).integers(0, 2, (6, 5)), np.ones((2, 2))).astype(np.uint8) * 200
        Image.fromarray(blobs).save(root / f"labels/a/s{z}.jpg", quality=90)


def _damaged(root: Path) -> None:
    file = root / "images/a/s3.png"
    file.write_bytes(file.read_bytes()[:60])


def _pointer(root: Path) -> None:
    (root / "images/a/s3.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")


def _turned(root: Path) -> None:
    for z in range(11):
        (root / f"images/a/s{z}.png").unlink()
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(grey(z)).save(root / f"images/a/s{z}.jpg", exif=exif)


def _deep_colour(root: Path) -> None:
    import struct
    import zlib

    rows = b"".join(b"\0" + grey(0, (10, 3), np.uint16).astype(">u2").tobytes() for _ in range(12))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 10, 12, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    (root / "images/a/s3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_size, r"s3\.png: 11 × 12 pixels .*s0\.png has 10 × 12"),
        (_gap, r"images/a: slices 0 to 10 without 3"),
        (_double, r"s0?3\.png and s0?3\.png have the same number"),
        (_no_number, r"last\.png: no number in the name"),
        (_mixed_types, r"s3\.png: .*16 bit.*s0\.png has .*8 bit"),
        (_short_label, r"labels/a: 10 × 12 × 10 pixels, but a has 10 × 12 × 11"),
        (_single, "1 single picture beside 4 stacks"),
        (_transparent, r"s3\.png: has transparent pixels"),
        (_colours, r"s3\.png: .*colour.*s0\.png has|colours as labels"),
        (_shades, r"labels/a: 1\d\d different values, expected 64"),
        (_jpeg, r"labels/a: (JPEG changes label values|.*; JPEG changes values)"),
        (_damaged, r"s3\.png: cannot be read as an image"),
        (_pointer, r"s3\.png: a pointer of Git LFS"),
        (_turned, r"s0\.jpg: turned by its EXIF or TIFF tag \(orientation 6\)"),
        (_deep_colour, r"s3\.png: 16 bits a colour"),
    ],
)
def test_what_a_picture_hides_is_refused_by_name(tmp_path: Path, spoil, message: str):
    root = write_stacks(tmp_path / "data")
    spoil(root)
    with pytest.raises(DataError, match=message):
        convert(root)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        (None, r"data: 4 faults\.\n.*no voxel size, which pictures do not have"),
        ((0.5, 0.7), r"a stack with a spacing along Y, X alone"),
    ],
)
def test_a_stack_needs_three_edges(tmp_path: Path, spacing: tuple[float, ...] | None, message: str):
    with pytest.raises(DataError, match=message):
        convert(write_stacks(tmp_path / "data"), spacing)


@pytest.mark.parametrize("edges", ["3", "a,b,c", "0,1,1", "nan,1,1", "-1,1,1", "1,1,1,1", ""])
def test_an_edge_is_a_length(tmp_path: Path, edges: str, capsys: pytest.CaptureFixture[str]):
    data = write_flat(tmp_path / "data")
    assert run(["check", str(data), "--fix", str(tmp_path / "out"), f"--spacing={edges}"]) == 2
    assert "is not a voxel size; expected Z,Y,X in mm" in capsys.readouterr().err


def test_spacing_is_for_pictures_that_are_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_flat(tmp_path / "data")
    assert run(["check", str(data), "--spacing", "1,1,1"]) == 2
    assert "Add --fix OUT" in capsys.readouterr().err
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), data / "images" / "e.nii.gz")
    assert run(["check", str(data), "--fix", str(tmp_path / "out"), "--spacing", "1,1,1"]) == 2
    assert "--spacing is for pictures" in capsys.readouterr().err


def test_slices_numbered_in_even_steps_and_labels_from_another_number(tmp_path: Path):
    root = tmp_path / "data"
    for number, case in enumerate(CASES):
        for z in range(6):
            save(root / "images" / case / f"IM{5 * z:04d}.tif", grey(100 * number + z))
            save(root / "labels" / case / f"{z + 1}.png", organ(number + z, value=1))
    out, told = convert(root)
    assert read_header(out / "imagesTr" / "a_0000.nii").grid.shape_zyx == (6, 12, 10)
    assert "numbered from 1, its image from 0: taken in order" in told["labels/a", "picture"]


def test_the_description_and_the_patients_of_the_source_are_kept(tmp_path: Path):
    root = write_flat(tmp_path / "data")
    (root / "labels" / "d.png").unlink()
    description = {"name": "Lungs", "channel_names": {"0": "X-ray"}, "labels": {"background": 0, "lung": 1}}
    (root / "dataset.json").write_text(json.dumps(description))
    (root / "patients.json").write_text(json.dumps(dict.fromkeys(CASES, "p")))
    out, _ = convert(root)
    written = json.loads((out / "dataset.json").read_text())
    assert written == {**description, "numTraining": 3, "file_ending": ".nii"}
    assert (out / "patients.json").read_text() == (root / "patients.json").read_text()


def test_a_coloured_picture_beside_grey_ones_is_refused(tmp_path: Path):
    root = write_flat(tmp_path / "data")
    save(root / "images" / "a.png", grey(0, (12, 10, 3)))
    with pytest.raises(DataError, match=r"images/b\.png: PNG, grey, 8 bit, while some are coloured"):
        convert(root)


def test_label_maps_in_jpeg_are_told_of_even_if_their_values_are_exact(tmp_path: Path):
    root = write_flat(tmp_path / "data")
    for case in CASES:
        (root / "labels" / f"{case}.png").unlink()
        save(root / "images" / f"{case}.png", grey(0, (16, 16)))
        save(
            root / "labels" / f"{case}.jpg", np.kron([[0, 1], [1, 0]], np.ones((8, 8))).astype(np.uint8)
        )  # JPEG's blocks
    _, told = convert(root)
    assert told["labels/a.jpg", "label_lossy"] == "a label map in JPEG, which may have lost values; values kept"


def test_a_name_that_no_case_can_have_is_refused(tmp_path: Path):
    root = write_flat(tmp_path / "data")
    save(root / "images" / f"{'x' * 201}.png", grey(0))
    with pytest.raises(DataError, match=r"case 'x+'; expected a name"):
        convert(root)
