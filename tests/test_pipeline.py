"""The line of stages on a tiny dataset: every stage, killed and resumed, with wrong input."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from datasets import tiny_image, tiny_labels, write_json, write_nnunet, write_tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stages import plan_data, predict, train

import segpipe
from segpipe.cli.main import run
from segpipe.core.errors import DataError, UsageError
from segpipe.core.probabilities import CalibrationReport
from segpipe.core.volume import read_labels
from segpipe.core.work import Work
from segpipe.data.splits import Splits
from segpipe.evaluate.scores import ScoreTable
from segpipe.pipeline.info import ledger_info
from segpipe.pipeline.requests import Machine
from segpipe.plan.schema import Plan
from segpipe.predict.options import PredictOptions

MACHINE = Machine("cpu", 1)
QUICK = (
    "training.epochs=2",
    "training.iterations_per_epoch=3",
    "training.validation_iterations=1",
    "training.precision=fp32",
)
CASES = ["p0_scan1", "p0_scan2", "p1", "p2", "p3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dataset, planned and trained on two folds."""
    folder = tmp_path_factory.mktemp("trained")
    write_nnunet(folder / "data", CASES)
    plan_data(folder / "data", folder / "work", MACHINE, n_folds=2, edits=QUICK)
    train(folder / "work", None, None, MACHINE)
    return folder


def test_every_stage_leaves_its_files(trained):
    work = Work(trained / "work")
    assert not ledger_info(work.path).faults and not ledger_info(work.path).not_in_ledger
    noted = [line.scoring for line in ledger_info(work.path).lines]
    assert [one.name for one in noted] == ["3d_fullres fold 0", "3d_fullres fold 1"]
    assert {case for one in noted for case in one.cases} == set(CASES) and len({one.model for one in noted}) == 2
    for fold in ("0", "1"):
        found = work.fold("3d_fullres", fold)
        assert all(
            f.is_file() for f in (found.plan, found.weights, found.state, found.history, found.log, found.scores)
        )
        assert Plan.load(found.plan) == Plan.load(work.plan).decisions  # the command is that of `segpipe plan`
        assert (
            found.history.read_text("utf-8")
            .splitlines()[0]
            .startswith("epoch,iteration,seconds,learning_rate,train_loss")
        )
        assert len(found.history.read_text("utf-8").splitlines()) == 3
    table = ScoreTable.load(work.scores("3d_fullres"))
    assert sorted(table.case_ids) == CASES  # every case was validated once, out of fold
    assert not list(work.path.rglob(".partial-*"))


def test_no_patient_is_on_both_sides(trained):
    for fold in Splits.load(Work(trained / "work").splits).folds:
        scans = {"p0_scan1", "p0_scan2"}
        assert scans <= set(fold.train) or scans <= set(fold.validation)


def test_masks_lie_where_their_images_lie(trained):
    work = Work(trained / "work")
    for file in sorted(work.run("3d_fullres").glob("fold_*/validation/*.nii.gz")):
        image = nib.load(trained / "data" / "imagesTr" / file.name.replace(".nii.gz", "_0000.nii.gz"))
        mask = nib.load(file)
        assert mask.shape == image.shape and mask.get_data_dtype() == np.uint8
        for key in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units"):
            assert np.array_equal(mask.header[key], image.header[key]), key


def test_prediction_takes_files_folders_and_datasets_and_is_not_repeated(trained, tmp_path):
    images = trained / "data" / "imagesTr"
    masks = predict(trained / "work", images, tmp_path / "a", MACHINE).require_all()
    assert [m.name for m in masks] == [f"{case}.nii.gz" for case in CASES]
    before = [m.stat().st_mtime_ns for m in masks]
    masks[2].unlink()  # as if killed
    again = predict(trained / "work", images, tmp_path / "a", MACHINE).require_all()
    assert [m.stat().st_mtime_ns == b for m, b in zip(again, before, strict=True)] == [True, True, False, True, True]
    (alone,) = predict(trained / "work", images / "p1_0000.nii.gz", tmp_path / "b", MACHINE).require_all()
    assert (read_labels(alone)[0] == read_labels(masks[2])[0]).all()


def test_a_turned_copy_of_an_image_gives_the_same_mask_turned(trained, tmp_path):
    source = trained / "data" / "imagesTr" / "p2_0000.nii.gz"
    image = nib.load(source)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(("P", "I", "R")))
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in" / "a.nii.gz")
    nib.save(turned, tmp_path / "in" / "b.nii.gz")
    first, second = (
        nib.load(m) for m in predict(trained / "work", tmp_path / "in", tmp_path / "out", MACHINE).require_all()
    )
    assert np.allclose(second.affine, turned.affine)
    back = nib.as_closest_canonical(second)
    assert np.array_equal(np.asarray(back.dataobj), np.asarray(nib.as_closest_canonical(first).dataobj))


def test_probabilities_are_on_the_images_grid(trained, tmp_path):
    image = trained / "data" / "imagesTr" / "p1_0000.nii.gz"
    predict(trained / "work", image, tmp_path, MACHINE, PredictOptions(probabilities=True)).require_all()
    with np.load(tmp_path / "p1_probabilities.npz") as stored:
        shares = stored["probabilities"]
    assert shares.shape == (3, 8, 10, 12) and shares.dtype == np.float16
    mask = read_labels(tmp_path / "p1.nii.gz")[0]
    assert (np.take_along_axis(shares, mask[None], 0)[0] >= shares.max(0)).all()  # ties in float16 are no matter


def test_one_bad_image_is_named_and_the_others_are_predicted(trained, tmp_path, capsys):
    images = tmp_path / "in"
    images.mkdir()
    write_tiny(images / "good_0000.nii.gz", tiny_image(5))
    (images / "bad_0000.nii.gz").write_text("this is text")
    code = run(["predict", "-m", str(trained / "work"), "-i", str(images), "-o", str(tmp_path / "out")])
    assert code == 3 and "bad" in capsys.readouterr().err
    assert (tmp_path / "out" / "good.nii.gz").is_file() and not (tmp_path / "out" / "bad.nii.gz").exists()


def test_masks_of_another_model_are_not_mixed(trained, tmp_path, capsys):
    images = str(trained / "data" / "imagesTr")
    assert run(["predict", "-m", str(trained / "work"), "-i", images, "-o", str(tmp_path)]) == 0
    assert run(["predict", "-m", str(trained / "work"), "-f", "0", "-i", images, "-o", str(tmp_path)]) == 2
    assert "masks of another model" in capsys.readouterr().err


def test_masks_of_other_images_or_origin_are_neither_kept_nor_overwritten(trained, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    image = write_tiny(tmp_path / "in" / "a.nii.gz", tiny_image(1))
    common = ["predict", "-m", str(trained / "work"), "-i", str(tmp_path / "in"), "-o"]
    assert run([*common, str(tmp_path / "in")]) == 2
    assert "holds the images" in capsys.readouterr().err
    foreign = write_tiny(tmp_path / "foreign" / "a.nii.gz", tiny_labels())
    before = foreign.read_bytes()
    assert run([*common, str(tmp_path / "foreign")]) == 2
    assert "not from this command" in capsys.readouterr().err and foreign.read_bytes() == before
    assert run([*common, str(tmp_path / "out")]) == 0
    first = (tmp_path / "out" / "a.nii.gz").read_bytes()
    write_tiny(image, tiny_image(2) * np.linspace(0, 3, 12, dtype=np.float32))  # another image of the same name
    assert run([*common, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() != first


def test_a_model_may_be_copied_and_renamed(trained, tmp_path):
    shutil.copytree(trained / "work" / "runs" / "3d_fullres", tmp_path / "my_model")
    shutil.copytree(tmp_path / "my_model" / "fold_0", tmp_path / "my_model" / "fold_0_old")
    image = trained / "data" / "imagesTr" / "p1_0000.nii.gz"
    (first,) = predict(tmp_path / "my_model", image, tmp_path / "a", MACHINE).require_all()
    (second,) = predict(trained / "work", image, tmp_path / "b", MACHINE).require_all()
    assert first.read_bytes() == second.read_bytes()
    assert len(predict(tmp_path / "my_model" / "fold_1", image, tmp_path / "c", MACHINE).require_all()) == 1


def test_an_unfinished_fold_is_left_out_with_a_word(trained, tmp_path, capsys):
    shutil.copytree(trained / "work", tmp_path / "work")
    weights = Work(tmp_path / "work").fold("3d_fullres", "1").weights
    with safe_open(weights, "pt") as stored:
        about = stored.metadata()
    save_file(load_file(weights), weights, about | {"finished": "0"})
    image = trained / "data" / "imagesTr" / "p1_0000.nii.gz"
    (first,) = predict(tmp_path / "work", image, tmp_path / "a", MACHINE).require_all()
    assert "fold 1 is not trained to the end; left out" in capsys.readouterr().err
    (second,) = predict(trained / "work", image, tmp_path / "b", MACHINE, PredictOptions(folds=["0"])).require_all()
    assert first.read_bytes() == second.read_bytes()


def test_other_splits_do_not_go_on_with_a_fold(trained, tmp_path, capsys):
    shutil.copytree(trained / "work", tmp_path / "work")
    file = tmp_path / "work" / "splits.json"
    splits = Splits.load(file)
    splits.model_copy(update={"folds": splits.folds[::-1]}).save(file)
    assert run(["train", str(tmp_path / "work"), "-f", "0", "--device", "cpu"]) == 2
    assert "was trained on other cases" in capsys.readouterr().err


def test_a_training_of_unknown_cases_is_not_thrown_away(trained, tmp_path, capsys):
    shutil.copytree(trained / "work", tmp_path / "work")
    folder = Work(tmp_path / "work").fold("3d_fullres", "0")
    folder.split.unlink()
    before = folder.weights.read_bytes()
    assert run(["train", str(tmp_path / "work"), "-f", "0", "--device", "cpu"]) == 2
    assert "plan.yaml or split.json is missing" in capsys.readouterr().err
    assert folder.weights.read_bytes() == before and any(folder.validation.iterdir())


def test_run_keeps_the_splits_that_plan_made(tmp_path):
    write_nnunet(tmp_path / "data", CASES)
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=3, edits=QUICK)
    before = (tmp_path / "work" / "splits.json").read_bytes()
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, seed=1, keeps_plan=True)
    assert (tmp_path / "work" / "splits.json").read_bytes() == before
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=2)
    assert (tmp_path / "work" / "splits.previous.json").read_bytes() == before


def test_run_takes_the_splits_it_is_given_over_those_that_are_there(tmp_path):
    write_nnunet(tmp_path / "data", CASES)
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=3, edits=QUICK)
    folds = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[:2], "val": CASES[2:]}]
    file = write_json(tmp_path / "splits.json", folds)
    dry = ["run", str(tmp_path / "data"), "-o", str(tmp_path / "work"), "--splits", str(file), "--dry-run"]
    assert run([*dry, "--device", "cpu"]) == 0
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, splits_file=file, keeps_plan=True)
    found = Splits.load(tmp_path / "work" / "splits.json").folds
    assert [sorted(fold.validation) for fold in found] == [sorted(CASES[:2]), sorted(CASES[2:])]


def test_a_work_folder_never_overwrites_a_dataset(tmp_path, capsys):
    data, other = write_nnunet(tmp_path / "data", CASES), write_nnunet(tmp_path / "other", CASES)
    before = (data / "dataset.json").read_bytes()
    assert run(["plan", str(data), "-o", str(data)]) == 2
    assert run(["plan", str(data), "-o", str(other)]) == 2
    assert "does not belong to a work folder" in capsys.readouterr().err
    assert (data / "dataset.json").read_bytes() == before == (other / "dataset.json").read_bytes()


def test_sigterm_saves_and_exits_75(tmp_path):
    write_nnunet(tmp_path / "data", CASES)
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=2, edits=("training.epochs=100000", *QUICK[1:]))
    command = [
        sys.executable,
        "-m",
        "segpipe",
        "train",
        str(tmp_path / "work"),
        "-f",
        "0",
        "-j",
        "1",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folder = Work(tmp_path / "work").fold("3d_fullres", "0")
    deadline = time.monotonic() + 120
    while not folder.history.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "stopped by SIGTERM" in errors and "Rerun the same command to resume" in errors
    assert torch.load(folder.state, weights_only=True)["iteration"] > 0


def test_a_time_budget_ends_training_and_lets_the_rate_fall_to_nothing(tmp_path):
    write_nnunet(tmp_path / "data", CASES)
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=2, edits=QUICK[2:])
    train(tmp_path / "work", None, [0], MACHINE, time_budget_seconds=6)
    rows = Work(tmp_path / "work").fold("3d_fullres", "0").history.read_text("utf-8").splitlines()
    header, last = rows[0].split(","), rows[-1].split(",")
    values = dict(zip(header, last, strict=True))
    assert float(values["learning_rate"]) < 0.1 * Plan.load(tmp_path / "work" / "plan.yaml").training.learning_rate
    assert int(values["iteration"]) > 0


def test_another_plan_does_not_go_on_with_a_training(trained, capsys):
    code = run(["train", str(trained / "work"), "-f", "0", "--set", "training.learning_rate=0.5", "--device", "cpu"])
    assert code == 2
    assert "training.learning_rate: 0.01, now 0.5" in capsys.readouterr().err


def test_planning_again_reuses_the_fingerprint_and_keeps_the_old_plan(tmp_path, capsys):
    write_nnunet(tmp_path / "data", CASES)
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=2)
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=2, preset="nnunet")
    assert "unchanged since it was measured" in capsys.readouterr().err
    assert Plan.load(tmp_path / "work" / "plan.previous.yaml").preset == "auto"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "{empty}"], 2, "no plan.yaml in it"),
        (["train", "{work}", "-f", "7"], 2, "there are 2 folds"),
        (["train", "{work}", "-c", "3d_lowres"], 2, "the plan has 2d, 3d_fullres"),
        (["train", "{work}", "--time-budget", "soon"], 2, "is not a time"),
        (["train", "{work}", "--time-budget", "nan"], 2, "is not a time"),
        (["train", "{work}", "--time-budget", "3s"], 2, "1.5 s per fold"),
        (["predict", "-m", "{empty}", "-i", "{data}", "-o", "{empty}/out"], 2, "no trained weights"),
        (
            ["predict", "-m", "{work}", "-f", "4", "-i", "{data}", "-o", "{empty}/out"],
            2,
            "has no trained fold 4 (it has 0, 1)",
        ),
        (["predict", "-m", "{work}", "-i", "{empty}", "-o", "{empty}/out"], 3, ""),
        (["plan", "{empty}", "-o", "{empty}/w"], 3, "no dataset was recognised"),
        (["plan", "{data}", "-o", "{empty}/w", "--preset", "nnunett"], 2, "Did you mean 'nnunet'"),
        (["plan", "{data}", "-o", "{empty}/w", "--device", "cuda:99"], 4, "CUDA"),
        (["plan", "{data}", "-o", "/proc/nowhere"], 4, "/proc/nowhere"),
        (["trian", "{work}"], 2, "Did you mean 'train'"),
        (["plan", "{data}", "-o", "{empty}/w", "--seed", "-1"], 2, "--seed"),
        (["plan", "{data}", "-o", "{empty}/w", "--set", "dataset=2020-13-45"], 2, "cannot be read"),
        (["train", "{work}", "--seed", "3"], 2, "--set training.seed=N"),
        (["train", "{work}", "-f", "²"], 2, "does not name folds"),
        (
            ["predict", "-m", "{work}/runs/3d_fullres/fold_0", "-f", "1", "-i", "{data}", "-o", "{empty}"],
            2,
            "Omit -c and -f",
        ),
    ],
)
def test_wrong_commands_say_what_is_wrong(trained, tmp_path, capsys, arguments, code, message):
    places = {"empty": tmp_path, "work": trained / "work", "data": trained / "data"}
    assert run([a.format(**places) for a in arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("preset", "configuration"), [("nnunet", "3d_fullres"), ("nnunet", "2d"), ("resenc_m", "3d_fullres"), ("cpu", "2d")]
)
def test_other_presets_and_2d_train_and_predict(tmp_path, preset, configuration):
    write_nnunet(tmp_path / "data", CASES)
    edits = ("training.epochs=1", *QUICK[1:], f"configurations.{configuration}.batch_size=2")
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=2, preset=preset, edits=edits)
    result = train(tmp_path / "work", configuration, [0], MACHINE)
    name, table = result.configuration, result.scores
    assert name == configuration and {row.label for row in table.rows} == {"a", "b", "(image)"}


def test_regions_and_ignored_voxels_go_through_every_stage(tmp_path):
    write_nnunet(
        tmp_path / "data",
        CASES,
        labels={"background": 0, "whole": [1, 2], "core": 2, "ignore": 7},
        regions_class_order=[1, 2],
    )
    labels = tiny_labels()
    labels[:, :2] = 7
    write_tiny(tmp_path / "data" / "labelsTr" / "p1.nii.gz", labels)
    plan_data(tmp_path / "data", tmp_path / "work", MACHINE, n_folds=2, edits=QUICK)
    table = train(tmp_path / "work", None, None, MACHINE).scores
    assert {row.label for row in table.rows} == {"whole", "core", "(image)"}
    masks = Work(tmp_path / "work").run("3d_fullres").glob("fold_*/validation/*.nii.gz")
    assert all(set(np.unique(read_labels(mask)[0])) <= {0, 1, 2} for mask in masks)


@pytest.mark.gpu
def test_a_fold_trains_and_predicts_on_a_gpu_with_mixed_precision(tmp_path):
    write_nnunet(tmp_path / "data", CASES)
    machine = Machine("cuda", 1)
    edits = (*QUICK[:3], "training.precision=auto")
    plan_data(tmp_path / "data", tmp_path / "work", machine, n_folds=2, edits=edits)
    table = train(tmp_path / "work", None, [0], machine).scores
    assert table.rows


def test_masks_are_postprocessed_by_a_file_or_by_what_was_chosen_for_the_model(trained, tmp_path, capsys):
    shutil.copytree(trained / "work", tmp_path / "work")
    image = str(trained / "data" / "imagesTr" / "p1_0000.nii.gz")
    common = ["predict", "-m", str(tmp_path / "work"), "-i", image, "-o"]
    file = tmp_path / "all_gone.yaml"
    file.write_text("labels: {a: {min_volume_mm3: 1e9}, b: {min_volume_mm3: 1e9}}")
    assert run([*common, str(tmp_path / "raw")]) == 0
    assert run([*common, str(tmp_path / "given"), "--postprocess", str(file)]) == 0
    shutil.copy(file, tmp_path / "work" / "runs" / "3d_fullres" / "postprocessing.yaml")
    assert run([*common, str(tmp_path / "chosen")]) == 0
    assert run([*common, str(tmp_path / "none"), "--no-postprocess"]) == 0
    found = {name: read_labels(tmp_path / name / "p1.nii.gz")[0] for name in ("raw", "given", "chosen", "none")}
    assert found["raw"].any() and not found["given"].any() and not found["chosen"].any()
    assert np.array_equal(found["raw"], found["none"])
    assert run([*common, str(tmp_path / "raw")]) == 2  # postprocessed now, the masks there are not
    assert "postprocessing" in capsys.readouterr().err
    file.write_text("labels: {c: {keep_largest: true}}")
    assert run([*common, str(tmp_path / "wrong"), "--postprocess", str(file)]) == 2
    assert "label 'c' is unknown" in capsys.readouterr().err


def test_validation_probabilities_are_counted_and_correct_saved_ones(trained, tmp_path, capsys):
    work = Work(shutil.copytree(trained / "work", tmp_path / "work"))
    found = CalibrationReport.load(work.calibration("3d_fullres"))
    assert (found.n_cases, found.n_patients, set(found.temperature_of_fold)) == (5, 4, {"0", "1"})
    assert {label.label for label in found.labels} <= set(Plan.load(work.plan).labels.names) and found.labels[0].after
    images, both = trained / "data" / "imagesTr", PredictOptions(probabilities=True, uncertainty=True, calibrated=True)
    found.model_copy(update={"temperature": 4.0}).save(work.calibration("3d_fullres"))
    predict(work.path, images, tmp_path / "plain", MACHINE, PredictOptions(probabilities=True, uncertainty=True))
    for name, options in (("calibrated", PredictOptions(probabilities=True, calibrated=True)), ("both", both)):
        predict(work.path, images, tmp_path / name, MACHINE, options)
        assert (tmp_path / "plain/p1.nii.gz").read_bytes() == (tmp_path / name / "p1.nii.gz").read_bytes()
        plain, flat = (np.load(tmp_path / f / "p1_probabilities.npz")["probabilities"] for f in ("plain", name))
        powers = np.float32(plain) ** 0.25
        np.testing.assert_allclose(flat, powers / powers.sum(axis=0), atol=2e-3)
    maps = [nib.load(tmp_path / f / "uncertainty/p1_entropy.nii.gz").get_fdata().mean() for f in ("plain", "both")]
    assert maps[0] < maps[1]
    common = ["predict", "-m", str(work.path), "-i", str(images), "--device", "cpu", "-o"]
    assert run([*common, str(tmp_path / "plain"), "--save-probabilities", "--calibrated"]) == 2
    assert "masks of another model (or with other mirroring, postprocessing or calibration)" in capsys.readouterr().err
    assert run([*common, str(tmp_path / "new"), "--calibrated"]) == 2
    assert "changes probabilities, not masks. Add --save-probabilities" in capsys.readouterr().err
    packed = tmp_path / "m.segpipe.zip"
    assert run(["pack", str(work.path), "-o", str(packed)]) == 0
    model = segpipe.load(packed, device="cpu", calibrated=True)
    assert model.ensemble.temperature == 4 and any(f"temperature 4.00 ({packed})" in note for note in model.notes)
    found.model_copy(update={"weights": {"3d_fullres/0": "0" * 12}}).save(work.calibration("3d_fullres"))
    with pytest.raises(UsageError, match="3d_fullres/0 has been trained again since"):
        segpipe.load(work.path, device="cpu", calibrated=True)
    work.calibration("3d_fullres").unlink()
    with pytest.raises(UsageError, match=r"no .*calibration\.json, which `segpipe train` writes"):
        segpipe.load(work.path, device="cpu", calibrated=True)


def test_cases_without_counts_are_predicted_again(trained, tmp_path, capsys):
    work = Work(shutil.copytree(trained / "work", tmp_path / "work"))
    before = work.calibration("3d_fullres").read_bytes()
    work.calibration("3d_fullres").unlink()
    gone = next(iter(work.fold("3d_fullres", "0").calibration.iterdir()))
    gone.unlink()
    capsys.readouterr()
    train(work.path, None, None, MACHINE)
    assert work.calibration("3d_fullres").read_bytes() == before
    assert "1 image" in capsys.readouterr().err
    gone.write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read as counts"):
        train(work.path, None, None, MACHINE)
