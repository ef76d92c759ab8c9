"""prepare/resample.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from scipy import ndimage

from segpipe.prepare.resample import orders_for, resample, resample_indices

lengths = st.integers(1, 14)
shapes = st.tuples(lengths, lengths, lengths)
orders = st.sampled_from([(1, 1, 1), (0, 1, 1), (1, 1, 0)])


def test_where_three_labels_meet_the_strongest_wins_by_hand():
    # one new voxel in the middle of eight: 5 has 3/8, 1 and 2 have 2/8, 3 has 1/8
    labels = np.array([[[5, 1], [2, 5]], [[1, 3], [5, 2]]], np.int16)
    assert resample_indices(labels, (1, 1, 1), (1, 1, 1)).tolist() == [[[5]]]


def test_of_two_equally_strong_labels_the_nearest_wins_by_hand():
    # three voxels from two: the middle one lies halfway, and halfway the later voxel is the nearest
    assert resample_indices(np.array([[[0, 4]]], np.int16), (1, 1, 3), (1, 1, 1)).tolist() == [[[0, 4, 4]]]
    assert resample_indices(np.array([[[4, -1]]], np.int16), (1, 1, 3), (1, 1, 1)).tolist() == [[[4, -1, -1]]]


def test_if_the_nearest_lost_the_smallest_of_two_equally_strong_labels_wins_by_hand():
    labels = np.array([[[3, 2], [2, 2]], [[1, 1], [1, 3]]], np.int16)  # 1 and 2 have 3/8, and 3, the nearest, 2/8
    assert resample_indices(labels, (1, 1, 1), (1, 1, 1)).tolist() == [[[1]]]


def test_one_label_keeps_half_of_a_stretched_box():
    labels = np.zeros((4, 4, 4), np.int16)
    labels[:, :, 2:] = 7
    result = resample_indices(labels, (4, 4, 8), (1, 1, 1))
    assert (result[..., :4] == 0).all() and (result[..., 4:] == 7).all()


@given(shapes, shapes, orders, st.integers(0, 99))
def test_equals_the_slow_way_with_a_mask_of_each_label(before, after, orders_zyx, seed):
    labels = np.random.default_rng(seed).choice(np.array([0, 2, 5, 300, -1], np.int16), size=before)
    shares = {v: resample((labels == v).astype(np.float32), after, orders_zyx) for v in (300, 5, 2, 0, -1)}
    best, nearest = np.max([*shares.values()], axis=0), resample(labels.astype(np.float32), after, (0, 0, 0))
    expected = np.zeros(after, np.int16)
    for value, share in shares.items():  # the smallest last
        expected[share > best - 1e-5] = value
    for value, share in shares.items():
        expected[(share > best - 1e-5) & (nearest == value)] = value
    assert (resample_indices(labels, after, orders_zyx) == expected).all()


@given(shapes, shapes, st.integers(0, 99))
def test_resampled_labels_are_labels_that_were_there(before, after, seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice(np.array([0, 2, 5, -1], np.int16), size=before)
    result = resample_indices(labels, after, (1, 1, 1))
    assert result.shape == after and result.dtype == np.int16
    assert set(np.unique(result)) <= set(np.unique(labels))


@settings(max_examples=60)
@given(shapes, shapes, st.sampled_from([(1.0, 1.0, 1.0), (5.0, 1.0, 1.2), (1.0, 1.1, 8.0)]), st.integers(0, 99))
def test_two_labels_are_nnunets_but_for_ties(before, after, spacing_mm, seed):
    labels = np.random.default_rng(seed).integers(0, 2, before).astype(np.int16)
    theirs = resample_data_or_seg_to_shape(
        labels[None], after, spacing_mm, (1, 1, 1), is_seg=True, order=1, order_z=0, force_separate_z=None
    )
    orders_zyx = orders_for(spacing_mm, (1, 1, 1), 1)
    is_tie = np.abs(resample(labels.astype(np.float32), after, orders_zyx) - 0.5) < 1e-5  # theirs go by rounding
    assert (resample_indices(labels, after, orders_zyx) == theirs[0])[~is_tie].all()


@pytest.mark.parametrize("after", [(25, 40, 40), (16, 25, 25)])
def test_twenty_smooth_labels_are_nnunets_but_for_ties(after):
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(20, 32, 32)), 4)
    labels = np.digitize(smooth, np.quantile(smooth, np.linspace(0.5, 1, 21)[:-1])).astype(np.int16)
    theirs = resample_data_or_seg_to_shape(labels[None], after, (1, 1, 1), (1, 1, 1), is_seg=True, order=1)[0]
    ours = resample_indices(labels, after, (1, 1, 1))
    shares = np.sort([resample((labels == label).astype(np.float32), after, (1, 1, 1)) for label in range(21)], axis=0)
    assert (ours == theirs)[shares[-1] > shares[-2] + 1e-5].all()  # theirs settle ties by rounding


def test_the_same_shape_is_left_alone():
    labels = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    assert resample_indices(labels, (2, 2, 2), (1, 1, 1)) is labels
