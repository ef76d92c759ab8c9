"""The options of `segpipe train` that say how long, and `--profile`."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path

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
from segpipe.plan.training_commands import train_commands
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


def printed_commands(text: str) -> list[list[str]]:
    """Words of each command that trains: in backticks in a message, marked as code in a page."""
    found = re.findall(r"(?:`|<code>)segpipe (train [^`<]*)(?:`|</code>)", html.unescape(text))
    return [shlex.split(command) for command in dict.fromkeys(found)]


def work_with_two_folds(folder: Path, *edits: str) -> Work:
    write_nnunet(folder / "data", ["p1", "p2", "p3", "p4"])
    plan_data(folder / "data", folder / "my work", Machine("cpu", 1), n_folds=2, edits=edits)
    return Work(folder / "my work")


def test_what_messages_and_the_report_print_after_one_timed_fold_completes_the_run(tmp_path, capsys):
    write_nnunet(tmp_path / "data", ["p1", "p2", "p3", "p4"])
    folds = [{"train": ["p1", "p2"], "val": ["p3", "p4"]}, {"train": ["p3", "p4"], "val": ["p1", "p2"]}]
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    work, machine = str(tmp_path / "my work"), ["--device", "cpu", "-j", "1"]
    timed = ["--splits", str(tmp_path / "folds.json"), "--time-budget", "5s", "--set", "training.precision=fp32"]
    assert run(["run", str(tmp_path / "data"), "-o", work, "-f", "0", *timed, *machine]) == 0
    (after_run,) = printed_commands(capsys.readouterr().out)
    assert run(["select", work, *machine]) == 2
    (of_select,) = printed_commands(capsys.readouterr().err)
    (of_report,) = printed_commands((Work(Path(work)).report).read_text("utf-8"))
    for more in ([], ["--time-budget", "60s"], ["--epochs", "3"], ["-f", "0", "--iterations", "9"]):
        assert run(["train", work, *more, *machine]) == 2
        (of_refusal,) = printed_commands(capsys.readouterr().err)
        assert run([*of_refusal, "--dry-run", *machine]) == 0 and "1 of 2 folds" in capsys.readouterr().out
    assert after_run == of_select == of_report
    assert run([*after_run, *machine]) == 0
    capsys.readouterr()
    assert run([*of_refusal, *machine]) == 0 and run(["select", work, *machine]) == 0  # nothing is left to do
    assert not printed_commands(capsys.readouterr().out)
    assert run(["report", work]) == 0 and not printed_commands(Work(Path(work)).report.read_text("utf-8"))


def test_each_fold_is_continued_as_it_was_begun_and_others_as_the_first(tmp_path, capsys):
    work = work_with_two_folds(tmp_path, "training.precision=fp32")
    begun = ["training.optimizer=adamw", "training.learning_rate=1e-05", "training.iterations=1", "mirror_axes=[]"]
    edits = [word for edit in begun for word in ("--set", edit)]
    machine = ["--device", "cpu", "-j", "1"]
    assert run(["train", str(work.path), "-f", "1", *edits, *machine]) == 0
    (command,) = printed_commands(capsys.readouterr().out)
    assert command[command.index("-f") + 1] == "0" and run([*command, *machine]) == 0
    first, second = (work.fold("3d_fullres", number).plan for number in "01")
    assert first.read_text("utf-8") == second.read_text("utf-8") != work.plan.read_text("utf-8")
    assert len(train_commands(work, "3d_fullres", ["0", "1"])) == 1
    edit_plan(Plan.load(first), ["training.iterations=2"]).save(first)
    assert ["-f 0 " in command for command in train_commands(work, "3d_fullres", ["0", "1"])] == [True, False]
    for plan in (first, second):
        plan.write_text("no plan", "utf-8")
    assert train_commands(work, "3d_fullres", ["0", "1"]) == ()  # no option leads to the folds' plans
