"""Sign flips by patient and corrections for many tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from statsmodels.stats.multitest import multipletests

from segpipe.compare.permutation import (
    MAX_EXACT_PATIENTS,
    benjamini_hochberg,
    holm,
    sign_flip_p_values,
    sign_flip_tests,
)

RANDOM = np.random.default_rng


def p_of(*differences):
    return sign_flip_p_values(np.array(differences, float)[:, None], RANDOM(0))[0]


def test_few_patients_by_hand():
    assert p_of(1, 2, 3) == 2 / 8  # all + and all -
    assert p_of(1, 2, -3) == 1  # the sum is 0, no pattern is less extreme
    # |sum| is 4; of 8 patterns ±(1,2,3) gives 6, ±(-1,2,3) 4, the others 2 and 0
    assert p_of(-1, 2, 3) == 4 / 8
    assert p_of(5) == 1
    assert p_of(0, 0, 0) == 1


def test_equal_differences_are_ties_in_spite_of_rounding():
    assert p_of(*[0.1] * 6, 0.3 - 0.2) == 2 / 2**7


@pytest.mark.parametrize("n_patients", [12, MAX_EXACT_PATIENTS])
def test_scipy_agrees_where_all_patterns_are_tried(n_patients):
    differences = RANDOM(1).normal(0.3, 1, n_patients)
    theirs = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert p_of(*differences) == pytest.approx(theirs.pvalue)


def test_drawn_patterns_come_near_the_normal_approximation():
    differences = RANDOM(2).normal(0.2, 1, 200)
    z = differences.sum() / np.sqrt((differences**2).sum())
    drawn = sign_flip_p_values(differences[:, None], RANDOM(0), 20_000)[0]
    assert drawn == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.003)


def test_a_drawn_p_is_never_zero_and_a_function_of_the_generator():
    certain = np.ones((30, 2))
    assert sign_flip_p_values(certain, RANDOM(0), 99) == pytest.approx(1 / 100)
    some = RANDOM(3).normal(0.2, 1, (30, 1))
    assert sign_flip_p_values(some, RANDOM(1), 99) == sign_flip_p_values(some, RANDOM(1), 99)


@given(arrays(float, (7, 3), elements=st.integers(-100, 100).map(lambda n: n / 100)), st.integers(-9, 9))
def test_sign_and_unit_of_differences_do_not_matter(differences, exponent):
    once = sign_flip_p_values(differences, RANDOM(0))
    assert np.array_equal(sign_flip_p_values(-differences, RANDOM(0)), once)
    assert np.array_equal(sign_flip_p_values(2.0**exponent * differences, RANDOM(0)), once)


def test_columns_are_tested_by_themselves():
    many = RANDOM(4).normal(0.1, 1, (15, 5))
    assert sign_flip_p_values(many, RANDOM(0)) == pytest.approx([p_of(*column) for column in many.T])


@pytest.mark.parametrize(("correct", "name"), [(holm, "holm"), (benjamini_hochberg, "fdr_bh")])
@given(p_values=arrays(float, st.integers(1, 12), elements=st.floats(0, 1)))
def test_statsmodels_corrects_alike(correct, name, p_values):
    assert correct(p_values) == pytest.approx(multipletests(p_values, method=name)[1])


def test_what_is_no_test_does_not_count():
    # three tests: 0.01·3, 0.02·2, 0.5·1
    assert holm(np.array([0.02, np.nan, 0.01, 0.5])) == pytest.approx([0.04, np.nan, 0.03, 0.5], nan_ok=True)
    assert holm(np.array([])).size == 0


@pytest.mark.parametrize("n_patients", [6, 9, 30])
def test_intervals_and_p_values_do_not_contradict(n_patients):
    """An interval excludes exactly the differences that the test rejects when they are taken away."""
    random = np.random.default_rng(n_patients)
    sizes = random.integers(1, 4, n_patients)[:, None]
    shares = np.repeat(sizes / sizes.sum(), 5, axis=1)
    sums = shares * random.gamma(1, 1, (n_patients, 5)) * [-1, -0.5, 0.2, 0.5, 1]

    def p_value(shift):
        return sign_flip_tests(sums - shift * shares, shares, np.random.default_rng(1), 999)[0]

    p_values, low, high = sign_flip_tests(sums, shares, np.random.default_rng(1), 999)
    assert p_values == pytest.approx(sign_flip_p_values(sums, np.random.default_rng(1), 999))
    assert ((p_values < 0.05) == ((low > 0) | (high < 0))).all()
    for limit, outwards in ((low, -1e-6), (high, 1e-6)):
        assert (p_value(limit - outwards) >= 0.05).all() and (p_value(limit + outwards) < 0.05).all()


def test_five_patients_reject_nothing():
    shares = np.full((5, 1), 0.2)
    _, low, high = sign_flip_tests(shares * 3.0, shares, np.random.default_rng(0))
    assert (low, high) == (-np.inf, np.inf)
