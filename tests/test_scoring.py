"""Scoring a case, folders of masks, and the command."""

from __future__ import annotations

import json
import re
from math import sqrt

import numpy as np
import pytest

from segpipe.cli.main import run
from segpipe.core.errors import DataError
from segpipe.core.grid import Grid
from segpipe.core.labels import Label, LabelSet
from segpipe.core.volume import write_image
from segpipe.evaluate.evaluation_case import ScoreSettings
from segpipe.evaluate.metrics import measure
from segpipe.evaluate.scores import DIAGONAL, IMAGE_LABEL, Origin, ScoreTable
from segpipe.evaluate.scoring import MaskPair, score_case, score_folder

SPACING_XYZ = (0.5, 1.0, 2.0)
GRID = Grid((6, 8, 10), np.diag([*SPACING_XYZ, 1.0]))
LABELS = LabelSet(labels=(Label(name="organ", values=(1,)), Label(name="tumour", values=(5,))))
ORIGIN = Origin("case_1", "anna", "unet", 2, 7)


def example(shift=0):
    """An organ of 2×3×4 voxels with a tumour of 1×1×2 beside it, both `shift` voxels along X."""
    values = np.zeros(GRID.shape_zyx, np.int32)
    values[2:4, 2:5, 2 + shift : 6 + shift] = 1
    values[2, 6, 3 + shift : 5 + shift] = 5
    return values


def by_name(scores):
    return {(score.label, score.metric): score for score in scores.rows}


def write(path, values, affine=GRID.affine_ras_mm):
    write_image(path, values[None].astype(np.uint8), affine)


@pytest.fixture
def folders(tmp_path):
    """Three cases of two patients: equal, shifted by one voxel, tumour missed."""
    for number, shift in enumerate((0, 1, 0)):
        name = f"sub-{number // 2}_ses-{number}.nii.gz"
        write(tmp_path / "data" / "labelsTr" / name, example())
        write(tmp_path / "predictions" / name, np.where(example(shift) == 5, 0 if number == 2 else 5, example(shift)))
    (tmp_path / "data" / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1, "tumour": 5}}')
    return tmp_path


def test_scores_of_a_case():
    scores = by_name(score_case(example(), example(shift=1), GRID, LABELS, ORIGIN, ScoreSettings(nsd_tolerance_mm=0.5)))
    organ = scores["organ", "dice"]
    assert organ.value == 18 / 24  # three of four columns in common
    assert (organ.n_reference_vox, organ.n_prediction_vox, organ.status, organ.unit) == (24, 24, "ok", "1")
    assert (organ.run, organ.case_id, organ.patient_id, organ.fold, organ.seed) == ("unet", "case_1", "anna", 2, 7)
    assert scores["tumour", "dice"].value == 1 / 2
    assert scores["organ", "hd95"].value == scores["tumour", "hd"].value == 0.5
    assert scores["organ", "nsd"].value == 1
    diagonal = scores[IMAGE_LABEL, DIAGONAL]
    assert diagonal.value == pytest.approx(sqrt((6 * 2) ** 2 + (8 * 1) ** 2 + (10 * 0.5) ** 2))
    assert diagonal.n_reference_vox == 6 * 8 * 10


def test_ignored_voxels_count_in_neither_mask():
    labels = LabelSet(labels=LABELS.labels, ignore_value=255)
    reference = example()
    reference[:, :, 5:] = 255  # the organ's last column and all to the right of it
    scores = by_name(score_case(reference, example(shift=1), GRID, labels, ORIGIN))
    assert (scores["organ", "dice"].n_reference_vox, scores["organ", "dice"].n_prediction_vox) == (18, 12)
    assert scores["organ", "dice"].value == 2 * 12 / (18 + 12)
    assert scores[IMAGE_LABEL, DIAGONAL].n_reference_vox == 6 * 8 * 5


def test_a_region_is_scored_as_a_whole():
    regions = LabelSet(
        labels=(Label(name="whole", values=(1, 5)), Label(name="tumour", values=(5,))), paint_values=(1, 5)
    )
    prediction = np.where(example() == 5, 1, example())  # the tumour is called organ
    scores = by_name(score_case(example(), prediction, GRID, regions, ORIGIN))
    assert scores["whole", "dice"].value == 1
    assert scores["whole", "dice"].n_reference_vox == 24 + 2
    assert scores["tumour", "dice"].status == "missed"


@pytest.mark.parametrize("values", [(1, 5), (5, 1), (-3, 70_000), (70_000, -3), (-3, 2_000_000), (2_000_000, -3)])
def test_any_integers_are_labels(values):
    labels = LabelSet(labels=tuple(Label(name=f"l{v}", values=(v,)) for v in values))
    swap = {0: 0, 1: values[0], 5: values[1]}
    pair = [np.vectorize(swap.get)(example(shift)) for shift in (0, 1)]
    pair[1][0, 0, :4] = (values[0] - 1, values[1] + 1, -2_000_000_000, 2_000_000_000)  # of no label
    expected = score_case(example(), example(1), GRID, LABELS, ORIGIN)
    found = score_case(*pair, GRID, labels, ORIGIN)
    assert [score.value for score in found.rows] == [score.value for score in expected.rows]


def test_one_slice_is_measured_in_its_plane():
    grid = Grid((1, 8, 10), GRID.affine_ras_mm.copy())
    scores = by_name(score_case(example()[2:3], example(1)[2:3], grid, LABELS, ORIGIN))
    volume = by_name(score_case(example(), example(1), GRID, LABELS, ORIGIN))
    assert scores["organ", "hd"].value == 0.5
    assert scores["organ", "dice"].value == volume["organ", "dice"].value
    # contour elements: 4 × 5 corners of the rim; shared ones lie on the two long sides
    assert scores["organ", "assd"].value != volume["organ", "assd"].value


def test_labels_in_one_plane_of_a_volume_are_no_contour():
    flat = np.zeros(GRID.shape_zyx, np.int32)
    flat[5, 2:5, 2:5] = 1
    _, expected = measure(flat == 1, np.roll(flat, 1, 2) == 1, GRID.spacing_mm)  # of whole volumes
    scores = by_name(score_case(flat, np.roll(flat, 1, 2), GRID, LABELS, ORIGIN))
    assert {name: scores["organ", name].value for name in expected} == expected


def test_shapes_must_be_the_grids():
    with pytest.raises(ValueError, match="expected one"):
        score_case(example(), example()[1:], GRID, LABELS, ORIGIN)


@pytest.mark.parametrize("n_threads", [2, 5])
def test_threads_change_nothing(n_threads):
    expected = score_case(example(), example(1), GRID, LABELS, ORIGIN)
    assert score_case(example(), example(1), GRID, LABELS, ORIGIN, n_threads=n_threads) == expected


def test_each_label_has_its_own_tolerance():
    settings = ScoreSettings(("nsd", "nsd_mc"), {"organ": 0.4, "tumour": 0.6})
    scores = by_name(score_case(example(), example(1), GRID, LABELS, ORIGIN, settings))
    assert scores["organ", "nsd"].value < 1  # moved by 0.5 mm
    assert scores["tumour", "nsd"].value == 1
    only_organ = ScoreSettings(("nsd", "dice"), {"organ": 0.4})
    found = by_name(score_case(example(), example(1), GRID, LABELS, ORIGIN, only_organ))
    assert set(found) == {("organ", "nsd"), ("organ", "dice"), ("tumour", "dice"), (IMAGE_LABEL, DIAGONAL)}


def test_other_values_for_the_labels_change_no_score():
    labels = LabelSet(labels=(Label(name="tumour", values=(1,)), Label(name="organ", values=(300,))))
    pair = [np.select([v == 1, v == 5], [300, 1], 0) for v in (example(), example(1))]
    expected = by_name(score_case(example(), example(1), GRID, LABELS, ORIGIN))
    assert by_name(score_case(*pair, GRID, labels, ORIGIN)) == expected


def pairs_in(folders):
    names = sorted(path.name for path in (folders / "predictions").iterdir())
    return [
        MaskPair(folders / "data" / "labelsTr" / n, folders / "predictions" / n, Origin(n.split(".")[0], n[:5]))
        for n in names
    ]


def test_folders_give_the_scores_of_their_cases(folders):
    table = score_folder(pairs_in(folders), LABELS, n_workers=2)
    assert table.case_ids == ("sub-0_ses-0", "sub-0_ses-1", "sub-1_ses-2")
    expected = score_case(example(), example(1), GRID, LABELS, Origin("sub-0_ses-1", "sub-0"))
    assert tuple(row for row in table.rows if row.case_id == "sub-0_ses-1") == expected.rows
    assert score_folder(pairs_in(folders), LABELS, n_workers=1).rows[:20] == table.rows[:20]


def test_all_faults_are_reported_together(folders):
    pairs = pairs_in(folders)
    write(pairs[0].prediction, example(), np.diag([0.5, 1.0, 2.5, 1.0]))  # same shape, other spacing
    pairs[2].prediction.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        score_folder(pairs, LABELS, n_workers=2)
    text = str(caught.value)
    assert text.startswith("2 of 3 cases cannot be scored")
    assert "sub-0_ses-0.nii.gz: same shape, but a corner voxel is 2.500 mm apart" in text  # 5 steps of 0.5 mm
    assert "sub-1_ses-2.nii.gz: cannot be read as an image" in text


def test_command_prints_a_table_and_writes_scores(folders, capsys):
    out = folders / "scores.csv"
    args = ["evaluate", "-r", f"{folders}/data", "-p", f"{folders}/predictions", "-o", str(out), "-j", "1"]
    assert run([*args, "--nsd-tolerance", "1"]) == 0
    printed = capsys.readouterr()
    assert all(len(line) <= 80 for line in printed.out.splitlines() if str(out) not in line)
    for word in (
        "Dice",
        "NSD",
        "HD95 mm",
        "organ",
        "tumour",
        "2 patients: too few for an interval of the mean",
        str(out),
    ):
        assert word in " ".join(printed.out.split())
    assert "dataset.json" in printed.err
    table = ScoreTable.load(out)
    assert table.runs == ("predictions",)
    assert {row.patient_id for row in table.rows} == {"sub-0", "sub-1"}


def test_command_as_json(folders, capsys):
    assert run(["evaluate", "-r", f"{folders}/data/labelsTr", "-p", f"{folders}/predictions", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["policy"], result["n_cases"], result["scores"]) == ("mr", 3, None)
    tumour = next(r for r in result["summary"] if (r["label"], r["metric"]) == ("tumour", "dice"))
    assert tumour["mean"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert tumour["n_missed"] == 1


def test_command_scores_two_files(folders, capsys):
    name = "sub-0_ses-1.nii.gz"
    files = [f"{folders}/{f}/{name}" for f in ("data/labelsTr", "predictions")]
    assert run(["evaluate", "-r", files[0], "-p", files[1], "-l", "both=1+5,5", "--json"]) == 0
    labels = {row["label"] for row in json.loads(capsys.readouterr().out)["summary"]}
    assert labels == {"both", "label_5", "(mean)"}


def test_without_a_description_the_values_are_the_labels(folders, capsys):
    (folders / "data" / "dataset.json").unlink()
    assert run(["evaluate", "-r", f"{folders}/data", "-p", f"{folders}/predictions"]) == 0
    assert "labels: label_1, label_5 (from the values found in 3 references)" in capsys.readouterr().err


def test_labels_of_a_saved_label_set(folders, capsys):
    LABELS.save(folders / "labels.json")
    args = ["evaluate", "-r", f"{folders}/data", "-p", f"{folders}/predictions", "--json"]
    assert run([*args, "-l", f"{folders}/labels.json"]) == 0
    assert {row["label"] for row in json.loads(capsys.readouterr().out)["summary"]} == {"organ", "tumour", "(mean)"}


def test_labels_of_a_work_folder(folders, capsys):
    (folders / "dataset.json").write_text(json.dumps({"labels": LABELS.model_dump(mode="json")}))
    args = ("-r", folders / "data", "-p", folders / "predictions", "-l", folders / "dataset.json")
    result, _ = evaluated(capsys, *args)
    assert {row["label"] for row in result["summary"]} == {"organ", "tumour", "(mean)"}


def test_a_missing_prediction_is_an_error_unless_allowed(folders, capsys):
    (folders / "predictions" / "sub-1_ses-2.nii.gz").unlink()
    args = ["evaluate", "-r", f"{folders}/data", "-p", f"{folders}/predictions"]
    assert run(args) == 3
    assert "1 of 3 references without a prediction: sub-1_ses-2" in capsys.readouterr().err
    assert run([*args, "--allow-missing"]) == 0
    printed = capsys.readouterr()
    assert "1 of 3 references without a prediction, not scored" in printed.err
    assert "2 cases, policy mr" in printed.out


def test_masks_without_reference_are_said(folders, capsys):
    write(folders / "predictions" / "other.nii.gz", example())
    assert run(["evaluate", "-r", f"{folders}/data", "-p", f"{folders}/predictions"]) == 0
    assert "1 mask without a reference, not scored: other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["-p", "{}/nowhere"], 3, "nowhere: no such file or folder"),
        (["-p", "{}/predictions/sub-0_ses-0.nii.gz"], 2, "one is a file and the other a folder"),
        (["-p", "{}/data"], 2, "no mask matches a reference"),
        (
            ["-p", "{}/predictions", "-l", "organs"],
            2,
            "'organs' is not a label; expected 1,2,3 or name=1,name2=2 or name=1+2 or organ, tumour",
        ),
        (["-p", "{}/predictions", "-l", "a=1,a=5"], 2, "'a' occurs twice"),
        (["-p", "{}/predictions", "-l", "a=1,b=1"], 2, "two labels have the same value"),
        (["-p", "{}/predictions", "-l", "{}/none.json"], 3, "none.json: no such file"),
        (["-p", "{}/predictions", "--policy", "best"], 2, "policy 'best' is unknown"),
    ],
)
def test_faults_of_the_command(folders, capsys, options, code, message):
    assert run(["evaluate", "-r", f"{folders}/data", *(o.replace("{}", str(folders)) for o in options)]) == code
    assert message in capsys.readouterr().err


def evaluated(capsys, *args):
    assert run(["evaluate", *map(str, args), "--json"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def means(result):
    return {(row["label"], row["metric"]): row["mean"] for row in result["summary"]}


@pytest.mark.parametrize("suffix", ["", "_seg"])
@pytest.mark.parametrize("reference", ["data", "data/labels"])
def test_label_files_may_end_in_seg_and_masks_be_called_either_way(tmp_path, capsys, reference, suffix):
    for case in ("p1", "p2"):
        write(tmp_path / "data" / "images" / f"{case}.nii.gz", example() + 1)
        write(tmp_path / "data" / "labels" / f"{case}_seg.nii.gz", example())
        write(tmp_path / "masks" / f"{case}{suffix}.nii.gz", example())
    result, _ = evaluated(capsys, "-r", tmp_path / reference, "-p", tmp_path / "masks")
    assert result["n_cases"] == 2
    assert means(result)["(mean)", "dice"] == 1


@pytest.mark.parametrize("reference", ["data", "data/cases.csv"])
def test_a_manifest_says_which_label_map_and_patient_a_case_has(tmp_path, capsys, reference):
    rows = ["case_id,patient_id,image,label"]
    for number in range(3):
        folder = tmp_path / "data" / f"scan{number}"
        write(folder / "t1.nii.gz", example() + 1)
        write(folder / "truth.nii.gz", example())
        write(tmp_path / "masks" / f"c{number}.nii.gz", example())
        rows.append(f"c{number},p{number // 2},scan{number}/t1.nii.gz,scan{number}/truth.nii.gz")
    (tmp_path / "data" / "cases.csv").write_text("\n".join(rows))
    out = tmp_path / "scores.csv"
    result, printed = evaluated(capsys, "-r", tmp_path / reference, "-p", tmp_path / "masks", "-o", out)
    assert result["n_cases"] == 3
    assert "patients: from the column patient_id" in printed
    patient_of = {row.case_id: row.patient_id for row in ScoreTable.load(out).rows}
    assert patient_of == {"c0": "p0", "c1": "p0", "c2": "p1"}


def test_the_list_of_msd_says_which_label_map_a_case_has(tmp_path, capsys):
    write(tmp_path / "data" / "imagesTr" / "img_1.nii.gz", example() + 1)
    write(tmp_path / "data" / "labelsTr" / "lab_1.nii.gz", example())
    write(tmp_path / "masks" / "img_1.nii.gz", example())
    training = [{"image": "./imagesTr/img_1.nii.gz", "label": "./labelsTr/lab_1.nii.gz"}]
    description = {"modality": {"0": "CT"}, "labels": {"0": "background", "5": "t", "1": "o"}, "training": training}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(description))
    result, _ = evaluated(capsys, "-r", tmp_path / "data", "-p", tmp_path / "masks")
    assert set(means(result)) >= {("o", "dice"), ("t", "dice")}


def test_a_label_map_without_image_is_a_reference_too(tmp_path, capsys):
    write(tmp_path / "data" / "imagesTr" / "a_0000.nii.gz", example() + 1)
    for case in "ab":
        write(tmp_path / "data" / "labelsTr" / f"{case}.nii.gz", example())
    write(tmp_path / "masks" / "a.nii.gz", example())
    assert run(["evaluate", "-r", f"{tmp_path}/data", "-p", f"{tmp_path}/masks"]) == 3
    assert "1 of 2 references without a prediction: b" in capsys.readouterr().err


def test_masks_of_other_values_than_the_labels_are_named(folders, capsys):
    path = folders / "predictions" / "sub-0_ses-0.nii.gz"
    write(path, np.where(example() > 0, 255, 0))
    args = ["evaluate", "-r", f"{folders}/data", "-p", f"{folders}/predictions"]
    assert run(args) == 3
    message = f"unknown label values: {path} holds 255; expected organ = 1, tumour = 5"
    assert message in capsys.readouterr().err
    assert run([*args, "-l", "organ,tumour"]) == 0  # chosen: the others are background
    printed = capsys.readouterr().err
    said = "with values that are not known labels and in no reference: 255."
    assert f"warning: 1 of 3 masks (e.g. {path}) {said}" in printed
    assert "Expected organ = 1, tumour = 5" in printed


def test_values_that_chosen_labels_leave_out_are_named_on_both_sides(folders, capsys):
    """All three references hold the tumour, and two of the masks; `whole=1+4` for `whole=1+5` would look the same."""
    args = ["-r", folders / "data", "-p", folders / "predictions"]
    _, printed = evaluated(capsys, *args, "-l", "organ=1")
    assert "-l leave out 1 value that references hold (5): 3 of 3 references and 2 of 3 masks hold" in printed
    for labels in ("organ,tumour", "both=1+5,5"):
        _, printed = evaluated(capsys, *args, "-l", labels)
        assert "warning" not in printed


def test_names_of_labels_are_printed_as_they_are(folders, capsys):
    args = ["-r", f"{folders}/data", "-p", f"{folders}/predictions", "-l", "[red]a=1,:cat:=5"]
    assert run(["evaluate", *args]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ *Dice +\[red\]a +0\.\d+ ", printed, re.MULTILINE)
    assert re.search(r"^ +:cat: +0\.\d+ ", printed, re.MULTILINE)
