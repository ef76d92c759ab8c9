"""`segpipe evaluate`: presets, formats and folders as they come, and everything that can be wrong with masks."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from segpipe.cli.evaluate import command
from segpipe.cli.main import run
from segpipe.core.volume import write_image
from segpipe.evaluate.evaluation import METRIC_SETS, chosen_metrics
from segpipe.evaluate.metrics import METRICS, parse_metrics
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.summary import POLICIES

SHAPE_ZYX = (8, 12, 14)
AFFINE = np.array([[-1.0, 0, 0, 5], [0, 1.5, 0, -7], [0, 0, 2.5, 11], [0, 0, 0, 1]])
DESCRIPTION = {"labels": {"background": 0, "organ": 1, "tumour": 5, "ignore": 9}}


def example(shift=0):
    """An organ of 2×3×4 voxels, two tumours of 2 voxels, and a corner that nobody annotated."""
    values = np.zeros(SHAPE_ZYX, np.uint8)
    values[2:4, 2:5, 2 + shift : 6 + shift] = 1
    values[2, 8, 3 + shift : 5 + shift] = 5
    values[6, 8, 3:5] = 5
    values[7, 11, :] = 9
    return values


def write(path, values, affine=AFFINE):
    """Write NIfTI, or with SimpleITK what it knows, on the same grid (LPS there)."""
    if path.name.endswith((".nii.gz", ".nii")):
        write_image(path, values[None].astype(np.uint8), affine)
        return
    import SimpleITK as sitk

    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(values.astype(np.uint8))
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    flip = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(edges.tolist())
    image.SetDirection((flip @ affine[:3, :3] / edges).ravel().tolist())
    image.SetOrigin((flip @ affine[:3, 3]).tolist())
    sitk.WriteImage(image, str(path))


@pytest.fixture
def folders(tmp_path):
    """Three cases: equal, shifted by one voxel, and one where a tumour is missed."""
    for number in range(3):
        prediction = example(shift=number % 2)
        if number == 2:
            prediction[6] = 0
        write(tmp_path / "data" / "labelsTr" / f"p{number}.nii.gz", example())
        write(tmp_path / "masks" / f"p{number}.nii.gz", np.where(prediction == 9, 1, prediction))
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return tmp_path


def arguments(folder, *more, reference="data", masks="masks"):
    return ["evaluate", "-r", str(folder / reference), "-p", str(folder / masks), "-j", "1", *map(str, more)]


def evaluated(capsys, args):
    """Means by label and metric."""
    assert run([*args, "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    return {(row["label"], row["metric"]): row["mean"] for row in result["summary"]} | {"": result}


def refused(capsys, args, code=3):
    assert run(args) == code
    return capsys.readouterr().err


def test_patients_of_a_table_of_cases_count_without_groups_too(folders, capsys):
    table = folders / "cases.csv"
    table.write_text("case_id,patient_id\np0,anna\np1,anna\np2,bert\n", encoding="utf-8")
    args = arguments(folders, "-o", folders / "scores.csv", "--cases", table)
    assert evaluated(capsys, args)[""]["summary"][0]["n_patients"] == 2
    assert run(args) == 0 and "patients: 2 patients in 3 cases, from cases.csv" in capsys.readouterr().err
    assert [row.patient_id for row in ScoreTable.load(folders / "scores.csv").rows if row.metric == "dice"][::2] == [
        "anna", "anna", "bert",
    ]  # fmt: skip
    table.write_text("case_id,patient_id\np0,anna\n", encoding="utf-8")
    assert "no row for 2 cases of 3: p1, p2" in refused(capsys, args)


def test_lesions_of_three_cases(folders, capsys):
    out = folders / "scores.csv"
    means = evaluated(capsys, arguments(folders, "--preset", "lesions", "-o", out))
    assert means["tumour", "lesion_sensitivity"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert means["tumour", "lesion_precision"] == 1
    assert means["tumour", "lesion_f1"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert means["organ", "lesion_f1_iou50"] == 1  # 18 of 30
    assert means[""]["lesions"] == str(folders / "lesions.csv")
    with (folders / "lesions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rule"] == "any"]
    assert [(row["case_id"], row["label"], row["status"]) for row in rows if row["case_id"] == "p2"] == [
        ("p2", "organ", "ok"),
        ("p2", "tumour", "ok"),
        ("p2", "tumour", "missed"),
    ]
    assert set(ScoreTable.load(out).metrics) == set(METRIC_SETS["lesions"].metrics)


def test_the_table_shows_what_was_asked_for(folders, capsys):
    assert run(arguments(folders, "--preset", "brats")) == 0
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines())
    for metric in METRIC_SETS["brats"].metrics:
        assert METRICS[metric].heading in printed
    assert "3 cases, policy brats." in printed
    assert run(arguments(folders, "--metrics", "iou,dice", "--policy", "nnunet")) == 0
    printed = capsys.readouterr().out
    assert "HD95" not in printed
    assert "IoU" in printed


def test_names_of_metrics_are_completed_after_a_comma_too():
    complete = {param.name: param for param in command.params}["metrics"].shell_complete
    assert [item.value for item in complete(None, "hd95_v")] == ["hd95_voxel_max", "hd95_voxel_pooled"]
    assert [item.value for item in complete(None, "dice,nsd_m")] == ["dice,nsd_mc"]


def test_titles_are_told_apart():
    titles = [metric.heading for metric in METRICS.values()]
    assert len(set(titles)) == len(titles)
    special = [
        metric.heading for metric in METRICS.values() if metric.group in ("lesions", "centreline", "calibration")
    ]
    assert max(map(len, special)) <= 16  # the width of their column


@pytest.mark.parametrize("preset", METRIC_SETS)
def test_presets_name_metrics_and_policies_that_exist(preset):
    assert set(METRIC_SETS[preset].metrics) <= set(METRICS)
    assert METRIC_SETS[preset].policy in POLICIES


def test_a_preset_and_metrics_add_up():
    names, policy = chosen_metrics("iou,dice", "brats")
    assert names == (*METRIC_SETS["brats"].metrics, "iou")
    assert policy == "brats"
    assert chosen_metrics("all", None)[0] == parse_metrics("all")


def test_tubes(folders, capsys):
    means = evaluated(capsys, arguments(folders, "--preset", "tubes"))
    assert 0 < means["(mean)", "cldice"] < 1
    assert means["tumour", "cldice_precision"] == 1 / 3 * (1 + 3 / 4 + 1)


def softmax(values, sharpness):
    """Probabilities of background, organ and tumour that favour what `values` says."""
    scores = np.stack([values == value for value in (0, 1, 5)]) * sharpness
    shares = np.exp(scores)
    return (shares / shares.sum(axis=0)).astype(np.float16)


def test_calibration(folders, capsys):
    args = arguments(folders, "--preset", "calibration")
    message = refused(capsys, args)
    assert "3 of 3 masks lack probabilities" in message
    assert all(f"p{number}.nii.gz: no probabilities beside it" in message for number in range(3))
    for number in range(3):
        mask = folders / "masks" / f"p{number}.nii.gz"
        np.savez_compressed(mask.with_name(f"p{number}_probabilities.npz"), probabilities=softmax(example(), 20.0))
    means = evaluated(capsys, args)
    assert means["organ", "brier"] == pytest.approx(0, abs=1e-6)  # certain and right where it counts
    assert means["organ", "nll_image"] == pytest.approx(-math.log(1 - 2**-12), rel=0.01)
    (folders / "masks" / "p1_probabilities.npz").unlink()
    assert "1 of 3 masks lack probabilities" in refused(capsys, args)


def test_probabilities_of_another_model_are_named(folders, capsys):
    for number in range(3):
        path = folders / "masks" / f"p{number}_probabilities.npz"
        np.savez_compressed(path, probabilities=softmax(example(), 1.0)[: 3 - number % 2])
    message = refused(capsys, arguments(folders, "--metrics", "ece"))
    assert "1 of 3 cases cannot be scored" in message
    assert "p1_probabilities.npz: holds probabilities (2, 8, 12, 14) float16, expected floats (3, 8, 12, 14)" in message


def test_all_metrics_leave_out_calibration_without_probabilities(folders, capsys):
    out = folders / "all.csv"
    assert run(arguments(folders, "--metrics", "all", "--nsd-tolerance", "1", "-o", out)) == 0
    assert "No mask has a file of probabilities, so calibration is left out." in capsys.readouterr().err
    assert set(ScoreTable.load(out).metrics) == {n for n, m in METRICS.items() if m.group != "calibration"}
    assert (folders / "all_lesions.csv").is_file()


def test_tolerances_by_label(folders, capsys):
    means = evaluated(capsys, arguments(folders, "--nsd-tolerance", "organ=1.0,tumour=0"))
    assert means["organ", "nsd"] == 1  # a voxel of 1 mm
    assert means["tumour", "nsd"] < 1
    means = evaluated(capsys, arguments(folders, "--nsd-tolerance", "organ=1"))
    assert ("tumour", "nsd") not in means
    assert "'tumor' is not a label. Did you mean 'tumour'" in refused(
        capsys, arguments(folders, "--nsd-tolerance", "tumor=1"), code=2
    )


@pytest.mark.parametrize("text", ["organ", "-1", "nan", "inf", "1,organ=2", "organ=1,organ=2", "organ=", ""])
def test_tolerances_that_are_none(folders, capsys, text):
    assert "is not a tolerance in mm" in refused(capsys, arguments(folders, f"--nsd-tolerance={text}"), code=2)


def test_labels_by_name_keep_what_is_ignored(folders, capsys):
    everything = evaluated(capsys, arguments(folders))
    for labels in ("tumour,organ", "organ,tumour=5", "organ=1,tumour"):
        found = evaluated(capsys, arguments(folders, "-l", labels))
        assert found.pop("") and {k: v for k, v in everything.items() if k} == found
    means = evaluated(capsys, arguments(folders, "-l", "organ"))
    assert means["organ", "precision"] == everything["organ", "precision"]  # 9 is ignored still
    means = evaluated(capsys, arguments(folders, "-l", "whole=1+5"))
    assert means["whole", "sensitivity"] > 0.8
    means = evaluated(capsys, arguments(folders, "-l", "organ,odd=9"))  # unless it is asked for
    assert means["odd", "sensitivity"] == 0


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii"])
def test_masks_in_another_format(folders, capsys, ending):
    expected = evaluated(capsys, arguments(folders))
    for number in range(3):
        path = folders / "masks" / f"p{number}.nii.gz"
        prediction = example(shift=number % 2)
        if number == 2:
            prediction[6] = 0
        write(path.with_name(f"p{number}{ending}"), np.where(prediction == 9, 1, prediction))
        path.unlink()
    found = evaluated(capsys, arguments(folders))
    assert {k: v for k, v in found.items() if k} == {k: v for k, v in expected.items() if k}


@pytest.mark.parametrize("name", ["mask.nrrd", "{}.nii.gz"])
def test_masks_in_a_folder_for_each_case(folders, capsys, name):
    expected = evaluated(capsys, arguments(folders))
    for number in range(3):
        prediction = example(shift=number % 2)
        if number == 2:
            prediction[6] = 0
        write(folders / "nested" / f"p{number}" / name.format(f"p{number}"), np.where(prediction == 9, 1, prediction))
        write(folders / "truths" / f"p{number}" / "seg.nii.gz", example())
    found = evaluated(capsys, arguments(folders, masks="nested"))
    assert {k: v for k, v in found.items() if k} == {k: v for k, v in expected.items() if k}
    (folders / "truths" / "dataset.json").write_text(json.dumps(DESCRIPTION))
    found = evaluated(capsys, arguments(folders, masks="nested", reference="truths"))
    assert {k: v for k, v in found.items() if k} == {k: v for k, v in expected.items() if k}


def test_two_masks_of_one_name_in_subfolders(folders, capsys):
    for part in ("a", "b"):
        write(folders / "nested" / part / "p0.nii.gz", example())
        write(folders / "nested" / part / "p1.nii.gz", example())
    message = refused(capsys, arguments(folders, masks="nested"))
    assert "p0" in message
    assert "p1" in message


def test_everything_wrong_is_told_at_once(folders, capsys):
    masks = folders / "masks"
    write(masks / "p0.nii.gz", example(), AFFINE @ np.diag([1, 1, 1.2, 1]))  # same shape, other spacing
    write(masks / "p1.nii.gz", np.where(example() > 0, 255, 0))
    write(masks / "p2.nii.gz", example()[1:])
    message = refused(capsys, arguments(folders))
    assert "3 of 3 cases cannot be scored" in message
    assert "p0.nii.gz: same shape, but a corner voxel is 3.500 mm apart" in message  # 7 steps of 0.5 mm
    assert f"p1: unknown label values: {masks / 'p1.nii.gz'} holds 255; expected organ = 1, tumour = 5" in message
    assert "shape 14 × 12 × 7 (x, y, z), expected 14 × 12 × 8" in message


def test_values_of_no_label_in_a_reference_are_named(folders, capsys):
    values = example()
    values[0, 0, :3] = (3, 4, 200)
    write(folders / "data" / "labelsTr" / "p1.nii.gz", values)
    message = refused(capsys, arguments(folders))
    assert f"p1: unknown label values: {folders / 'data' / 'labelsTr' / 'p1.nii.gz'} holds 3, 4, 200" in message
    assert run(arguments(folders, "-l", "organ,tumour")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "dise"], "metric 'dise' is unknown. Did you mean 'dice'?"),
        (["--preset", "brat"], "preset 'brat' is unknown. Did you mean 'brats'?"),
        (["--policy", "best"], "policy 'best' is unknown."),
        (["-l", "tumor"], "'tumor' is not a label; expected 1,2,3 or name=1,name2=2 or name=1+2 or organ, tumour"),
        (["-l", ""], "'' is not a label"),
    ],
)
def test_options_that_mean_nothing(folders, capsys, options, message):
    assert message in refused(capsys, arguments(folders, *options), code=2)
