"""The same prediction once more: what is damaged is made anew, what is whole is left; and folders of odd content."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from datasets import SHAPE_ZYX, tiny_image, write_tiny
from dicom import write_series
from models import write_work

from plans import LABELS
from segpipe.cli.main import run
from segpipe.core.grid import Grid
from segpipe.core.text import csv_cells
from segpipe.core.volume import read_labels, write_mask
from segpipe.predict.outputs import (
    PREDICTIONS,
    UNKNOWN_WARNING,
    CaseRow,
    PredictionTable,
    is_whole,
    label_sizes,
    mean_inside,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_work(tmp_path_factory.mktemp("again") / "work")


def predicted(work: Path, inputs: Path, output: Path, *more: str) -> int:
    common = ["--device", "cpu", "-j", "1", "--no-tta", "--no-postprocess"]
    return run(["predict", "-m", str(work), "-i", str(inputs), "-o", str(output), *common, *more])


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_mask_of_one_series_does_not_count_for_another(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels = tiny_image(1).astype(np.int16)
    write_series(tmp_path / "in" / "a", voxels)
    write_series(tmp_path / "in" / "a", voxels[:5], series="1.2.3", description="delayed", prefix="B")
    for series, n_slices in (("axial", 8), ("delayed", 5)):
        assert predicted(work, tmp_path / "in", tmp_path / "out", "--series", series) == 0
        assert read_labels(tmp_path / "out" / "a.nii.gz")[1].shape_zyx[0] == n_slices
    capsys.readouterr()
    assert predicted(work, tmp_path / "in", tmp_path / "out", "--series", "2.3") == 0  # the same by another name
    assert "predicted again" not in capsys.readouterr().err


WHOLE = ["a.nii.gz", "a_probabilities.npz", "uncertainty/a_entropy.nii.gz", "uncertainty/a_disagreement.nii.gz"]


@pytest.mark.parametrize("name", WHOLE)
def test_what_was_cut_short_is_made_anew_and_nothing_else(
    name: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in "ab":
        write_tiny(tmp_path / "in" / f"{case}.nii.gz", tiny_image(1))
    out, wanted = tmp_path / "out", ("--save-probabilities", "--save-uncertainty")
    assert predicted(work, tmp_path / "in", out, *wanted) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.[gn][zp]*")}
    times = {path: path.stat().st_mtime_ns for path in before if path.name.startswith("b")}
    assert len(before) == 8 and all(is_whole(path) for path in before)
    (out / name).write_bytes((out / name).read_bytes()[: -len(before[out / name]) // 3])
    assert not is_whole(out / name)
    capsys.readouterr()
    assert predicted(work, tmp_path / "in", out, *wanted) == 0
    assert f"{Path(name).name}: damaged, perhaps truncated; made again" in capsys.readouterr().err
    assert read_labels(out / "a.nii.gz")[0].shape == tiny_image(1).shape and is_whole(out / name)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert sorted(row["case_id"] for row in rows_of(out)) == ["a", "b"]
    assert (out / "a.nii.gz").read_bytes()[10:] == before[out / "a.nii.gz"][10:]  # after the name and time of gzip


def test_a_mask_that_a_person_corrected_stays(work: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "in" / "a.nii.gz", tiny_image(1))
    assert predicted(work, tmp_path / "in", tmp_path / "out") == 0
    mask = tmp_path / "out" / "a.nii.gz"
    image = nib.load(mask)
    corrected = nib.Nifti1Image(np.full(image.shape, 2, np.int16), image.affine)
    corrected.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"by hand"))  # the file is longer by it
    nib.save(corrected, mask)
    content = mask.read_bytes()
    assert predicted(work, tmp_path / "in", tmp_path / "out") == 0
    assert mask.read_bytes() == content
    mask.write_bytes(content[:-9])
    assert not is_whole(mask)


def test_means_of_uncertainty_are_those_of_the_maps_inside_the_mask(work: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "in" / "a.nii.gz", tiny_image(1))
    assert predicted(work, tmp_path / "in", tmp_path / "out", "--save-uncertainty") == 0
    inside = read_labels(tmp_path / "out" / "a.nii.gz")[0] > 0
    (row,) = rows_of(tmp_path / "out")
    for name in ("entropy", "disagreement"):
        values = nib.load(tmp_path / "out" / "uncertainty" / f"a_{name}.nii.gz").get_fdata().T
        assert float(row[f"mean_{name}"]) == pytest.approx(values[inside].mean(), abs=5.1e-5) and values.any()
    assert predicted(work, tmp_path / "in", tmp_path / "out") == 0  # the row stays, with what is known
    assert rows_of(tmp_path / "out") == [row] and row["warnings"] != UNKNOWN_WARNING
    assert predicted(work, tmp_path / "in", tmp_path / "plain") == 0
    assert [rows_of(tmp_path / "plain")[0][f"mean_{name}"] for name in ("entropy", "disagreement")] == ["", ""]


def test_a_mask_of_nothing_has_no_mean() -> None:
    shares, mask = np.full((2, 2, 2), 50, np.uint8), np.zeros((2, 2, 2), np.uint8)
    assert mean_inside(shares, mask, LABELS) is None
    mask[0, 0], shares[0, 0, 1] = 2, 150
    assert mean_inside(shares, mask, LABELS) == 0.5  # (50 + 150) / 2 of 200


def test_names_of_all_kinds(work: Path, tmp_path: Path) -> None:
    names = ["Müller ß ☃", "a b", "-x", "a,b", "100%"]
    for name in names:
        write_tiny(tmp_path / "in" / f"{name}.nii.gz", tiny_image(1))
    assert predicted(work, tmp_path / "in", tmp_path / "out") == 0
    assert sorted(csv_cells(row["case_id"] for row in rows_of(tmp_path / "out"))) == sorted(names)
    assert all(is_whole(tmp_path / "out" / f"{name}.nii.gz") for name in names)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "in: no image; expected files"),
        (["x/a.nii.gz", "y/b.nii"], "Its folders x, y hold images: choose one of them"),
        (["a.nii.gz", "a.nii"], "a.nii.gz: also a.nii; expected one case for each name"),
    ],
    ids=["empty", "folders", "twins"],
)
def test_folders_without_clear_images_are_refused(
    files: list[str], message: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for file in files:
        write_tiny(tmp_path / "in" / file, tiny_image(1))
    assert predicted(work, tmp_path / "in", tmp_path / "out") == 3
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_said_before_anything_is_computed(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path / "in" / "a.nii.gz", tiny_image(1))
    (tmp_path / "file").write_text("")
    assert predicted(work, tmp_path / "in", tmp_path / "file" / "out") == 4
    printed = capsys.readouterr().err
    assert "a file is in the way of a folder" in printed and "windows" not in printed


def test_a_row_that_is_gone_is_made_from_the_mask_and_its_maps(work: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "in" / "a.nii.gz", tiny_image(1))
    assert predicted(work, tmp_path / "in", tmp_path / "out", "--save-uncertainty") == 0
    (before,) = rows_of(tmp_path / "out")
    table = tmp_path / "out" / PREDICTIONS
    table.write_text(table.read_text("utf-8").splitlines()[0] + "\n", "utf-8")
    assert predicted(work, tmp_path / "in", tmp_path / "out", "--save-uncertainty") == 0
    (after,) = rows_of(tmp_path / "out")
    lost = {"seconds_prepare", "seconds_network", "seconds_export", "warnings"}
    assert {k: v for k, v in after.items() if k not in lost} == {k: v for k, v in before.items() if k not in lost}
    assert float(after["mean_entropy"]) > 0


def test_a_mask_never_has_its_name_before_its_row(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a.nii.gz", tiny_image(1))
    seen: list[bool] = []
    for target in (tmp_path / "m.nii.gz", tmp_path / "m.nrrd"):

        def note(path: Path = target) -> None:
            seen.append(path.exists())

        write_mask(target, np.zeros(SHAPE_ZYX, np.uint8), tmp_path / "a.nii.gz", note)
        assert target.is_file()
    assert seen == [False, False]


def test_a_row_with_an_open_quote_costs_no_other_row(tmp_path: Path) -> None:
    sizes = label_sizes(np.zeros((1, 1, 1), np.uint8), Grid((1, 1, 1), np.eye(4)), LABELS)
    table = PredictionTable(tmp_path, LABELS)
    table.keep([])
    for case_id in ("a", "b"):
        table.add(CaseRow(case_id, 1.0, 2.0, 3.0, sizes, ()))
    text = table.path.read_text("utf-8")
    table.path.write_text(text.replace("a,1.000", '"a,1.000'), "utf-8")
    assert list(PredictionTable(tmp_path, LABELS).rows) == ["b"]


def test_a_case_that_fails_is_explained_once(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(tmp_path / "in" / "a.nii.gz", tiny_image(1))
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"no image")
    assert predicted(work, tmp_path / "in", tmp_path / "out") == 3
    printed = capsys.readouterr().err
    assert "b: not predicted. The list at the end says why." in printed
    assert printed.count("cannot be read as an image") == 1 and "1 of 2 cases could not be predicted" in printed
