"""`segpipe compare` from tables to sentences."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from published import SHARED_DATA

from segpipe.cli.main import run
from segpipe.compare.comparison import Question, compare, parse_losses, parse_margins
from segpipe.compare.comparison_records import Comparison
from segpipe.compare.comparison_rows import ONE_SEED
from segpipe.compare.comparison_text import WIDTH, comparison_text, fold_text, save
from segpipe.compare.results import Method, Source, read_methods
from segpipe.core.errors import DataError, UsageError
from segpipe.evaluate.groups import CaseTable, read_cases
from segpipe.evaluate.scores import Score, ScoreTable

PUBLISHED_CV = SHARED_DATA.parent / "nnunet_msd"


def method(name, gain, *, n_cases=240, n_seeds=1, labels=("organ",), noise=0.02, seed=0):
    """Scores of a five-fold cross-validation; every method has the same cases, easy and hard."""
    easy = np.random.default_rng(9).beta(8, 2, (n_cases, len(labels))) * 0.9
    random, rows = np.random.default_rng([seed, *name.encode()]), []
    for training in range(n_seeds):
        values = np.clip(easy + gain + random.normal(0, noise, easy.shape), 0.001, 1)
        rows += [
            Score(
                name, f"c{c}", f"p{c // 2}", c // 2 % 5, training, label, "dice", float(values[c, i]), "1", "ok", 9, 9
            )
            for c in range(n_cases)
            for i, label in enumerate(labels)
        ]
    return Method(name, ScoreTable(tuple(rows)))


def only_row(methods, **options):
    rows = compare(methods, Question(parse_margins(["dice"]), **options)).metrics[0].rows
    return next(row for row in rows if row.is_declared)


def test_a_better_method_is_better():
    row = only_row([method("old", 0), method("new", 0.03)])
    assert (row.baseline, row.method, row.label, row.n_cases, row.n_patients) == ("old", "new", "organ", 240, 120)
    assert row.models.answer == "better"
    assert row.models.low < row.difference < row.models.high
    assert row.difference == pytest.approx(row.mean_method - row.mean_baseline)
    assert (row.methods, row.methods_basis) == (None, "one seed: the variation between trainings is unknown")
    assert only_row([method("new", 0.03), method("old", 0)]).models.answer == "worse"


def test_several_seeds_give_a_verdict_on_methods():
    row = only_row([method("old", 0, n_seeds=3), method("new", 0.03, n_seeds=2)])
    assert row.methods.answer == "better"
    assert row.methods_basis == "folds and seeds"
    assert row.methods.sentence.startswith("new is better than old")
    assert row.folds.better > 0.95
    assert row.methods.high - row.methods.low > row.models.high - row.models.low


def test_equal_methods_do_not_differ_and_few_noisy_cases_cannot_tell():
    assert only_row([method("a", 0, n_cases=200), method("b", 0, n_cases=200)]).models.answer == "no difference"
    few = only_row([method("a", 0, n_cases=8, noise=0.1), method("b", 0, n_cases=8, noise=0.1)])
    assert few.models.answer == "cannot tell"
    assert few.models.detectable > 0.05


def test_the_same_scores_under_two_names():
    first = method("a", 0)
    second = Method("b", ScoreTable(tuple(replace(row, run="b") for row in first.table.rows)))
    row = only_row([first, second])
    assert (row.difference, row.models.p_value, row.models.answer) == (0, 1, "no difference")
    assert "all patients equal" in row.note


def test_copies_of_a_training_give_no_verdict_on_methods():
    """Three files with the scores of one training each: the methods were trained once."""

    def thrice(one):
        rows = [replace(row, seed=seed) for seed in range(3) for row in one.table.rows]
        return Method(one.name, ScoreTable(tuple(rows)))

    methods = [thrice(method("old", 0)), thrice(method("new", 0.03))]
    found = compare(methods, Question(parse_margins(["dice"]))).metrics[0]
    assert (found.rows[0].methods, found.rows[0].methods_basis, found.n_seeds) == (None, ONE_SEED, 1)
    assert sum("3 trainings given, 1 counted" in note for note in found.notes) == 2
    assert found.descriptions[0].n_ok == 240


def test_few_patients_cannot_exclude_failures():
    """20 patients without a failure leave a rate of 14 %, which may cost more than the difference."""
    few = [method("old", 0, n_cases=40), method("new", 0.03, n_cases=40)]
    row = only_row(few)
    assert row.models.p_adjusted < 0.05 and row.models.answer == "cannot tell"
    assert row.models.unseen_rate == pytest.approx(1 - 0.05 ** (1 / 20))
    assert row.models.sentence.endswith("20 patients cannot exclude failures in up to 14 %.")
    assert only_row(few, worst_losses={"dice": 0.1}).models.answer == "better"  # 0.014 < 0.03
    equal = [method(name, 0, n_cases=40, noise=0.001) for name in "ab"]
    assert only_row(equal).models.answer == "cannot tell"
    assert only_row(equal, worst_losses={"dice": 0.03}).models.answer == "no difference"  # 0.0042 < 0.005


def test_a_verdict_names_the_fold_it_rests_on():
    """All of the gain is in fold 1: without it there is none."""
    first = method("a", 0, noise=0)
    random = np.random.default_rng(0)
    rows = [
        replace(row, run="b", value=row.value + random.normal(0, 0.004) + (-0.08 if row.fold == 1 else 0))
        for row in first.table.rows
    ]
    row = only_row([first, Method("b", ScoreTable(tuple(replace(r, value=max(r.value, 0)) for r in rows)))])
    assert row.models.answer == "worse" and row.rests_on_folds == (1,)
    assert len(row.fold_differences) == 5
    assert row.fold_differences[1] == pytest.approx(-0.08, abs=0.01)
    assert "the verdict rests on fold 1" in fold_text(row)
    sure = only_row([method("a", 0), method("b", 0.03)])
    assert sure.rests_on_folds == () and fold_text(sure).endswith("holds without any one fold")


def test_the_family_is_what_was_declared():
    labels = ("liver", "tumour")
    methods = [method(name, gain, labels=labels) for name, gain in (("a", 0), ("b", 0.004), ("c", 0.03))]
    rows = compare(methods, Question(parse_margins(["dice"]))).metrics[0].rows
    assert len(rows) == 9
    declared = [row for row in rows if row.is_declared]
    assert [row.label for row in declared] == ["(mean)"] * 3
    ordered = sorted(declared, key=lambda row: row.models.p_value)
    expected = np.maximum.accumulate([row.models.p_value * n for row, n in zip(ordered, (3, 2, 1), strict=True)])
    assert [row.models.p_adjusted for row in ordered] == pytest.approx(np.minimum(expected, 1))
    rows = compare(methods, Question(parse_margins(["dice"]), declared=("tumour",))).metrics[0].rows
    assert {row.label for row in rows if row.is_declared} == {"tumour"}
    with pytest.raises(UsageError, match="declared label 'tumor'"):
        compare(methods, Question(parse_margins(["dice"]), declared=("tumor",)))


def test_groups_are_described_and_compared():
    sites = {f"c{c}": "north" if c < 40 else "south" for c in range(240)}
    question = Question(parse_margins(["dice"]), cases=CaseTable(None, {"site": sites}))
    found = compare([method("a", 0), method("b", 0.03)], question).metrics[0]
    by_group = {(row.grouping, row.group): row for row in found.rows}
    assert by_group["site", "north"].n_cases == 40
    assert not by_group["site", "south"].is_declared
    described = {(d.method, d.group): d for d in found.descriptions}
    total = described["a", "north"].mean * 40 + described["a", "south"].mean * 200
    assert described["a", ""].mean == pytest.approx(total / 240)


def test_the_record_comes_back_from_its_file_and_text_is_narrow(tmp_path):
    labels = ("a structure with a very long name indeed", "b")
    methods = [method(name * 30, gain, labels=labels, n_seeds=2) for name, gain in (("x", 0), ("y", 0.01), ("z", -0.2))]
    sites = {f"c{c}": f"site {c % 3}" for c in range(240)}
    question = Question(parse_margins(["dice"]), cases=CaseTable(None, {"hospital": sites}))
    found = compare(methods, question)
    save(found, tmp_path)
    assert Comparison.load(tmp_path / "comparison.json") == found
    lines = comparison_text(found).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert (tmp_path / "comparison.txt").read_text("utf-8").splitlines() == lines
    with (tmp_path / "comparisons.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.metrics[0].rows)
    assert float(rows[0]["models_p_value"]) == found.metrics[0].rows[0].models.p_value


def test_the_same_question_has_the_same_answer():
    methods = [method("a", 0), method("b", 0.01)]
    assert compare(methods, Question(parse_margins(["dice"]))) == compare(methods, Question(parse_margins(["dice"])))


def test_a_missed_structure_counts_against_its_method():
    first, second = method("a", 0), method("b", 0)
    missed = [replace(row, value=0.0, status="missed", n_prediction_vox=0) for row in second.table.rows[:10]]
    worse = Method("b", ScoreTable((*missed, *second.table.rows[10:])))
    assert only_row([first, worse]).difference < only_row([first, second]).difference
    assert only_row([first, worse], policy="omit").n_left_out == 10


def test_models_of_folds_are_no_seeds():
    def scored_by_every_fold(one):
        rows = [replace(row, fold=fold) for row in one.table.rows for fold in range(3)]
        return Method(one.name, ScoreTable(tuple(rows)))

    row = only_row([scored_by_every_fold(method("a", 0)), scored_by_every_fold(method("b", 0.03))])
    assert (row.models.answer, row.methods) == ("better", None)


def test_means_are_over_the_pairs_alone():
    first, second = method("a", 0), method("b", 0.03)
    missed = [replace(row, value=0.0, status="missed", n_prediction_vox=0) for row in second.table.rows[:30]]
    row = only_row([first, Method("b", ScoreTable((*missed, *second.table.rows[30:])))], policy="omit")
    assert row.mean_baseline == pytest.approx(np.mean([r.value for r in first.table.rows[30:]]))


def test_where_nothing_is_left_nothing_is_said():
    first = method("a", 0)
    gone = [replace(row, run="b", value=0.0, status="missed", n_prediction_vox=0) for row in first.table.rows]
    row = only_row([first, Method("b", ScoreTable(tuple(gone)))], policy="omit")
    assert (row.n_cases, row.difference, row.models.p_value, row.models.answer) == (0, None, None, "cannot tell")


def test_margins():
    assert parse_margins(["dice", "hd95=1.5"]) == {"dice": 0.005, "hd95": 1.5}
    for text, message in (
        ("hd95", "hd95: the largest difference that counts as none is needed, in mm"),
        ("dise", "metric 'dise' is unknown. Did you mean 'dice'"),
        ("dice=-1", "no margin"),
        ("dice=x", "no margin"),
        ("dice=", "no margin"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_margins([text])


def test_worst_losses():
    assert parse_losses(["dice=0.3", "hd95=50"]) == {"dice": 0.3, "hd95": 50}
    with pytest.raises(UsageError, match=r"metric 'dise' is unknown\. Did you mean 'dice'"):
        parse_losses(["dise=1"])
    for text in ("dice", "dice=", "dice=-1", "dice=x", "dice=inf"):
        with pytest.raises(UsageError, match="expected a positive number"):
            parse_losses([text])


def test_a_distance_may_lose_the_diagonal_of_an_image():
    """Failures in 5 % of 60 patients cost up to 15 mm of a diagonal of 300 mm, or 2.5 mm if one costs 50 mm."""

    def of_distances(name, gain):
        dice = method(name, 0, n_cases=120).table.rows
        rows = [replace(row, metric="hd95", unit="mm", value=5 + gain + 0.5 * row.value) for row in dice]
        images = [replace(row, label="(image)", metric="image_diagonal", unit="mm", value=300.0) for row in rows]
        return Method(name, ScoreTable((*rows, *images)))

    pair = [of_distances("a", 0), of_distances("b", 3)]
    rows = [
        compare(pair, Question({"hd95": 1.0}, worst_losses=losses)).metrics[0].rows[0].models.answer
        for losses in ({}, {"hd95": 50.0})
    ]
    assert rows == ["cannot tell", "worse"]


def test_a_table_of_cases(tmp_path):
    file = tmp_path / "cases.csv"
    file.write_text("case_id,patient_id,site\nx,p,1\ny,,2\n")
    found = read_cases(file, ["site"])
    assert found == CaseTable({"x": "p", "y": "y"}, {"site": {"x": "1", "y": "2"}})
    with pytest.raises(UsageError, match=r"no column 'sit'\. Did you mean 'site'"):
        read_cases(file, ["sit"])
    for text, message in (
        ("case,site\nx,1\n", "expected case_id"),
        ("case_id,site\nx,1\nx,2\n", "1 case occurs twice, e.g. x"),
        ("case_id,site\nx\n", "as many cells"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_cases(file, [])


def test_the_command(tmp_path, capsys):
    for one in (method("old", 0), method("new", 0.03)):
        one.table.save(tmp_path / one.name / "scores.csv")
    paths = [str(tmp_path / name) for name in ("old", "new")]
    assert run(["compare", *paths, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "The trained models of new are better than those of old" in printed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "comparison.json",
        "comparison.txt",
        "comparisons.csv",
        "index.html",
    ]
    assert run(["compare", *paths, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"][0]["rows"][0]["models"]["answer"] == "better"
    assert run(["compare", paths[0]]) == 2
    assert "expected two or more" in capsys.readouterr().err
    assert run(["compare", paths[0], str(tmp_path / "none")]) == 3
    assert run(["compare", *paths, "--by", "site"]) == 2
    assert run(["compare", *paths, "--policy", "best"]) == 2


@pytest.mark.parametrize("task", ["Dataset004_Hippocampus", "Dataset003_Liver"])
def test_published_cross_validations(task):
    file = PUBLISHED_CV / task / "cv_dice.csv"
    if not file.is_file():
        pytest.skip(f"no {file.name} in {file.parent} (SEGPIPE_SHARED names another folder)")
    found = compare(read_methods([Source(file)]), Question(parse_margins(["dice"]))).metrics[0]
    assert found.n_folds == 5
    with file.open() as text:
        rows = [row for row in csv.DictReader(text) if row["method"] == "default"]
    by_label = {label: [r for r in rows if r["label"] == label] for label in ("1", "2")}
    means = []
    for of in by_label.values():  # both masks empty: the policy says 1
        means.append(np.mean([1.0 if r["dice"] == "nan" else float(r["dice"]) for r in of]))
    description = next(d for d in found.descriptions if d.method == "default" and d.label == "(mean)")
    assert description.mean == pytest.approx(np.mean(means))


@pytest.mark.slow
def test_many_cases_and_labels_take_seconds():
    methods = [
        method(name, gain, n_cases=1000, labels=tuple(map(str, range(20))))
        for name, gain in zip("ab", (0, 0.01), strict=True)
    ]
    import time

    started = time.process_time()
    compare(methods, Question(parse_margins(["dice"])))
    assert time.process_time() - started < 20
