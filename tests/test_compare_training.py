"""Whether a difference would survive training again; the simulations of benchmarks/simulate_compare.py in small."""

from __future__ import annotations

import runpy
from dataclasses import replace

import numpy as np
import pytest
from published import REPOSITORY
from scipy import stats

from segpipe.compare.paired import Paired, model_estimate
from segpipe.compare.training_variance import fold_differences, method_estimate, nadeau_bengio, posterior

SIMULATED = runpy.run_path(str(REPOSITORY / "benchmarks" / "simulate_compare.py"))
Study, simulate, positives = (SIMULATED[name] for name in ("Study", "simulate", "positives"))


def estimate_of(first, second, folds):
    """Of scores (n_seeds, n_cases)."""
    values = (np.array(first, float)[..., None], np.array(second, float)[..., None])
    paired = Paired(values[1].mean(axis=0) - values[0].mean(axis=0), np.arange(values[0].shape[1]))
    return method_estimate(paired, values, None if folds is None else np.array(folds))


def test_one_seed_tells_nothing_of_methods():
    assert estimate_of([[0.5, 0.6]], [[0.6, 0.8], [0.6, 0.7]], [[0, 1]]) is None


def test_a_test_set_and_two_seeds_by_hand():
    first, second = [[0.5, 0.5], [0.5, 0.5]], [[0.62, 0.72], [0.58, 0.68]]
    found = estimate_of(first, second, None)
    assert found.basis == "seeds"
    assert found.estimate.value[0] == pytest.approx(0.15)
    # patients: differences 0.1, 0.2, SD² 0.005, over 2 patients 0.0025, 1 degree of freedom
    # trainings of the second: means 0.67, 0.63, SD² 0.0008, over 2 seeds 0.0004, 1 degree; the first's do not vary
    assert found.estimate.variance[0] == pytest.approx(0.0029)
    assert found.estimate.df[0] == pytest.approx(0.0029**2 / (0.0025**2 / 1 + 0.0004**2 / 1))


def test_folds_and_seeds_by_hand():
    # two folds of two cases; both methods' seeds agree, so trainings add nothing; fold means 0.1 and 0.3
    first, second = np.full((2, 4), 0.5), np.tile([0.6, 0.6, 0.8, 0.8], (2, 1))
    found = estimate_of(first, second, [[0, 0, 1, 1]])
    assert found.basis == "folds and seeds"
    # variance of fold means 0.02, over 2 folds 0.01; that of cases 0.04/3 over 4 is smaller
    assert found.estimate.variance[0] == pytest.approx(0.01)
    assert found.estimate.df[0] == 1


def test_a_lucky_training_counts():
    """In each fold one of two trainings is far better: the cases agree, the seeds do not."""
    first = np.full((2, 40), 0.5)
    second = np.array([[0.7] * 40, [0.5] * 40])
    folds = np.arange(40)[None] % 5
    found = estimate_of(first, second, folds)
    # each fold: seeds differ by 0.2, SD² 0.02, weight 1/25 each, over 2 seeds: 5 · 0.02/25/2 = 0.002
    assert found.estimate.variance[0] == pytest.approx(0.002)
    assert estimate_of(second, first, folds).estimate.variance[0] == pytest.approx(0.002)
    values = second.mean(axis=0)[:, None] - 0.5
    assert model_estimate(Paired(values, np.arange(40))).variance[0] == pytest.approx(0)


def test_order_of_seeds_and_names_of_folds_do_not_matter():
    scores, folds = simulate(Study(), np.random.default_rng(0))
    first, second = scores[..., 0]
    once = estimate_of(first, second, folds).estimate
    again = estimate_of(first[::-1], second[[1, 2, 0]], 7 - folds).estimate
    assert (again.value[0], again.variance[0]) == (pytest.approx(once.value[0]), pytest.approx(once.variance[0]))


def test_nadeau_bengio_by_hand():
    # five folds, mean 0.03, SD² 0.00025: (1/5 + 1/4) · 0.00025
    folds = np.array([0.01, 0.02, 0.03, 0.04, 0.05]).reshape(1, 5, 1)
    found = nadeau_bengio(folds)
    assert (found.value[0], found.variance[0], found.df[0]) == (pytest.approx(0.03), pytest.approx(1.125e-4), 4)
    assert found.p_values[0] == pytest.approx(2 * stats.t.sf(0.03 / 1.125e-4**0.5, 4))
    # worse, equal, better: t with 4 degrees at (∓0.01 - 0.03) / 0.0106066
    assert posterior(found, 0.01, 1)[:, 0] == pytest.approx([0.009792, 0.056418, 0.933791], abs=1e-6)
    assert posterior(found, 0.01, -1)[::-1, 0] == pytest.approx(posterior(found, 0.01, 1)[:, 0])
    repeated = nadeau_bengio(np.repeat(folds, 2, axis=0))
    assert repeated.variance[0] == pytest.approx((1 / 10 + 1 / 4) * 0.002 / 9)  # sum of squares 0.002, 9 degrees
    assert repeated.df[0] == 9


def test_repeated_cross_validation_takes_each_seeds_own_folds():
    first = np.zeros((2, 4))
    second = np.array([[0.1, 0.1, 0.3, 0.3], [0.1, 0.3, 0.1, 0.3]])
    folds = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    found = estimate_of(first, second, folds)
    assert found.basis == "repeated cross-validation"
    # fold means 0.1, 0.3, 0.1, 0.3: SD² 0.04/3, times 1/4 + 1
    assert found.estimate.variance[0] == pytest.approx(0.04 / 3 * 1.25)
    values = (first[..., None], second[..., None])
    paired = Paired((second - first).mean(axis=0)[:, None], np.arange(4))
    assert fold_differences(paired, values, folds)[..., 0] == pytest.approx(np.array([[0.1, 0.3], [0.1, 0.3]]))


@pytest.mark.slow
@pytest.mark.parametrize("study", [Study(), Study(shared_sd=0.005), Study(training_sd=0.02), Study(n_folds=1)])
@pytest.mark.parametrize("n_seeds", [2, 3])
def test_verdicts_on_methods_keep_their_level(study, n_seeds):
    """At most 6 %; of 200 simulations 12, and two standard errors more."""
    assert positives(replace(study, n_seeds=n_seeds), 200)["method"] <= 0.09


@pytest.mark.slow
def test_tests_of_pooled_cases_do_not_keep_theirs():
    found = positives(Study(n_seeds=1), 400)
    assert found["Wilcoxon"] > 0.09  # 13 % in benchmarks/results/simulate_compare.md
    assert found["permutation"] > 0.09
    assert found["Nadeau-Bengio"] <= 0.05


@pytest.mark.slow
def test_tests_of_pooled_cases_keep_theirs_without_training_noise():
    found = positives(Study(n_seeds=1, training_sd=0), 400)
    assert found["permutation"] == pytest.approx(0.05, abs=0.036)  # four standard errors
