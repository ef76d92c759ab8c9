"""Numbers of patients, and learning curves."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from segpipe.compare.sample_size import (
    fit_curve,
    half_width,
    patients_for_difference,
    patients_for_half_width,
    patients_for_verdict,
    spread_of,
)
from segpipe.core.errors import DataError


def test_variance_components_by_hand():
    # patients {0, 2}, {4, 6}: means 1 and 5, within 2 + 2 squares over 2 = 2... (1+1+1+1)/2; between 2·(4+4)/1 = 16
    found = spread_of(np.array([0.0, 2.0, 4.0, 6.0]), np.array([0, 0, 1, 1]))
    assert found.sd_cases**2 == pytest.approx(2.0)
    assert found.sd_patients**2 == pytest.approx((16 - 2) / 2)
    assert found.icc == pytest.approx(7 / 9)
    assert found.variance(2) == pytest.approx(8.0)  # that of the two means 1 and 5
    alone = spread_of(np.array([1.0, 2.0, np.nan, 3.0]), np.arange(4))
    assert (alone.sd_patients, alone.icc, alone.n_patients) == (pytest.approx(1.0), None, 3)


def test_patients_for_a_half_width_are_the_fewest():
    n = patients_for_half_width(0.01, 0.02)  # about (1.96 · 0.1 / 0.02)² = 96
    assert 96 < n < 102
    assert half_width(0.01, n) <= 0.02 < half_width(0.01, n - 1)
    assert patients_for_half_width(1e-9, 1.0) == 5


@pytest.mark.parametrize(("difference", "power"), [(0.01, 0.8), (0.02, 0.9), (0.005, 0.8)])
def test_statsmodels_agrees_on_the_power(difference, power):
    theirs = TTestPower().solve_power(effect_size=difference / 0.05, alpha=0.05, power=power)
    assert patients_for_difference(0.05**2, difference, power) == int(np.ceil(theirs))


def test_a_verdict_needs_patients_that_exclude_failures():
    assert patients_for_verdict(0.02, 1.0) == 99  # 1 - 0.05^(1/99) is below 3 %
    assert patients_for_verdict(0.2, 1.0) == 14  # 1 - 0.05^(1/14) = 0.193 < 0.2


def test_what_cannot_be_planned_is_said():
    with pytest.raises(DataError, match="1 patient with a score, expected 2 or more"):
        spread_of(np.array([0.5, 0.6]), np.array([3, 3]))
    with pytest.raises(DataError, match="all 3 values are equal"):
        spread_of(np.full(3, 0.5), np.arange(3))
    random = np.random.default_rng(0)
    with pytest.raises(DataError, match="2 sizes of the training set, expected 3"):
        fit_curve([10, 20], np.ones((5, 2)), random)
    with pytest.raises(DataError, match="1 fold, expected 2"):
        fit_curve([10, 20, 40], np.ones((1, 3)), random)


def test_a_curve_without_noise_is_found_again():
    sizes = np.array([20.0, 40.0, 60.0, 80.0])
    exponent = np.geomspace(0.1, 2, 25)[15]  # one that is tried
    errors = np.tile(0.1 + 0.8 * sizes**-exponent, (5, 1))
    curve = fit_curve(sizes, errors, np.random.default_rng(0))
    gain, low, high = curve.gain(80, 80)
    assert gain == pytest.approx(0.8 * (80**-exponent - 160**-exponent), rel=1e-6)
    assert (low, high) == (pytest.approx(gain), pytest.approx(gain))


def test_a_flat_curve_gains_nothing_and_intervals_hold_zero():
    errors = 0.2 + np.random.default_rng(1).normal(0, 0.01, (5, 4))
    gain, low, high = fit_curve([20, 40, 60, 80], errors, np.random.default_rng(0)).gain(80, 20)
    assert low == pytest.approx(0, abs=1e-6)
    assert 0 <= gain <= high < 0.05
