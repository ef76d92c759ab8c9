"""Differences of two methods, and what is sure about them for these trained models."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.weightstats import ttost_paired

from segpipe.compare.paired import Estimate, Paired, effect_of, model_estimate, wilcoxon_p_values

NAN = np.nan


def paired(differences, patients=None):
    differences = np.array(differences, float)
    columns = differences[:, None] if differences.ndim == 1 else differences
    return Paired(columns, np.arange(len(columns)) if patients is None else np.array(patients))


def test_means_are_over_cases_then_over_labels():
    found = paired([[0.1, NAN], [0.3, 0.4], [0.2, NAN]])
    assert found.n_cases.tolist() == [3, 1, 3]
    assert found.estimates == pytest.approx([0.2, 0.4, 0.3])
    assert found.by_patient.sum(axis=0) == pytest.approx(found.estimates)
    assert found.influences.sum(axis=0) == pytest.approx([0, 0, 0], abs=1e-15)
    # patients' own means: of the second (0.3 + 0.4) / 2
    assert found.patient_means[:, 2] == pytest.approx([0.1, 0.35, 0.2])


def test_methods_that_are_equal_in_a_label_still_count_it():
    assert paired([[0.0, 0.2], [0.0, 0.4]]).estimates == pytest.approx([0, 0.3, 0.15])


def test_a_label_without_pairs_is_undefined_and_leaves_the_mean_alone():
    found = paired([[0.1, NAN], [0.3, NAN]])
    assert np.isnan(found.estimates[1])
    assert found.estimates[2] == pytest.approx(0.2)
    assert np.isnan(model_estimate(found).p_values[1])


def test_the_t_test_where_every_case_is_a_patient():
    differences = np.random.default_rng(0).normal(0.2, 1, 40)
    found = model_estimate(paired(differences))
    theirs = stats.ttest_1samp(differences, 0)
    assert found.p_values[0] == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval()
    assert (found.value - found.half_widths)[0] == pytest.approx(low)
    assert (found.value + found.half_widths)[0] == pytest.approx(high)


def test_the_variance_is_that_of_clustered_least_squares():
    random = np.random.default_rng(1)
    patients = np.sort(random.integers(0, 25, 60))
    differences = random.normal(0, 1, 60) + random.normal(0, 1, 25)[patients]
    names = np.unique(patients, return_inverse=True)[1]
    theirs = OLS(differences, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": names, "df_correction": True})
    # theirs has also (n - 1) / (n - k), which is 1 for a mean
    assert model_estimate(paired(differences, names)).variance[0] == pytest.approx(theirs.bse[0] ** 2)


def test_equivalence_as_statsmodels_tests_it():
    random = np.random.default_rng(2)
    first = random.normal(0, 1, 30)
    second = first + random.normal(0.05, 0.4, 30)
    theirs = ttost_paired(second, first, -0.3, 0.3)[0]
    assert model_estimate(paired(second - first)).equivalence_p_values(0.3)[0] == pytest.approx(theirs)


def test_detectable_difference_by_hand():
    # standard error 2, many degrees of freedom: (1.960 + 0.842) · 2
    large = Estimate(np.zeros(1), np.array([4.0]), np.array([1e9]))
    assert large.detectable[0] == pytest.approx(5.603, abs=0.001)


def test_without_spread_everything_is_certain():
    found = model_estimate(paired([0.25] * 8))
    assert found.p_values[0] == 0
    assert (found.equivalence_p_values(0.5)[0], found.equivalence_p_values(0.1)[0]) == (0, 1)
    assert model_estimate(paired([0.0] * 8)).p_values[0] == 1
    assert np.isnan(model_estimate(paired([0.1, 0.3], [0, 0])).p_values[0])  # one patient


def test_wilcoxon_is_by_patient():
    # patients' means 1, 2, 3, 4, 5: both tails of 32 patterns
    assert wilcoxon_p_values(paired([1, 2, 3, 4, 4, 6], [0, 1, 2, 3, 4, 4]))[0] == pytest.approx(2 / 32)
    assert wilcoxon_p_values(paired([0.0, 0.0]))[0] == 1
    assert np.isnan(wilcoxon_p_values(paired([NAN, NAN]))[0])
    tied = np.repeat([1.0, -1.0], [40, 20])
    assert wilcoxon_p_values(paired(tied))[0] == pytest.approx(stats.wilcoxon(tied, method="approx").pvalue)


def test_effects_by_hand():
    found = effect_of(np.array([0.5, 0.6, 0.7, NAN]), np.array([0.6, 0.6, 0.6, 0.9]), 1)
    assert found.standardised == pytest.approx(0)  # gains 0.1, 0, -0.1
    assert found.probability_of_improvement == pytest.approx(0.5)  # one up, one equal, one down
    # of 9 pairs 3 are higher (against 0.5), 3 equal, 3 lower
    assert found.cliffs_delta == pytest.approx(0)
    up = effect_of(np.array([1.0, 2.0]), np.array([3.0, 5.0]), 1)
    assert (up.standardised, up.probability_of_improvement, up.cliffs_delta) == (pytest.approx(2.5 / 0.5**0.5), 1, 1)
    down = effect_of(np.array([1.0, 2.0]), np.array([3.0, 5.0]), -1)  # less is better
    assert (down.probability_of_improvement, down.cliffs_delta) == (0, -1)
    assert effect_of(np.array([NAN]), np.array([1.0]), 1) is None
    assert effect_of(np.array([1.0]), np.array([2.0]), 1).standardised is None


def test_wilcoxon_with_ties_is_exact_for_few_patients():
    """Of 128 patterns of signs, 10 are as extreme as the observed ranks; the normal approximation says 0.046."""
    tied = [0.03, 0.03, -0.01, 0.03, 0.01, 0.01, 0.01]
    ranks = stats.rankdata(np.abs(tied))
    observed = abs(np.sum(np.sign(tied) * ranks))
    extreme = [abs(np.dot(signs, ranks)) >= observed for signs in product((-1, 1), repeat=7)]
    assert wilcoxon_p_values(paired(tied))[0] == pytest.approx(np.mean(extreme)) == 0.078125
    unlike_on_paper = np.array([0.85, 0.53, 0.61]) - [0.82, 0.50, 0.64]  # 0.03 but for rounding
    assert wilcoxon_p_values(paired(unlike_on_paper))[0] == wilcoxon_p_values(paired([0.03, 0.03, -0.03]))[0]


def test_a_constant_difference_has_no_spread():
    first = np.array([0.8563, 0.8434, 0.882, 0.8552])
    second = np.round(first + 0.02, 4)  # rounding makes a spread of 1e-17
    assert effect_of(first, second, 1).standardised is None
    found = model_estimate(paired(second - first))
    assert found.variance[0] == 0
    assert np.isnan(found.detectable[0])
