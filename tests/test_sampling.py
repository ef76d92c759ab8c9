"""train/sampling.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plans import LABELS, REGIONS
from segpipe.core.labels import LabelSet
from segpipe.prepare.places import find_places
from segpipe.prepare.store import PatchCase, on_device
from segpipe.train.sampling import Batch, Sampling, cut_, cut_batch, draw_places, n_on_label


def case(shape=(8, 10, 12), voxel=(7, 0, 11)) -> PatchCase:
    """Voxels hold their own flat number plus one; one labelled voxel, in a corner."""
    indices = np.zeros(shape, np.int16)
    indices[voxel] = 2
    return labelled(indices)


def labelled(indices, labels: LabelSet = LABELS) -> PatchCase:
    """A case with a map of labels, whose voxels hold their own flat number plus one."""
    image = np.arange(1, 1 + indices.size, dtype=np.float32).reshape(1, *indices.shape)
    return PatchCase(Path("c"), image, indices, find_places(indices, labels).by_label())


def draw_batch(cases, sampling: Sampling, seed: int = 0, edges_zyx=None) -> Batch:
    """A batch of patches or, about their middles, of as many voxels."""
    places = draw_places(cases, sampling, np.random.default_rng(seed))
    return cut_batch(places, sampling.patch_zyx, edges=edges_zyx and [edges_zyx] * len(places))


def test_the_last_third_of_a_batch_shows_a_labelled_voxel():
    batch = draw_batch([case()], Sampling((4, 4, 4), 6, 0.33))
    indices = batch.indices.stack()
    assert batch.images.stack().shape == (6, 1, 4, 4, 4) and indices.shape == (6, 4, 4, 4)
    assert (indices[4:] == 2).flatten(1).any(dim=1).all()  # round(6 × 0.33) = 2


def test_a_region_at_the_border_stays_inside_the_image():
    batch = draw_batch([case()], Sampling((4, 4, 4), 5, 1.0))
    assert (batch.images.flat > 0).all()  # 0 would be padding; nnU-Net reaches beyond the upper side


@given(st.tuples(*(st.integers(1, 9),) * 3), st.tuples(*(st.integers(1, 12),) * 3), st.integers(0, 99))
def test_regions_hold_all_that_fits_and_nothing_else(shape, region, seed):
    found = draw_batch([case(shape, (0, 0, 0))], Sampling(region, 2, 0.5), seed)
    n_kept = np.prod([min(a, b) for a, b in zip(shape, region, strict=True)])
    assert ((found.images.stack() > 0).sum(dim=(1, 2, 3, 4)) == n_kept).all()


def test_the_same_seed_gives_the_same_batch():
    first, second = (draw_batch([case()] * 3, Sampling((4, 4, 4), 4, 0.33), seed=5) for _ in range(2))
    assert torch.equal(first.images.flat, second.images.flat)


def centres(cases, sampling: Sampling, seed: int = 0) -> list[int]:
    """Flat numbers of the voxels that patches of odd edges are centred on."""
    batch = draw_batch(cases, sampling, seed)
    middle = tuple(p // 2 for p in sampling.patch_zyx)
    return (batch.images.stack()[(slice(None), 0, *middle)] - 1).int().tolist()


def shares(values: list[int]) -> dict[int, float]:
    return {value: values.count(value) / len(values) for value in set(values)}


def test_labels_are_as_likely_however_large_and_voxels_of_a_label_too():
    indices = np.zeros((1, 3, 30), np.int16)
    indices[0, 1, 1:9] = 1  # 8 voxels of the first label in two parts of 6 and 2: flat numbers 31 to 36 and 38, 39
    indices[0, 1, 7] = 0
    indices[0, 1, 9] = 1
    indices[0, 1, 20] = 2  # and one of the second, flat number 50
    found = shares(centres([labelled(indices)], Sampling((1, 3, 3), 4000, 1.0)))
    expected = {50: 1 / 2, **dict.fromkeys((31, 32, 33, 34, 35, 36, 38, 39), 1 / 16)}
    assert found == pytest.approx(expected, abs=0.03)


def test_components_are_as_likely_however_large():
    indices = np.zeros((1, 3, 30), np.int16)
    indices[0, 1, 1:7] = indices[0, 1, 9] = 1  # parts of 6 voxels and of 1
    sampling = Sampling((1, 3, 3), 4000, 1.0, foreground_unit="component")
    expected = {39: 1 / 2, **dict.fromkeys(range(31, 37), 1 / 12)}
    assert shares(centres([labelled(indices)], sampling)) == pytest.approx(expected, abs=0.03)


def test_a_region_is_drawn_as_a_label_is():
    indices = np.zeros((1, 3, 30), np.int16)
    indices[0, 1, 5], indices[0, 1, 20] = 1, 2  # whole: both; core: the second
    found = shares(centres([labelled(indices, REGIONS)], Sampling((1, 3, 3), 4000, 1.0)))
    assert found == pytest.approx({35: 1 / 4, 50: 3 / 4}, abs=0.03)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_where_voxels_are_ignored_patches_without_a_wanted_label_are_centred_on_annotated_ones(fraction):
    indices = np.full((1, 3, 30), -1, np.int16)
    indices[0, 1, 4:6] = 0  # annotated, and nothing is there
    found = shares(centres([labelled(indices, REGIONS)], Sampling((1, 3, 3), 1000, fraction)))
    assert found == pytest.approx({34: 1 / 2, 35: 1 / 2}, abs=0.06)


def test_a_case_that_is_ignored_altogether_is_cut_anywhere():
    nothing = labelled(np.full((1, 3, 30), -1, np.int16), REGIONS)
    assert len(shares(centres([nothing], Sampling((1, 3, 3), 1000, 0.5)))) == 28


def test_a_case_without_labels_is_cut_anywhere():
    empty = labelled(np.zeros((6, 6, 6), np.int16))
    batch = draw_batch([empty], Sampling((4, 4, 4), 300, 1.0))
    assert len(batch.images.stack()[:, 0, 0, 0, 0].unique()) == 27 and batch.indices.flat.sum() == 0


@pytest.mark.parametrize(
    ("batch_size", "fraction", "expected"),
    [(2, 0.33, {1}), (3, 0.33, {1}), (5, 0.33, {2}), (8, 0.33, {3}), (2, 0.5, {1}), (4, 0.0, {0}), (4, 1.0, {4})],
)
def test_patches_on_labels_are_counted_as_nnunet_does(batch_size, fraction, expected):
    generator = np.random.default_rng(0)
    assert {n_on_label(batch_size, fraction, generator) for _ in range(20)} == expected
    assert expected == {batch_size - round(batch_size * (1 - fraction))}  # nnU-Net: the others come first


@pytest.mark.parametrize(("batch_size", "fraction"), [(1, 0.33), (2, 0.1), (2, 0.8), (4, 0.95)])
def test_a_share_that_rounds_to_none_or_all_is_kept_on_average(batch_size, fraction):
    generator = np.random.default_rng(0)
    found = [n_on_label(batch_size, fraction, generator) for _ in range(4000)]
    assert np.mean(found) / batch_size == pytest.approx(fraction, abs=0.025)


@given(st.tuples(*(st.integers(1, 9),) * 3), st.tuples(*(st.integers(1, 7),) * 3), st.integers(0, 99))
def test_a_labelled_voxel_is_in_the_middle_or_the_patch_touches_the_border(shape, patch, seed):
    generator = np.random.default_rng(seed)
    voxel = tuple(int(generator.integers(n)) for n in shape)
    region = tuple(p + int(generator.integers(4)) for p in patch)
    batch = draw_batch([case(shape, voxel)], Sampling(patch, 1, 1.0), seed, region)
    margin = [(r - p) // 2 for r, p in zip(region, patch, strict=True)]
    ((z, y, x),) = (batch.indices.each[0] == 2).nonzero().tolist()
    for found, wanted, n_voxels, p, m in zip((z, y, x), voxel, shape, patch, margin, strict=True):
        start = wanted - (found - m)  # of the patch, in the image
        if p >= n_voxels:
            assert start == -((p - n_voxels) // 2)
        else:
            assert start == min(max(wanted - p // 2, 0), n_voxels - p)


def test_cases_on_a_device_give_the_same_batch():
    """The CPU stands for the device: what is tested is that tensors are cut as arrays are."""
    in_memory, placed = case(), on_device(case(), torch.device("cpu"))
    first, second = (draw_batch([c], Sampling((4, 4, 4), 4, 0.5), 1, (6, 12, 5)) for c in (in_memory, placed))
    assert torch.equal(first.images.flat, second.images.flat)
    assert torch.equal(first.indices.flat, second.indices.flat)


def test_a_batch_is_copied_as_it_is_stored():
    batch = draw_batch([case()], Sampling((4, 4, 4), 2, 1.0)).to(torch.device("cpu"))
    images, indices = batch.images, batch.indices
    assert (
        images.flat.dtype == torch.float32 and indices.flat.dtype == torch.int16
    )  # int64 after the patch is cut: a quarter


def test_cutting_by_hand():
    array = np.arange(12).reshape(1, 3, 4)
    piece = torch.empty(1, 3, 3)
    cut_(piece, array, (0, 1, 2), -1)
    assert piece.tolist() == [[[6, 7, -1], [10, 11, -1], [-1, -1, -1]]]


def test_patches_reach_every_voxel_however_wide_the_margin_around_them():
    """A margin that had to lie inside the image would keep patches away from its border: nothing there is learnt."""
    found = draw_batch([case()], Sampling((4, 4, 4), 4000, 0.0), edges_zyx=(10, 9, 12))
    middle = found.images.stack()[:, 0, 3:7, 2:6, 4:8]  # as crop_centre takes it: (10-4)//2, (9-4)//2, (12-4)//2
    assert set(np.unique(middle)) == set(range(1, 1 + 8 * 10 * 12))  # every voxel, and no padding
