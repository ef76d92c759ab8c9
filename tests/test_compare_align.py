"""Scores brought onto the same cases, and why some cannot be."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest

from segpipe.compare.align import align, distinct_trainings
from segpipe.compare.results import Method
from segpipe.core.errors import DataError, UsageError
from segpipe.evaluate.scores import Score, ScoreTable


def score(case="x", value=0.5, *, label="organ", fold=None, seed=None, patient=None, n_vox=10, **other):
    row = Score("", case, patient or case, fold, seed, label, "dice", 0.0, "1", "ok", n_vox, 10)
    return replace(row, **{"value": value, **other})


def method(name, *rows):
    return Method(name, ScoreTable(tuple(replace(row, run=name) for row in rows)))


def aligned(first, second, metric="dice", policy="mr", **options):
    return align([method("a", *first), method("b", *second)], metric, policy, **options)


def test_rows_are_found_in_any_order():
    found = aligned([score("x", 0.1), score("y", 0.2)], [score("y", 0.4), score("x", 0.3)])
    assert (found.methods, found.labels, found.case_ids) == (("a", "b"), ("organ",), ("x", "y"))
    assert found.model_values[..., 0].tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert (found.folds, found.n_seeds, found.n_patients, found.sign, found.notes) == (None, 1, 2, 1, ())


def test_folds_and_seeds():
    def rows(n_seeds):
        return [score(c, s / 10, fold=f, seed=s) for s in range(n_seeds) for c, f in (("x", 0), ("y", 1))]

    found = aligned(rows(2), rows(3))
    assert found.folds.tolist() == [[0, 1]]
    assert found.n_seeds == 2
    assert [len(of) for of in found.values] == [2, 3]
    assert found.model_values[..., 0] == pytest.approx(np.array([[0.05, 0.05], [0.1, 0.1]]))


def test_each_seed_with_its_own_folds():
    rows = [score(c, s / 10, fold=(i + s) % 2, seed=s) for s in range(2) for i, c in enumerate("xy")]
    assert aligned(rows, rows).folds.tolist() == [[0, 1], [1, 0]]
    assert aligned(rows, rows[:2]).folds is None  # the second method has one of the seeds only


def test_other_folds_are_told_and_not_used():
    found = aligned([score(c, fold=i) for i, c in enumerate("xy")], [score(c, fold=1 - i) for i, c in enumerate("xy")])
    assert found.folds is None
    assert "validated in different folds" in found.notes[0]


def test_copies_of_a_training_count_once():
    """A seed that a tool ignores gives the same scores again: they are no second training."""

    def rows(values):
        return [score(c, v + i / 10, seed=s) for s, v in enumerate(values) for i, c in enumerate("xy")]

    found = aligned(rows([0.1, 0.1, 0.1]), rows([0.2, 0.3, 0.2]))
    assert [len(of) for of in found.values] == [1, 2]
    assert found.n_seeds == 1
    assert found.notes == (
        "a: 3 trainings given, 1 counted: the scores of the others are equal in every case, so they are copies and not "
        "other seeds.",
        "b: 3 trainings given, 2 counted: the scores of the others are equal in every case, so they are copies and not "
        "other seeds.",
    )
    of_folds = [score(c, i / 10, fold=f) for f in range(3) for i, c in enumerate("xy")]
    assert [len(of) for of in aligned(of_folds, rows([0.2])).values] == [1, 1]


@pytest.mark.parametrize(
    ("change", "n_distinct"),
    [
        (lambda _, v: round(v, 3), 1),
        (lambda i, v: v if i else None, 1),  # one case fewer
        (lambda i, v: v + 0.002 * (i == 5), 2),
        (lambda i, v: v if i < 5 else None, 2),  # five of twelve tell too little
    ],
)
def test_copies_may_be_rounded_or_lack_cases(change, n_distinct):
    values = np.random.default_rng(0).uniform(0.5, 0.9, 12).tolist()
    rows = [score(f"c{i}", v) for i, v in enumerate(values)]
    again = [score(f"c{i}", new, seed=1) for i, v in enumerate(values) if (new := change(i, v)) is not None]
    methods, _ = distinct_trainings([Method("a", ScoreTable(tuple(rows + again)))])
    assert len({row.seed for row in methods[0].table.rows}) == n_distinct


def test_one_metric_that_is_equal_makes_no_copies():
    rows = [
        score(c, 0.5 if metric == "dice" else 1.0 + s, seed=s, metric=metric, unit="mm" if metric == "hd95" else "1")
        for s in range(2) for c in "xy" for metric in ("dice", "hd95")
    ]  # fmt: skip
    assert [len(of) for of in aligned(rows, [score(c, 0.6) for c in "xy"]).values] == [2, 1]


def test_equal_methods_are_named():
    rows = [score(c, i / 10) for i, c in enumerate("xy")]
    assert aligned(rows, rows).notes == ("a and b have equal scores in every case: are they one result?",)


def test_a_test_set_scored_by_the_models_of_all_folds():
    rows = [score(c, f / 10, fold=f) for c in "xy" for f in range(3)]
    found = aligned(rows, rows)
    assert found.values[0].shape == (3, 2, 1)
    assert found.folds is None
    assert found.n_seeds == 1


def test_the_policy_comes_before_pairing():
    empty = {"status": "both_empty", "value": nan, "n_reference_vox": 0, "n_prediction_vox": 0}
    spurious = {"status": "spurious", "value": 0.0, "n_reference_vox": 0}
    first, second = [score("x"), score("y", **empty)], [score("x"), score("y", **spurious)]
    assert aligned(first, second).model_values[:, 1, 0].tolist() == [1, 0]
    assert np.isnan(aligned(first, second, policy="nnunet").model_values[:, 1, 0]).tolist() == [True, False]
    assert np.isnan(aligned(first, second, policy="omit").model_values[:, 1, 0]).tolist() == [True, True]


def test_differences_count_by_their_size_and_distances_less_is_better():
    rows = [score("x", -3.0, metric="volume_difference", unit="mm3")]
    found = aligned(rows, rows, "volume_difference")
    assert (found.values[0].ravel().tolist(), found.sign) == ([3.0], -1)
    far = [score("x", inf, metric="hd95", unit="mm", status="missed", n_prediction_vox=0)]
    assert aligned(far, far, "hd95", "brats").values[0].ravel().tolist() == [374.0]


def test_patients():
    own, known = [score("x"), score("y")], [score("x", patient="p"), score("y", patient="p")]
    for first, second in ((own, known), (known, own)):
        assert aligned(first, second).patient_ids == ("p", "p")
    assert aligned(own, own, patients={"x": "q", "y": "r"}).patient_ids == ("q", "r")
    with pytest.raises(DataError, match="case x: belongs to patient p and to patient q"):
        aligned(known, [score("x", patient="q"), score("y", patient="p")])
    with pytest.raises(DataError, match="no patient for 1 case: y"):
        aligned(own, own, patients={"x": "q"})


def test_no_common_cases():
    with pytest.raises(DataError, match=r"no case was scored by all methods \(a: x; b: y\)"):
        aligned([score("x")], [score("y")])


def test_missing_cases_are_named_and_left_out_only_if_asked():
    both, one = [score("x"), score("y")], [score("x")]
    with pytest.raises(DataError, match=r"b lacks 1 of 2 cases: y\n.*--allow-missing"):
        aligned(both, one)
    found = aligned(both, one, allow_missing=True)
    assert found.case_ids == ("x",)
    assert "1 of 2 cases not scored by all methods" in found.notes[0]
    with pytest.raises(DataError, match="a, seed 1 lacks 1 of 2 cases: y"):
        aligned([*both, score("x", seed=1)], both)


def test_other_references_are_all_named():
    first, second = [score(c) for c in "xyz"], [score("x"), score("y", n_vox=11), score("z", n_vox=12)]
    with pytest.raises(DataError) as caught:
        aligned(first, second)
    assert "case y, label organ: the reference has 10 voxels for a, 11 for b" in str(caught.value)
    assert "case z" in str(caught.value)
    aligned(first, [replace(row, n_reference_vox=0, n_prediction_vox=0) for row in second])  # a table without counts


def test_other_labels():
    first = [score("x"), score("x", label="tumour")]
    with pytest.raises(DataError, match=r"b: no label tumour in 1 case: x\n.*-l"):
        aligned(first, [score("x")])
    assert aligned(first, [score("x")], labels=("organ",)).labels == ("organ",)
    with pytest.raises(UsageError, match=r"method a: no label 'organs'\. Did you mean 'organ'"):
        aligned(first, first, labels=("organs",))


def test_other_metrics():
    with pytest.raises(UsageError, match=r"method b: no metric 'dice'\..*iou"):
        aligned([score()], [score(metric="iou")])


def test_a_label_that_some_cases_do_not_have():
    rows = [score("x"), score("x", label="tumour"), score("y")]
    found = aligned(rows, rows)
    assert np.isnan(found.model_values[0]).tolist() == [[False, False], [False, True]]


def test_some_of_the_cases():
    rows = [score(c, patient=p, fold=f) for c, p, f in (("x", "p", 0), ("y", "q", 1), ("z", "q", 0))]
    found = aligned(rows, rows).only(np.array([False, True, True]))
    assert (found.case_ids, found.patients.tolist(), found.folds.tolist()) == (("y", "z"), [0, 0], [[1, 0]])
