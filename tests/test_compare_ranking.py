"""Ranks and whether a dataset tells methods apart."""

from __future__ import annotations

import numpy as np
import pytest

from segpipe.compare.comparison import rank_methods, suitability

NAMES = ("a", "b", "c")


def ranked(values, sign=1, patients=None):
    values = np.array(values, float)[..., None] if np.ndim(values) == 2 else np.array(values, float)
    patients = np.arange(values.shape[1]) if patients is None else patients
    return rank_methods(values, patients, NAMES[: len(values)], sign, seed=0)


def test_a_method_that_is_always_best_is_always_first():
    means, ranks = ranked([[0.8, 0.7, 0.9], [0.9, 0.8, 0.95], [0.1, 0.2, 0.3]])
    for found in (means, ranks):
        assert found.ranks == (2, 1, 3)
        assert (found.low, found.high) == ((2, 1, 3), (2, 1, 3))
        assert found.first_fraction == (0, 1, 0)
        assert found.kendall_tau == 1
    assert ranked([[0.8, 0.7, 0.9], [0.9, 0.8, 0.95], [0.1, 0.2, 0.3]], sign=-1)[0].ranks == (2, 3, 1)


def test_the_two_orders_by_hand():
    # a is slightly better in two cases and far worse in one: first by ranks, second by means
    means, ranks = ranked([[0.82, 0.72, 0.0], [0.8, 0.7, 0.9]])
    assert (means.order, ranks.order) == ("means first", "ranks first")
    assert means.ranks == (2, 1)
    assert ranks.ranks == (1, 2)


def test_equal_methods_share_their_rank():
    found = ranked([[0.1 + 0.2, 0.5], [0.3, 0.5], [0.2, 0.2]])[0]
    assert found.ranks == (1.5, 1.5, 3)
    assert found.first_fraction == (1, 1, 0)


def test_how_often_a_method_is_first_by_hand():
    # patients' gains of b are -2, 1 and 1.5 (in tenths): of 27 resamples those whose sum is below 0 have a first
    gains = np.array([-0.2, 0.1, 0.15])
    sums = [gains[[i, j, k]].sum() for i in range(3) for j in range(3) for k in range(3)]
    found = ranked([[0.5] * 3, 0.5 + gains])[0]
    assert found.first_fraction[0] == pytest.approx(np.mean(np.round(sums, 9) <= 0), abs=0.015)


def test_cases_of_one_patient_are_drawn_together():
    values = np.array([[0.5] * 6, [0.6, 0.6, 0.6, 0.45, 0.45, 0.45]])
    alone, together = ranked(values)[0], ranked(values, patients=np.array([0, 0, 0, 1, 1, 1]))[0]
    # two patients: in a quarter of resamples both are the second, where a is first
    assert together.first_fraction[0] == pytest.approx(0.25, abs=0.02)
    # six: a is first, or level, with at most two of the first three: (1 + 6 + 15) / 64
    assert alone.first_fraction[0] == pytest.approx(22 / 64, abs=0.02)


def test_what_does_not_count_for_one_method_counts_for_none():
    found = ranked([[0.9, 0.1, np.nan], [0.8, 0.2, 0.9]])[0]
    assert found.ranks == (1.5, 1.5)  # of two cases, both means 0.5
    assert ranked(np.full((2, 3), np.nan)) == ()


def fold_means(table):
    """One case for each fold."""
    return np.array(table, float)[..., None], np.arange(len(table[0]))


def test_suitability_by_hand():
    found = suitability(*fold_means([[0.70, 0.80, 0.90], [0.74, 0.82, 0.96], [0.66, 0.78, 0.84]]))
    # means 0.8, 0.84, 0.76: SD 0.04; within 0.1, sqrt(0.0124), sqrt(0.0084)
    assert found.between_methods == pytest.approx(0.04)
    assert found.within_method == pytest.approx((0.1 + 0.0124**0.5 + 0.0084**0.5) / 3)
    assert found.ratio == pytest.approx(found.between_methods / found.within_method)
    # columns' means 0.7, 0.8, 0.9; what remains: 0, 0, 0 / 0, -0.02, 0.02 / 0, 0.02, -0.02
    assert found.generalisability == pytest.approx(1 - (4 * 0.02**2 / 4) / (3 * 0.04**2))
    assert (found.n_methods, found.n_folds) == (3, 3)


def test_hard_folds_lower_the_ratio_but_not_the_coefficient():
    random = np.random.default_rng(0)
    own = np.array([0, 0.02, 0.04, 0.06])[:, None] + random.normal(0, 0.002, (4, 5))
    hard = random.normal(0, 0.2, 5)
    easy, uneven = suitability(*fold_means(own)), suitability(*fold_means(own + hard))
    assert uneven.ratio < 0.5 < easy.ratio
    assert uneven.generalisability == pytest.approx(easy.generalisability)
    assert easy.generalisability > 0.9


def test_methods_that_do_not_differ():
    random = np.random.default_rng(1)
    many = [suitability(*fold_means(random.normal(0, 1, (6, 5)))).generalisability for _ in range(200)]
    assert np.median(many) < 0.3
    same = suitability(*fold_means([[0.1, 0.2]] * 3))
    assert (same.ratio, same.generalisability) == (0, None)
    assert suitability(*fold_means([[0.1, 0.1], [0.2, 0.2]])).ratio is None


def test_where_there_is_no_suitability():
    assert suitability(*fold_means([[0.1, 0.2]])) is None
    assert suitability(*fold_means([[0.1], [0.2]])) is None
    assert suitability(*fold_means([[0.1, np.nan], [0.2, 0.3]])) is None
