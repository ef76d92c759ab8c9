"""The options of `segpipe train` that say how long, and `--profile`."""

from __future__ import annotations

import json

import pytest
from datasets import write_nnunet
from stages import plan_data

from plans import small_plan
from segpipe.cli.main import run
from segpipe.core.errors import PlanError, UsageError
from segpipe.core.work import Work
from segpipe.pipeline.requests import Machine, RunRequest, TrainRequest, length_edits
from segpipe.plan.edit import edit_plan
from segpipe.plan.schema import Plan
from segpipe.plan.training import Training
from segpipe.train.schedule import Schedule


@pytest.mark.parametrize(
    ("epochs", "iterations", "expected"),
    [(7, None, 21), (None, 5, 5), (None, None, 11)],
)
def test_a_length_replaces_every_other_length_of_the_plan(epochs, iterations, expected):
    plan = small_plan(iterations=11, epochs=2, iterations_per_epoch=3)
    training = edit_plan(plan, length_edits(epochs, iterations)).training
    assert Schedule(training).n_iterations == expected
    timed = edit_plan(small_plan(time_budget_seconds=60.0), length_edits(epochs, iterations)).training
    assert (timed.time_budget_seconds is None) == (expected != 11)


def test_two_lengths_are_one_too_many(tmp_path, capsys):
    for kind, where in ((TrainRequest, ()), (RunRequest, (tmp_path,))):
        with pytest.raises(UsageError, match="--epochs and --time-budget: each sets the length"):
            kind(*where, tmp_path, Machine("cpu", 1), epochs=3, time_budget_seconds=60.0)
    assert run(["train", str(tmp_path), "--epochs", "3", "--iterations", "9"]) == 2
    assert "--epochs and --iterations" in capsys.readouterr().err
    with pytest.raises(PlanError, match="contradicts"):
        edit_plan(small_plan(), ("training.epochs=9", *length_edits(3, None)))


def test_stopping_early_needs_something_to_watch():
    with pytest.raises(ValueError, match="early_stop_epochs needs validation patches"):
        Training(early_stop_epochs=5, validation_iterations=0)


def test_a_profile_is_json_leaves_no_training_and_a_length_trains_it(tmp_path, capsys):
    write_nnunet(tmp_path / "data", ["p1", "p2", "p3"])
    edits = ("training.validation_iterations=1", "training.precision=fp32")
    plan_data(tmp_path / "data", tmp_path / "work", Machine("cpu", 1), n_folds=2, edits=edits)
    command = ["train", str(tmp_path / "work"), "--device", "cpu", "-j", "1", "--json"]
    capsys.readouterr()
    assert run([*command, "--profile", "--time-budget", "10m"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["shares"].values()) == pytest.approx(1) and found["configuration"] == "3d_fullres"
    assert not (tmp_path / "work" / "runs").exists() and not list((tmp_path / "work").glob(".*"))
    assert run([*command, "-f", "1", "--iterations", "2"]) == 0
    fold = Work(tmp_path / "work").fold("3d_fullres", "1")
    assert Plan.load(fold.plan).training.iterations == 2
    assert fold.history.read_text("utf-8").splitlines()[1].startswith("1,2,")


def test_a_profile_is_of_the_fold_that_is_asked_for_and_of_one_process(tmp_path, capsys):
    write_nnunet(tmp_path / "data", ["p1", "p2", "p3"])
    plan_data(tmp_path / "data", tmp_path / "work", Machine("cpu", 1), n_folds=3, edits=("training.seed=0",))
    work, command = Work(tmp_path / "work"), ["train", str(tmp_path / "work"), "--device", "cpu", "-j", "1"]
    splits = json.loads(work.splits.read_text("utf-8"))
    splits["folds"][0]["train"] = ["gone"]  # fold 0, which was measured before, cannot be
    work.splits.write_text(json.dumps(splits), "utf-8")
    assert run([*command, "--profile", "-f", "1"]) == 0
    assert run([*command, "--profile"]) != 0
    assert run([*command, "--profile", "-f", "7"]) == 2
    assert run([*command, "--profile", "-f", "0,1"]) == 2 and run([*command, "--profile", "--devices", "2"]) == 2
    assert "--profile measures one process" in capsys.readouterr().err
