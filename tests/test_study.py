"""Studies: the record, a whole study on phantom scans, resumed, with wrong input."""

from __future__ import annotations

import gzip
import html
import json
import runpy
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from published import REPOSITORY

from plans import NETWORK, TINY
from segpipe.cli.main import run
from segpipe.compare.declaration import Declaration
from segpipe.compare.study_file import Arm, Base, StepCosts, Study, StudyFolder, describe_study, read_study
from segpipe.core.errors import PlanError
from segpipe.core.history import History
from segpipe.data.phantom import make_phantom
from segpipe.data.splits import Splits
from segpipe.evaluate.ledger import read_ledger
from segpipe.evaluate.scores import ScoreTable
from segpipe.plan.edit import edit_plan
from segpipe.plan.schema import Plan

ARMS = {"plain": {}, "residual": {"set": {f"{NETWORK}.kind": "residual"}}, "truth": {"masks": "data/labelsTr"}}
STUDY = {
    "name": "two",
    "question": "Does a residual encoder help?",
    "data": "data",
    "base": {"preset": "cpu", "set": TINY},
    "arms": ARMS,
    "n_folds": 2,
    "folds": [0, 1],
    "seeds": [0],
    "steps": 2,
}


def written(folder: Path, **changed: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changed, sort_keys=False), encoding="utf-8")
    return path


def command(folder: Path, *more: str) -> int:
    return run(["study", str(folder / "study.yaml"), "-o", str(folder / "out"), "--device", "cpu", "-j", "1", *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two networks trained for two steps on two folds of four phantom scans, beside masks that are the truth."""
    folder = tmp_path_factory.mktemp("study")
    make_phantom(folder / "data", 4, 0)
    written(folder)
    assert command(folder) == 0
    return folder


def copied(finished: Path, folder: Path) -> Path:
    """A copy to change; the dataset stays where it is, so that its files keep their times."""
    shutil.copytree(finished / "out", folder / "out", symlinks=True)
    (folder / "data").symlink_to(finished / "data")
    shutil.copy(finished / "study.yaml", folder)
    return folder


def test_a_study_ends_in_a_comparison_of_all_arms_on_the_same_cases(finished):
    out = finished / "out"
    comparison = json.loads((out / "comparison.json").read_text("utf-8"))
    assert comparison["methods"] == list(ARMS)
    tables = [ScoreTable.load(out / "arms" / name / "scores.csv") for name in ARMS]
    assert len({tuple((row.case_id, row.fold, row.label, row.metric) for row in table.rows) for table in tables}) == 1
    assert len(tables[0].case_ids) == 4 and {row.run for row in tables[1].rows} == {"residual"}
    assert {row.value for row in tables[2].rows if row.metric == "dice"} <= {1.0} | {
        row.value for row in tables[2].rows if row.status == "both_empty"
    }
    (answer,) = [r for r in comparison["metrics"][0]["rows"] if (r["method"], r["label"]) == ("truth", "(mean)")][:1]
    assert answer["difference"] > 0.5
    declared = [(r["baseline"], r["method"]) for r in comparison["metrics"][0]["rows"] if r["is_declared"]]
    assert declared == [("plain", "residual"), ("plain", "truth")]  # not truth against residual


def test_a_study_is_declared_before_its_first_training_and_writes_a_page(finished):
    out = finished / "out"
    comparison = json.loads((out / "comparison.json").read_text("utf-8"))
    declaration = Declaration.load(out / "declaration.json")
    assert comparison["is_declared"] and declaration.margins == {"dice": 0.005} and declaration.n_cases == 4
    assert comparison["notes"][0].startswith(f"Declared before the first training ({declaration.time}): margin dice")
    assert comparison["notes"][1:] == ["Masks of folds scored: 5 sets."]
    first, *others = read_ledger(out / "ledger.jsonl").scorings
    assert (first.event, first.model) == ("declaration", declaration.digest())
    assert [one.event for one in others] == ["fold"] * 5 and run(["info", str(out), "--ledger"]) == 0
    assert comparison["notes"][0] in html.unescape((out / "index.html").read_text("utf-8"))


def test_what_changes_after_the_first_training_is_explored(finished, tmp_path, capsys):
    folder = copied(finished, tmp_path)
    before = (folder / "out" / "declaration.json").read_bytes()
    written(folder, margins={"dice": 0.01})
    assert command(folder) == 0
    assert "declaration.json stays as it was before the first training: margins" in capsys.readouterr().err
    comparison = json.loads((folder / "out" / "comparison.json").read_text("utf-8"))
    assert not comparison["is_declared"] and (folder / "out" / "declaration.json").read_bytes() == before
    assert comparison["notes"][0] == "Explored: margin of dice 0.01, declared 0.005."


def test_a_declared_study_refuses_other_splits_and_leaves_the_old_ones(finished, tmp_path, capsys):
    folder = copied(finished, tmp_path)
    splits = (folder / "out" / "base" / "splits.json").read_bytes()
    for seed in range(1, 9):
        written(folder, split_seed=seed)
        if (code := command(folder)) != 0:
            break
    assert code == 2 and "the splits changed since they were declared" in capsys.readouterr().err
    assert Splits.load(folder / "out" / "base" / "splits.json").folds == Splits.parse(json.loads(splits), "").folds


def test_compare_knows_the_declaration_of_the_results(finished, tmp_path, capsys):
    folder = copied(finished, tmp_path)
    arms = [str(folder / "out" / "arms" / name / "scores.csv") for name in ARMS]

    def notes(*more: str) -> list[str]:
        capsys.readouterr()
        assert run(["compare", *more, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["notes"]

    assert notes(*arms)[0] == "Explored: every pair of methods, declared only those with the first."
    assert notes(*arms[:2], "--margin", "dice=0.1")[0] == (
        "Explored: margin of dice 0.1, declared 0.005; methods plain, residual, declared plain, residual, truth with "
        "plain first."
    )
    elsewhere = [str(shutil.copy(arm, tmp_path / f"{n}.csv")) for n, arm in enumerate(arms)]
    assert notes(*elsewhere) == ["Explored: no declaration lies beside these results."]
    declaration = folder / "out" / "declaration.json"
    declaration.write_text(declaration.read_text("utf-8").replace("0.005", "0.5"), encoding="utf-8")
    assert "declaration.json was changed after it was declared" in notes(*arms)[0]
    ledger = folder / "out" / "ledger.jsonl"
    ledger.write_text(ledger.read_text("utf-8").replace('"two"', '"one"', 1), encoding="utf-8")
    assert "the ledger was changed (line " in notes(*arms)[0] and "THE LEDGER WAS CHANGED" in " ".join(notes(*arms))


def test_an_arm_that_fails_is_named_and_the_others_are_compared(finished, tmp_path, capsys):
    folder = copied(finished, tmp_path)
    written(folder, arms=ARMS | {"wild": {"set": {"training.learning_rate": 1e38}}})
    assert command(folder) == 3
    said = capsys.readouterr()
    assert "1 arm failed. Arm wild failed: fold 0, seed 0: " in said.err and "Arm wild failed" in said.out
    assert json.loads((folder / "out" / "comparison.json").read_text("utf-8"))["methods"] == list(ARMS)
    assert "Arm wild failed" in (folder / "out" / "index.html").read_text("utf-8")
    written(folder, arms={"wild": {"set": {"training.learning_rate": 1e38}}} | ARMS)
    assert command(folder) == 3
    assert "the baseline or all others failed: arm wild, fold 0" in capsys.readouterr().err


def test_arms_share_splits_and_prepared_cases_and_differ_where_the_study_says(finished):
    out = finished / "out"
    assert len(list((out / "base" / "prepared").iterdir())) == 1
    plans = [Plan.load(out / "arms" / name / "seed_0" / "plan.yaml") for name in ("plain", "residual")]
    kinds = [plan.configurations["3d_fullres"].network.kind for plan in plans]
    assert kinds == ["plain", "residual"] and plans[0].training == plans[1].training
    assert len({(out / "arms" / name / "seed_0" / "splits.json").read_bytes() for name in ("plain", "residual")}) == 1


def test_what_is_finished_is_not_done_again_and_what_is_missing_is(finished, tmp_path, capsys):
    folder = copied(finished, tmp_path)
    folds = sorted((folder / "out" / "arms").glob("*/seed_0/runs/3d_fullres/fold_*"))
    before = [(fold / "checkpoint.safetensors").stat().st_mtime_ns for fold in folds]
    (folds[1] / "scores.csv").unlink()  # as if killed before the scores
    shutil.rmtree(folds[2])  # as if killed before the training
    assert command(folder) == 0
    assert capsys.readouterr().err.count("already trained and scored") == 2
    after = [(fold / "checkpoint.safetensors").stat().st_mtime_ns for fold in folds]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, True, False, True]
    first, again = (json.loads((f / "out" / "comparison.json").read_text("utf-8")) for f in (finished, folder))
    assert again.pop("notes")[1:] == ["Masks of folds scored: 5 sets, in 7 scorings."] and first.pop("notes")
    assert first == again  # the same seed trains the same


def test_masks_that_stay_are_scored_once_and_changed_ones_again(finished, tmp_path):
    folder = copied(finished, tmp_path)
    shutil.copytree(finished / "data" / "labelsTr", folder / "given")
    written(folder, arms={"plain": {}, "given": {"masks": "given"}})
    scored = folder / "out" / "arms" / "given" / "masks.json"

    def run_again() -> tuple[int, int]:
        assert command(folder) == 0
        return scored.stat().st_mtime_ns, len(read_ledger(folder / "out" / "ledger.jsonl").lines)

    first = run_again()
    assert run_again() == first
    mask = min((folder / "given").iterdir())
    mask.write_bytes(gzip.compress(gzip.decompress(mask.read_bytes()), 1))
    again = run_again()
    assert again[0] > first[0] and again[1] == first[1] + 1


def test_a_fold_trained_otherwise_is_refused(finished, tmp_path, capsys):
    folder = copied(finished, tmp_path)
    written(folder, steps=3)
    assert command(folder) == 2
    assert "training with another plan" in capsys.readouterr().err


def test_a_dry_run_prints_arms_trainings_and_time_and_writes_nothing(tmp_path, capsys):
    make_phantom(tmp_path / "data", 4, 0)
    written(tmp_path, minutes=30, steps=None, seeds=[0, 1])
    assert command(tmp_path, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "plain (baseline): preset cpu" in said and 'network.kind = "residual"' in said
    assert "8 trainings" in said and "4 h of training" in " ".join(said.split())  # 2 arms × 2 folds × 2 seeds × 30 min
    assert "0 of them are finished" in said and not (tmp_path / "out").exists()
    assert command(tmp_path, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["n_trainings"] == 8


@pytest.mark.parametrize(
    ("changed", "code", "message"),
    [
        ({"arms": {"plain": {}}}, 2, "1 arm, expected two or more"),
        ({"arms": {"a": {"st": {}}, "b": {}}}, 2, "Did you mean 'set'?"),
        ({"arms": {"a": {"masks": "m", "nnunetv2": True}, "b": {}}}, 2, "expected one of: plan values"),
        ({"arms": {"a/b": {}, "b": {}}}, 2, "a name without slash"),
        ({"minutes": 5}, 2, "one of minutes, steps and processor_minutes"),
        ({"steps": None}, 2, "one of minutes, steps and processor_minutes"),
        ({"processor_minutes": 5}, 2, "one of minutes, steps and processor_minutes"),
        ({"steps": None, "processor_minutes": 0}, 2, "processor_minutes: found 0"),
        (
            {"steps": None, "processor_minutes": 5, "arms": {"a": {}, "b": {"nnunetv2": True}}},
            2,
            "processor_minutes cannot be the budget of nnunetv2",
        ),
        ({"steps": 2.0}, 2, "steps: found 2.0"),
        ({"arms": {"a": {"set": {"training.seed": 3}}, "b": {}}}, 2, "a sets training.seed, which follows from seeds"),
        ({"arms": {"a": {"set": {"training.epochs": 3}}, "b": {}}}, 2, "a sets training.epochs"),
        ({"folds": [2]}, 2, "there are 2 folds"),
        ({"folds": [0, 0]}, 2, "none twice"),
        ({"seeds": []}, 2, "at least one number"),
        ({"margins": {"dise": 0.1}}, 2, "Did you mean 'dice'?"),
        ({"data": None}, 2, "names no data"),
        ({"data": "nowhere"}, 3, "no such file or folder"),
        ({"arms": {"a": {}, "b": {"preset": "cpuu"}}}, 2, "preset 'cpuu' is unknown"),
        ({"arms": {"a": {}, "b": {"set": {"training.learning_rat": 1}}}}, 2, "Did you mean 'learning_rate'?"),
        ({"arms": {"a": {}, "b": {"configuration": "3d_lowres"}}}, 2, "the plan has 2d, 3d_fullres"),
        ({"arms": {"a": {}, "b": {"masks": "few"}}}, 3, "lacks masks of 2 of 2 validation cases of fold 1"),
        ({"arms": {"a": {}, "b": {"masks": "nowhere"}}}, 3, "no such file or folder"),
    ],
)
def test_wrong_studies_say_what_is_wrong_before_anything_is_trained(finished, tmp_path, capsys, changed, code, message):
    (tmp_path / "data").symlink_to(finished / "data")
    (tmp_path / "few").mkdir()
    for case_id in Splits.load(finished / "out" / "base" / "splits.json").folds[0].validation:
        shutil.copy(finished / "data" / "labelsTr" / f"{case_id}.nii.gz", tmp_path / "few")
    written(tmp_path, **changed)
    assert command(tmp_path) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("checkpoint.safetensors"))


def study_of(arm: Arm, base: Base, **changed: object) -> Study:
    return Study.parse(
        STUDY | {"base": base.model_dump(), "arms": {"a": arm.model_dump(), "b": {}}} | changed, "a test"
    )


def test_an_arms_key_replaces_the_bases_keys_inside_it():
    base = Base(preset="cpu", set={"x.y": 1, "x.y.z": 2, "x.yy": 3, "w": 4})
    study = study_of(Arm(set={"x.y": {"z": 5}, "w": 6}), base, steps=None, minutes=0.5)
    budget = ("training.time_budget_seconds=30.0", "training.seed=7")
    assert study.assignments(study.arms["a"], 7) == ("x.yy=3", 'x.y={"z": 5}', "w=6", *budget)
    other = study_of(Arm(preset="nnunet", set={"w": 6}), base, steps=None, minutes=0.5)
    assert other.assignments(other.arms["a"], 7) == ("w=6", *budget)  # the base's values are for its own preset


@given(st.integers(1, 5000))
def test_steps_are_kept_exactly(n_steps):
    study = study_of(Arm(), Base(), steps=n_steps)
    values = dict(text.split("=") for text in study.assignments(study.arms["a"], 0))
    assert int(values["training.epochs"]) * int(values["training.iterations_per_epoch"]) == n_steps
    assert values["training.time_budget_seconds"] == "null" and 1 <= int(values["training.epochs"]) <= 20


@pytest.mark.parametrize("path", sorted((REPOSITORY / "plans" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_arm_of_the_stored_studies_has_a_valid_plan(path):
    study = read_study(path)
    datasets = ["hippocampus_220"] + ["acdc"] * path.name.startswith("seeds_")  # what preset cpu says of them
    for name in datasets:
        plan = Plan.load(REPOSITORY / "plans" / f"{name}_auto_cpu.yaml")
        arms = [arm for arm in study.arms.values() if arm.is_trained_here]
        plans = [edit_plan(plan, study.assignments(arm, 1)) for arm in arms]
        assert len({plan.digest() for plan in plans}) == len(arms) and all(plan.training.seed == 1 for plan in plans)
    assert f"`{path.name}`" in (path.parent / "README.md").read_text("utf-8")


def test_the_ladder_adds_one_part_at_a_time_and_then_all_of_them():
    arms = read_study(REPOSITORY / "plans" / "studies" / "brain_tumour_ladder.yaml").arms
    parts = [arms[name].set for name in ("efficientnet_b0", "attention", "aspp")]
    assert sum(map(len, parts)) == len(arms["all"].set) and arms["all"].set == parts[0] | parts[1] | parts[2]
    assert arms["resunet"] == Arm()


def test_processor_minutes_give_each_arm_the_steps_that_it_has_time_for(finished, tmp_path, capsys):
    (tmp_path / "data").symlink_to(finished / "data")
    arms = {"plain": {}, "wide": {"set": {f"{NETWORK}.features": [32, 64]}}}
    changed = {"arms": arms, "steps": None, "processor_minutes": 0.01, "folds": [0]}
    written(tmp_path, **changed)
    assert command(tmp_path, "--dry-run") == 0
    assert "0.01 min of processor time each" in " ".join(capsys.readouterr().out.split())
    assert command(tmp_path) == 0
    folder = StudyFolder(tmp_path / "out")
    costs = StepCosts.load(folder.step_costs).arms
    assert costs["wide"].seconds > costs["plain"].seconds
    for name, cost in costs.items():
        n_steps = History.load(folder.seed(name, 0).fold("3d_fullres", "0").history).columns["iteration"][-1]
        assert n_steps == cost.n_steps(0.01) and n_steps == 20 * max(1, round(0.6 / cost.seconds / 20))
    assert "0.01 min of processor time" in Declaration.load(tmp_path / "out" / "declaration.json").stopping

    before = folder.step_costs.read_text("utf-8")
    assert command(tmp_path) == 0 and folder.step_costs.read_text("utf-8") == before  # measured once
    arms["wider"] = {"set": {f"{NETWORK}.features": [40, 80]}}
    written(tmp_path, **changed)
    assert command(tmp_path) == 0
    after = StepCosts.load(folder.step_costs).arms
    assert {name: after[name] for name in costs} == costs and set(after) == set(arms)


def test_a_study_is_saved_as_it_was_read(finished):
    assert read_study(finished / "study.yaml") == Study.load(finished / "out" / "study.yaml")
    with pytest.raises(PlanError, match="no such file"):
        read_study(finished / "other.yaml")


def test_one_seed_is_said_to_tell_nothing_of_the_method():
    lines = list(describe_study(study_of(Arm(), Base())))
    assert "trained models" in " ".join(lines[-2:])


def test_the_table_of_all_seed_studies_has_verdict_interval_and_cost(finished, tmp_path):
    script = runpy.run_path(str(REPOSITORY / "benchmarks" / "run_seeds.py"))
    control, residual, truth = script["rows_of"]("phantom", "two", finished / "out", "")
    assert control.startswith("| phantom | two | plain | 0.") and "| control |" in control
    assert (
        truth.startswith("| phantom | two | truth | 1.0000 | 0.") and "| – to – | cannot tell (these models) |" in truth
    )  # of 2 patients
    assert residual.count("|") == truth.count("|") == control.count("|") == script["_HEAD"][0].count("|")
    seconds, steps, memory = script["costs"](finished / "out", "residual")
    assert seconds > 0 and steps == 2 and memory > 2**20
    (failed,) = script["rows_of"]("phantom", "two", tmp_path, "Error: no data")
    assert "failed: Error: no data" in failed and failed.count("|") == control.count("|")
