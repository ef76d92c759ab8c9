"""Thinning and clDice: values by hand, published numbers, edge values, properties."""

from __future__ import annotations

from itertools import permutations, product
from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from scipy.spatial import cKDTree
from skimage.morphology import skeletonize

from segpipe.core.grid import Grid
from segpipe.core.labels import Label, LabelSet
from segpipe.core.thinning import N_ORDERS, centreline, centreline_counts
from segpipe.evaluate.evaluation_case import ScoreSettings
from segpipe.evaluate.scores import Origin
from segpipe.evaluate.scoring import centreline_scores, score_case

NAMES = ("cldice", "cldice_sensitivity", "cldice_precision")


def tube(length, shape=(9, 9, 30), start=2, row=4):
    """A tube of 3×3 voxels along X; its centreline is the middle voxel of each slice."""
    mask = np.zeros(shape, bool)
    mask[3:6, row - 1 : row + 2, start : start + length] = True
    return mask


def scores_of(reference, prediction):
    return [centreline_scores(reference, prediction)[name] for name in NAMES]


def test_half_a_tube_by_hand():
    whole, half = tube(25), tube(12)
    both, sensitivity, precision = scores_of(whole, half)
    assert precision == 1
    assert sensitivity == 11 / 23  # thinning takes a voxel from each end: 3 to 25; the half reaches 13
    assert both == pytest.approx(2 * sensitivity / (1 + sensitivity))


def test_thickness_does_not_count():
    thin = np.zeros((9, 9, 30), bool)
    thin[4, 4, 3:26] = True
    assert scores_of(tube(25), thin) == [1, 1, 1]


def test_a_broken_vessel_costs_more_than_dice_shows():
    broken = tube(25)
    broken[:, :, 12] = False
    both, sensitivity, precision = scores_of(tube(25), broken)
    assert precision == 1
    assert sensitivity == 22 / 23
    assert both < 1


# Metrics Reloaded, test_pairwise_measures.py, data of figure SN 2.14: a small vessel with one or two voxels missing.
SMALL = ((slice(1, 4), slice(1, 2)), (slice(3, 4), slice(1, 4)))


@pytest.mark.parametrize(("first_row", "expected"), [(2, 0.86), (4, 0.67)])
def test_numbers_of_metrics_reloaded(first_row, expected):
    reference, prediction = np.zeros((2, 1, 14, 14), bool)
    for place in SMALL:
        reference[0][place] = True
    prediction[0][SMALL[1]] = True
    prediction[0][first_row:4, 1:2] = True
    assert scores_of(reference, prediction)[0] == pytest.approx(expected, abs=0.01)


def test_empty_masks():
    mask, empty = tube(25), tube(0)
    assert all(isnan(value) for value in scores_of(empty, empty))
    both, sensitivity, precision = scores_of(mask, empty)
    assert (both, sensitivity) == (0, 0)
    assert isnan(precision)
    both, sensitivity, precision = scores_of(empty, mask)
    assert (both, precision) == (0, 0)
    assert isnan(sensitivity)
    assert scores_of(mask, tube(25, row=1)) == [0, 0, 0]  # neither inside the other


def test_voxels_in_one_row_are_their_own_line():
    reference, prediction = np.zeros((2, 1, 1, 9), bool)
    reference[..., 2:6] = prediction[..., 4:8] = True
    assert scores_of(reference, prediction) == [0.5, 0.5, 0.5]


def test_the_line_of_a_tube_by_hand():
    line = centreline(tube(25))
    assert np.argwhere(line).tolist() == [[4, 4, x] for x in range(3, 26)]


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("across", [(1, 2), (2, 1), (2, 2), (2, 4), (4, 4)])
def test_an_even_tube_keeps_its_line(across, axes):
    mask = np.ones((*across, 20), bool).transpose(axes)
    line = centreline(mask)
    along = line.any(axis=tuple(axis for axis in range(3) if mask.shape[axis] < 20))
    assert np.count_nonzero(along) >= 16  # a little is lost at the ends, as of any tube
    assert np.count_nonzero(line) <= 21


def curved_tube(radius, seed, n=22):
    """A tube along a random smooth curve, and what a model might make of it: one voxel aside, with holes."""
    random = np.random.default_rng(seed)
    at = np.linspace(0, 1, 6 * n)[:, None]
    curve = n * (0.5 + 0.3 * np.sin(2 * np.pi * (random.uniform(0.3, 1, 3) * at + random.uniform(0, 1, 3))))
    voxels = np.stack(np.indices((n, n, n)), -1).reshape(-1, 3)
    reference = (cKDTree(curve).query(voxels)[0] <= radius).reshape(n, n, n)
    return reference, np.roll(reference, 1, seed % 3) & (random.random(reference.shape) < 0.98)


@pytest.mark.parametrize("radius", [1, 1.5, 2.5, 4])
def test_the_storage_order_does_not_matter(radius):
    """All 48 flips and transpositions of the array, a shift, padding and far voxels leave the scores as they are."""
    pair = curved_tube(radius, seed=0)
    expected = scores_of(*pair)
    assert 0.2 < expected[0] < 1
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        turned = [mask.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)] for mask in pair]
        assert scores_of(*turned) == expected
    padded = [np.pad(mask, ((1, 0), (2, 3), (0, 5))) for mask in pair]
    assert scores_of(*padded) == expected


def test_far_voxels_do_not_matter():
    """Three voxels far away, in both masks, add themselves to both lines and change nothing else."""
    reference, prediction = (np.pad(mask, 7) for mask in curved_tube(1.5, 0))
    lines = [centreline_counts(mask) for mask in (reference, prediction)]
    for far in ((0, 0, 0), (1, 35, 3), (35, 0, 34)):
        reference[far] = prediction[far] = True
    for mask, line in zip((reference, prediction), lines, strict=True):
        changed = centreline_counts(mask)
        assert changed[35, 0, 34] == N_ORDERS
        changed[[0, 1, 35], [0, 35, 0], [0, 3, 34]] = 0
        assert (changed == line).all()


def test_an_even_width_is_shared_between_its_sides():
    """A vessel of 2×2 voxels along X: each of the four rows is the line in a quarter of the orders."""
    counts = centreline_counts(np.ones((2, 2, 30), bool))
    assert (counts[..., 10:20] == N_ORDERS / 4).all()


MASKS = st.builds(
    lambda seed, shape, density: np.random.default_rng(seed).random(shape) < density,
    st.integers(0, 10**6),
    st.sampled_from([(5, 6, 7), (1, 8, 9), (2, 2, 2), (2, 7, 2)]),
    st.floats(0.05, 0.95),
)


def n_pieces(mask):
    """Connected pieces of a mask (by corners) and of what is around it (by faces)."""
    around = np.pad(~mask, 1, constant_values=True)
    return label(mask, np.ones((3, 3, 3)))[1], label(around)[1]


def euler_number(mask):
    """Pieces less tunnels plus hollows, counted from corners, edges, faces and voxels."""
    padded = np.pad(mask, 1)
    total = 0
    for axes in product((0, 1), repeat=3):
        cells = padded
        for axis, is_joined in enumerate(axes):  # a cell between voxels is there if one of them is
            before, after = (
                np.take(cells, range(*ends), axis) for ends in ((0, cells.shape[axis] - 1), (1, cells.shape[axis]))
            )
            cells = before | after if is_joined else after
        total += (-1) ** (3 - sum(axes)) * np.count_nonzero(cells)
    return total


@settings(max_examples=150)
@given(MASKS)
def test_no_piece_tunnel_or_hollow_comes_or_goes(mask):
    line = centreline(mask)
    assert not (line & ~mask).any()
    assert n_pieces(line) == n_pieces(mask)
    assert euler_number(line) == euler_number(mask)
    assert (centreline(line) == line).all()


def test_as_long_as_that_of_scikit_image():
    z, y, x = np.ogrid[:80, :60, :60]
    for radius in (1.5, 2.5, 4, 7):
        mask = (y - 30 - 8 * np.sin(z / 15)) ** 2 + (x - 30) ** 2 < radius**2
        other = np.count_nonzero(skeletonize(mask))
        assert np.count_nonzero(centreline(mask)) == pytest.approx(other, rel=0.2)
        assert centreline_counts(mask).sum() / N_ORDERS == pytest.approx(other, rel=0.2)


@settings(max_examples=60)
@given(MASKS)
def test_what_is_there_has_a_line(mask):
    if mask.any():
        assert scores_of(mask, mask) == [1, 1, 1]  # not NaN
        assert scores_of(mask, np.ones_like(mask))[1] == 1


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_swapping_masks_swaps_the_shares(seed):
    first, second = np.random.default_rng(seed).random((2, 5, 6, 7)) < 0.4
    one, other = scores_of(first, second), scores_of(second, first)
    assert one == pytest.approx([other[0], other[2], other[1]], nan_ok=True)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=3))
def test_background_around_changes_nothing(seed, margins):
    pair = np.random.default_rng(seed).random((2, 5, 6, 7)) < 0.4
    padded = [np.pad(mask, margins) for mask in pair]
    assert scores_of(*padded) == pytest.approx(scores_of(*pair), nan_ok=True)


def test_as_metrics_of_a_case():
    labels = LabelSet(labels=(Label(name="aorta", values=(2,)), Label(name="vein", values=(3,))))
    case = (tube(25) * 2, tube(12) * 2)
    rows = score_case(*case, Grid((9, 9, 30), np.eye(4)), labels, Origin("c", "p"), ScoreSettings(NAMES)).rows
    found = {(row.label, row.metric): (row.value, row.status) for row in rows}
    assert found["aorta", "cldice_sensitivity"] == (11 / 23, "ok")
    assert found["vein", "cldice"][1] == "both_empty"
