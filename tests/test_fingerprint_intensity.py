"""fingerprint/labels.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segpipe.fingerprint.labels import count_voxels, pool

FRACTIONS = (0.005, 0.5, 0.995)
METHOD = "averaged_inverted_cdf"  # of numpy's nine, the one that repeating every voxel does not change
floats = st.floats(-(2.0**100), 2.0**100, width=32)


def voxels(*values) -> np.ndarray:
    return np.array(values, np.float32)


def test_two_cases_count_the_same_by_hand():
    small, large = count_voxels(voxels(0, 10)), count_voxels(np.full(1000, 20, np.float32))
    seen = pool([small, large])
    assert seen.mean == 12.5  # (5 + 20) / 2
    assert seen.std == pytest.approx(68.75**0.5)  # mean of squares (50 + 400) / 2 - 12.5²
    assert (seen.min, seen.max) == (0.0, 20.0)
    assert (seen.percentile_00_5, seen.percentile_99_5) == (0.0, 20.0)
    assert seen.median == 15.0  # a quarter of the weight is at 0, one at 10, half at 20


def test_a_constant_image_by_hand():
    seen = pool([count_voxels(np.full((2, 3), 7.5, np.float32))])
    assert (seen.mean, seen.std, seen.min, seen.median, seen.max) == (7.5, 0.0, 7.5, 7.5, 7.5)
    assert seen.histogram is not None and (seen.histogram.low, seen.histogram.high) == (7.5, 7.5)
    assert seen.histogram.shares[0] == 1 == sum(seen.histogram.shares)
    assert seen.histogram.share_below == seen.histogram.share_above == 0


def test_the_case_with_the_least_contrast_is_known_by_hand():
    one, other = count_voxels(voxels(0, 10)), count_voxels(voxels(1000, 3000))
    assert pool([one, other]).least_range == 10 and pool([other]).least_range == 2000


def test_the_histogram_by_hand():
    seen = pool([count_voxels(np.arange(1001, dtype=np.float32))])  # 0.005 of 1001 is 5.005
    picture = seen.histogram
    assert picture is not None and len(picture.shares) == 64
    assert (picture.low, picture.high) == (5.0, 995.0)
    assert picture.share_below == pytest.approx(5 / 1001) == picture.share_above
    assert sum(picture.shares) == pytest.approx(991 / 1001)
    assert picture.shares[0] == pytest.approx(16 / 1001)  # 5 to 20, below 5 + 990 / 64 = 20.5


def test_whole_numbers_to_4096_are_exact():
    values = np.arange(-4096, 4097, dtype=np.float32)
    counted = count_voxels(np.repeat(values, 3))
    assert counted.keys.size == 8193 and (counted.counts == 3).all()
    seen = pool([count_voxels(np.repeat(voxels(-4096, -4095, 4095, 4096), 1001))])
    assert (seen.percentile_00_5, seen.median, seen.percentile_99_5) == (-4096.0, 0.0, 4096.0)


@given(arrays.arrays(np.float32, st.integers(1, 200), elements=floats))
def test_moments_are_exact_and_quantiles_numpys_to_the_width_of_a_bin(values):
    seen = pool([count_voxels(values)])
    exact = values.astype(np.float64)
    assert seen.mean == pytest.approx(exact.mean(), rel=1e-9, abs=1e-300)
    assert seen.std == pytest.approx(exact.std(), rel=1e-9, abs=np.abs(exact).max() * 1e-14)
    assert (seen.min, seen.max) == (exact.min(), exact.max())
    for found, expected in zip(
        (seen.percentile_00_5, seen.median, seen.percentile_99_5),
        np.quantile(exact, FRACTIONS, method=METHOD),
        strict=True,
    ):
        # between two values the error of either may show; 1e-40 is below the smallest normal float32
        assert abs(found - expected) <= 2.0**-12 * np.abs(exact).max() + 1e-40


@given(st.lists(arrays.arrays(np.float32, 50, elements=st.integers(-300, 300)), min_size=1, max_size=4))
def test_for_cases_of_equal_size_quantiles_are_numpys_of_all_voxels(cases):
    seen = pool([count_voxels(case) for case in cases])
    expected = np.quantile(np.concatenate(cases), FRACTIONS, method=METHOD)
    assert (seen.percentile_00_5, seen.median, seen.percentile_99_5) == pytest.approx(tuple(expected), abs=1e-6)


@given(arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)), st.integers(2, 5))
def test_a_case_that_stands_several_times_changes_neither_mean_nor_sd(values, n_times):
    once, often = pool([count_voxels(values)]), pool([count_voxels(values)] * n_times)
    assert often.mean == pytest.approx(once.mean, rel=1e-12) and often.std == pytest.approx(once.std, rel=1e-9)


def test_relative_error_stays_below_a_twentieth_of_a_percent():
    values = np.random.default_rng(0).lognormal(3, 4, 20_001).astype(np.float32)
    seen = pool([count_voxels(values)])
    expected = np.quantile(values.astype(np.float64), FRACTIONS, method=METHOD)
    assert (seen.percentile_00_5, seen.median, seen.percentile_99_5) == pytest.approx(tuple(expected), rel=3e-4)


def test_what_a_case_leaves_behind_does_not_grow_with_its_voxels():
    rng = np.random.default_rng(0)
    n_bins = [count_voxels(rng.normal(1000, 200, n).astype(np.float32)).keys.size for n in (100_000, 3_000_000)]
    assert max(n_bins) < 25_000  # 12 octaves of 2048 bins would hold everything from 0.5 to 2000


def test_the_largest_numbers_have_a_bin():
    top = float(np.finfo(np.float32).max)
    seen = pool([count_voxels(voxels(-top, 0, top))])
    assert (seen.percentile_00_5 < 0, seen.median, seen.max) == (True, 0.0, top)
