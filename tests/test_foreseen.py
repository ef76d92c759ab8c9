"""`--dry-run`: what training, running, predicting and selecting would take, and that nothing is done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from datasets import write_nnunet
from stages import estimate_training, plan_data, train

from segpipe.cli.main import run
from segpipe.core.errors import DataError, PlanError, UsageError
from segpipe.core.foreseen import Foreseen, free_disk_bytes
from segpipe.core.history import History
from segpipe.core.work import Work
from segpipe.pipeline import predict as predicting
from segpipe.pipeline import run as runs
from segpipe.pipeline import select
from segpipe.pipeline.requests import Machine, PredictRequest, RunRequest, SelectRequest
from segpipe.plan.schema import Plan
from segpipe.predict.options import PredictOptions
from segpipe.predict.outputs import PredictionTable

MACHINE = Machine("cpu", 1)
QUICK = ("training.epochs=2", "training.iterations_per_epoch=3", "training.validation_iterations=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, and `work` with the first of two folds trained."""
    folder = tmp_path_factory.mktemp("foreseen")
    write_nnunet(folder / "data", ["p0", "p1", "p2", "p3"])
    plan_data(folder / "data", folder / "work", MACHINE, n_folds=2, edits=QUICK)
    train(folder / "work", "3d_fullres", [0], MACHINE)
    return folder


def prediction_estimate(model, inputs, output, options=None):
    request = PredictRequest([model], inputs, output, MACHINE, options or PredictOptions())
    return predicting.estimate(predicting.resolve(request))


def run_estimate(data, folder):
    return runs.estimate(runs.resolve(RunRequest(data, folder, MACHINE, n_folds=2, edits=QUICK)))


def selection_estimate(folder):
    return select.estimate(select.resolve(SelectRequest(folder, MACHINE)))


def files_of(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_training_takes_as_long_as_the_steps_that_are_left_at_the_measured_pace(folder):
    found = estimate_training(folder / "work", "3d_fullres", None, MACHINE)
    columns = History.load(Work(folder / "work").fold("3d_fullres", "0").history).columns
    assert found.todo.startswith("3d_fullres, 1 of 2 folds, 6 of 12 steps left")  # 2 epochs of 3 for each fold
    assert found.seconds == pytest.approx(6 * columns["seconds"][-1] / 6)
    assert found.seconds_from == "measured in fold_0 of this configuration"
    assert found.memory_of == "CPU" and found.memory_bytes > 2**29  # torch alone takes that


def test_disk_holds_weights_and_two_states_of_each_fold_that_is_left(folder):
    work = Work(folder / "work")
    found = estimate_training(folder / "work", "3d_fullres", None, MACHINE)
    fold = work.fold("3d_fullres", "0")
    written = sum(path.stat().st_size for path in (fold.weights, fold.state, fold.previous_state))
    assert 0.7 * written < found.disk_bytes < 1.3 * written
    assert found.free_disk_bytes > 0


def test_a_step_that_was_not_measured_is_predicted_by_its_multiplications(folder):
    found = estimate_training(folder / "work", "2d", [0], MACHINE)
    assert found.seconds is not None and found.seconds > 0 and "multiplications" in found.seconds_from


def test_a_time_budget_is_the_time(folder):
    found = estimate_training(folder / "work", "2d", None, MACHINE, time_budget_seconds=100.0)
    assert (found.seconds, found.seconds_from) == (100.0, "the time budget")


def test_a_plan_for_another_device_has_no_time(folder, tmp_path):
    shutil.copytree(folder / "work", tmp_path / "work", ignore=shutil.ignore_patterns("runs"))
    work = Work(tmp_path / "work")
    Plan.load(work.plan).model_copy(update={"is_for_gpu": True}).save(work.plan)
    found = estimate_training(work.path, "3d_fullres", None, MACHINE)
    assert (found.seconds, found.memory_of, found.free_memory_bytes) == (None, "GPU", 0)
    assert "time    not known; the plan is for another kind" in found.text()


def test_what_training_would_refuse_is_refused(folder):
    with pytest.raises(UsageError, match="-f 2: there are 2 folds"):
        estimate_training(folder / "work", None, [2], MACHINE)
    with pytest.raises(UsageError, match=r"another plan \(training.epochs: 2, now 9\)"):
        estimate_training(folder / "work", "3d_fullres", None, MACHINE, edits=("training.epochs=9",))
    with pytest.raises(UsageError, match="no plan"):
        estimate_training(folder / "data", None, None, MACHINE)


def test_predicting_takes_as_long_as_the_validation_cases_did(folder, tmp_path):
    found = prediction_estimate(folder / "work", folder / "data" / "imagesTr", tmp_path / "out")
    fold = Work(folder / "work").fold("3d_fullres", "0")
    rows = PredictionTable(fold.validation, Plan.load(fold.plan).labels).rows.values()
    each = sum((row.seconds_network or 0) + (row.seconds_prepare or 0) for row in rows) / len(rows)
    assert found.todo.startswith("4 of 4 images with 1 network")
    assert found.seconds == pytest.approx(4 * each)  # all tiny images are equally large
    assert found.disk_bytes == round(4 * 960 * 0.05) and found.memory_bytes > 2**29
    options = PredictOptions(mirror=False, probabilities=True)
    unmirrored = prediction_estimate(folder / "work", folder / "data" / "imagesTr", tmp_path / "out", options)
    n_mirrors = 2 ** len(Plan.load(fold.plan).mirror_axes)
    assert unmirrored.seconds == pytest.approx(4 * each / n_mirrors)
    # three outputs in float16, and those of one image again on their way to the file
    assert unmirrored.disk_bytes == round(4 * 960 * (0.05 + 2 * 3) + 960 * 2 * 3)


def test_a_packed_model_tells_no_time_and_no_images_are_a_fault(folder, tmp_path):
    assert run(["pack", str(folder / "work"), "-o", str(tmp_path / "m.segpipe.zip")]) == 0
    found = prediction_estimate(tmp_path / "m.segpipe.zip", folder / "data" / "imagesTr", tmp_path / "out")
    assert found.seconds is None and "predict one image first" in found.seconds_from
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image"):
        prediction_estimate(folder / "work", tmp_path / "empty", tmp_path / "out")


def test_a_run_is_planned_aside(folder, tmp_path):
    found = run_estimate(folder / "data", tmp_path / "fresh")
    assert found.command == "run" and "2 of 2 folds, 12 of 12 steps left; 4 cases to prepare" in found.todo
    begun = run_estimate(folder / "data", folder / "work")
    assert "1 of 2 folds, 6 of 12 steps left; 0 cases to prepare" in begun.todo
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt" / "plan.yaml").write_text("a: 1")
    with pytest.raises(PlanError, match=f"^{tmp_path}/spoilt/plan.yaml"):  # not the folder that it was copied to
        run_estimate(folder / "data", tmp_path / "spoilt")
    with pytest.raises(UsageError, match="dataset itself"):
        run_estimate(folder / "data", folder / "data")


def test_selecting_scores_one_case_and_counts(folder, tmp_path):
    with pytest.raises(UsageError, match="two or more folds"):
        selection_estimate(folder / "work")
    shutil.copytree(folder / "work", tmp_path / "work")
    train(tmp_path / "work", "3d_fullres", [1], MACHINE)
    found = selection_estimate(tmp_path / "work")
    assert found.todo.startswith("1 model, 14 kinds of postprocessing each, 4 cases; 0 predictions")
    assert found.seconds is not None and found.seconds > 0


COMMANDS = [
    ["train", "WORK", "-c", "3d_fullres", "--dry-run"],
    ["run", "DATA", "-o", "WORK", "--dry-run"],
    ["run", "DATA", "-o", "NEW", "--dry-run", "--epochs", "3"],
    ["predict", "-m", "WORK", "-i", "DATA/imagesTr", "-o", "NEW", "--dry-run"],
    ["prepare", "WORK", "-c", "2d", "--dry-run"],
    ["pretrain", "DATA/imagesTr", "-o", "NEW", "--for", "WORK", "-c", "3d_fullres", "--dry-run"],
    ["prune", "WORK", "-o", "NEW", "--ratio", "0.5", "-c", "3d_fullres", "-f", "0", "--dry-run"],
    ["analyse", "pruning", "WORK", "-c", "3d_fullres", "-f", "0", "--dry-run"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_is_done(folder, command, capsys):
    names = {"WORK": folder / "work", "DATA": folder / "data", "NEW": folder / "new"}
    words = [str(names[w]) if w in names else w.replace("DATA", str(folder / "data")) for w in command]
    before = files_of(folder)
    assert run([*words, "--device", "cpu"]) == 0
    assert files_of(folder) == before
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 or command[0] == "prepare"
    assert run([*words, "--device", "cpu", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert command[0] == "prepare" or " ".join(command).startswith(Foreseen.parse(values, "stdout").command)


def test_too_little_space_is_said():
    found = Foreseen(
        command="train", todo="x", seconds=1.0, seconds_from="y", disk_bytes=2, free_disk_bytes=1, memory_bytes=2,
        free_memory_bytes=1, memory_of="CPU",
    )  # fmt: skip
    assert "note    the disk is too small for it" in found.text() and "less memory is free" in found.text()


def test_free_space_of_a_folder_that_is_still_to_be_made(tmp_path):
    assert free_disk_bytes(tmp_path / "a" / "b") == pytest.approx(free_disk_bytes(tmp_path), rel=0.1)
