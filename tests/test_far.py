"""The pass over the box gives the distances of a distance map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from segpipe.evaluate.far import NONE, far_distances_mm, nearest_rows, search_along_z, steps_along_x


def test_one_target_by_hand():
    target = np.zeros((4, 5, 6), bool)
    target[1, 1, 1] = True
    queries = np.array([[1, 1, 5], [3, 1, 1], [1, 4, 1], [3, 4, 5]])
    # steps of 4 × 0.5 mm, 2 × 3 mm, 3 × 2 mm, and all of them
    assert far_distances_mm(target, queries, (3.0, 2.0, 0.5)).tolist() == [2.0, 6.0, 6.0, (4 + 36 + 36) ** 0.5]


def test_steps_in_a_row_and_in_a_row_without_target():
    target = np.array([[[False, True, False, False, True], [False] * 5]])
    steps = np.empty(target.shape, np.int16)
    steps_along_x(target, steps)
    assert steps.tolist() == [[[1, 0, 1, 1, 0], [NONE] * 5]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1.0, 1.0, 1.0), (5.0, 0.7, 0.9), (0.4, 3.0, 1.7)]))
def test_agrees_with_a_distance_map(seed, spacing):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 9, 3))
    target = random.random(shape) < random.choice([0.02, 0.2])
    target.flat[random.integers(target.size)] = True
    queries = np.argwhere(random.random(shape) < 0.5)
    expected = distance_transform_edt(~target, sampling=spacing)[tuple(queries.T)]
    steps, rows, squares = np.empty(shape, np.int16), np.empty(shape, np.int16), np.empty(len(queries))
    steps_along_x(target, steps)
    nearest_rows(steps, rows, spacing[1], spacing[2])
    search_along_z(steps, rows, queries, np.array(spacing), squares)
    assert np.sqrt(squares) == pytest.approx(expected, rel=1e-12)
