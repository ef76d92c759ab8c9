"""Intervals of means, resampling patients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from segpipe.evaluate.intervals import ENOUGH_PATIENTS, mean_with_interval, means_with_intervals


@pytest.mark.parametrize("n_patients", [12, 60])
def test_scipy_agrees_where_every_case_is_a_patient(n_patients):
    values = np.random.default_rng(3).exponential(size=n_patients)  # skewed, so that the acceleration counts
    ours = mean_with_interval(values[:, None], np.arange(n_patients))
    theirs = stats.bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(1)).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * np.ptp(theirs))  # of the width, from resampling
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * np.ptp(theirs))
    assert bool(ours.note) == (n_patients < ENOUGH_PATIENTS)


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
    one = mean_with_interval(np.array([[0.2], [0.4]]), np.array([5, 5]))
    assert (one.mean, one.low, one.note) == (pytest.approx(0.3), None, "one patient: no interval")
    equal = mean_with_interval(np.full((9, 2), 0.1 + 0.2), np.arange(9))
    assert (equal.low, equal.high, equal.note) == (None, None, "all patients equal: no interval")
    none = mean_with_interval(np.full((3, 2), np.nan), np.arange(3))
    assert np.isnan(none.mean)
    assert none.note == "no case counts"


def test_two_patients():
    both = mean_with_interval(np.array([[0.0], [1.0]]), np.arange(2))
    assert (both.low, both.mean, both.high) == (0.0, 0.5, 1.0)
    assert both.note == "2 patients are too few for an interval that covers 95 %"


def test_intervals_of_labels_are_those_of_each_label_alone():
    values = np.random.default_rng(5).random((30, 3))
    values[::4, 1] = np.nan  # this label has fewer patients, who alone are resampled for it
    patients = np.repeat(np.arange(15), 2)
    found = means_with_intervals(values, patients, 3)
    for label in range(3):
        assert found[label] == mean_with_interval(values[:, [label]], patients, 3)
    assert found[-1].mean == pytest.approx(np.nanmean(values, axis=0).mean())


def test_a_label_of_one_patient_lets_the_others_have_their_interval():
    values = np.random.default_rng(5).random((30, 2))
    values[1:, 1] = np.nan
    first, second, mean = means_with_intervals(values, np.arange(30))
    assert first.low is not None
    assert second.note == "one patient: no interval"
    assert mean.low is not None
