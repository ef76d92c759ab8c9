"""Folders to datasets: every layout, without renaming."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from datasets import (
    file_names,
    oblique_affine,
    tiny_image,
    tiny_labels,
    write_cases,
    write_csv,
    write_json,
    write_nnunet,
    write_tiny,
)
from hypothesis import given
from hypothesis import strategies as st

import segpipe
from segpipe.core.errors import DataError
from segpipe.core.volume import write_image
from segpipe.data.check import check_dataset
from segpipe.data.dataset import Case
from segpipe.data.inputs import list_inputs
from segpipe.data.label_lists import parse_labels, value_counts
from segpipe.data.layouts import LAYOUTS, Layout
from segpipe.data.layouts.scan import CaseFiles, DatasetFiles, locate, pair_files
from segpipe.data.load import assign_patients, load_dataset, patient_by_name
from segpipe.data.splits import read_nnunet_splits


def test_nnunet_layout_as_it_lies(tmp_path: Path):
    dataset = load_dataset(write_nnunet(tmp_path, ["b", "a"], n_channels=2))
    assert (dataset.layout, dataset.name, dataset.channels) == ("nnunet", "tiny", ("MR0", "MR1"))
    assert [case.case_id for case in dataset.cases] == ["a", "b"]
    assert file_names(dataset.cases[0].images) == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert Path(dataset.cases[0].label or "").name == "a.nii.gz"
    assert [(label.name, label.values) for label in dataset.labels.labels] == [("a", (1,)), ("b", (2,))]


def test_msd_layout_with_four_axes_and_labels_by_number(tmp_path: Path):
    for case_index in (1, 2):
        channels = np.stack([tiny_image(case_index), tiny_image(case_index + 50)])
        write_image(tmp_path / f"imagesTr/BRATS_{case_index:03d}.nii.gz", channels, oblique_affine())
        write_tiny(tmp_path / f"labelsTr/BRATS_{case_index:03d}.nii.gz", tiny_labels())
    entries = [{"image": f"./imagesTr/BRATS_00{i}.nii.gz", "label": f"./labelsTr/BRATS_00{i}.nii.gz"} for i in (2, 1)]
    listed = {"0": "background", "2": "core", "1": "edema"}
    write_json(
        tmp_path / "dataset.json",
        {"modality": {"0": "FLAIR", "1": "T1w"}, "labels": listed, "training": entries},
    )
    dataset = load_dataset(tmp_path)
    assert (dataset.layout, dataset.channels, dataset.labels.names) == ("msd", ("FLAIR", "T1w"), ("edema", "core"))
    assert [file_names(case.images) for case in dataset.cases] == [["BRATS_001.nii.gz"], ["BRATS_002.nii.gz"]]
    assert len({case.patient_id for case in dataset.cases}) == 2


def test_nnunet_version_1_lists_files_that_are_numbered_on_disk(tmp_path: Path):
    write_cases(tmp_path, ["a", "b"], n_channels=2)
    training = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in "ab"]
    write_json(
        tmp_path / "dataset.json",
        {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "a", "2": "b"}, "training": training},
    )
    assert file_names(load_dataset(tmp_path).cases[1].images) == ["b_0000.nii.gz", "b_0001.nii.gz"]


def test_two_folders_find_channels_and_labels_by_themselves(tmp_path: Path):
    write_cases(tmp_path, ["x1", "x2"], 2, ("Images", "masks"), values=(3, 7))
    dataset = load_dataset(tmp_path, n_workers=1)
    assert (dataset.layout, dataset.channels) == ("folders", ("channel_0", "channel_1"))
    assert [(label.name, label.values) for label in dataset.labels.labels] == [("label_3", (3,)), ("label_7", (7,))]


def test_four_digits_belong_to_the_name_where_the_label_map_says_so(tmp_path: Path):
    for name in ("scan_0001", "scan_0002"):
        write_tiny(tmp_path / f"images/{name}.nii.gz", tiny_image(len(name)))
        write_tiny(tmp_path / f"labels/{name}.nii.gz", tiny_labels())
    dataset = load_dataset(tmp_path)
    assert [case.case_id for case in dataset.cases] == ["scan_0001", "scan_0002"]
    assert dataset.channels == ("image",)


def test_without_label_maps_the_description_says_whether_digits_are_channels():
    images = [Path("a_0000.nii"), Path("a_0001.nii")]
    described, _, _ = pair_files(images, [], n_channels=2)
    assert [(case.case_id, len(case.images)) for case in described] == [("a", 2)]
    bare, n_channels, _ = pair_files(images, [], n_channels=None)
    assert ([case.case_id for case in bare], n_channels) == (["a_0000", "a_0001"], 1)


def test_label_files_may_end_in_seg(tmp_path: Path):
    write_tiny(tmp_path / "images/p1.nii.gz", tiny_image(1))
    write_tiny(tmp_path / "labels/p1_seg.nii.gz", tiny_labels())
    assert Path(load_dataset(tmp_path).cases[0].label or "").name == "p1_seg.nii.gz"


def test_csv_manifest_names_patients_and_sites(tmp_path: Path):
    write_cases(tmp_path / "deep", ["a", "b"], 2)
    rows = [["case_id", "patient_id", "image_T1", "image_T2", "label", "site"]]
    for case in ("b", "a"):
        images = [f"deep/imagesTr/{case}_000{channel}.nii.gz" for channel in (0, 1)]
        rows.append([case, "p7", *images, f"deep/labelsTr/{case}.nii.gz", "Bonn"])
    for path in (write_csv(tmp_path / "cases.csv", rows), tmp_path):
        dataset = load_dataset(path)
        assert (dataset.layout, dataset.channels) == ("csv", ("T1", "T2"))
        assert [(c.case_id, c.patient_id, c.site) for c in dataset.cases] == [("a", "p7", "Bonn"), ("b", "p7", "Bonn")]
        assert file_names(dataset.cases[0].images) == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_csv_with_a_misspelt_patient_column_is_refused(tmp_path: Path):
    write_cases(tmp_path, ["a"])
    write_csv(
        tmp_path / "cases.csv",
        [["case_id", "patientid", "image", "label"], ["a", "p", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"]],
    )
    with pytest.raises(DataError, match="'patientid'; expected 'patient_id'"):
        load_dataset(tmp_path)


def test_free_paths_of_nnunet(tmp_path: Path):
    write_cases(tmp_path, ["a"], subfolders=("somewhere", "else"))
    mapping = {"case9": {"images": ["somewhere/a_0000.nii.gz"], "label": "else/a.nii.gz"}}
    write_json(
        tmp_path / "dataset.json",
        {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "a": 1},
            "file_ending": ".nii.gz",
            "dataset": mapping,
        },
    )
    case = load_dataset(tmp_path).cases[0]
    assert (case.case_id, file_names(case.images)) == ("case9", ["a_0000.nii.gz"])


def test_hidden_files_do_not_count(tmp_path: Path):
    write_nnunet(tmp_path, ["a", "b"])
    (tmp_path / "imagesTr/._a_0000.nii.gz").write_bytes(b"resource fork")
    (tmp_path / "labelsTr/.DS_Store").write_bytes(b"")
    assert len(load_dataset(tmp_path).cases) == 2


def test_all_missing_files_are_named_together(tmp_path: Path):
    write_nnunet(tmp_path, ["a", "b", "c", "d"], n_channels=2)
    (tmp_path / "imagesTr/a_0001.nii.gz").unlink()
    (tmp_path / "labelsTr/b.nii.gz").unlink()
    for channel in (0, 1):
        (tmp_path / f"imagesTr/c_000{channel}.nii.gz").unlink()
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    text = str(caught.value)
    assert "3 faults" in text
    assert "a: channel 0001 is missing" in text
    assert "b: " in text and "an image, no label map" in text
    assert "c: " in text and "a label map, no image" in text


def test_a_folder_of_no_layout_says_what_was_looked_for(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"found pictures/\); expected dataset.json"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("listed", "order", "message"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, None, "regions_class_order is missing"),
        ({"background": 0, "a": 1.5}, None, "'a': found 1.5; expected an integer"),
        ({"background": [0, 1], "a": 2}, None, "expected one integer"),
        ({"a": 0, "b": 1}, None, "no 'background', and 0 is a label"),
        ({"background": 0, "a": 1, "b": 1}, None, "two labels have the same value"),
        ([], None, r"labels: found \[\]"),
        ({"background": 0, "whole": [1, 2], "core": 2}, 1, "regions_class_order is 1; expected a list"),
        ({"background": 0, "(mean)": 1}, None, r"found '\(mean\)'; expected a name that does not begin with"),
        ({"background": 0, "": 1}, None, "found ''; expected a name"),
        ({"0": "background", "1": "a", "²": "b"}, None, "'0': found 'background'; expected an integer"),
        ({"0": "background", "--1": "a"}, None, "'0': found 'background'; expected an integer"),
        ({"0": "background", "1": "a", "2": "a"}, None, "'a' has two values"),
    ],
)
def test_wrong_lists_of_labels(listed: object, order: object, message: str):
    with pytest.raises(DataError, match=message):
        parse_labels(listed, order, "dataset.json")


def test_regions_and_ignore():
    labels = parse_labels({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, [1, 2], "dataset.json")
    assert labels.names == ("whole", "core")
    assert (labels.ignore_value, labels.paint_values, labels.values) == (3, (1, 2), (1, 2))


@given(st.lists(st.integers(-40, 2_000_000), min_size=1, max_size=60))
def test_value_counts_agree_with_sorting(values: list[int]):
    found, counts = np.unique(values, return_counts=True)
    assert value_counts(np.array(values)) == dict(zip(found.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize(
    ("case_id", "patient"),
    [
        ("patient008_frame01", "patient008"),
        ("sub-07_ses-2_T1w", "sub-07"),
        ("phantom_003_scan2", "phantom_003"),
        ("LUNG1-001_visit1_CT", "LUNG1-001"),
        ("p12-tp2", "p12"),
        ("p12_ED", "p12"),
        ("p12_baseline", "p12"),
        ("p12_follow_up_2", "p12"),
        ("p12_post", "p12"),
        ("hippocampus_001", "hippocampus_001"),
        ("BRATS_002", "BRATS_002"),
        ("liver_scan_001", "liver_scan_001"),  # no digit before the word: a counter of cases
        ("site2_scan_01", "site2_scan_01"),  # a site is no patient
        ("prostate158_scan_001", "prostate158_scan_001"),  # three digits count cases
        ("h3_es_012", "h3_es_012"),
        ("p12_timer1", "p12_timer1"),
    ],
)
def test_patients_by_name_only_where_words_say_so(case_id: str, patient: str):
    assert patient_by_name(case_id) == patient


def test_one_patient_for_all_by_name_is_not_believed(tmp_path: Path):
    patients, how, _ = assign_patients([f"Task04 a_scan{i}" for i in range(10)], tmp_path)
    assert len(set(patients.values())) == 10
    assert "which is unlikely" in how


@pytest.mark.parametrize(
    "content",
    [{"p1": {"Group": "DCM"}, "p10": {}}, {"p1_frame1": "p1", "p1_frame2": "p1", "p10_frame1": "p10"}],
)
def test_patients_from_a_file(tmp_path: Path, content: dict[str, object]):
    write_json(tmp_path / "patients.json", content)
    patients, how, faults = assign_patients(["p1_frame1", "p1_frame2", "p10_frame1"], tmp_path)
    assert list(patients.values()) == ["p1", "p1", "p10"]
    assert "patients.json" in how and not faults


def test_patients_that_a_table_turned_into_floats_are_the_same(tmp_path: Path):
    write_json(tmp_path / "patients.json", {"a": 7.0, "b": 7.0, "c": 8})
    patients, how, _ = assign_patients(["a", "b", "c"], tmp_path)
    assert (patients, "case to patient" in how) == ({"a": "7", "b": "7", "c": "8"}, True)
    for wrong in (7.5, True, ["p"]):
        write_json(tmp_path / "patients.json", {"a": wrong, "b": "p", "c": "q"})
        with pytest.raises(DataError, match=r"patients\.json: a: found .*expected its patient"):
            assign_patients(["a", "b", "c"], tmp_path)


def test_the_longest_patient_that_ends_at_a_separator_counts(tmp_path: Path):
    write_json(tmp_path / "patients.json", {"p1": {}, "p1_x": {}})
    patients, _, faults = assign_patients(["p1_2", "p1_x_2", "p10_2"], tmp_path)
    assert patients == {"p1_2": "p1", "p1_x_2": "p1_x", "p10_2": "p10_2"}
    assert [one.case_id for one in faults] == ["p10_2"]


def test_a_case_that_the_file_leaves_out_is_a_fault(tmp_path: Path):
    write_nnunet(tmp_path, ["p1_a", "p2_a"])
    write_json(tmp_path / "patients.json", {"p1": {}})
    with pytest.raises(DataError, match=r"p2_a: .*not in patients.json"):
        load_dataset(tmp_path)


def test_published_folders(shared_data: Path):
    acdc, hippocampus = (load_dataset(shared_data / name) for name in ("acdc", "hippocampus"))
    assert (len(acdc.cases), len({case.patient_id for case in acdc.cases})) == (60, 30)
    assert (len(hippocampus.cases), len({case.patient_id for case in hippocampus.cases})) == (220, 220)
    assert load_dataset(shared_data / "sts_multi").channels == ("CT", "PET", "T1")


@pytest.mark.parametrize("image", [[], None, 3, [None], ""])
def test_an_entry_of_msd_that_names_no_image_is_refused(tmp_path: Path, image: object):
    description = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "a"}}
    training = [{"image": image, "label": "labelsTr/a.nii.gz"}]
    write_json(tmp_path / "dataset.json", description | {"training": training})
    with pytest.raises(DataError, match=r"dataset\.json: training\.0\.image: found .*expected a file or a list"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../../victim", "a/b", "a\\b", ".hidden", "a\0"])
def test_a_case_is_never_called_so_that_its_folder_lies_elsewhere(tmp_path: Path, name: str):
    write_cases(tmp_path, ["a"])
    image, label = "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    write_json(tmp_path / "dataset.json", described | {"dataset": {name: {"images": [image], "label": label}}})
    with pytest.raises(DataError, match="expected a name without slash"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match="expected a name without slash"):
        Case.parse({"case_id": name, "patient_id": "p", "images": [image]}, "dataset.json", DataError)
    rows = [["case_id", "image", "label"], [name, image, label]]
    if "\0" not in name:  # which a CSV file cannot hold
        with pytest.raises(DataError, match="expected a name without slash"):
            load_dataset(write_csv(tmp_path / "cases.csv", rows))


@pytest.mark.parametrize("name", ["p1.seg.nrrd", "p1_seg.nrrd", "p1.nrrd"])
def test_images_beside_segmentations_of_3d_slicer_lie_in_a_folder_of_any_name(tmp_path: Path, name: str):
    for path, voxels in (("CT/p1.nrrd", tiny_image(1)), (f"Segmentations/{name}", tiny_labels())):
        (tmp_path / path).parent.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / path))
    dataset = load_dataset(tmp_path)
    (case,) = dataset.cases
    assert (case.case_id, Path(case.images[0]).name, Path(case.label or "").name) == ("p1", "p1.nrrd", name)
    assert dataset.channels == ("CT",)


def test_of_two_folders_beside_the_label_maps_none_is_taken_for_the_images(tmp_path: Path):
    for path, voxels in (("CT/p1", tiny_image(1)), ("MR/p1", tiny_image(2)), ("masks/p1", tiny_labels())):
        write_tiny(tmp_path / f"{path}.nii.gz", voxels)
    with pytest.raises(DataError, match="no dataset was recognised"):
        load_dataset(tmp_path)


def test_a_hidden_file_is_no_name_for_a_mask(tmp_path: Path):
    path = write_tiny(tmp_path / ".x.nii.gz", tiny_image(1))
    with pytest.raises(DataError, match=r"case '\.x'; expected a name without slash.*Rename the file"):
        list_inputs(path, ("T1",))


def read_pairs(path: Path) -> DatasetFiles | None:
    """Two files per case, `p1_ct.nii.gz` and `p1_seg.nii.gz`, in a folder with a file `pairs.txt`."""
    if not (path / "pairs.txt").is_file():
        return None
    names = (path / "pairs.txt").read_text().split()
    cases = tuple(CaseFiles(n, (path / f"{n}_ct.nii.gz",), path / f"{n}_seg.nii.gz", n[:2]) for n in names)
    return DatasetFiles(path.name, path, ("CT",), None, cases, patients_from="from pairs.txt")


def test_a_new_layout_is_one_reader_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number, name in enumerate(("p1", "p2", "p3")):
        write_tiny(tmp_path / f"{name}_ct.nii.gz", tiny_image(number))
        write_tiny(tmp_path / f"{name}_seg.nii.gz", tiny_labels())
    (tmp_path / "pairs.txt").write_text("p1\np2\np3\n")
    with pytest.raises(DataError, match="no dataset was recognised"):
        load_dataset(tmp_path)
    monkeypatch.setitem(LAYOUTS, "pairs", Layout("two files per case (pairs.txt)", "a file pairs.txt", read_pairs))
    dataset = load_dataset(tmp_path, n_workers=1)
    assert (dataset.layout, dataset.channels, len(dataset.cases)) == ("pairs", ("CT",), 3)
    report = check_dataset(tmp_path, 1)
    assert report.dataset == dataset
    assert report.understood["layout"] == "two files per case (pairs.txt)"
    assert report.understood["patients"] == "3, from pairs.txt"
    assert [case.case_id for case in list_inputs(tmp_path, ("CT",))] == ["p1", "p2", "p3"]
    (tmp_path / "pairs.txt").unlink()
    with pytest.raises(DataError, match=r"BIDS \(sub-…/anat and derivatives/\) or a file pairs.txt"):
        load_dataset(tmp_path)


def test_no_code_asks_for_a_layout_by_name():
    package = Path(segpipe.__file__).parent
    asked = re.compile(rf"layout\w*\s*(==|!=|in)\s*\W?({'|'.join(LAYOUTS)})\b")
    assert asked.search('if found.layout == "bids":')
    assert not [path for path in package.rglob("*.py") if asked.search(path.read_text(encoding="utf-8"))]


def test_every_layout_is_described_for_people():
    readme = (Path(segpipe.__file__).parent.parent / "data_readme.md").read_text(encoding="utf-8").lower()
    short = {name: re.split(r" \(|,", layout.title)[0].lower() for name, layout in LAYOUTS.items()}
    assert {name for name, title in short.items() if f"### {title}" not in readme} == set()


def test_names_coded_as_a_mac_does_are_those_coded_as_others_do(tmp_path: Path):
    composed, decomposed = (unicodedata.normalize(form, "Jürgen Größe") for form in ("NFC", "NFD"))
    assert composed != decomposed
    write_nnunet(tmp_path / "nnunet", [decomposed, "b"])
    label = tmp_path / "nnunet" / "labelsTr" / f"{decomposed}.nii.gz"
    label.rename(label.with_name(f"{composed}.nii.gz"))
    assert [case.case_id for case in load_dataset(tmp_path / "nnunet").cases] == [composed, "b"]
    rows = [
        ["case_id", "image", "label"],
        [composed, f"imagesTr/{composed}_0000.nii.gz", f"labelsTr/{decomposed}.nii.gz"],
    ]
    (case,) = load_dataset(write_csv(tmp_path / "nnunet" / "list.csv", rows)).cases
    assert case.case_id == composed and Path(case.images[0]).is_file() and Path(str(case.label)).is_file()
    write_json(tmp_path / "nnunet" / "patients.json", {decomposed: "p1", "b": "p2"})
    assert [case.patient_id for case in load_dataset(tmp_path / "nnunet" / "dataset.json").cases] == ["p1", "p2"]
    splits = [{"train": [decomposed], "val": ["b"]}, {"train": ["b"], "val": [decomposed]}]
    file = write_json(tmp_path / "splits_final.json", splits)
    found = read_nnunet_splits(file, load_dataset(tmp_path / "nnunet" / "dataset.json"))
    assert found.folds[0].train == (composed,)


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
def test_descriptions_that_windows_saved_are_read(tmp_path: Path, coding: str):
    write_nnunet(tmp_path, ["a", "b"])
    rows = [["case_id", "image", "label"], ["a", "imagesTr\\a_0000.nii.gz", "labelsTr\\a.nii.gz"]]
    write_csv(tmp_path / "list.csv", rows)
    for name in ("dataset.json", "list.csv"):
        (tmp_path / name).write_bytes((tmp_path / name).read_text("utf-8").encode(coding))
    assert load_dataset(tmp_path / "dataset.json").labels.names == ("a", "b")
    (case,) = load_dataset(tmp_path / "list.csv").cases
    assert Path(case.images[0]) == tmp_path / "imagesTr" / "a_0000.nii.gz"


def test_backslashes_of_windows_are_separators_where_no_file_has_the_literal_name(tmp_path: Path):
    write_nnunet(tmp_path, ["a"])
    training = [{"image": ".\\imagesTr\\a_0000.nii.gz", "label": ".\\labelsTr\\a.nii.gz"}]
    values = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "a", "2": "b"}, "training": training}
    write_json(tmp_path / "dataset.json", values)
    (case,) = load_dataset(tmp_path).cases
    assert case.case_id == "a_0000" and Path(case.images[0]) == tmp_path / "imagesTr" / "a_0000.nii.gz"
    mapping = {"p": {"images": ["imagesTr\\a_0000.nii.gz"], "label": "labelsTr\\a.nii.gz"}}
    write_nnunet(tmp_path, ["a"], dataset=mapping)
    assert Path(str(load_dataset(tmp_path).cases[0].label)) == tmp_path / "labelsTr" / "a.nii.gz"
    literal = write_tiny(tmp_path / "imagesTr\\a_0000.nii.gz", tiny_image(9))
    assert locate(tmp_path, "imagesTr\\a_0000.nii.gz") == literal
    assert locate(tmp_path, "gone\\a.nii") == tmp_path / "gone" / "a.nii"
    with pytest.raises(DataError, match=r"a list names 'aaa.*\(3000 characters\), which cannot be a file"):
        locate(tmp_path, "a" * 3000)


@pytest.mark.parametrize("ending", ["nii.gz", ".NII.GZ", "nrrd"])
def test_a_file_ending_may_lack_its_dot(tmp_path: Path, ending: str):
    assert len(load_dataset(write_nnunet(tmp_path, ["a", "b"], file_ending=ending)).cases) == 2
