"""train/sampling.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segpipe.prepare.store import PatchCase
from segpipe.train.sampling import Sampling, cut, draw_batch


def case(shape=(8, 10, 12), voxel=(7, 0, 11)) -> PatchCase:
    """Voxels hold their own flat number plus one; one labelled voxel, in a corner."""
    image = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(1, *shape)
    indices = np.zeros(shape, np.int16)
    indices[voxel] = 2
    return PatchCase(Path("c"), image, indices, {"1": np.array([voxel], np.int32)})


def plain(patch, batch_size: int, foreground_fraction: float) -> Sampling:
    """Without a margin for turning."""
    return Sampling(patch, patch, batch_size, foreground_fraction)


def test_the_last_third_of_a_batch_shows_a_labelled_voxel():
    batch = draw_batch([case()], plain((4, 4, 4), 6, 0.33), np.random.default_rng(0))
    assert batch.images.shape == (6, 1, 4, 4, 4) and batch.indices.shape == (6, 4, 4, 4)
    assert (batch.indices[4:] == 2).any(axis=(1, 2, 3)).all()  # round(6 × 0.33) = 2


def test_a_region_at_the_border_stays_inside_the_image():
    batch = draw_batch([case()], plain((4, 4, 4), 5, 1.0), np.random.default_rng(0))
    assert (batch.images > 0).all()  # 0 would be padding; nnU-Net reaches beyond the upper side


@given(st.tuples(*(st.integers(1, 9),) * 3), st.tuples(*(st.integers(1, 12),) * 3), st.integers(0, 99))
def test_regions_hold_all_that_fits_and_nothing_else(shape, region, seed):
    found = draw_batch([case(shape, (0, 0, 0))], plain(region, 2, 0.5), np.random.default_rng(seed))
    n_kept = np.prod([min(a, b) for a, b in zip(shape, region, strict=True)])
    assert ((found.images > 0).sum(axis=(1, 2, 3, 4)) == n_kept).all()


def test_the_same_seed_gives_the_same_batch():
    first, second = (draw_batch([case()] * 3, plain((4, 4, 4), 4, 0.33), np.random.default_rng(5)) for _ in range(2))
    assert (first.images == second.images).all()


def test_a_case_without_labels_is_cut_anywhere():
    empty = PatchCase(Path("e"), np.ones((1, 6, 6, 6), np.float32), np.zeros((6, 6, 6), np.int16), {})
    assert draw_batch([empty], plain((4, 4, 4), 3, 1.0), np.random.default_rng(0)).indices.sum() == 0


def test_cutting_by_hand():
    array = np.arange(12).reshape(1, 3, 4)
    assert cut(array, (0, 1, 2), (1, 3, 3), -1).tolist() == [[[6, 7, -1], [10, 11, -1], [-1, -1, -1]]]


def test_patches_reach_every_voxel_however_wide_the_margin_around_them():
    """A margin that had to lie inside the image would keep patches away from its border: nothing there is learnt."""
    sampling = Sampling((4, 4, 4), (10, 9, 12), 4000, 0.0)
    found = draw_batch([case()], sampling, np.random.default_rng(0))
    middle = found.images[:, 0, 3:7, 2:6, 4:8]  # as crop_centre takes it: (10-4)//2, (9-4)//2, (12-4)//2
    assert set(np.unique(middle)) == set(range(1, 1 + 8 * 10 * 12))  # every voxel, and no padding
