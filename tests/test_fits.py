"""plan/patch.py: what fits instead of what was wanted."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from plans import small_spec
from segpipe.plan.patch import nearest_fit
from segpipe.plan.schema import Configuration


def wanted(batch_size: int = 4, patch=(16, 16, 12), median=(32, 16, 24), n_axes: int = 3) -> Configuration:
    """Divisors (2, 2, 2); the Y axis of the patch covers the whole median image."""
    return Configuration(
        spacing_mm=(1.0, 1.0, 1.0),
        median_shape_zyx=median,
        patch_zyx=patch,
        batch_size=batch_size,
        batch_dice=False,
        network=small_spec(n_axes=n_axes),
    )


def voxels(configuration: Configuration) -> int:
    """A stand-in for memory: one byte for each voxel of a batch."""
    return configuration.batch_size * math.prod(configuration.patch_zyx)


def test_the_batch_shrinks_first_then_the_patch_along_its_longest_axis():
    assert nearest_fit(wanted(), voxels, 4 * 16 * 16 * 12) == wanted()
    assert nearest_fit(wanted(), voxels, 4 * 16 * 16 * 12 - 1) == wanted(batch_size=3)
    assert nearest_fit(wanted(), voxels, 2 * 16 * 16 * 12) == wanted(batch_size=2)
    # shares of the median image: Z 16/32, Y 16/16, X 12/24
    assert nearest_fit(wanted(), voxels, 2 * 16 * 16 * 12 - 1) == wanted(2, (16, 14, 12))
    # Y goes down to 8, where all three cover a half; then the last axis of those that cover as much
    assert nearest_fit(wanted(), voxels, 2 * 16 * 8 * 12 - 1) == wanted(2, (16, 8, 10))


def test_nothing_fits():
    # two voxels in the coarsest stage along each axis: 4 x 4 x 4 with strides of 2
    assert nearest_fit(wanted(), voxels, 2 * 4 * 4 * 4) == wanted(2, (4, 4, 4))
    assert nearest_fit(wanted(), voxels, 2 * 4 * 4 * 4 - 1) is None


def test_a_batch_of_one_stays():
    assert nearest_fit(wanted(batch_size=1), voxels, 1 * 16 * 14 * 12) == wanted(1, (16, 14, 12))


def test_a_2d_patch_keeps_its_single_slice():
    flat = wanted(2, (1, 16, 12), (32, 16, 24), n_axes=2)
    assert nearest_fit(flat, voxels, 2 * 14 * 12) == wanted(2, (1, 14, 12), (32, 16, 24), n_axes=2)
    assert nearest_fit(flat, voxels, 2 * 4 * 4 - 1) is None


def step_by_step(configuration: Configuration, limit_bytes: int) -> Configuration | None:
    """The slow and obvious search."""
    while voxels(configuration) > limit_bytes:
        patch, shares = list(configuration.patch_zyx), []
        for axis in range(3):
            share = patch[axis] / configuration.median_shape_zyx[axis]
            shares.append((share if patch[axis] > 4 else 0, axis))
        if configuration.batch_size > 2:
            configuration = wanted(configuration.batch_size - 1, tuple(patch), configuration.median_shape_zyx)
        elif max(shares)[0] == 0:
            return None
        else:
            patch[max(shares)[1]] -= 2
            configuration = wanted(configuration.batch_size, tuple(patch), configuration.median_shape_zyx)
    return configuration


edges = st.integers(2, 40).map(lambda n: 2 * n)
shapes = st.tuples(edges, edges, edges)


@given(st.integers(1, 20), shapes, shapes, st.integers(1, 10**6))
def test_it_finds_what_the_obvious_search_finds_and_asks_seldom(batch_size, patch, median, limit_bytes):
    asked = []

    def predict_bytes(configuration: Configuration) -> int:
        asked.append(configuration)
        return voxels(configuration)

    start = wanted(batch_size, patch, median)
    assert nearest_fit(start, predict_bytes, limit_bytes) == step_by_step(start, limit_bytes)
    assert len(asked) <= 8  # at most 1 + 18 + 3 * 38 candidates
