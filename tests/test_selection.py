"""Nested choices: by hand, on noise, at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segpipe.compare.nested_selection import Candidates, NestedChoice, choose, score_by_columns, select


def candidates(values, folds, sign=1):
    values = np.array(values, float)
    return Candidates(values, np.array(folds), np.arange(len(folds)), sign)


def selected(found):
    return select(found, score_by_columns(found))


def test_each_fold_is_scored_with_what_the_others_chose():
    # two models, no steps, four cases of one label in two folds
    first, second = [0.9, 0.9, 0.1, 0.1], [0.5, 0.5, 0.7, 0.7]
    found = candidates([[[[v] for v in first]], [[[v] for v in second]]], [0, 0, 1, 1])
    result = selected(found)
    assert result.chosen == NestedChoice(1, (0,)) and result.naive.mean == pytest.approx(0.6)  # 2.4 / 4 against 2.0 / 4
    # without fold 0 the second is best (0.7 against 0.1), it has 0.5 there; without fold 1 the first, 0.1 there
    assert result.without_fold == {0: NestedChoice(1, (0,)), 1: NestedChoice(0, (0,))}
    assert result.nested.mean == pytest.approx((0.5 + 0.5 + 0.1 + 0.1) / 4)


def test_steps_are_chosen_for_each_label_and_the_model_without_them():
    raw, changed = [[0.5, 0.5], [0.5, 0.5]], [[0.6, 0.4], [0.6, 0.4]]
    other = [[0.49, 0.49]] * 2
    found = candidates([[raw, changed], [other, [[1.0, 1.0]] * 2]], [0, 1])
    assert choose(found, np.array([True, True])) == NestedChoice(0, (1, 0))
    assert selected(found).naive.mean == pytest.approx((0.6 + 0.5) / 2)


def test_less_is_better_for_distances():
    found = candidates([[[[3.0], [3.0]]], [[[2.0], [2.0]]]], [0, 1], sign=-1)
    assert selected(found).chosen.model == 1


def test_of_equal_candidates_the_first_is_taken():
    first, second = [[0.3], [0.3]], [[0.1 + 0.2], [0.3]]  # 0.1 + 0.2 is 0.30000000000000004
    assert selected(candidates([[first, second], [second, second]], [0, 1])).chosen == NestedChoice(0, (0,))


def test_labels_without_a_case_keep_the_first_step_and_one_fold_is_refused():
    nan = np.nan
    found = candidates([[[[0.5, nan], [0.5, nan]], [[0.6, nan], [0.6, nan]]]], [0, 1])
    assert selected(found).chosen == NestedChoice(0, (1, 0))
    with pytest.raises(ValueError, match="1 fold"):
        selected(candidates([[[[0.5], [0.5]]]], [3, 3]))


def test_a_model_that_counts_nowhere_is_not_chosen():
    found = candidates([[[[np.nan], [np.nan]]], [[[0.1], [0.1]]]], [0, 1])
    assert selected(found).chosen.model == 1


def test_on_noise_the_naive_number_is_too_good_and_the_nested_one_is_not():
    random = np.random.default_rng(0)
    naive, nested = [], []
    for _ in range(60):  # 20 models that are all worth 0.5
        found = candidates(random.normal(0.5, 0.1, (20, 1, 50, 1)), np.arange(50) % 5)
        result = selected(found)
        naive.append(result.naive.mean)
        nested.append(result.nested.mean)
    error = 0.1 / np.sqrt(50 * 60)  # of the mean of all; 0.0018
    assert np.mean(naive) > 0.5 + 10 * error  # expected maximum of 20 means: 0.5 + 1.87 × 0.014
    assert abs(np.mean(nested) - 0.5) < 5 * error


shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 6), st.integers(1, 2))
scores = shapes.flatmap(lambda shape: arrays(float, shape, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, np.nan])))


@given(scores)
def test_a_choice_without_a_fold_does_not_depend_on_the_fold(values):
    folds = np.arange(values.shape[2]) % 2
    changed = values.copy()
    changed[:, :, folds == 0] = np.random.default_rng(0).random(changed[:, :, folds == 0].shape)
    first, second = (selected(candidates(of, folds)) for of in (values, changed))
    assert first.without_fold[0] == second.without_fold[0]


@given(scores)
def test_the_naive_mean_of_a_label_is_the_best_there_is(values):
    found = candidates(values, np.arange(values.shape[2]) % 2)
    every = np.ones(values.shape[2], bool)
    choice = choose(found, every)
    for label, step in enumerate(choice.steps):
        of_steps = values[choice.model, :, :, label]
        means = [np.mean(row[~np.isnan(row)]) if (~np.isnan(row)).any() else -1 for row in of_steps]
        assert means[step] == pytest.approx(max(means))
