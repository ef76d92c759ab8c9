"""Distances to points that may be far away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from segpipe.evaluate.surfaces.distance_loops import far_squares


def test_by_hand():
    queries = np.array([[1, 1, 5], [3, 1, 1], [3, 4, 5.5]])
    points = np.array([[1.0, 1, 1], [100, 1, 1]])
    # 4 × 0.5 mm; 2 × 3 mm; 2 × 3, 3 × 2 and 4.5 × 0.5 mm
    assert far_squares(queries, points, np.array([3.0, 2, 0.5])).tolist() == [4, 36, 36 + 36 + 2.25**2]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([(1.0, 1.0, 1.0), (5.0, 0.7, 0.9), (0.4, 3.0, 1.7), (20.0, 0.1, 1.0)]))
def test_a_tree_agrees(seed, spacing):
    random = np.random.default_rng(seed)
    n_queries, n_points = random.integers(1, 400, 2)
    spread = random.choice([3, 40, 500], 3)
    queries, points = (random.random((n, 3)) * spread for n in (n_queries, n_points))
    points += random.choice([0, 30, 1000])
    if seed % 2:
        queries, points = np.floor(queries), np.floor(points)
    expected, _ = cKDTree(points * spacing).query(queries * spacing)
    assert np.sqrt(far_squares(queries, points, np.array(spacing))) == pytest.approx(expected, rel=1e-10, abs=1e-10)
