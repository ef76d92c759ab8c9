"""Every fault of every case, each made on purpose in a tiny dataset."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from datasets import oblique_affine, tiny_image, tiny_labels, write_cases, write_json, write_nnunet, write_tiny
from dicom import write_series

from segpipe.bridge.nnunet_fingerprint import read_nnunet_dataset
from segpipe.cli.main import run
from segpipe.core.errors import DataError
from segpipe.core.files import make_folder
from segpipe.core.volume import read_header, write_image
from segpipe.data.check import CheckReport, check_dataset, refuse_bad_headers
from segpipe.data.faults import KINDS
from segpipe.data.inputs import list_inputs
from segpipe.data.inspect import _in_memory
from segpipe.data.layouts.scan import CaseFiles
from segpipe.data.load import load_dataset

CASES = ["a", "b", "c", "d", "e"]
README = Path(__file__).resolve().parent.parent / "data_readme.md"


def kinds(report: CheckReport) -> list[tuple[str, str | None]]:
    return [(one.kind, one.case_id) for one in report.faults]


def image(folder: Path, case_id: str, channel: int = 0) -> Path:
    return folder / f"imagesTr/{case_id}_{channel:04d}.nii.gz"


def label(folder: Path, case_id: str) -> Path:
    return folder / f"labelsTr/{case_id}.nii.gz"


def test_a_sound_dataset_has_no_fault(tmp_path: Path):
    report = check_dataset(write_nnunet(tmp_path, CASES), n_workers=2)
    assert report.faults == ()
    assert not report.is_fatal
    assert report.dataset is not None and len(report.dataset.cases) == 5
    assert report.presence == dict.fromkeys(CASES, ("a", "b"))
    assert report.understood == {
        "layout": "nnU-Net v2 (dataset.json)",
        "cases": "5",
        "patients": "5, every case is its own patient (no patient in the names)",
        "channels": "MR0",
        "labels": "background = 0, a = 1 (in 5), b = 2 (in 5)",
        "shape": "12 × 10 × 8 voxels (x, y, z)",
        "spacing": "1 × 1.5 × 2.5 mm (x, y, z)",
        "orientation": "RAS (5)",
    }


@pytest.mark.parametrize("labels", [{"background": 0, "a": 1}, {"background": 5, "a": 1}])
def test_label_maps_without_a_labelled_voxel_are_fatal_and_nothing_else_is_said(tmp_path: Path, labels: dict[str, int]):
    write_nnunet(tmp_path, CASES, labels=labels)
    for case in CASES:
        write_tiny(label(tmp_path, case), np.full_like(tiny_labels(), labels["background"]))
    report = check_dataset(tmp_path, n_workers=2)
    assert kinds(report) == [("nothing_labelled", None)] and report.is_fatal
    write_tiny(label(tmp_path, "a"), tiny_labels((1,)) + np.uint8(labels["background"]) * (tiny_labels((1,)) == 0))
    assert not check_dataset(tmp_path, n_workers=2).is_fatal


def test_that_no_label_map_could_be_read_is_not_taken_for_one_without_labels(tmp_path: Path):
    write_cases(tmp_path, CASES, subfolders=("images", "labels"))
    for case in CASES:
        one_hot = np.stack([tiny_labels((1,)), tiny_labels((2,))])
        write_image(tmp_path / "labels" / f"{case}.nii.gz", one_hot, oblique_affine())
    report = check_dataset(tmp_path, n_workers=2)
    assert {kind for kind, _ in kinds(report)} == {"label_channels"}
    assert "3D Slicer" in report.faults[0].remedy


@pytest.mark.parametrize("ending", [".png", ".JPG", ".tiff"])
def test_pictures_are_named_with_the_way_to_convert_them(tmp_path: Path, ending: str):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"a{ending}").write_bytes(b"picture")
    report = check_dataset(tmp_path, n_workers=1)
    assert [kind for kind, _ in kinds(report)] == ["empty", "pictures", "pictures"]
    for place in (tmp_path / "images", tmp_path / "images" / f"a{ending}"):
        with pytest.raises(DataError, match=r"picture.*--spacing Z,Y,X"):
            for case in list_inputs(place, ("CT",)):
                read_header(case.image_paths[0])


def test_files_whose_content_was_not_fetched_are_named(tmp_path: Path):
    write_nnunet(tmp_path, CASES)
    image(tmp_path, "a").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    label(tmp_path, "b").unlink()
    label(tmp_path, "b").symlink_to(tmp_path / ".git" / "annex" / "objects" / "x")
    texts = [one.found for one in check_dataset(tmp_path, n_workers=1).faults if one.kind == "unreadable"]
    assert ["Git LFS" in texts[0], "annex/objects/x, which is missing" in texts[1]] == [True, True]


def test_images_to_predict_are_not_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for case in CASES:
        write_tiny(tmp_path / "imagesTs" / f"{case}.nii.gz", tiny_image(ord(case)))
    lines = [f"{case},imagesTs/{case}.nii.gz" for case in CASES]
    (tmp_path / "new.csv").write_text("\n".join(["case_id,image_MR", *lines]))
    for given in (tmp_path / "imagesTs", tmp_path / "imagesTs" / "a.nii.gz", tmp_path / "new.csv"):
        assert run(["check", str(given), "-j", "1"]) == 0
        printed = capsys.readouterr().out
        assert "No labels: for prediction" in printed and "Ready for prediction." in printed
        assert run(["plan", str(given), "-o", str(tmp_path / "work")]) == 3  # which cannot train on them
        capsys.readouterr()
    write_tiny(tmp_path / "imagesTs" / "b.nii.gz", np.full_like(tiny_image(0), np.nan))
    assert run(["check", str(tmp_path / "new.csv"), "-j", "1"]) == 3
    assert "Not ready for prediction." in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_label_map_given_as_an_image_is_noticed(tmp_path: Path, dtype: type):
    write_nnunet(tmp_path, CASES)
    write_tiny(image(tmp_path, "c"), tiny_labels().astype(dtype))
    assert kinds(check_dataset(tmp_path, n_workers=1)) == [("like_labels", "c")]
    coarse = np.random.default_rng(0).integers(0, 20, tiny_image(0).shape).astype(np.float32)  # noise in few steps
    write_tiny(image(tmp_path, "c"), coarse)
    assert kinds(check_dataset(tmp_path, n_workers=1)) == []


def test_a_channel_that_is_filled_up_is_named_and_a_warning(tmp_path: Path):
    write_nnunet(tmp_path, CASES, n_channels=2, channel_names={"0": "T1", "1": "FLAIR"})
    write_tiny(image(tmp_path, "b", 1), np.zeros_like(tiny_image(0)))
    (one,) = check_dataset(tmp_path, n_workers=1).faults
    assert (one.kind, one.severity, one.found) == ("constant_channel", "warning", "FLAIR: every voxel is 0")
    write_tiny(image(tmp_path, "b", 0), np.zeros_like(tiny_image(0)))
    assert kinds(check_dataset(tmp_path, n_workers=1)) == [("constant", "b"), ("constant", "b")]
    channels = np.stack([tiny_image(7), np.full_like(tiny_image(0), 3)])
    image(tmp_path, "b", 0).unlink()
    image(tmp_path, "b", 1).unlink()
    write_image(tmp_path / "imagesTr" / "b.nii.gz", channels, oblique_affine())
    (one,) = check_dataset(tmp_path, n_workers=1).faults
    assert one.found == "FLAIR: every voxel is 3 in volume 1 of 2"
    assert run(["plan", str(tmp_path), "-o", str(tmp_path / "work"), "--no-cost"]) == 0
    assert run(["prepare", str(tmp_path / "work")]) == 0


def test_a_label_in_no_case_is_as_fatal_as_plan_takes_it(tmp_path: Path):
    write_nnunet(tmp_path, CASES, labels={"background": 0, "a": 1, "b": 2, "c": 3})
    report = check_dataset(tmp_path, n_workers=1)
    assert kinds(report) == [("label_unused", None)] and report.is_fatal
    assert run(["plan", str(tmp_path), "-o", str(tmp_path / "work"), "--no-cost"]) == 3


def test_regions_that_a_mask_cannot_hold_are_refused_by_check_plan_and_what_reads_nnunets_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    data = write_nnunet(tmp_path / "data", CASES, labels=labels, regions_class_order=[2, 1])
    for command in (["check"], ["plan", "-o", str(tmp_path / "work")]):
        assert run([command[0], str(data), *command[1:]]) == 3
        printed = capsys.readouterr()
        assert "whole is painted with 2" in " ".join((printed.out + printed.err).replace("│", " ").split()), command
    with pytest.raises(DataError, match=r"Use \[1, 2\]"):  # read by `import` and by plan --nnunet-fingerprint
        read_nnunet_dataset(data / "dataset.json")


def test_faults_of_many_cases_are_all_reported(tmp_path: Path):
    """One fault in each of five cases, of files, geometry, voxels and labels: none hides another."""
    write_nnunet(tmp_path, [*CASES, "f"], n_channels=2)
    image(tmp_path, "a", 1).unlink()
    write_tiny(label(tmp_path, "b"), np.pad(tiny_labels(), ((0, 0), (0, 0), (0, 1))))
    write_tiny(image(tmp_path, "c"), np.where(tiny_image(7) > 130, np.float32(np.nan), tiny_image(7)))
    write_tiny(label(tmp_path, "d"), tiny_labels((1, 2, 9)))
    image(tmp_path, "e", 1).write_text("this is no image")
    report = check_dataset(tmp_path, n_workers=2)
    assert kinds(report) == [
        ("label_unknown", "d"),
        ("missing_channel", "a"),
        ("not_finite", "c"),
        ("shape_mismatch", "b"),
        ("unreadable", "e"),
    ]
    found = {one.kind: one.found for one in report.faults}
    assert found["label_unknown"] == "9 (24 voxels)"  # 2 × 4 × 3 by hand, see tiny_labels
    n_high = int((tiny_image(7) > 130).sum())
    assert found["not_finite"] == f"{n_high} voxels ({n_high / 960:.2%}) NaN or infinite"
    assert found["shape_mismatch"] == "13 × 10 × 8 voxels (x, y, z)"
    assert report.dataset is None  # a case is incomplete


def broken(folder: Path, kind: str) -> None:
    """Make one fault in case a of a dataset of one channel."""
    affine = oblique_affine()
    if kind in ("label_shifted", "label_turned", "place_mismatch"):
        if kind == "place_mismatch":
            affine[:3, :3] = oblique_affine(0.4)[:3, :3]
        elif kind == "label_turned":
            affine = affine[:, [1, 0, 2, 3]]  # x and y exchanged
            write_tiny(label(folder, "a"), tiny_labels().transpose(0, 2, 1), affine)
            return
        else:
            affine[0, 3] += 0.2  # a tenth of the shortest edge is 0.1 mm
        write_tiny(label(folder, "a"), tiny_labels(), affine)
    elif kind == "sheared":
        affine[:3, 1] += 0.2 * affine[:3, 0]
        for path, voxels in ((image(folder, "a"), tiny_image(0)), (label(folder, "a"), tiny_labels())):
            write_tiny(path, voxels, affine)
    elif kind == "constant":
        write_tiny(image(folder, "a"), np.full_like(tiny_image(0), 7))
    elif kind == "channel_count":
        write_image(image(folder, "a"), np.stack([tiny_image(0), tiny_image(50)]), affine)
    elif kind == "label_channels":
        write_image(label(folder, "a"), np.stack([tiny_labels()] * 2), affine)
    elif kind == "label_not_integer":
        write_tiny(label(folder, "a"), tiny_labels() * np.float32(0.7))
    elif kind == "label_float":
        write_tiny(label(folder, "a"), tiny_labels().astype(np.float32))
    elif kind == "label_empty":
        write_tiny(label(folder, "a"), tiny_labels(()))
    elif kind == "unreadable":
        content = gzip.decompress(image(folder, "a").read_bytes())
        image(folder, "a").write_bytes(gzip.compress(content)[:-400])
    elif kind == "duplicate_patients":
        shutil.copy(image(folder, "b"), image(folder, "a"))
    elif kind == "image_without_label":
        label(folder, "a").unlink()
    elif kind == "label_without_image":
        image(folder, "a").unlink()
    elif kind == "case_twice":
        write_tiny(folder / "imagesTr/a_0000.nii", tiny_image(0))
    elif kind == "extra_channel":
        write_tiny(image(folder, "a", 1), tiny_image(60))
    elif kind == "orientation_differs":
        for path, voxels in ((image(folder, "a"), tiny_image(0)), (label(folder, "a"), tiny_labels())):
            write_tiny(path, voxels, np.diag([-1.0, -1.0, 2.0, 1.0]))


@pytest.mark.parametrize(
    "kind",
    [
        "label_shifted",
        "label_turned",
        "place_mismatch",
        "sheared",
        "constant",
        "channel_count",
        "label_channels",
        "label_not_integer",
        "label_float",
        "label_empty",
        "unreadable",
        "duplicate_patients",
        "image_without_label",
        "label_without_image",
        "case_twice",
        "extra_channel",
        "orientation_differs",
    ],
)
def test_one_fault_is_found_and_nothing_else(tmp_path: Path, kind: str):
    broken(write_nnunet(tmp_path, [*CASES, "f"]), kind)
    report = check_dataset(tmp_path, n_workers=1)
    where = "b" if kind == "duplicate_patients" else "a"  # the later of two equal images
    assert set(kinds(report)) == {(kind, where)}
    assert report.is_fatal == (KINDS[kind].severity == "fatal")


def test_a_header_that_exaggerates_does_not_hide_the_faults_of_others(tmp_path: Path):
    write_nnunet(tmp_path, [*CASES, "f"])
    broken(tmp_path, "constant")
    content = bytearray(gzip.decompress(image(tmp_path, "b").read_bytes()))
    content[42:48] = np.array([30_000] * 3, "<i2").tobytes()  # dim[1] to dim[3]: 108 TB of float32
    image(tmp_path, "b").write_bytes(gzip.compress(content))
    report = check_dataset(tmp_path, n_workers=1)
    assert kinds(report) == [("constant", "a"), ("unreadable", "b")]


def test_what_does_not_fit_into_memory_is_a_fault_of_its_file(tmp_path: Path):
    write_nnunet(tmp_path, ["a"])
    header = read_header(image(tmp_path, "a"))
    nothing, (fault,) = _in_memory(lambda *_: (np.empty(2**60, np.uint8), []), CaseFiles("a", ()), header)
    assert nothing is None
    assert (fault.kind, fault.case_id, fault.file) == ("too_large", "a", str(image(tmp_path, "a")))
    assert fault.found == "12 × 10 × 8 voxels (x, y, z), 1 channel of float32"


def test_the_same_voxels_stored_otherwise_are_a_duplicate(tmp_path: Path):
    """Other type, other compression, same patient: a warning."""
    write_nnunet(tmp_path, CASES)
    voxels = np.rint(tiny_image(3))
    write_tiny(image(tmp_path, "a"), voxels.astype(np.int16))
    write_tiny(image(tmp_path, "b"), voxels.astype(np.float32))
    write_json(tmp_path / "patients.json", {"a": "p", "b": "p", "c": "q", "d": "r", "e": "s"})
    report = check_dataset(tmp_path, n_workers=1)
    assert kinds(report) == [("duplicate", "b"), ("few_patients", None)]


@pytest.mark.parametrize(
    ("cases", "patients", "kind"),
    [
        (["a"], None, "one_patient"),
        (["a", "b"], {"a": "p", "b": "p"}, "one_patient"),
        (["a", "b"], None, "few_patients"),
    ],
)
def test_too_few_patients(tmp_path: Path, cases: list[str], patients: dict[str, str] | None, kind: str):
    write_nnunet(tmp_path, cases)
    if patients:
        write_json(tmp_path / "patients.json", patients)
    assert kinds(check_dataset(tmp_path, n_workers=1)) == [(kind, None)]


def test_a_label_in_no_case_is_named(tmp_path: Path):
    write_nnunet(tmp_path, CASES, labels={"background": 0, "a": 1, "b": 2, "ghost": 5})
    report = check_dataset(tmp_path, n_workers=1)
    assert [(one.kind, one.found) for one in report.faults] == [("label_unused", "ghost (5)")]


def test_ignored_voxels_alone_are_an_empty_label_map(tmp_path: Path):
    write_nnunet(tmp_path, CASES, labels={"background": 0, "a": 1, "b": 2, "ignore": 3})
    write_tiny(label(tmp_path, "c"), tiny_labels((3,)))
    assert kinds(check_dataset(tmp_path, n_workers=1)) == [("label_empty", "c")]


def test_without_orientation(tmp_path: Path):
    write_nnunet(tmp_path, CASES)
    content = bytearray(gzip.decompress(image(tmp_path, "a").read_bytes()))
    content[252:256] = bytes(4)  # qform_code and sform_code of NIfTI-1
    image(tmp_path, "a").write_bytes(gzip.compress(content))
    found = {one.kind for one in check_dataset(tmp_path, n_workers=1).faults if one.case_id == "a"}
    assert "no_orientation" in found
    assert "place_mismatch" in found  # the label map still has the place


def test_a_broken_description_does_not_hide_broken_images(tmp_path: Path):
    write_nnunet(tmp_path, CASES)
    (tmp_path / "dataset.json").write_text("{broken")
    broken(tmp_path, "constant")
    assert kinds(check_dataset(tmp_path, n_workers=1)) == [("constant", "a"), ("description", None)]


def test_two_folders_use_the_values_that_are_there(tmp_path: Path):
    write_cases(tmp_path, CASES, subfolders=("images", "labels"), values=(4,))
    report = check_dataset(tmp_path, n_workers=1)
    assert report.faults == ()
    assert report.presence["a"] == ("label_4",)


def test_images_without_a_layout_are_checked_one_by_one(tmp_path: Path):
    write_tiny(tmp_path / "deep/er/x.nii.gz", tiny_image(1))
    write_tiny(tmp_path / "y.nii.gz", np.zeros_like(tiny_image(1)))
    (tmp_path / "z.mgz").write_bytes(b"")
    report = check_dataset(tmp_path, n_workers=1)
    assert kinds(report) == [("constant", "y.nii.gz"), ("no_labels", None), ("other_format", "z.mgz")]
    single = check_dataset(tmp_path / "deep/er/x.nii.gz", n_workers=1)
    assert kinds(single) == [("no_labels", None)]


def test_dicom_series_are_checked_as_they_are_predicted(tmp_path: Path):
    first = write_series(tmp_path / "ann/t1", np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    write_series(tmp_path / "bob/t1", np.full((2, 3, 4), 7, np.int16))
    assert kinds(check_dataset(tmp_path, n_workers=1)) == [("constant", "bob/t1"), ("no_labels", None)]
    assert kinds(check_dataset(first, n_workers=1)) == [("no_labels", None)]


@pytest.mark.parametrize("make", ["nothing in it", "no case"])
def test_an_empty_dataset(tmp_path: Path, make: str):
    folder = tmp_path / "data"
    folder.mkdir()
    if make == "no case":
        write_nnunet(folder, [])
        (folder / "imagesTr").mkdir()
        (folder / "labelsTr").mkdir()
    assert kinds(check_dataset(folder, n_workers=1)) == [("empty", None)]


def test_command_prints_80_columns_and_exits_by_gravity(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_nnunet(tmp_path, CASES)
    assert run(["check", str(tmp_path), "-j", "1"]) == 0
    assert "Ready for training" in capsys.readouterr().out
    for case in CASES:
        write_tiny(image(tmp_path, case), np.zeros_like(tiny_image(0)))
    assert run(["check", str(tmp_path), "-j", "1"]) == 3
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "a, b, c, … (5)" in printed
    assert "Fatal: 5, warnings: 0. Not ready for training." in printed


def test_command_lists_everything_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    broken(write_nnunet(tmp_path, CASES), "constant")
    assert run(["check", str(tmp_path), "--json", "-j", "1"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["is_fatal"] is True
    assert [(one["kind"], one["case_id"]) for one in printed["faults"]] == [("constant", "a")]


def test_every_kind_of_fault_is_explained_to_users():
    text = README.read_text(encoding="utf-8")
    assert [kind for kind, entry in KINDS.items() if entry.title not in text] == []


def test_published_oddities(shared_data: Path):
    """The index that came with the files, made by other means, names the sheared and the contradictory ones."""
    folder = shared_data / "odd_nifti"
    index = [one for one in json.loads((folder / "index.json").read_text("utf-8")) if "spacing_mismatch" in one]
    report = check_dataset(folder, n_workers=2)
    found = {kind: {one.case_id for one in report.faults if one.kind == kind} for kind in KINDS}
    assert found["sheared"] == {one["path"] for one in index if one["shear"] > 0.01}
    assert found["header_contradiction"] == {one["path"] for one in index if one["spacing_mismatch"]}
    assert found["unreadable"] == set()


def test_headers_alone_tell_all_that_is_wrong_with_them(tmp_path: Path):
    write_nnunet(tmp_path, CASES)
    dataset = load_dataset(tmp_path, n_workers=1)
    refuse_bad_headers(dataset, n_workers=1)
    broken(tmp_path, "label_turned")
    image(tmp_path, "b").write_text("no image")
    write_tiny(image(tmp_path, "c"), np.zeros_like(tiny_image(0)))  # only its voxels tell
    with pytest.raises(DataError, match="2 faults") as caught:
        refuse_bad_headers(dataset, n_workers=1)
    assert "a.nii.gz: axes" in str(caught.value) and "b_0000.nii.gz: cannot be read" in str(caught.value)


def set_header(path: Path, place: int, kind: str, *values: float) -> None:
    """Write numbers into the header of a NIfTI-1 file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(f"<{len(values)}{kind}", content, place, *values)
    path.write_bytes(gzip.compress(content))


def test_edges_of_zero_are_told_as_they_are_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """nibabel would read 1 mm. Where the sform knows better the copy can be repaired, else nobody knows."""
    write_nnunet(tmp_path, CASES)
    for case in ("a", "b"):
        set_header(image(tmp_path, case), 80, "f", 0, 0, 0)  # pixdim[1] to pixdim[3]
    set_header(image(tmp_path, "b"), 252, "h", 1, 0)  # qform, which has its edges from pixdim, and no sform
    report = check_dataset(tmp_path, n_workers=1)
    assert [(one.kind, one.case_id, one.found) for one in report.faults] == [
        ("grid_unusable", "b", "the voxel size is 0 × 0 × 0 mm (x, y, z) in pixdim"),
        (
            "header_contradiction",
            "a",
            "the voxel size is 1 × 1.5 × 2.5 mm (x, y, z) in the affine (sform), but 0 × 0 × 0 mm in pixdim",
        ),
    ]
    assert caplog.records == []  # nibabel says it without a name


def test_a_fault_keeps_its_value(tmp_path: Path):
    """`(e.g. 1.2)` was cut at its dot."""
    broken(write_nnunet(tmp_path, CASES), "label_not_integer")
    (one,) = check_dataset(tmp_path, n_workers=1).faults
    assert one.found == "label values are not whole numbers (such as 0.7)"


@pytest.mark.parametrize(
    ("shape", "is_small"), [((2, 2, 2), True), ((7, 7, 11), True), ((8, 8, 1), False), ((12, 1, 1), False)]
)
def test_images_that_no_plan_is_possible_for_are_a_fault(tmp_path: Path, shape: tuple[int, ...], is_small: bool):
    for number, case in enumerate(CASES):
        voxels = np.random.default_rng(number).normal(size=(1, *shape)).astype(np.float32)
        mask = np.zeros((1, *shape), np.uint8)
        mask[..., 0] = 1
        for folder, array in (("images", voxels), ("labels", mask)):
            write_image(make_folder(tmp_path / folder) / f"{case}.nii.gz", array, oblique_affine())
    found = {kind for kind, _ in kinds(check_dataset(tmp_path, n_workers=1))}
    assert ("too_small" in found) == is_small
    refused = run(["plan", str(tmp_path), "-o", str(tmp_path / "work"), "--no-cost", "--no-report"]) == 2
    assert refused == is_small
