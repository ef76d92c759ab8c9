"""Lesion by lesion: values by hand, published numbers, slow versions of the definitions, properties."""

from __future__ import annotations

from dataclasses import astuple
from itertools import combinations, permutations
from math import inf, isnan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import SHARED_DATA
from scipy import ndimage

from segpipe.core.grid import Grid
from segpipe.core.labels import Label, LabelSet
from segpipe.core.volume import read_labels
from segpipe.evaluate.evaluation_case import ScoreSettings
from segpipe.evaluate.lesions import (
    RULES,
    SCORES,
    LesionRule,
    lesion_scores,
    lesions_path,
    match_lesions,
    match_numbered,
)
from segpipe.evaluate.metrics import METRICS, Overlap
from segpipe.evaluate.scores import Origin, ScoreTable
from segpipe.evaluate.scoring import score_case
from segpipe.evaluate.summary import MEAN_LABEL, POLICIES, summarise
from segpipe.evaluate.surfaces.distances import hausdorff_percentile_mm, lattice_distances

MM = (1.0, 1.0, 1.0)
SPACING = (2.0, 1.0, 0.5)
SHAPE = (20, 20, 20)
DIAGONAL_MM = 20 * sqrt(3)
GRID = Grid(SHAPE, np.diag([0.5, 1.0, 2.0, 1.0]))
LABELS = LabelSet(labels=(Label(name="tumour", values=(1,)),))


def blocks(*places, shape=SHAPE):
    mask = np.zeros(shape, bool)
    for low, high in places:
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def cube(low, high):
    return (low,) * 3, (high,) * 3


FIRST, SECOND = cube(1, 4), cube(15, 18)
BOTH, NONE = blocks(FIRST, SECOND), blocks()


def scores_of(reference, prediction, rule="", spacing_mm=MM, missed_mm=DIAGONAL_MM):
    return lesion_scores(match_lesions(reference, prediction, spacing_mm, RULES[rule]), missed_mm)


def test_one_found_one_missed_one_false_alarm():
    # the first of two lesions is found, shifted by one of its four voxels along X; 10 of 20 alone is a false alarm
    reference = blocks(((2, 2, 2), (4, 4, 6)), ((10, 10, 10), (12, 12, 12)))
    prediction = blocks(((2, 2, 3), (4, 4, 7)), ((16, 16, 16), (17, 17, 17)))
    lesions = match_lesions(reference, prediction, SPACING, RULES[""])
    found, missed, alone = lesions.lesions
    assert (found.overlap, missed.overlap, alone.overlap) == (Overlap(16, 16, 12), Overlap(8, 0, 0), Overlap(0, 1, 0))
    assert [lesion.overlap.status for lesion in lesions.lesions] == ["ok", "missed", "spurious"]
    assert (found.hd95_mm, missed.hd95_mm, alone.hd95_mm) == (0.5, inf, inf)
    assert (found.centre_zyx, alone.centre_zyx) == ((2.5, 2.5, 3.5), (16.0, 16.0, 16.0))
    scores = lesion_scores(lesions, missed_mm=30.0)
    assert scores["sensitivity"] == scores["precision"] == scores["f1"] == 0.5
    assert scores["dice"] == pytest.approx((24 / 32 + 0 + 0) / 3)
    assert scores["hd95"] == pytest.approx((0.5 + 30 + 30) / 3)
    assert scores["sq"] == pytest.approx(12 / 20)
    assert scores["pq"] == pytest.approx(12 / 20 / (1 + 0.5 + 0.5))


def test_every_rule_has_its_metrics_and_no_metric_is_without_rule():
    named = {f"lesion_{what}{rule}" for rule in RULES for what in SCORES if what not in ("sq", "pq")}
    named |= {"lesion_sq_iou50", "lesion_pq_iou50"}
    assert {name for name, metric in METRICS.items() if metric.group == "lesions"} == named
    for rule, content in RULES.items():
        assert METRICS[f"lesion_hd95{rule}"].missed_mm == content.missed_mm


@pytest.mark.parametrize("rule", RULES)
def test_both_empty(rule):
    lesions = match_lesions(NONE, NONE, MM, RULES[rule])
    assert (lesions.lesions, lesions.n_predicted, lesions.status) == ((), 0, "both_empty")
    assert all(isnan(value) for value in lesion_scores(lesions, 1.0).values())
    assert match_lesions(NONE[:0, :0, :0], NONE[:0, :0, :0], MM, RULES[rule]) == lesions


@pytest.mark.parametrize("rule", RULES)
def test_missed(rule):
    mask = blocks(cube(2, 6))  # 64 mm³, more than BraTS leaves out
    assert match_lesions(mask, NONE, MM, RULES[rule]).status == "missed"
    scores = scores_of(mask, NONE, rule)
    assert isnan(scores.pop("precision"))
    assert scores.pop("hd95") == inf
    assert set(scores.values()) == {0.0}


@pytest.mark.parametrize("rule", RULES)
def test_spurious(rule):
    assert match_lesions(NONE, BOTH, MM, RULES[rule]).status == "spurious"
    scores = scores_of(NONE, BOTH, rule)
    assert isnan(scores.pop("sensitivity"))
    assert scores.pop("hd95") == inf
    assert set(scores.values()) == {0.0}


@pytest.mark.parametrize(
    ("reference", "prediction", "dice_expected", "hd95_expected"),
    [
        (BOTH, BOTH, 1, 0),
        (BOTH, blocks(FIRST), 1 / 2, DIAGONAL_MM / 2),
        (blocks(FIRST), BOTH, 1 / 2, DIAGONAL_MM / 2),
        (BOTH, blocks(FIRST, ((1, 15, 1), (4, 18, 4))), 1 / 3, 2 * DIAGONAL_MM / 3),
    ],
    ids=["perfect", "one missed", "one false alarm", "both"],
)
def test_numbers_of_mist(reference, prediction, dice_expected, hd95_expected):
    scores = scores_of(reference, prediction)
    assert scores["dice"] == pytest.approx(dice_expected)
    assert scores["hd95"] == pytest.approx(hd95_expected)


def test_a_gap_of_one_voxel_is_closed_by_dilation():
    reference = blocks(((1, 1, 1), (5, 5, 5)), ((1, 1, 6), (5, 5, 10)))
    prediction = blocks(((1, 1, 1), (5, 5, 5)))
    assert scores_of(reference, prediction)["dice"] == 0.5  # two lesions, one found
    merged = match_lesions(reference, prediction, MM, LesionRule("many", dilation_vox=1))
    assert [lesion.overlap for lesion in merged.lesions] == [Overlap(128, 64, 64)]
    assert lesion_scores(merged, DIAGONAL_MM)["dice"] == 2 / 3


def test_too_small_to_count():
    tiny = blocks(cube(1, 4))  # 27 mm³
    brats = match_lesions(tiny, NONE, MM, RULES["_brats"])
    assert (brats.lesions, brats.status) == ((), "both_empty")
    touched = match_lesions(tiny, tiny, MM, RULES["_brats"])  # what found it is no false alarm
    assert (touched.lesions, touched.status) == ((), "both_empty")
    assert match_lesions(tiny, BOTH, MM, RULES["_brats"]).status == "spurious"  # the other one is
    assert match_lesions(tiny, tiny, MM, RULES["_brats_met"]).count("ok") == 1
    exact = blocks(((0, 0, 0), (2, 5, 5)))  # 50 mm³ are not more than 50
    assert match_lesions(exact, NONE, MM, RULES["_brats"]).status == "both_empty"
    assert match_lesions(exact, NONE, (1.0, 1.0, 1.01), RULES["_brats"]).status == "missed"


def test_one_prediction_over_two_lesions():
    reference = blocks(((1, 1, 1), (5, 5, 5)), ((1, 1, 6), (5, 5, 10)))
    prediction = blocks(((1, 1, 1), (5, 5, 10)))  # 144 voxels, 64 in each
    many = match_lesions(reference, prediction, MM, RULES[""])
    assert [lesion.overlap for lesion in many.lesions] == [Overlap(64, 144, 64)] * 2
    one = match_lesions(reference, prediction, MM, RULES["_iou25"])
    assert sorted(lesion.overlap.status for lesion in one.lesions) == ["missed", "ok"]
    assert match_lesions(reference, prediction, MM, RULES["_iou50"]).count("ok") == 0  # 64 / 144


def test_more_pairs_count_more_than_better_ones():
    # A overlaps p by 6 of 14 and q by 1; B overlaps p by 2: A–p alone is the best pair, A–q and B–p are two
    reference = np.zeros((1, 1, 60), bool)
    prediction = reference.copy()
    reference[..., 0:8], reference[..., 10:16] = True, True  # A, B
    prediction[..., 2:9], prediction[..., 0:1] = True, True  # p from A only, q
    prediction[..., 8:12] = True  # p reaches B
    rule = LesionRule("one", min_share=0.01)
    lesions = match_lesions(reference, prediction, MM, rule).lesions
    assert [lesion.overlap for lesion in lesions] == [Overlap(8, 1, 1), Overlap(6, 10, 2)]


def test_more_than_half_of_the_smaller_one():
    # 4×4×4 and 2×4×4 voxels share 1×4×4: half of the smaller one, which is not more than half
    reference, prediction = blocks(((2, 2, 2), (6, 6, 6))), blocks(((5, 2, 2), (7, 6, 6)))
    assert match_lesions(reference, prediction, MM, RULES[""]).count("ok") == 1
    assert match_lesions(reference, prediction, MM, RULES["_overlap50"]).count("ok") == 0
    prediction[4, 2, 2] = True  # 17 of 33
    assert match_lesions(reference, prediction, MM, RULES["_overlap50"]).count("ok") == 1


def test_two_predictions_in_one_lesion_are_both_right():
    reference, prediction = blocks(((2, 2, 2), (6, 6, 12))), blocks(((2, 2, 2), (6, 6, 5)), ((2, 2, 8), (6, 6, 12)))
    assert match_lesions(reference, prediction, MM, RULES[""]).lesions[0].overlap == Overlap(160, 112, 112)
    scores = scores_of(reference, prediction)
    assert (scores["sensitivity"], scores["precision"], scores["f1"]) == (1, 1, 1)


def test_dilation_goes_over_edges_not_over_corners():
    rule = LesionRule("many", dilation_vox=1)
    reference = blocks(((5, 5, 5), (6, 6, 6)))
    for place, status in (((5, 6, 6), "ok"), ((6, 6, 6), "missed")):
        prediction = blocks((place, tuple(n + 1 for n in place)))
        assert match_lesions(reference, prediction, MM, rule).lesions[0].overlap.status == status


def test_corners_join():
    mask = blocks(cube(1, 3), cube(3, 5))
    assert len(match_lesions(mask, NONE, MM, RULES[""]).lesions) == 1


def test_a_flat_lesion_in_a_volume_is_no_contour():
    reference = blocks(((5, 2, 2), (6, 8, 8)))
    prediction = blocks(((5, 2, 2), (6, 8, 10)))
    expected = hausdorff_percentile_mm(lattice_distances(reference, prediction, SPACING), 0.95)
    assert match_lesions(reference, prediction, SPACING, RULES[""]).lesions[0].hd95_mm == expected


def brats_by_definition(reference, prediction, spacing_mm, dilation_vox, min_volume_mm3):
    """The challenge's definition lesion by lesion on whole arrays, nothing saved: scores and counts."""
    corner = np.ones((3, 3, 3), bool)
    ball = ndimage.generate_binary_structure(3, 2)
    grown, n_zones = ndimage.label(ndimage.binary_dilation(reference, ball, iterations=dilation_vox), corner)
    pieces, n_pieces = ndimage.label(prediction, corner)
    touched, dices, hd95s, n_found = set(), [], [], 0
    for zone in range(1, n_zones + 1):
        lesion = reference & (grown == zone)
        near = ndimage.binary_dilation(lesion, ball, iterations=dilation_vox)
        partners = set(np.unique(pieces[near])) - {0}
        touched |= partners
        if lesion.sum() * np.prod(spacing_mm) <= min_volume_mm3:
            continue
        own = np.isin(pieces, list(partners))
        dices.append(2 * (own & lesion).sum() / (own.sum() + lesion.sum()))
        distance = hausdorff_percentile_mm(lattice_distances(lesion, own, spacing_mm), 0.95)
        hd95s.append(374.0 if distance == inf else distance)
        n_found += bool(partners)
    n_alone = n_pieces - len(touched)
    n = len(dices) + n_alone
    if n == 0:
        return None
    return sum(dices) / n, (sum(hd95s) + 374 * n_alone) / n, n_found, len(dices) - n_found, n_alone


def random_lesions(seed, shape=(14, 15, 16), n=6, size=5):
    """A few boxes, and for the prediction some of them shifted, some lost, some new."""
    random = np.random.default_rng(seed)
    masks = np.zeros((2, *shape), bool)
    for _ in range(n):
        low = random.integers(0, np.array(shape) - 2)
        high = low + random.integers(1, size, 3)
        shift = random.integers(-1, 2, 3)
        for mask, (a, b), kept in zip(masks, ((low, high), (low + shift, high + shift)), random.random(2), strict=True):
            if kept < 0.8:
                mask[tuple(slice(max(0, i), max(0, j)) for i, j in zip(a, b, strict=True))] = True
    return masks[0], masks[1]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(["_brats", "_brats_men", "_brats_met"]))
def test_brats_as_defined(seed, rule):
    reference, prediction = random_lesions(seed)
    spacing_mm = (2.0, 1.5, 1.0)
    expected = brats_by_definition(
        reference, prediction, spacing_mm, RULES[rule].dilation_vox, RULES[rule].min_volume_mm3
    )
    lesions = match_lesions(reference, prediction, spacing_mm, RULES[rule])
    if expected is None:
        assert lesions.status == "both_empty"
        return
    scores = lesion_scores(lesions, 374.0)
    assert tuple(lesions.count(status) for status in ("ok", "missed", "spurious")) == expected[2:]
    assert scores["dice"] == pytest.approx(expected[0])
    if lesions.status == "ok":
        assert scores["hd95"] == pytest.approx(expected[1])
    else:
        assert expected[1] == 374  # what the policy gives


def pairs_by_trying_all(reference, prediction, min_iou):
    """The best set of pairs, found by trying every one; number and sum of IoU."""
    corner = np.ones((3, 3, 3), bool)
    (first, n_first), (second, n_second) = (ndimage.label(mask, corner) for mask in (reference, prediction))
    table = np.zeros((n_first, n_second))
    for i in range(n_first):
        for j in range(n_second):
            a, b = first == i + 1, second == j + 1
            table[i, j] = (a & b).sum() / (a | b).sum()
    best = (0, 0.0)
    for n in range(1, min(n_first, n_second) + 1):
        for rows in combinations(range(n_first), n):
            for columns in permutations(range(n_second), n):
                shares = [table[i, j] for i, j in zip(rows, columns, strict=True)]
                if all(share > min_iou for share in shares):
                    best = max(best, (n, sum(shares)))
    return n_first, n_second, *best


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(["_iou10", "_iou25", "_iou50"]))
def test_one_to_one_as_defined(seed, rule):
    reference, prediction = random_lesions(seed, shape=(6, 8, 9), n=4, size=4)
    n_first, n_second, n_pairs, total = pairs_by_trying_all(reference, prediction, RULES[rule].min_share)
    lesions = match_lesions(reference, prediction, MM, RULES[rule], with_hd95=False)
    assert lesions.n_predicted == n_second
    assert [lesions.count(status) for status in ("ok", "missed", "spurious")] == [
        n_pairs,
        n_first - n_pairs,
        n_second - n_pairs,
    ]
    scores = lesion_scores(lesions, 1.0)
    if n_first + n_second:
        assert scores["pq"] == pytest.approx(total / ((n_first + n_second) / 2))
        assert scores["f1"] == pytest.approx(2 * n_pairs / (n_first + n_second))


@pytest.mark.parametrize("seed", range(8))
def test_panoptic_quality_of_monai(seed):
    import torch
    from monai.metrics.panoptic_quality import compute_panoptic_quality

    reference, prediction = random_lesions(seed)
    ids = [ndimage.label(mask.any(axis=0), np.ones((3, 3)))[0] for mask in (reference, prediction)]
    found = {
        name: float(compute_panoptic_quality(torch.as_tensor(ids[1]), torch.as_tensor(ids[0]), name))
        for name in ("pq", "sq", "rq")
    }
    scores = scores_of(reference.any(axis=0)[None], prediction.any(axis=0)[None], "_iou50")
    assert found == pytest.approx({"pq": scores["pq"], "sq": scores["sq"], "rq": scores["f1"]}, abs=1e-5)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(list(RULES)), st.permutations(range(3)), st.sets(st.integers(0, 2)))
def test_turning_the_image_changes_nothing(seed, rule, axes, flips):
    pair = random_lesions(seed)
    turned = [np.flip(mask.transpose(axes), tuple(flips)) for mask in pair]
    expected = scores_of(*pair, rule, SPACING)
    found = scores_of(*turned, rule, tuple(SPACING[axis] for axis in axes))
    assert found == pytest.approx(expected, rel=1e-9, nan_ok=True)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(list(RULES)))
def test_a_crop_around_both_masks_changes_nothing(seed, rule):
    reference, prediction = random_lesions(seed)
    is_any = reference | prediction
    if any(is_any.any(axis=axes).sum() < 2 for axes in ((1, 2), (0, 2), (0, 1))):
        return  # nothing, or one slice, which would be measured as a contour
    (box,) = ndimage.find_objects((reference | prediction).astype(int))
    whole, cropped = (
        match_lesions(a, b, SPACING, RULES[rule])
        for a, b in ((reference, prediction), (reference[box], prediction[box]))
    )
    found, expected = (sorted((astuple(one.overlap), one.hd95_mm) for one in each.lesions) for each in (cropped, whole))
    assert found == expected
    assert cropped.n_predicted == whole.n_predicted


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(list(RULES)), st.sampled_from(sorted(set(POLICIES) - {"omit"})))
def test_a_missed_lesion_never_improves_a_mean(seed, rule, policy):
    reference, prediction = random_lesions(seed, n=4)
    names = tuple(f"lesion_{what}{rule}" for what in SCORES if f"lesion_{what}{rule}" in METRICS and what != "sq")
    pieces, n_pieces = ndimage.label(prediction, np.ones((3, 3, 3)))
    zones = ndimage.label(
        ndimage.binary_dilation(reference, ndimage.generate_binary_structure(3, 2), iterations=3), np.ones((3, 3, 3))
    )[0]
    before = means_of(reference, prediction, names, policy)
    for piece in range(1, n_pieces + 1):
        lesions = set(np.unique(ndimage.label(reference, np.ones((3, 3, 3)))[0][pieces == piece])) - {0}
        if len(lesions) != 1 or len(set(np.unique(zones[pieces == piece])) - {0}) != 1:
            continue  # a false alarm, or one that reaches several: without it another may be better
        if match_lesions(reference, pieces == piece, SPACING, RULES[rule], with_hd95=False).count("ok") == 0:
            continue  # it found nothing that counts
        without = means_of(reference, prediction & (pieces != piece), names, policy)
        for name in names:
            worse = before[name] - without[name] if METRICS[name].kind == "overlap" else without[name] - before[name]
            others = match_lesions(reference, prediction & (pieces != piece), SPACING, RULES[rule], with_hd95=False)
            had = match_lesions(reference, prediction, SPACING, RULES[rule], with_hd95=False)
            if others.count("ok") < had.count("ok"):
                assert worse >= -1e-9, name


def means_of(reference, prediction, names, policy):
    grid = Grid(reference.shape, np.diag([0.5, 1.0, 2.0, 1.0]))
    arrays = (reference.astype(int), prediction.astype(int))
    rows = score_case(*arrays, grid, LABELS, Origin("c", "p"), ScoreSettings(names)).rows
    perfect = score_case(arrays[0], arrays[0], grid, LABELS, Origin("d", "q"), ScoreSettings(names)).rows
    summary = summarise(ScoreTable((*rows, *perfect)), policy)
    return {row.metric: row.mean for row in summary if row.label == MEAN_LABEL}


def test_a_case_gives_rows_of_lesions_in_the_world():
    labels = LabelSet(labels=(Label(name="a", values=(3,)), Label(name="b", values=(7,))), ignore_value=9)
    reference, prediction = np.zeros((2, *SHAPE), int)
    reference[2:4, 4:8, 10:14], prediction[2:4, 4:8, 10:14] = 3, 3
    reference[10:12, 10:12, 10:12] = 9
    prediction[10:12, 10:12, 10:12], prediction[15, 15, 15] = 3, 7
    found = score_case(
        reference, prediction, GRID, labels, Origin("c", "p"), ScoreSettings(("lesion_f1", "lesion_dice_brats"))
    )
    scores = {(row.label, row.metric): row for row in found.rows}
    assert scores["a", "lesion_f1"].value == 1  # what lies where nobody annotated is no false alarm
    assert (scores["b", "lesion_f1"].value, scores["b", "lesion_f1"].status) == (0, "spurious")
    assert scores["a", "lesion_dice_brats"].status == "both_empty"  # 32 voxels of 1 mm³ are too few
    one, other, third = found.details
    assert (one.case_id, one.label, one.rule, one.lesion, one.status) == ("c", "a", "any", 1, "ok")
    assert (one.x_mm, one.y_mm, one.z_mm) == (11.5 * 0.5, 5.5 * 1, 2.5 * 2)
    assert (one.volume_mm3, one.dice, isnan(one.hd95_mm)) == (32, 1, True)
    assert (other.label, other.status, other.volume_mm3) == ("b", "spurious", 1)
    assert (third.label, third.rule) == ("b", "brats")


def test_renaming_labels_changes_nothing():
    reference, prediction = (mask.astype(int) for mask in random_lesions(3))
    grid = Grid(reference.shape, np.eye(4))
    names = tuple(name for name in METRICS if METRICS[name].group == "lesions")
    rows = []
    for value in (1, 40_000):
        labels = LabelSet(labels=(Label(name="t", values=(value,)),))
        pair = (reference * value, prediction * value)
        rows.append(score_case(*pair, grid, labels, Origin("c", "p"), ScoreSettings(names)))
    assert rows[0] == rows[1]


def test_where_the_lesions_go(tmp_path):
    names = {"scores.csv": "lesions.csv", "b.csv": "b_lesions.csv", "a_scores.csv": "a_lesions.csv"}
    assert {name: lesions_path(tmp_path / name).name for name in names} == names


def test_thousands_of_specks_are_matched():
    random = np.random.default_rng(0)
    noise = random.random((2, 60, 60, 60)) < 0.01
    lesions = match_lesions(noise[0], noise[1], MM, RULES["_iou10"], with_hd95=False)
    assert lesions.n_predicted > 1500
    assert lesions.count("ok") == lesions.n_predicted - lesions.count("spurious") > 10


def test_published_counts_of_a_spine():
    folder = SHARED_DATA / "metric_fixtures" / "panoptica_spine" / "examples" / "spine_seg" / "semantic"
    if not folder.is_dir():
        pytest.skip(f"no metric_fixtures in {SHARED_DATA}")
    (reference, grid), (prediction, _) = (read_labels(folder / f"{name}.nii.gz") for name in ("ref", "pred"))
    ids = [numbered(values) for values in (reference, prediction)]  # there, any piece may belong to any other
    lesions = match_numbered(*ids, grid.spacing_mm, RULES["_iou50"], with_hd95=False)
    assert [lesions.count(status) for status in ("ok", "missed", "spurious")] == [73, 14, 16]
    scores = lesion_scores(lesions, 1.0)
    assert scores["f1"] == pytest.approx(0.8295454545454546)
    assert scores["sq"] == pytest.approx(0.7940127477906024)


def numbered(values):
    """Number the connected pieces of all values."""
    ids, n = np.zeros(values.shape, np.int32), 0
    for value in np.unique(values[values > 0]):
        pieces, n_pieces = ndimage.label(values == value, np.ones((3, 3, 3)))
        ids[pieces > 0] = pieces[pieces > 0] + n
        n += n_pieces
    return ids


def test_blocks_that_touch_told_apart_by_the_file():
    # one of two touching blocks is found by a block 3/2 of it: IoU 2/3; the other is missed: PQ (2/3) / (1 + 1/2)
    references, predictions = np.zeros((2, 1, 50, 50), np.int32)
    references[0, 20:40, 10:20], references[0, 20:40, 20:30], predictions[0, 20:40, 10:25] = 1, 2, 1
    scores = lesion_scores(match_numbered(references, predictions, MM, RULES["_iou50"]), 1.0)
    assert (scores["sq"], scores["pq"]) == pytest.approx((2 / 3, 2 / 3 / 1.5))
