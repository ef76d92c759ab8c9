"""BIDS: subjects, sessions and runs become cases, one derivative's label maps their labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from datasets import oblique_affine, tiny_image, tiny_labels, write_tiny

from segpipe.cli.main import run
from segpipe.core.errors import DataError
from segpipe.data.check import check_dataset
from segpipe.data.fix import fix_dataset
from segpipe.data.inputs import list_inputs
from segpipe.data.load import load_dataset

SCANS = [("01", "1"), ("01", "2"), ("02", "1"), ("03", "1"), ("04", "1"), ("05", "1")]
TABLE = "index\tname\tcolor\n0\tBackground\t#000000\n2\tleft lung\t#ff0000\n1\theart\t#00ff00\n"


def scan(subject: str, session: str) -> tuple[str, str]:
    """Folder and beginning of the names of a scan."""
    return f"sub-{subject}/ses-{session}/anat", f"sub-{subject}_ses-{session}"


def write_bids(root: Path, raw: str = ".", labels: str = "desc-manual_dseg", table: str | None = TABLE) -> Path:
    """Six scans of five subjects, T1w and FLAIR, label maps of a derivative called manual."""
    for index, (subject, session) in enumerate(SCANS):
        folder, name = scan(subject, session)
        for channel, suffix in enumerate(("T1w", "FLAIR")):
            write_tiny(root / raw / folder / f"{name}_{suffix}.nii.gz", tiny_image(10 * index + channel))
        write_tiny(root / raw / folder / f"{name}_defacemask.nii.gz", tiny_labels((1,)))
        write_tiny(root / "derivatives/manual" / folder / f"{name}_{labels}.nii.gz", tiny_labels())
        write_tiny(
            root / "derivatives/manual" / folder / f"{name}_{labels.replace('dseg', 'probseg')}.nii.gz", tiny_image(1)
        )
    (root / "dataset_description.json").write_text('{"Name": "tiny", "BIDSVersion": "1.9.0"}')
    if table is not None:
        (root / "derivatives/manual/desc-manual_dseg.tsv").write_text(table)
    return root


@pytest.mark.parametrize("raw", [".", "rawdata"])
def test_scans_become_cases_and_subjects_patients(tmp_path: Path, raw: str):
    root = write_bids(tmp_path, raw)
    dataset = load_dataset(root, n_workers=1)
    assert (dataset.layout, dataset.channels) == ("bids", ("FLAIR", "T1w"))
    assert [(case.case_id, case.patient_id) for case in dataset.cases[:3]] == [
        ("sub-01_ses-1", "sub-01"),
        ("sub-01_ses-2", "sub-01"),
        ("sub-02_ses-1", "sub-02"),
    ]
    assert [Path(image).name for image in dataset.cases[0].images] == [
        "sub-01_ses-1_FLAIR.nii.gz",
        "sub-01_ses-1_T1w.nii.gz",
    ]
    assert {label.name: label.values for label in dataset.labels.labels} == {"heart": (1,), "left lung": (2,)}
    report = check_dataset(root, n_workers=1)
    assert report.faults == ()
    assert load_dataset(root / raw, n_workers=1) == dataset  # the images' folder stands for the dataset
    assert report.understood["layout"] == "BIDS (sub-…/anat, derivatives)"
    assert report.understood["patients"] == "5, from the subjects (sub-…)"
    assert report.understood["label maps"].startswith("derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_desc")


def test_without_sessions_and_with_runs(tmp_path: Path):
    for name in ("sub-a_run-1", "sub-a_run-2", "sub-b_run-1"):
        subject = name.partition("_")[0]
        write_tiny(tmp_path / subject / "anat" / f"{name}_T2w.nii", tiny_image(len(name)))
        write_tiny(tmp_path / "derivatives/x" / subject / f"{name}_dseg.nii.gz", tiny_labels())
    dataset = load_dataset(tmp_path, n_workers=1)
    assert [case.case_id for case in dataset.cases] == ["sub-a_run-1", "sub-a_run-2", "sub-b_run-1"]
    assert dataset.labels.names == ("label_1", "label_2")  # no table
    assert {case.patient_id for case in dataset.cases} == {"sub-a", "sub-b"}


def test_a_mask_is_one_label_with_the_name_it_says(tmp_path: Path):
    root = write_bids(tmp_path, labels="label-lesion_mask", table=None)
    for path in root.glob("derivatives/**/*_mask.nii.gz"):
        write_tiny(path, tiny_labels((1,)))
    for path in root.glob("derivatives/**/*probseg*"):
        path.unlink()
    assert load_dataset(root, n_workers=1).labels.names == ("lesion",)
    assert check_dataset(root, n_workers=1).faults == ()


def test_scans_that_the_derivative_leaves_out_are_named_and_not_trained_on(tmp_path: Path):
    root = write_bids(tmp_path)
    shutil.rmtree(root / "derivatives/manual/sub-01/ses-2")
    report = check_dataset(root, n_workers=1)
    assert [(one.kind, one.severity, one.case_id) for one in report.faults] == [
        ("unlabelled", "warning", "sub-01_ses-2")
    ]
    assert report.dataset is not None and len(report.dataset.cases) == 5
    assert report.dataset == load_dataset(root, n_workers=1)
    assert len(list_inputs(root, ("FLAIR", "T1w"))) == 6  # but they can be predicted


def test_channels_and_pairs_are_checked(tmp_path: Path):
    root = write_bids(tmp_path)
    (root / "sub-02/ses-1/anat/sub-02_ses-1_FLAIR.nii.gz").unlink()
    shutil.rmtree(root / "sub-03")
    found = [(one.kind, one.case_id, one.found) for one in check_dataset(root, n_workers=1).faults if one.case_id]
    assert found == [
        ("label_without_image", "sub-03_ses-1", "a label map, no image"),
        ("missing_channel", "sub-02_ses-1", "FLAIR missing, found T1w"),
    ]


def test_images_alone_can_be_predicted_but_not_trained_on(tmp_path: Path):
    root = write_bids(tmp_path)
    shutil.rmtree(root / "derivatives")
    assert len(list_inputs(root, ("FLAIR", "T1w"))) == 6
    with pytest.raises(DataError, match="6 faults"):
        load_dataset(root, n_workers=1)


def test_one_of_several_derivatives_is_named(tmp_path: Path):
    root = write_bids(tmp_path)
    shutil.copytree(root / "derivatives/manual", root / "derivatives/auto")
    with pytest.raises(DataError, match="auto, manual hold label maps"):
        load_dataset(root, n_workers=1)
    dataset = load_dataset(root / "derivatives/manual", n_workers=1)
    assert len(dataset.cases) == 6
    assert "/manual/" in str(dataset.cases[0].label)


def test_several_kinds_of_label_maps_are_refused(tmp_path: Path):
    root = write_bids(tmp_path)
    write_tiny(root / "derivatives/manual/sub-02/sub-02_ses-1_desc-auto_dseg.nii.gz", tiny_labels())
    with pytest.raises(DataError, match="desc-auto_dseg, desc-manual_dseg"):
        load_dataset(root, n_workers=1)


@pytest.mark.parametrize(
    "table",
    [
        "index\tname\nx\theart\n",
        "name\nheart\n",
        "index\tname\n1\ta\n2\ta\n",
        "index\tname\n1\ta\n1\tb\n",
        "index,name\n1,a\n",
    ],
)
def test_tables_that_say_nothing_sure_are_refused(tmp_path: Path, table: str):
    with pytest.raises(DataError, match=r"dseg\.tsv"):
        load_dataset(write_bids(tmp_path, table=table), n_workers=1)


def test_a_copy_is_repaired_in_its_layout(tmp_path: Path):
    root = write_bids(tmp_path / "data")
    affine = oblique_affine()
    affine[2, 3] += 3
    folder, name = scan("04", "1")
    write_tiny(root / f"derivatives/manual/{folder}/{name}_desc-manual_dseg.nii.gz", tiny_labels(), affine)
    (repair,) = fix_dataset(root, tmp_path / "out", n_workers=1)
    assert (repair.case_id, repair.kind) == ("sub-04_ses-1", "label_shifted")
    assert run(["check", str(tmp_path / "out"), "-j", "1"]) == 0
