"""The search among near rows finds what a distance map finds, or says that it did not look far enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from segpipe.evaluate.surfaces.distance_loops import UNKNOWN, near_squares, rows_near
from segpipe.evaluate.surfaces.packed_masks import FIRST, mask_bits, places_of


def bits_of(mask):
    whole = np.zeros(3, np.int64), np.array(mask.shape)
    return mask_bits(mask.view(np.uint8), np.array([1], np.uint8), *whole, np.zeros(3, bool))


def places_in(mask):
    bits = bits_of(mask)
    return places_of(bits, np.zeros_like(bits), int(mask.sum()))


def squares_between(starts, target, spacing):
    return near_squares(places_in(starts), bits_of(target), *rows_near(spacing, 0.0), np.array(spacing))


def test_by_hand():
    starts, target = np.zeros((2, 5, 6, 90), bool)
    starts[1, 1, 80] = starts[4, 5, 3] = target[1, 1, 60] = target[2, 5, 3] = True
    # 20 steps of 0.5 mm within a row, across the end of a word; two steps of 3 mm
    assert squares_between(starts, target, (3.0, 2.0, 0.5)).tolist() == [100.0, 36.0]


def test_what_is_too_far_is_unknown():
    starts, target = np.zeros((2, 3, 3, 200), bool)
    starts[1, 1, 0] = target[1, 1, 199] = True
    assert squares_between(starts, target, (1.0, 1.0, 1.0)).tolist() == [UNKNOWN]


def test_bits_are_where_the_docstring_says():
    mask = np.zeros((3, 4, 70), bool)
    mask[2, 3, 69] = mask[0, 0, 0] = True
    assert places_in(mask).tolist() == [[1, 1, FIRST], [3, 4, FIRST + 69]]


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1.0, 1.0, 1.0), (5.0, 0.5, 0.5), (0.3, 4.0, 1.0), (1.0, 1.0, 0.05), (1.0, 1.0, 30.0)]),
    st.sampled_from([0.0005, 0.02, 0.3]),
)
def test_a_distance_map_agrees(seed, spacing, density):
    random = np.random.default_rng(seed)
    shape = (*random.integers(1, 40, 2), random.integers(1, 200))
    starts, target = random.random((2, *shape)) < density
    target.flat[random.integers(target.size)] = True
    found = np.sqrt(squares_between(starts, target, spacing))
    expected = distance_transform_edt(~target, sampling=spacing)[starts]
    known = np.isfinite(found)
    assert found[known] == pytest.approx(expected[known], abs=1e-12)
    limit_mm = np.sqrt(rows_near(spacing, 0.0)[2])
    assert (expected[~known] >= limit_mm * (1 - 1e-9)).all()
