"""core/records.py: strict reading, equal bytes, messages that name the place."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError, create_model

from segpipe.core.errors import DataError, PlanError
from segpipe.core.records import Record, did_you_mean, parse_yaml, read_values
from segpipe.data.splits import Splits
from segpipe.evaluate.scores import ScoreTable
from segpipe.fingerprint.record import Fingerprint
from segpipe.plan.schema import Plan


class Optimizer(Record):
    learning_rate: float
    n_epochs: int = 10


class Stage(Record):
    name: str
    patch_vox_zyx: tuple[int, ...]
    optimizer: Optimizer | None = None


class Recipe(Record):
    """A record with others in every place they can stand."""

    title: str
    optimizer: Optimizer
    stages: tuple[Stage, ...] = ()
    by_name: dict[str, Stage]


RECIPE = Recipe(
    title="größer",
    optimizer=Optimizer(learning_rate=1e-3),
    stages=(Stage(name="low", patch_vox_zyx=(8, 16, 16)),),
    by_name={"full": Stage(name="full", patch_vox_zyx=(16, 32, 32), optimizer=Optimizer(learning_rate=0.1))},
)


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_a_record_is_written_and_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"recipe.{ending}"
    RECIPE.save(path)
    assert Recipe.load(path) == RECIPE
    again = path.read_bytes()
    Recipe.load(path).save(path)
    assert path.read_bytes() == again


def test_a_record_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RECIPE.title = "other"  # type: ignore[misc]


# no control characters and line separators: PyYAML's emitter loses U+0085
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12)
floats = st.floats(allow_nan=False, allow_infinity=False)
optimizers = st.builds(Optimizer, learning_rate=floats, n_epochs=st.integers(-(2**63), 2**63 - 1))
stages = st.builds(
    Stage,
    name=texts,
    patch_vox_zyx=st.lists(st.integers(-5, 600), max_size=4).map(tuple),
    optimizer=st.none() | optimizers,
)
recipes = st.builds(
    Recipe,
    title=texts,
    optimizer=optimizers,
    stages=st.lists(stages, max_size=2).map(tuple),
    by_name=st.dictionaries(texts, stages, max_size=2),
)


@given(recipes)
def test_any_record_returns_from_both_formats(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    folder = tmp_path_factory.getbasetemp()
    for path in (folder / "any.json", folder / "any.yaml"):
        recipe.save(path)
        assert Recipe.load(path) == recipe


@given(recipes, recipes)
def test_the_digest_changes_with_the_record(a: Recipe, b: Recipe) -> None:
    assert (a.digest() == b.digest()) == (a.to_json() == b.to_json())
    assert len(a.digest()) == 12


@pytest.mark.parametrize(
    ("values", "place", "near"),
    [
        ({"titel": "x"}, "titel", "title"),
        ({"optimizer": {"learning_rate": 1.0, "n_epoch": 1}}, "optimizer.n_epoch", "n_epochs"),
        ({"stages": [{"name": "a", "patch_vox_zyx": [], "optimiser": None}]}, "stages.0.optimiser", "optimizer"),
        (
            {"stages": [{"name": "a", "patch_vox_zyx": [], "optimizer": {"learning_rate": 1.0, "lerning_rate": 1.0}}]},
            "stages.0.optimizer.lerning_rate",
            "learning_rate",
        ),
        ({"by_name": {"b": {"name": "a", "patch_vox_zyx": [], "nam": 1}}}, "by_name.b.nam", "name"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(values: dict[str, object], place: str, near: str) -> None:
    whole = {"title": "t", "optimizer": {"learning_rate": 1.0}, "by_name": {}} | values
    with pytest.raises(PlanError) as fault:
        Recipe.parse(whole, "plan.yaml")
    assert str(fault.value) == f"plan.yaml: {place}: unknown key. Did you mean {near!r}?"


def test_a_far_key_gets_the_list_of_known_ones() -> None:
    with pytest.raises(PlanError, match=r"qqq: unknown key\. Known: learning_rate, n_epochs\."):
        Optimizer.parse({"learning_rate": 1.0, "qqq": 1}, "plan.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 1.0, "n_epochs": 2.0}, r"n_epochs: found 2\.0; .*integer"),
        ({"learning_rate": 1.0, "n_epochs": "2"}, r"n_epochs: found '2'; .*integer"),
        ({"learning_rate": 1.0, "n_epochs": True}, r"n_epochs: found True; .*integer"),
        ({"learning_rate": "1.0"}, r"learning_rate: found '1\.0'; .*number"),
        ({"learning_rate": None}, "learning_rate: found None"),
        ({}, r"learning_rate: missing\. Add it\."),
    ],
)
def test_a_wrong_type_is_an_error_not_converted(values: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=f"^plan.yaml: {message}"):
        Optimizer.parse(values, "plan.yaml")


def test_a_file_of_another_kind_is_not_explained_key_by_key() -> None:
    with pytest.raises(PlanError) as fault:
        Optimizer.parse({f"key{n}": n for n in range(500)}, "plan.yaml")
    lines = str(fault.value).splitlines()
    assert len(lines) == 12
    assert lines[-1].strip().startswith("… and 491 more.")  # 500 keys too many and a missing one, of which 10 are named


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(ValidationError):
        Optimizer(learning_rate=value)
    with pytest.raises(PlanError, match=r"plan\.yaml: "):
        Optimizer.parse({"learning_rate": value}, "plan.yaml")


def test_all_faults_are_listed_one_a_line() -> None:
    with pytest.raises(PlanError) as fault:
        Recipe.parse({"titel": "x", "by_name": {}, "optimizer": {"learning_rate": "fast"}}, "plan.yaml")
    assert str(fault.value).splitlines()[0] == "plan.yaml: "
    assert len(str(fault.value).splitlines()) == 4  # title missing, learning_rate wrong, titel unknown


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("plan.yaml", "learning_rate: [1", "is not valid YAML"),
        ("plan.yaml", "learning_rate: 1.0\nlearning_rate: 2.0\n", "key 'learning_rate' occurs twice"),
        ("plan.yaml", "- 1\n", "holds a list, expected keys and values"),
        ("plan.yaml", "", "holds a NoneType"),
        ("plan.yaml", "learning_rate: 2020-01-01\n", r"plan\.yaml: "),
        ("plan.yaml", "!!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("plan.yaml", "a: 1\n--- \nb: 2\n", "is not valid YAML"),
    ],
)
def test_a_broken_plan_is_a_fault_of_the_plan(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PlanError, match=message):
        Optimizer.load(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list"),
        ("\xff", ""),
        ('{"a": {"x": 1, "y": 2, "x": 3}}', "the key 'x' occurs twice"),
    ],
)
def test_a_broken_json_file_is_a_fault_of_the_data(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"a\.json: .*{message}"):
        Optimizer.load(tmp_path / "a.json")
    with pytest.raises(DataError, match="no such file"):
        Optimizer.load(tmp_path / "b.json")


def test_a_number_without_a_dot_is_a_number(tmp_path: Path) -> None:
    # PyYAML reads 1e-3 as text, which nobody who edits a learning rate expects
    (tmp_path / "plan.yaml").write_text("learning_rate: 1e-3\n")
    assert Optimizer.load(tmp_path / "plan.yaml").learning_rate == 0.001


@pytest.mark.parametrize("name", ["120529175e23", "1e3", "12", "1.5", "0x1F", "on", "null", "2020-01-02"])
def test_text_that_looks_like_a_number_stays_text(tmp_path: Path, name: str) -> None:
    # the first is a digest: one dataset in three hundred has such a one, and its plan could not be read again
    stage = Stage(name=name, patch_vox_zyx=(8,))
    stage.save(tmp_path / "stage.yaml")
    assert Stage.load(tmp_path / "stage.yaml") == stage


def test_plans_are_written_for_people() -> None:
    assert RECIPE.to_yaml() == (
        "title: größer\n"
        "optimizer:\n"
        "  learning_rate: 0.001\n"
        "  n_epochs: 10\n"
        "stages:\n"
        "- name: low\n"
        "  patch_vox_zyx: [8, 16, 16]\n"
        "  optimizer: null\n"
        "by_name:\n"
        "  full:\n"
        "    name: full\n"
        "    patch_vox_zyx: [16, 32, 32]\n"
        "    optimizer:\n"
        "      learning_rate: 0.1\n"
        "      n_epochs: 10\n"
    )


def test_did_you_mean() -> None:
    assert did_you_mean("trian", ["train", "plan"]) == " Did you mean 'train'?"
    assert did_you_mean("zzz", ["train", "plan"]) == " Known: train, plan."


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


def test_references_of_yaml_are_read() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": [{"x": 1, "y": 2}] * 2,
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("plan.yaml", "x: " + "[" * 5000 + "]" * 5000, "more than 64 values inside each other"),
        ("plan.yaml", "- " * 5000 + "x", "more than 64 values inside each other"),
        ("plan.yaml", LAUGHS, r"more than 131,072 values once its references \(\*name\) are written out"),
        ("plan.yaml", "a: &a [*a]", "a reference to a value that holds it"),
        ("plan.yaml", "a: &a {b: {<<: *a}}", "a reference to a value that holds it"),
        ("plan.yaml", "a: " + "9" * 5000, "a number of 5000 characters, expected 64 bits at most"),
        ("plan.yaml", "a: " + "1:" * 4000 + "1.5", "expected 64 bits at most"),  # sexagesimal: 60 to the power of 4000
        ("plan.yaml", f"a: {2**63}", "expected 64 bits at most"),
        ("plan.yaml", 'a: "\\ud800"', r"half a character \(U\+D800\)"),
        ("plan.yaml", "#" * 300_000, "has 293 KiB, expected 256 KiB at most"),
        ("a.json", "[" * 100_000 + "]" * 100_000, "more than 64 values inside each other"),
        ("a.json", '{"a":' * 65 + "1" + "}" * 65, "more than 64 values inside each other"),
        ("a.json", '{"a":' + "9" * 5000 + "}", "an integer of 5000 digits, expected 64 bits at most"),
        ("a.json", '{"\\udfff": 1}', r"half a character \(U\+DFFF\)"),
    ],
)
def test_a_file_made_to_break_its_reader_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        read_values(tmp_path / name, DataError)


def test_values_at_the_limits_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 64 + f"{2**63 - 1}" + "]" * 64)
    (tmp_path / "a.yaml").write_text("[" * 63 + f"{-(2**63)}" + "]" * 63)
    assert str(2**63 - 1) in str(read_values(tmp_path / "a.json", DataError))
    assert str(-(2**63)) in str(read_values(tmp_path / "a.yaml", DataError))


def test_many_keys_take_linear_time(tmp_path: Path) -> None:
    seconds = []
    for n in (500, 8000):  # 16 times as many; comparing each with each took 256 times as long
        (tmp_path / "a.yaml").write_text("".join(f"k{i}: 1\n" for i in range(n)))
        started = time.process_time()
        assert len(read_values(tmp_path / "a.yaml", DataError)) == n
        seconds.append(time.process_time() - started)
    assert seconds[1] < 50 * seconds[0]


def test_of_many_unknown_keys_ten_are_explained() -> None:
    wide = create_model("Wide", __base__=Record, **{f"learning_rate_{i}": (float, 0.0) for i in range(100)})
    started = time.process_time()
    with pytest.raises(PlanError, match=r"… and 19991 more\."):
        wide.parse({f"learning_rat{i}": 1 for i in range(20_001)}, "plan.yaml")
    assert time.process_time() - started < 5  # near words for each took minutes


OLD_FINGERPRINT = """{"orientation": "LPS", "channels": ["CT"], "cases": [{"case_id": "a", "orientation": "LPS",
"spacing_mm": [5.0, 1.0, 1.0], "shape_zyx": [20, 64, 64], "cropped_shape_zyx": [20, 60, 60],
"label_voxels": {"liver": 900}, "signature": "0123456789ab"}], "intensities": [{"mean": 50.0, "std": 20.0,
"min": -100.0, "median": 52.0, "max": 200.0, "percentile_00_5": -50.0, "percentile_99_5": 150.0}]}"""


def test_what_an_older_version_measured_is_said_with_the_command_that_measures_again(tmp_path):
    """The first format of fingerprint.json, typed by hand: no version, voxels of labels alone."""
    path = tmp_path / "Work" / "fingerprint.json"
    path.parent.mkdir()
    path.write_text(OLD_FINGERPRINT, encoding="utf-8")
    with pytest.raises(DataError) as found:
        Fingerprint.load(path)
    again = f"Write it again: `segpipe plan DATA -o {path.parent}`."
    assert str(found.value) == f"{path}: was written by an older version of segpipe. {again}"
    path.write_text('{"segpipe_fingerprint": 3}', encoding="utf-8")
    with pytest.raises(DataError, match="was written by a newer version of segpipe"):
        Fingerprint.load(path)


def test_a_newer_plan_is_told_from_a_wrong_one(tmp_path):
    (tmp_path / "plan.yaml").write_text("segpipe_plan: 2\n", encoding="utf-8")
    with pytest.raises(PlanError, match="was written by a newer version of segpipe"):
        Plan.load(tmp_path / "plan.yaml")


def test_splits_and_scores_of_the_first_version_are_read(tmp_path):
    """As it wrote them, typed by hand: splits without warnings, scores with the columns of today."""
    folds = '[{"train": ["a"], "validation": ["b"]}, {"train": ["b"], "validation": ["a"]}]'
    (tmp_path / "splits.json").write_text(f'{{"k": 2, "seed": 0, "source": "2 folds", "folds": {folds}}}')
    assert Splits.load(tmp_path / "splits.json").folds[1].validation == ("a",)
    (tmp_path / "scores.csv").write_text(
        "run,case_id,patient_id,fold,seed,label,metric,value,unit,status,n_reference_vox,n_prediction_vox\n"
        "3d_fullres,a,a,0,0,liver,dice,0.5,1,ok,10,10\n"
    )
    assert ScoreTable.load(tmp_path / "scores.csv").rows[0].value == 0.5
    (tmp_path / "splits.json").write_text('{"k": 2, "folder": []}')
    with pytest.raises(
        DataError, match=r"If another version of segpipe wrote this file, write it again: `segpipe plan"
    ):
        Splits.load(tmp_path / "splits.json")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plan.yaml")
    with pytest.raises(PlanError, match="is no plain file"):
        read_values(tmp_path / "plan.yaml", PlanError)
