"""Intervals of means, resampling patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from segpipe.evaluate.intervals import mean_with_interval, means_with_intervals, median_interval, rate_interval


def test_a_plain_bootstrap_t_agrees_where_every_case_is_a_patient():
    n = 30
    values = np.random.default_rng(3).exponential(size=n)
    random = np.random.default_rng(1)
    drawn = values[random.integers(n, size=(20000, n))]
    errors = np.maximum(drawn.std(axis=1, ddof=1), values.std(ddof=1) / np.sqrt(n)) / np.sqrt(n)
    level = stats.norm.cdf(-1.959964 * np.sqrt(n / (n - 1)))
    lowest, highest = np.quantile((drawn.mean(axis=1) - values.mean()) / errors, [level, 1 - level])
    error = values.std(ddof=1) / np.sqrt(n)
    low, high = values.mean() - highest * error, values.mean() - lowest * error
    ours = mean_with_interval(values[:, None], np.arange(n))
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(low, abs=0.03 * (high - low))  # of the width, from resampling
    assert ours.high == pytest.approx(high, abs=0.03 * (high - low))


@settings(max_examples=30, deadline=None)
@given(
    arrays(float, st.tuples(st.integers(5, 12), st.integers(1, 3)), elements=st.sampled_from([0, 0.3, 0.5, 1, np.nan])),
    st.integers(1, 2),
)
def test_an_interval_holds_its_mean_and_stays_within_the_limits(values, n_cases_of_patient):
    patients = np.arange(len(values)) // n_cases_of_patient
    for found in means_with_intervals(values, patients, limits=(0.0, 1.0)):
        if found.low is not None:
            assert 0 <= found.low <= found.mean + 1e-12
            assert found.mean - 1e-12 <= found.high <= 1


def test_one_failure_of_twenty_leaves_room_for_more():
    values = np.append(np.ones(19), 0.0)[:, None]
    found = mean_with_interval(values, np.arange(20), limits=(0.0, 1.0))
    # 1 of 20 failed: the rate may be 25 % (Clopper and Pearson), so that the mean may be 0.75
    assert found.low == pytest.approx(0.75, abs=0.05)
    assert found.note == "one patient moves the mean by more than 15 % of the interval"


def test_rate_intervals_by_hand():
    # none of 10: (1 - p)^10 = 0.025 at p = 0.3085; all of 10 is its mirror image; without patients nothing is known
    assert rate_interval(0, 10) == (0.0, pytest.approx(0.3085, abs=1e-4))
    assert rate_interval(10, 10) == (pytest.approx(0.6915, abs=1e-4), 1.0)
    assert rate_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("n_patients", [5, 13, 60, 200])
def test_rate_intervals_cover_95_percent_at_every_rate(n_patients):
    numbers = np.arange(n_patients + 1)
    limits = np.array([rate_interval(k, n_patients) for k in numbers])
    for rate in (0.01, 0.03, 0.05, 0.1, 0.2):
        held = (limits[:, 0] <= rate) & (rate <= limits[:, 1])
        assert stats.binom.pmf(numbers, n_patients, rate)[held].sum() >= 0.95  # exact, no simulation


def test_median_intervals_by_hand():
    assert median_interval(np.arange(5.0), np.arange(5)) is None  # min to max covers 1 - 2 / 2^5 = 0.9375
    assert median_interval(np.arange(6.0), np.arange(6)) == (0.0, 5.0)  # 1 - 2 / 2^6 = 0.969
    # 20 patients: P(X <= 5) = 0.0207 of Binomial(20, 1/2), so that ranks 6 and 15 are the limits
    assert median_interval(np.arange(20.0), np.arange(20)) == (5.0, 14.0)
    twice = median_interval(np.repeat(np.arange(20.0), 2), np.repeat(np.arange(20), 2))
    assert twice == (5.0, 14.0)  # scans that repeat each other add nothing


def test_mean_is_over_cases_then_over_labels():
    values = np.array([[1.0, np.nan], [0.0, np.nan], [0.5, 0.9]])
    # (1 + 0 + 0.5) / 3 = 0.5 and 0.9, of which the mean is 0.7
    assert mean_with_interval(values, np.arange(3)).mean == pytest.approx(0.7)


def test_repeating_every_case_of_a_patient_adds_no_certainty():
    values = np.random.default_rng(0).random((20, 2))
    once = mean_with_interval(values, np.arange(20))
    thrice = mean_with_interval(np.repeat(values, 3, axis=0), np.repeat(np.arange(20), 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    as_patients = mean_with_interval(np.repeat(values, 3, axis=0), np.arange(60))
    assert as_patients.high - as_patients.low < 0.7 * (once.high - once.low)  # 1/sqrt(3) of the width


def test_the_interval_is_a_function_of_the_seed():
    values, patients = np.random.default_rng(0).random((15, 1)), np.arange(15)
    assert mean_with_interval(values, patients, 1) == mean_with_interval(values, patients, 1)
    assert mean_with_interval(values, patients, 1) != mean_with_interval(values, patients, 2)


def test_nothing_to_resample():
    equal = mean_with_interval(np.full((9, 2), 0.1 + 0.2), np.arange(9))
    assert (equal.low, equal.high, equal.note) == (None, None, "all patients equal: no interval")
    none = mean_with_interval(np.full((3, 2), np.nan), np.arange(3))
    assert np.isnan(none.mean)
    assert none.note == "no case counts"


def test_below_five_patients_there_are_points_only():
    one = mean_with_interval(np.array([[0.2], [0.4]]), np.array([5, 5]))
    assert (one.mean, one.low, one.note) == (pytest.approx(0.3), None, "1 patient: too few for an interval of the mean")
    four = mean_with_interval(np.array([[0.0], [1.0], [0.5], [0.7]]), np.arange(4))
    assert (four.low, four.high, four.note) == (None, None, "4 patients: too few for an interval of the mean")
    five = mean_with_interval(np.array([[0.2], [1.0], [0.5], [0.7], [0.6]]), np.arange(5))
    assert five.low is not None


def test_intervals_of_labels_are_those_of_each_label_alone():
    values = np.random.default_rng(5).random((30, 3))
    values[::4, 1] = np.nan  # this label has fewer patients, who alone are resampled for it
    patients = np.repeat(np.arange(15), 2)
    found = means_with_intervals(values, patients, 3)
    for label in range(3):
        alone = mean_with_interval(values[:, [label]], patients, 3)
        assert (found[label].low, found[label].high) == pytest.approx((alone.low, alone.high))
    assert found[-1].mean == pytest.approx(np.nanmean(values, axis=0).mean())


def test_a_label_of_one_patient_lets_the_others_have_their_interval():
    values = np.random.default_rng(5).random((30, 2))
    values[1:, 1] = np.nan
    first, second, mean = means_with_intervals(values, np.arange(30))
    assert first.low is not None
    assert second.note == "1 patient: too few for an interval of the mean"
    assert mean.low is not None
