"""The verdict of a report, the check of its data, and what it was computed with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_report import CONFIGURATION, finished, work  # noqa: F401 (fixtures)

from segpipe.cli.main import run
from segpipe.core.history import History
from segpipe.core.machine import Environment, environment_here
from segpipe.core.work import FoldFolder, Work
from segpipe.data.check import CheckReport
from segpipe.data.faults import fault
from segpipe.data.splits import Splits
from segpipe.evaluate.scores import Score, ScoreTable
from segpipe.networks.device import device_text
from segpipe.plan.schema import Plan
from segpipe.report.page import VerdictBox
from segpipe.report.sections import data_check
from segpipe.report.verdict_box import make_verdict
from segpipe.report.work_contents import FoldRun, Run, WorkFolder, read_scored, read_work
from segpipe.report.work_report import environments
from segpipe.train.checkpoint import write_setting

NO_SPLITS = WorkFolder(Work(Path("w")), None, {}, None, (), None, None, ())


def score(number: int, label: str, dice: float, status: str = "ok", patient: str = "") -> Score:
    n_reference, n_prediction = 0 if status == "spurious" else 9, 0 if status == "missed" else 9
    patient = patient or f"p{number}"
    return Score("r", f"c{number}", patient, 0, 0, label, "dice", dice, "1", status, n_reference, n_prediction)


def verdict_of(*scores: Score, configuration: str = "r", alarms: tuple[str, ...] = ()) -> VerdictBox:
    scored = read_scored(Run(configuration, (), ScoreTable(scores)), [])
    return make_verdict(NO_SPLITS, [scored], alarms)


def texts(verdict: VerdictBox) -> dict[str, str]:
    return {point.about: f"{point.kind}: {point.text}" for point in verdict.points}


def test_a_verdict_by_hand():
    # organ 0.9 and 0.8, node 0.5 and missed (0): labels' means 0.85 and 0.25, their mean 0.55
    found = verdict_of(
        score(1, "organ", 0.9), score(2, "organ", 0.8), score(1, "node", 0.5), score(2, "node", 0, "missed")
    )
    assert found.sentence.startswith("Mean Dice 0.550")
    assert (
        "over 2 cases of 2 patients and 2 labels. Each case was segmented by a model that was not trained"
        in found.sentence
    )
    said = texts(found)
    assert said["Labels"].startswith("note: Lowest Dice: node, 0.250")
    assert said["Labels"].endswith(". Highest: organ, 0.850.")
    assert (
        said["Structures"]
        == "bad: 1 of 4 structures missed: node in c2. Failures in 1 of 2 patients (95 % interval 1 to 99 %)."
    )
    # cases' means 0.7 and 0.4, their median 0.55; 0.4 is not more than 0.2 below it
    assert said["Cases"] == "note: Lowest mean Dice: c2, 0.400; the median is 0.550."
    assert said["Precision"].startswith("look: 2 patients: too few for an interval")


def test_far_worse_cases_and_invented_structures_are_counted():
    fine = [score(number, "organ", 0.9) for number in range(3)]
    said = texts(verdict_of(*fine, score(3, "organ", 0.3), score(4, "organ", 0, "spurious"), score(5, "organ", 0.8)))
    assert said["Cases"].startswith("look: Lowest mean Dice: c4") and said["Cases"].endswith(
        "2 cases are more than 0.2 below it."
    )
    assert (
        said["Structures"]
        == "bad: 1 false alarm where there is none: organ in c4. Failures in 1 of 6 patients (95 % interval 0 to 64 %)."
    )
    assert texts(verdict_of(*fine))["Structures"].startswith("good: All 3 structures were found")
    assert "Labels" not in said  # of one label none is the weakest


def test_volumes_that_are_wrong_on_average_are_told_by_hand():
    # t(0.975, 2 degrees) = 4.30: organ 6000 ± 4.30 · 1000 / √3 and node -4 ± 2.5 mm³ are off 0, spleen 0 ± 2.5 is not
    off_mm3 = {"organ": (5000, 6000, 7000), "node": (-3, -4, -5), "spleen": (-1, 0, 1)}
    volumes = [
        Score("r", f"c{number}", f"p{number}", 0, 0, label, "volume_difference", value, "mm3", "ok", 9000, 9000 + value)
        for label, values in off_mm3.items()
        for number, value in enumerate(values)
    ]
    dice = [score(number, label, 0.9) for label in off_mm3 for number in range(3)]
    told = texts(verdict_of(*dice, *volumes))["Volumes"]
    assert told == "look: Predicted larger (+) or smaller (−) on average: organ +6.00 mL, node −0.004 mL."
    spleen = [row for row in (*dice, *volumes) if row.label == "spleen"]
    assert texts(verdict_of(*spleen))["Volumes"].startswith("good: No label is larger or smaller on average")
    for without_interval in (dice, [spleen[0], spleen[3]]):  # no volumes; one patient
        assert "Volumes" not in texts(verdict_of(*without_interval))


def test_structures_that_hardly_overlap_are_no_good_news():
    said = texts(verdict_of(score(1, "lesion", 0.009), score(2, "lesion", 0.7)))
    rate = "Failures in 1 of 2 patients (95 % interval 1 to 99 %)."
    assert said["Structures"] == f"bad: 1 of 2 structures with a Dice below 0.1: lesion in c1. {rate}"
    assert (
        said["Overlap"] == "bad: Mean Dice 0.354, 1 of 2 structures failed. Train longer, or check images and labels."
    )
    assert texts(verdict_of(score(1, "lesion", 0.1)))["Structures"].startswith("note: The only structure was found")


def test_a_model_that_fails_gets_no_good_point(work: Path):  # noqa: F811
    found = read_work(work)
    (run,) = found.runs
    fold = {row.case_id: row.fold for row in run.scores.rows}
    for dice in (0.009, 0.45, 0.9):
        table = ScoreTable(tuple(
            replace(score(number, "organ", dice), case_id=case, fold=fold[case]) for number, case in enumerate(fold)
        ))  # fmt: skip
        verdict = make_verdict(found, [read_scored(replace(run, scores=table), [])], ())
        kinds = {point.about: point.kind for point in verdict.points}
        assert verdict.sentence.startswith("This model fails: mean Dice" if dice < 0.5 else "Mean Dice 0.900")
        assert kinds["Scores"] == ("good" if dice > 0.5 else "note") and kinds["Training"] == "look"
        assert ("good" in kinds.values()) is (dice > 0.5)
        said = texts(verdict)["Training"].removeprefix("look: ")
        assert said.startswith("190 steps taken per fold, not to the planned end in folds 0, 1, 2 (250000 planned")


def test_overlap_is_judged_by_mean_and_failures():
    fine = [score(number, "organ", 0.9) for number in range(9)]
    assert texts(verdict_of(*fine))["Overlap"].startswith("good: Mean Dice 0.900, 0 of 9 structures failed.")
    one_missed = texts(verdict_of(*fine, score(9, "organ", 0, "missed")))
    assert one_missed["Overlap"].startswith("look: Mean Dice 0.810, 1 of 10 structures failed.")
    four = [score(number, "organ", 0, "spurious") for number in (9, 10, 11, 12)]
    assert texts(verdict_of(*fine, *four[:3]))["Overlap"].startswith("look: Mean Dice 0.675, 3 of 12 structures")
    assert texts(verdict_of(*fine, *four))["Overlap"].startswith("bad: Mean Dice 0.623, 4 of 13 structures")
    low = texts(verdict_of(*[score(number, "organ", 0.6) for number in range(9)]))["Overlap"]
    assert low.startswith("look: Mean Dice 0.600") and low.endswith("what two raters reach on these structures.")


def test_the_steps_of_a_training_are_told(tmp_path):
    columns = {"epoch": (1.0, 2.0), "iteration": (4.0, 9.0)}
    folds = [FoldRun(str(n), FoldFolder(tmp_path), History(columns), (), None) for n in range(2)]
    folds[1] = replace(folds[1], history=History(columns | {"iteration": (200.0, 5000.0)}))
    scored = read_scored(Run("r", tuple(folds), ScoreTable((score(1, "organ", 0.9),))), [])
    said = texts(make_verdict(NO_SPLITS, [scored], ()))
    assert said["Training"].startswith("look: 9 to 5000 steps taken per fold")
    assert said["Training"].endswith("Very short in fold 0: scores may improve a lot with longer training.")
    assert said["Precision"] == "look: 1 patient: too few for an interval of the mean."
    long = replace(scored, run=Run("r", tuple(folds[1:]), scored.run.scores))
    assert texts(make_verdict(NO_SPLITS, [long], ()))["Training"].startswith("note: 5000 steps taken")


def test_an_alarm_replaces_the_score():
    found = verdict_of(score(1, "organ", 0.9), alarms=("leak",))
    assert found.sentence.startswith("Do not trust these scores") and "0.9" not in found.sentence
    assert found.points[0].kind == "bad"


def test_of_several_configurations_the_best_of_those_with_most_cases_is_named():
    tables = {"few": [(1, 0.99)], "low": [(1, 0.6), (2, 0.7)], "high": [(1, 0.8), (2, 0.9)]}
    scored = [
        read_scored(Run(name, (), ScoreTable(tuple(score(n, "organ", d) for n, d in values))), [])
        for name, values in tables.items()
    ]
    found = make_verdict(NO_SPLITS, scored, ())
    assert found.sentence.startswith("high: Mean Dice 0.850")
    among = "high has the highest mean Dice among those with the most scored cases (few 0.990 of 1 case, low 0.650)."
    assert texts(found)["Configuration"].startswith(f"look: {among}")
    found = make_verdict(NO_SPLITS, scored[1:], ())
    assert texts(found)["Configuration"].startswith("look: high has the highest mean Dice (low 0.650).")


def test_without_scores_there_is_no_verdict():
    for runs in ([], [read_scored(Run("r", (), None), [])]):
        assert make_verdict(NO_SPLITS, runs, ()).sentence.startswith("No scores yet")


def test_a_half_finished_cross_validation_is_told(work: Path):  # noqa: F811
    missing = Splits.load(work / "splits.json").folds[1].validation
    (work / "runs" / CONFIGURATION / "scores.csv").unlink()
    shutil.rmtree(work / "runs" / CONFIGURATION / "fold_1")
    found = read_work(work)
    said = texts(make_verdict(found, [read_scored(one, []) for one in found.runs], ()))
    n_left = 6 - len(missing)
    assert (
        said["Scores"]
        == f"look: {n_left} of 6 cases are scored so far. No patient is in both training and validation of a fold."
    )
    assert said["Data"].startswith("look: Not checked")


def test_the_check_of_the_data_is_kept_and_told(work: Path, capsys: pytest.CaptureFixture[str]):  # noqa: F811
    found, file = read_work(work), Work(work).data_check
    assert found.dataset is not None
    command = f"segpipe check {found.dataset.root} -o {work}"
    assert f"To add one: `{command}`." in data_check(found).text
    assert run(command.split()[1:]) == 0
    kept = CheckReport.load(file)
    kept.model_copy(update={"faults": ()}).save(file)
    page = data_check(read_work(work))
    assert page.text == f"All files of {kept.path} were read. No faults found." and page.faults is None
    assert kept.dataset is not None and set(kept.dataset.by_id) == set(found.dataset.by_id)
    faults = (fault("label_empty", "background only", "c1"), fault("unreadable", "no image", "c2"))
    kept.model_copy(update={"faults": faults}).save(file)
    page = data_check(read_work(work))
    assert page.text == f"All files of {kept.path} were read. Fatal faults: 1, warnings: 1." and page.faults is not None
    assert [[cell.text for cell in row[:2]] for row in page.faults.rows] == [
        ["fatal: File cannot be read", "c2; no image; expected a whole image file"],
        ["warning: Empty label map", "c1; background only; expected at least one labelled voxel"],
    ]
    point = make_verdict(read_work(work), [], ()).points[-1]
    assert (point.kind, point.text) == ("bad", "1 fatal fault, 1 warning; see below.")
    fewer = kept.dataset.model_copy(update={"cases": kept.dataset.cases[1:]})
    kept.model_copy(update={"dataset": fewer}).save(file)
    assert data_check(read_work(work)).text.endswith("The checked cases differ from the training cases: check again.")
    file.write_text("{}")
    assert any("data_check.json cannot be read" in note for note in read_work(work).notes)
    capsys.readouterr()


def test_a_check_is_not_kept_where_nothing_is_planned(work: Path, tmp_path: Path):  # noqa: F811
    root = read_work(work).dataset.root
    assert run(["check", root, "-o", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_folds_say_what_they_were_trained_with(work: Path):  # noqa: F811
    folders = [FoldFolder(work / "runs" / CONFIGURATION / f"fold_{number}") for number in range(3)]
    here = environment_here("cpu, 2 threads")
    for folder in folders[:2]:
        here.save(folder.environment)
    other = here.model_copy(update={"device": "NVIDIA Example", "versions": here.versions | {"torch": "9.9"}})
    other.save(folders[2].environment)
    found = environments(read_work(work))
    name = CONFIGURATION
    assert [place.title for place in found] == [
        f"Trained: {name} fold 0, {name} fold 1",
        f"Trained: {name} fold 2",
        "This report",
    ]
    assert {("Device", "NVIDIA Example"), ("torch", "9.9")} <= set(found[1].facts)
    assert "Device" not in dict(found[2].facts)


def test_a_training_writes_its_setting(work: Path, tmp_path: Path):  # noqa: F811
    plan, split = Plan.load(work / "plan.yaml"), Splits.load(work / "splits.json").folds[0]
    folder = FoldFolder(tmp_path)
    write_setting(folder, plan, split, torch.device("cpu"))
    assert Plan.load(folder.plan) == plan
    kept = Environment.load(folder.environment)
    assert kept == environment_here(device_text(torch.device("cpu"))) and kept.device.startswith("cpu, ")
