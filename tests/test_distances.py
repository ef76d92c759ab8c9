"""Surface distances: by hand, properties, and other libraries; published values are in test_metric_fixtures.py."""

from __future__ import annotations

from math import inf, isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.spatial import cKDTree

from segpipe.evaluate.surfaces.distances import (
    Directed,
    SurfaceDistances,
    hausdorff_interpolated_mm,
    hausdorff_mm,
    hausdorff_percentile_mm,
    hausdorff_pooled_mm,
    lattice_distances,
    mc_distances,
    mean_directed_distance_mm,
    mean_surface_distance_mm,
    surface_dice,
    voxel_distances,
)
from segpipe.evaluate.surfaces.packed_masks import cell_patches


def points(shape, *indices):
    mask = np.zeros(shape, bool)
    for index in indices:
        mask[index] = True
    return mask


def ball(radius_mm, centre_mm, spacing=(1.0, 1.0, 1.0), shape=(99, 99, 99)):
    axes = zip(np.ogrid[tuple(slice(n) for n in shape)], centre_mm, spacing, strict=True)
    return sum((index * mm - middle) ** 2 for index, middle, mm in axes) <= radius_mm**2


def sides(distances):
    return distances.from_reference, distances.from_prediction


def all_mm(side):
    """Ascending, the zeros of shared elements written out."""
    return np.sort(np.concatenate([np.zeros(side.n_shared), side.apart_mm]))


@pytest.mark.parametrize("model", [lattice_distances, voxel_distances, mc_distances])
@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8, 8)])
def test_empty_masks(model, shape):
    empty, voxel = np.zeros(shape, bool), points(shape, (0, 3, 4))
    for pair in ((voxel, empty), (empty, voxel)):
        distances = model(*pair, (1.0, 3.0, 2.0))
        for statistic in (hausdorff_mm, mean_surface_distance_mm, mean_directed_distance_mm):
            assert statistic(distances) == inf
        for statistic in (hausdorff_percentile_mm, hausdorff_interpolated_mm, hausdorff_pooled_mm):
            assert statistic(distances, 0.95) == inf
        assert surface_dice(distances, 1.0) == 0
    neither = model(empty, empty, (1.0, 3.0, 2.0))
    assert isnan(hausdorff_mm(neither))
    assert isnan(mean_surface_distance_mm(neither))
    assert isnan(surface_dice(neither, 1.0))
    assert isnan(hausdorff_percentile_mm(neither, 0.95))


# By hand


def test_percentile_takes_the_area_not_the_count():
    # 19 elements of weight 1 at 1 mm, one of weight 1 at 9 mm: exactly 95 % lie within 1 mm
    mm = np.array([1.0] * 19 + [9.0])
    even, heavy = (Directed(mm, np.array([1.0] * 19 + [last]), 0, 0.0) for last in (1.0, 1.1))
    assert hausdorff_percentile_mm(SurfaceDistances(even, even), 0.95) == 1.0
    assert hausdorff_percentile_mm(SurfaceDistances(even, heavy), 0.95) == 9.0


def test_shared_elements_count_by_their_weight():
    # areas 3 at 0 mm and 1 at 2 mm, the other way 4 at 0 mm: 6 and 8 elements
    one = Directed(np.array([2.0, 2.0]), np.array([0.5, 0.5]), 4, 3.0)
    distances = SurfaceDistances(one, Directed(np.zeros(0), np.zeros(0), 8, 4.0))
    assert mean_surface_distance_mm(distances) == 2 * 1 / (4 + 4)
    assert mean_directed_distance_mm(distances) == (2 / 4 + 0) / 2
    assert surface_dice(distances, 1.9) == (3 + 4) / 8
    assert hausdorff_percentile_mm(distances, 0.75) == 0  # three quarters of the area lie at 0 mm
    assert hausdorff_percentile_mm(distances, 0.76) == 2
    graded = Directed(np.array([1.0, 2.0]), np.array([0.5, 0.5]), 4, 3.0)
    assert hausdorff_percentile_mm(SurfaceDistances(graded, graded), 0.85) == 1  # 3.4 of 4, and 3.5 lie within 1 mm
    assert hausdorff_pooled_mm(distances, 1.0) == 2
    assert hausdorff_pooled_mm(distances, 0.9) == pytest.approx(np.quantile([0] * 12 + [2, 2], 0.9)) == 1.4
    assert hausdorff_interpolated_mm(distances, 0.7) == pytest.approx(np.quantile([0] * 4 + [2, 2], 0.7)) == 1.0


def test_nsd_counts_the_tolerance_itself():
    one, other = points((6, 6, 6), (1, 2, 2)), points((6, 6, 6), (4, 2, 2))
    distances = voxel_distances(one, other, (0.1, 1.0, 1.0))  # 3 × 0.1 is 0.30000000000000004
    assert surface_dice(distances, 0.3) == 1
    assert surface_dice(distances, 0.29) == 0


def test_one_slice_of_a_volume_is_no_contour():
    slab = np.zeros((3, 6, 6), bool)
    slab[1, 1:5, 1:5] = True
    flat = lattice_distances(slab, slab, (1.0, 1.0, 1.0))
    contour = lattice_distances(slab[1:2], slab[1:2], (1.0, 1.0, 1.0))
    assert flat.from_reference.n == 2 * 5 * 5  # corners above and below the slab
    assert contour.from_reference.n == 4 * 4  # corners on the rim of 5×5


def test_masks_must_fit():
    mask = np.zeros((3, 3, 3), bool)
    with pytest.raises(ValueError, match="two bool arrays of one shape"):
        lattice_distances(mask, mask.astype(np.uint8), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="spacing"):
        voxel_distances(mask, mask, (1.0, 1.0))


# Second opinions


def slow_lattice(reference, prediction, spacing):
    """Elements and their distances by a distance map over every corner of the image."""
    mixed = []
    for mask in (reference, prediction):
        padded = np.pad(mask, 1).astype(int)
        total = sum(padded[z : z - 1 or None, y : y - 1 or None, x : x - 1 or None]
                    for z in (0, 1) for y in (0, 1) for x in (0, 1))  # fmt: skip
        mixed.append((total > 0) & (total < 8))
    maps = [distance_transform_edt(~other, sampling=spacing) for other in mixed[::-1]]
    return [np.sort(mm[own]) for mm, own in zip(maps, mixed, strict=True)]


random_masks = st.tuples(st.integers(0, 10**6), st.sampled_from([0.02, 0.3, 0.7]))
SPACING = (2.5, 1.0, 0.7)


def two_masks(seed, density):
    random = np.random.default_rng(seed)
    masks = random.random((2, 6, 7, 8)) < density
    masks[0, 1, 2, 3] = masks[1, 4, 4, 4] = True
    return masks


@settings(max_examples=30, deadline=None)
@given(random_masks)
def test_lattice_agrees_with_a_distance_map(drawn):
    reference, prediction = two_masks(*drawn)
    distances = lattice_distances(reference, prediction, SPACING)
    expected = slow_lattice(reference, prediction, SPACING)
    assert all_mm(distances.from_reference) == pytest.approx(expected[0], abs=1e-12)
    assert all_mm(distances.from_prediction) == pytest.approx(expected[1], abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(random_masks)
def test_voxel_agrees_with_erosion_and_a_distance_map(drawn):
    reference, prediction = two_masks(*drawn)
    distances = voxel_distances(reference, prediction, SPACING)
    rims = [mask & ~binary_erosion(mask) for mask in (reference, prediction)]
    maps = [distance_transform_edt(~rim, sampling=SPACING) for rim in rims[::-1]]
    assert all_mm(distances.from_reference) == pytest.approx(np.sort(maps[0][rims[0]]), abs=1e-12)
    pooled = np.concatenate([mm[rim] for mm, rim in zip(maps, rims, strict=True)])
    assert hausdorff_pooled_mm(distances, 0.95) == pytest.approx(np.percentile(pooled, 95))


def slow_mc(reference, prediction, spacing):
    """Points and areas of all cells, and a tree of points."""
    found = []
    for mask in (reference, prediction):
        padded, codes = np.pad(mask, 1).astype(int), 0
        for k in range(8):
            corner = (k & 1, k >> 1 & 1, k >> 2 & 1)
            codes = codes + (padded[tuple(slice(a, n - 1 + a) for a, n in zip(corner, padded.shape, strict=True))] << k)
        places = np.argwhere((codes > 0) & (codes < 255))
        patches = cell_patches(spacing)
        codes = codes[tuple(places.T)]
        found.append(((places + patches.centres_vox[codes]) * spacing, patches.areas_mm2[codes]))
    (one, one_areas), (other, other_areas) = found
    return (cKDTree(other).query(one)[0], one_areas), (cKDTree(one).query(other)[0], other_areas)


@settings(max_examples=30)
@given(random_masks)
def test_mc_agrees_with_a_tree_of_points(drawn):
    reference, prediction = two_masks(*drawn)
    distances = mc_distances(reference, prediction, SPACING)
    for side, (mm, areas) in zip(sides(distances), slow_mc(reference, prediction, SPACING), strict=True):
        assert all_mm(side) == pytest.approx(np.sort(mm), abs=1e-12)
        assert side.weight == pytest.approx(areas.sum())
        assert side.apart_mm @ side.apart_weights == pytest.approx(mm @ areas)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI warns of its own call
@settings(max_examples=15, deadline=None)
@given(random_masks)
def test_monai_agrees(drawn):
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    reference, prediction = two_masks(*drawn)
    a, b = (torch.from_numpy(mask)[None, None].float() for mask in (reference, prediction))
    theirs = compute_hausdorff_distance(b, a, include_background=True, percentile=95, spacing=SPACING)
    ours = hausdorff_interpolated_mm(voxel_distances(reference, prediction, SPACING), 0.95)
    assert ours == pytest.approx(theirs.item(), rel=1e-5)
    theirs = compute_surface_dice(b, a, [1.0], include_background=True, spacing=SPACING, use_subvoxels=True)
    assert surface_dice(lattice_distances(reference, prediction, SPACING), 1.0) == pytest.approx(
        theirs.item(), rel=1e-5
    )


def test_a_mask_a_hundred_voxels_off():
    shape = (30, 30, 140)
    one, other = ball(9, (37, 15, 12), SPACING, shape), ball(9, (35, 15, 86), SPACING, shape)
    distances = lattice_distances(one, other, SPACING)
    expected = slow_lattice(one, other, SPACING)
    assert all_mm(distances.from_reference) == pytest.approx(expected[0], rel=1e-12)
    assert all_mm(distances.from_prediction) == pytest.approx(expected[1], rel=1e-12)
    for side, (mm, _) in zip(sides(mc_distances(one, other, SPACING)), slow_mc(one, other, SPACING), strict=True):
        assert all_mm(side) == pytest.approx(np.sort(mm), rel=1e-12)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@settings(max_examples=15)
@given(random_masks)
def test_monai_agrees_on_means_too(drawn):
    import torch
    from monai.metrics import compute_average_surface_distance, compute_surface_dice

    reference, prediction = two_masks(*drawn)
    a, b = (torch.from_numpy(mask)[None, None].float() for mask in (reference, prediction))
    distances = voxel_distances(reference, prediction, SPACING)
    theirs = compute_average_surface_distance(b, a, include_background=True, symmetric=True, spacing=SPACING)
    assert mean_surface_distance_mm(distances) == pytest.approx(theirs.item(), rel=1e-5)
    theirs = compute_surface_dice(b, a, [1.1], include_background=True, spacing=SPACING)
    assert surface_dice(distances, 1.1) == pytest.approx(theirs.item(), rel=1e-5)


@settings(max_examples=30)
@given(random_masks)
def test_medpy_agrees(drawn):
    from medpy.metric import binary

    reference, prediction = two_masks(*drawn)
    distances = voxel_distances(reference, prediction, SPACING)
    pair = (prediction, reference, SPACING)
    assert hausdorff_pooled_mm(distances, 0.95) == pytest.approx(binary.hd95(*pair), rel=1e-12)
    assert hausdorff_mm(distances) == pytest.approx(binary.hd(*pair), rel=1e-12)
    assert mean_surface_distance_mm(distances) == pytest.approx(binary.assd(*pair), rel=1e-12)


@given(random_masks, st.lists(st.floats(0, 9), min_size=2, max_size=5))
def test_a_larger_tolerance_never_lowers_nsd(drawn, tolerances):
    for model in (lattice_distances, voxel_distances, mc_distances):
        distances = model(*two_masks(*drawn), SPACING)
        shares = [surface_dice(distances, tolerance) for tolerance in sorted(tolerances)]
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 1
