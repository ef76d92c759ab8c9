"""The metrics of one label: values by hand, edge values, invariances."""

from __future__ import annotations

from math import inf, isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.evaluate.calibration import calibration_scores, tally
from segpipe.evaluate.lesions import RULES, SCORES
from segpipe.evaluate.metrics import (
    DEFAULT_METRICS,
    METRICS,
    FromCase,
    Overlap,
    dice,
    iou,
    measure,
    overlap_of,
    precision,
    sensitivity,
)
from segpipe.evaluate.scoring import GROUPS, centreline_scores
from segpipe.evaluate.surfaces.distances import MODELS

OVERLAPS = ("dice", "iou", "sensitivity", "precision", "nsd", "nsd_mc")
DISTANCES = ("hd95", "hd", "assd", "masd", "hd95_voxel_max", "hd95_voxel_pooled", "hd95_mc", "assd_mc")


def block(shape, low, high):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def random_pair(seed, shape=(7, 8, 9)):
    """Two overlapping masks with blobs, neither empty."""
    random = np.random.default_rng(seed)
    noise = random.random((2, *shape))
    first = block(shape, (1, 2, 2), (5, 6, 7)) & (noise[0] < 0.8)
    second = block(shape, (2, 1, 3), (6, 7, 8)) & (noise[1] < 0.8)
    first[2, 3, 4] = second[3, 3, 4] = True
    return first, second


def test_two_boxes_by_hand():
    # 2×2×2 and 2×2×3 voxels, 2×2×1 = 4 in common; voxels of 2×1×0.5 mm = 1 mm³
    reference = block((6, 6, 8), (1, 1, 1), (3, 3, 3))
    prediction = block((6, 6, 8), (1, 1, 2), (3, 3, 5))
    overlap, values = measure(reference, prediction, (2.0, 1.0, 0.5), nsd_tolerance_mm=1.0)
    assert overlap == Overlap(8, 12, 4)
    assert values["dice"] == 2 * 4 / (8 + 12)
    assert values["iou"] == 4 / 16
    assert values["sensitivity"] == 4 / 8
    assert values["precision"] == 4 / 12
    assert values["volume_difference"] == 12 - 8
    assert values["relative_volume_difference"] == 0.5
    assert values["hd"] == 1.0  # the right faces, two voxels of 0.5 mm apart
    assert values["nsd"] == 1.0
    assert set(values) == set(DEFAULT_METRICS)


def test_without_a_tolerance_there_is_no_nsd():
    mask = block((4, 4, 4), (1, 1, 1), (3, 3, 3))
    _, values = measure(mask, mask, (1.0, 1.0, 1.0))
    assert set(DEFAULT_METRICS) - set(values) == {"nsd", "nsd_mc"}


def test_equal_masks():
    mask = block((4, 5, 6), (1, 1, 1), (3, 3, 3))
    _, values = measure(mask, mask, (3.0, 1.0, 1.0), nsd_tolerance_mm=0.0)
    assert all(values[name] == 1 for name in OVERLAPS)
    assert all(values[name] == 0 for name in DISTANCES)
    assert values["volume_difference"] == values["relative_volume_difference"] == 0


def test_both_empty():
    empty = np.zeros((4, 4, 4), bool)
    overlap, values = measure(empty, empty, (1.0, 1.0, 1.0), nsd_tolerance_mm=1.0)
    assert overlap.status == "both_empty"
    assert all(isnan(values[name]) for name in (*OVERLAPS, *DISTANCES, "relative_volume_difference"))
    assert values["volume_difference"] == 0


def test_missed():
    mask, empty = block((4, 4, 4), (1, 1, 1), (3, 3, 3)), np.zeros((4, 4, 4), bool)
    overlap, values = measure(mask, empty, (2.0, 1.0, 1.0), nsd_tolerance_mm=1.0)
    assert overlap.status == "missed"
    assert values["dice"] == values["iou"] == values["sensitivity"] == values["nsd"] == 0
    assert isnan(values["precision"])
    assert all(values[name] == inf for name in DISTANCES)
    assert values["volume_difference"] == -16
    assert values["relative_volume_difference"] == -1


def test_spurious():
    mask, empty = block((4, 4, 4), (1, 1, 1), (3, 3, 3)), np.zeros((4, 4, 4), bool)
    overlap, values = measure(empty, mask, (2.0, 1.0, 1.0), nsd_tolerance_mm=1.0)
    assert overlap.status == "spurious"
    assert values["dice"] == values["iou"] == values["precision"] == values["nsd"] == 0
    assert isnan(values["sensitivity"])
    assert all(values[name] == inf for name in DISTANCES)
    assert values["volume_difference"] == 16
    assert values["relative_volume_difference"] == inf


@pytest.mark.parametrize("other", [np.zeros((3, 4), bool), np.zeros((4, 4), int)])
def test_masks_that_do_not_fit(other):
    with pytest.raises(ValueError, match=r"expected two bool arrays of one shape"):
        overlap_of(np.zeros((4, 4), bool), other)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_overlap_shares_agree_with_each_other(n_only_reference, n_only_prediction, n_both):
    overlap = Overlap(n_only_reference + n_both, n_only_prediction + n_both, n_both)
    if overlap.status != "ok":
        return
    assert dice(overlap) == pytest.approx(2 * iou(overlap) / (1 + iou(overlap)))
    assert min(sensitivity(overlap), precision(overlap)) <= dice(overlap) + 1e-12
    assert dice(overlap) <= max(sensitivity(overlap), precision(overlap)) + 1e-12


SPACING = (2.5, 1.0, 0.7)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_swapping_masks_changes_only_what_is_directed(seed):
    first, second = random_pair(seed)
    one, other = (measure(*pair, SPACING, 1.0)[1] for pair in ((first, second), (second, first)))
    for name in ("dice", "iou", "nsd", "nsd_mc", *DISTANCES):
        assert one[name] == pytest.approx(other[name], rel=1e-12)
    assert one["sensitivity"] == other["precision"]
    assert one["volume_difference"] == -other["volume_difference"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(3)), st.sets(st.integers(0, 2)))
def test_turning_the_image_changes_nothing(seed, axes, flips):
    pair = random_pair(seed)
    turned = [np.flip(mask.transpose(axes), tuple(flips)) for mask in pair]
    expected = measure(*pair, SPACING, 1.0)[1]
    assert measure(*turned, tuple(SPACING[a] for a in axes), 1.0)[1] == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 4.0))
def test_larger_voxels_scale_lengths(seed, factor):
    pair = random_pair(seed)
    one = measure(*pair, SPACING, 1.0)[1]
    other = measure(*pair, tuple(factor * s for s in SPACING), factor)[1]
    power = {name: 1 if name in DISTANCES else 3 if name == "volume_difference" else 0 for name in one}
    assert other == pytest.approx({name: value * factor ** power[name] for name, value in one.items()}, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=3))
def test_background_around_changes_nothing(seed, margins):
    pair = random_pair(seed)
    padded = [np.pad(mask, margins) for mask in pair]
    assert measure(*padded, SPACING, 1.0)[1] == measure(*pair, SPACING, 1.0)[1]


def test_the_table_and_what_computes_its_metrics_have_the_same_keys():
    empty = np.zeros((1, 1, 1), bool)
    keys = {
        "centreline": set(centreline_scores(empty, empty)),
        "lesions": set(SCORES),
        "calibration": set(calibration_scores(tally(np.zeros(1), np.zeros(1, bool)))),
    }
    variants = {"centreline": {""}, "lesions": set(RULES), "calibration": {"", "_image"}}
    rows = [metric.value for metric in METRICS.values() if isinstance(metric.value, FromCase)]
    assert {row.group for row in rows} == set(GROUPS)
    for group in GROUPS:
        assert {row.key for row in rows if row.group == group} == keys[group]
        assert {row.variant for row in rows if row.group == group} == variants[group]
    assert {metric.group for metric in METRICS.values()} == {"counts", *MODELS, *GROUPS}


def test_every_row_of_the_table_gives_a_column():
    """All that counts and surfaces give is computed, whatever its name."""
    _, values = measure(*random_pair(0), (1.0, 1.0, 1.0), 1.0, METRICS)
    assert list(values) == [name for name, metric in METRICS.items() if not isinstance(metric.value, FromCase)]


def test_a_description_follows_is_and_has_no_end():
    for metric in METRICS.values():
        assert metric.description[0].islower() and metric.description[-1] not in ".;", metric.name


def test_only_differences_of_volumes_can_be_negative():
    below = {name for name, metric in METRICS.items() if metric.limits[0] < 0}
    assert below == {"volume_difference", "relative_volume_difference"}
