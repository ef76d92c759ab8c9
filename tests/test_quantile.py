"""The weighted percentile by bins finds what sorting finds."""

from __future__ import annotations

from math import inf

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segpipe.evaluate.surfaces.distance_loops import least_reaching


def test_by_hand():
    values, weights = np.array([5.0, 1.0, 3.0]), np.array([1.0, 2.0, 4.0])
    # 1 mm reaches a weight of 2, 3 mm one of 6, 5 mm all 7
    assert [least_reaching(values, weights, wanted) for wanted in (0.5, 2, 2.5, 6, 6.5, 7, 8)] == [1, 1, 3, 3, 5, 5, 5]


def test_one_value_and_no_bound():
    assert least_reaching(np.full(9, 2.5), np.ones(9), 5.0) == 2.5
    assert least_reaching(np.array([inf]), np.ones(1), 0.95) == inf


def test_values_that_share_a_bin():
    values = np.array([0.0, 1.0, 1.0 + 1e-15, 1.0 + 2e-15, 1e6])
    assert least_reaching(values, np.ones(5), 3.0) == 1.0 + 1e-15


@given(st.integers(0, 10**6), st.floats(0.01, 1.0), st.sampled_from([1e-6, 1.0, 1e5]))
def test_sorting_agrees(seed, fraction, spread):
    random = np.random.default_rng(seed)
    n = random.integers(1, 3000)
    values = random.choice([random.integers(0, 9, n), random.random(n) ** 9]) * spread
    weights = random.integers(1, 5, n).astype(np.float64)  # whole, so that the order of a sum does not matter
    wanted = np.ceil(fraction * weights.sum())
    order = np.argsort(values)
    expected = values[order[np.searchsorted(np.cumsum(weights[order]), wanted)]]
    assert least_reaching(values, weights, wanted) == expected
