"""prepare/resample.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.transform import resize

from segpipe.prepare.resample import axis_matrix, orders_for, resample, resample_image, resample_indices

shapes = st.tuples(*(st.integers(2, 14),) * 3)
orders = st.sampled_from([1, 3])


def test_doubling_a_line_of_two_voxels_linearly_by_hand():
    # centres of the four new voxels lie at -0.25, 0.25, 0.75, 1.25 old voxels; beyond the ends the end repeats
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert axis_matrix(2, 4, 1) == pytest.approx(np.array(expected), abs=1e-7)


def test_nearest_takes_the_closest_centre_by_hand():
    # three voxels to two: centres at 0.25 and 1.75 old voxels
    assert axis_matrix(3, 2, 0).tolist() == [[1, 0, 0], [0, 0, 1]]


@given(shapes, shapes, orders, st.integers(0, 99))
def test_equals_skimage(before, after, order, seed):
    image = np.random.default_rng(seed).normal(size=before).astype(np.float32)
    theirs = resize(image.astype(np.float64), after, order, mode="edge", anti_aliasing=False, clip=True)
    ours = resample_image(image[None], after, (order,) * 3)[0]
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_equals_nnunets_separate_axis_mode():
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    image = np.random.default_rng(0).normal(size=(2, 7, 20, 24)).astype(np.float32)
    spacing, target, after = (8.0, 1.0, 1.2), (3.0, 0.8, 0.8), (19, 25, 36)
    theirs = resample_data_or_seg_to_shape(image, after, spacing, target, order=3, order_z=0, force_separate_z=None)
    ours = resample_image(image, after, orders_for(spacing, target, 3))
    assert ours == pytest.approx(np.asarray(theirs), abs=1e-4)


@pytest.mark.parametrize(
    ("spacing", "target", "expected"),
    [
        ((1, 1, 1), (2, 2, 2), (3, 3, 3)),
        ((3.1, 1, 1), (1, 1, 1), (0, 3, 3)),  # the case decides
        ((3.0, 1, 1), (1, 1, 1), (3, 3, 3)),  # 3 times is not more than 3 times
        ((1, 1, 1), (1, 5, 1), (3, 0, 3)),  # else the target decides
        ((5, 5, 1), (1, 1, 1), (3, 3, 3)),  # two coarse axes: none apart
    ],
)
def test_orders_by_hand(spacing, target, expected):
    assert orders_for(spacing, target, 3) == expected


@given(shapes, shapes, st.integers(0, 99))
def test_resampled_labels_are_labels_that_were_there(before, after, seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice(np.array([0, 2, 5, -1], np.int16), size=before)
    result = resample_indices(labels, after, (1, 1, 1))
    assert result.shape == after and result.dtype == np.int16
    assert set(np.unique(result)) <= set(np.unique(labels))


def test_one_label_keeps_half_of_a_stretched_box():
    labels = np.zeros((4, 4, 4), np.int16)
    labels[:, :, 2:] = 7
    result = resample_indices(labels, (4, 4, 8), (1, 1, 1))
    assert (result[..., :4] == 0).all() and (result[..., 4:] == 7).all()


@given(shapes, st.integers(0, 99), orders)
def test_the_same_shape_changes_nothing(shape, seed, order):
    image = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    assert (resample(image, shape, (order,) * 3) == image).all()
