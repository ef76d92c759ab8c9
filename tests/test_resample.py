"""prepare/resample.py: images, logits, and which axis is treated apart"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from scipy import ndimage
from skimage.transform import resize

from segpipe.prepare.resample import axis_matrix, orders_for, resample, resample_image

lengths = st.integers(1, 14)
shapes = st.tuples(lengths, lengths, lengths)
orders = st.sampled_from([1, 3])
edges_mm = st.sampled_from([0.3, 0.7, 1.0, 1.2, 3.0, 3.1, 5.0, 8.0])
spacings = st.tuples(edges_mm, edges_mm, edges_mm)


def test_doubling_a_line_of_two_voxels_linearly_by_hand():
    # centres of the four new voxels lie at -0.25, 0.25, 0.75, 1.25 old voxels; beyond the ends the end repeats
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert axis_matrix(2, 4, 1) == pytest.approx(np.array(expected), abs=1e-7)


def test_nearest_takes_the_closest_centre_by_hand():
    # three voxels to two: centres at 0.25 and 1.75 old voxels
    assert axis_matrix(3, 2, 0).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_nearest_halfway_takes_the_later_voxel_by_hand():
    # four voxels to two: centres at 0.5 and 2.5 old voxels
    assert axis_matrix(4, 2, 0).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 90), orders)
def test_a_matrix_is_scipys_zoom_of_each_single_voxel(n_in, n_out, order):
    columns = [ndimage.zoom(unit, n_out / n_in, order=order, mode="nearest", grid_mode=True) for unit in np.eye(n_in)]
    assert axis_matrix(n_in, n_out, order) == pytest.approx(np.stack(columns, axis=1), abs=1e-6)
    assert axis_matrix(n_in, n_out, order).sum(axis=1) == pytest.approx(1, abs=1e-6)  # a constant stays


@given(st.integers(1, 60), st.integers(1, 90))
def test_nearest_is_scipys(n_in, n_out):
    places = n_in / n_out * (np.arange(n_out) + 0.5) - 0.5
    theirs = ndimage.map_coordinates(np.arange(n_in), places[None], order=0, mode="nearest")
    assert (axis_matrix(n_in, n_out, 0) @ np.arange(n_in) == theirs).all()


def test_an_order_that_is_not_offered_is_refused():
    with pytest.raises(ValueError, match="spline order 2 is none of 0, 1, 3"):
        axis_matrix(3, 4, 2)


@given(shapes, shapes, orders, st.integers(0, 99))
def test_equals_skimage(before, after, order, seed):
    image = np.random.default_rng(seed).normal(size=before).astype(np.float32)
    theirs = resize(image.astype(np.float64), after, order, mode="edge", anti_aliasing=False, clip=True)
    ours = resample_image(image[None], after, (order,) * 3)[0]
    assert ours == pytest.approx(theirs, abs=1e-5)


@settings(max_examples=150)
@given(shapes, shapes, spacings, spacings, orders, st.integers(0, 99))
def test_equals_nnunets_resampling_whatever_axis_it_treats_apart(before, after, spacing_mm, target_mm, order, seed):
    image = np.random.default_rng(seed).normal(100, 30, size=(2, *before)).astype(np.float32)
    theirs = resample_data_or_seg_to_shape(
        image.copy(), after, spacing_mm, target_mm, order=order, order_z=0, force_separate_z=None
    )
    ours = resample_image(image, after, orders_for(spacing_mm, target_mm, order))
    assert ours == pytest.approx(np.asarray(theirs), abs=1e-5 * 30)  # of the image's SD


def test_equals_nnunets_resampling_of_a_large_image():
    """Long axes: the matrices are cut to bands."""
    image = np.random.default_rng(1).normal(size=(1, 30, 90, 110)).astype(np.float32)
    theirs = resample_data_or_seg_to_shape(image, (40, 140, 90), (1, 1, 1), (1, 1, 1), order=3)
    assert resample_image(image, (40, 140, 90), (3, 3, 3)) == pytest.approx(np.asarray(theirs), abs=1e-5)


@given(spacings, spacings)
def test_the_axis_apart_is_nnunets(spacing_mm, target_mm):
    _, theirs = determine_do_sep_z_and_axis(None, spacing_mm, target_mm)
    apart = [axis for axis, order in enumerate(orders_for(spacing_mm, target_mm, 3)) if order == 0]
    assert apart == ([] if theirs is None else [theirs])


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


@given(shapes, st.integers(0, 99), orders)
def test_the_same_shape_changes_nothing_and_gives_a_new_array(shape, seed, order):
    image = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    result = resample(image, shape, (order,) * 3)
    assert (result == image).all() and not np.shares_memory(result, image)


@given(shapes, shapes, st.sampled_from([(3, 3, 3), (1, 1, 1), (0, 3, 3), (1, 0, 1)]), st.integers(0, 99))
def test_tensors_are_resampled_as_arrays(before, after, orders_zyx, seed):
    image = np.random.default_rng(seed).normal(size=(2, *before)).astype(np.float32)
    array, tensor = resample_image(image, after, orders_zyx), resample_image(torch.from_numpy(image), after, orders_zyx)
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
    assert tensor.numpy() == pytest.approx(array, abs=1e-5)


@pytest.mark.gpu
def test_the_gpu_gives_the_same():
    image = np.random.default_rng(0).normal(size=(2, 20, 30, 40)).astype(np.float32)
    theirs = resample_image(torch.from_numpy(image).cuda(), (25, 24, 50), (3, 3, 3))
    assert theirs.is_cuda
    assert theirs.cpu().numpy() == pytest.approx(resample_image(image, (25, 24, 50), (3, 3, 3)), abs=1e-5)


def test_a_turned_view_is_resampled_as_its_copy():
    image = np.random.default_rng(0).normal(size=(1, 6, 7, 8)).astype(np.float32)
    view = np.flip(image.transpose(0, 3, 1, 2), (1, 3))
    assert (resample_image(view, (9, 5, 6), (3, 3, 3)) == resample_image(view.copy(), (9, 5, 6), (3, 3, 3))).all()
