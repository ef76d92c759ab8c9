"""Calibration: published numbers, edge values, other libraries, files."""

from __future__ import annotations

from math import isnan, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from segpipe.core.errors import DataError
from segpipe.core.grid import Grid
from segpipe.core.labels import Label, LabelSet
from segpipe.core.probabilities import probabilities_beside
from segpipe.evaluate.calibration import (
    NEAR_MM,
    brier_score,
    calibration_scores,
    expected_calibration_error,
    maximum_calibration_error,
    near_masks,
    negative_log_likelihood,
    read_probabilities,
    tally,
)
from segpipe.evaluate.evaluation_case import ScoreSettings
from segpipe.evaluate.metrics import METRICS
from segpipe.evaluate.scores import Origin, ScoreTable
from segpipe.evaluate.scoring import score_case
from segpipe.evaluate.summary import summarise

P = np.array([0.22, 0.48, 0.49, 0.96, 0.55, 0.64, 0.78, 0.82, 0.34, 0.87])
TRUE = np.array([0, 1, 0, 0, 1, 1, 1, 1, 1, 0], bool)
LABELS = LabelSet(labels=(Label(name="a", values=(1,)), Label(name="b", values=(2,))))
SHAPE = (2, 3, 4)


def test_two_bins_by_hand():
    # below one half: 0.22 0.48 0.49 0.34, mean 0.3825, two of four true; above: mean 0.77, four of six true
    counts = tally(P, TRUE)
    assert expected_calibration_error(counts, 2) == pytest.approx((4 * abs(0.3825 - 0.5) + 6 * abs(0.77 - 4 / 6)) / 10)
    assert maximum_calibration_error(counts, 2) == pytest.approx(0.5 - 0.3825)


@pytest.mark.parametrize(("n_bins", "ece", "mce"), [(2, 0.11, 0.12), (5, 0.32, 0.55), (10, 0.36, 0.96)])
def test_numbers_of_metrics_reloaded(n_bins, ece, mce):
    counts = tally(P, TRUE)
    assert expected_calibration_error(counts, n_bins) == pytest.approx(ece, abs=0.006)
    assert maximum_calibration_error(counts, n_bins) == pytest.approx(mce, abs=0.006)


def test_brier_and_likelihood_of_metrics_reloaded():
    counts = tally(np.array([0.8, 0.6]), np.array([True, False]))
    assert 2 * brier_score(counts) == pytest.approx(0.4)  # they sum over both outcomes
    assert -negative_log_likelihood(counts) == pytest.approx(-0.57, abs=0.001)
    right = tally(np.array([0.8, 0.6, 0.7, 0.95]), np.ones(4, bool))
    assert negative_log_likelihood(right) == pytest.approx(-log(0.8 * 0.6 * 0.7 * 0.95) / 4)


def test_bins_of_equal_mass_by_hand():
    # three bins of two voxels: 0.1 0.1 | 0.2 0.3 | 0.9 1.0; true: one, none, two
    counts = tally(np.array([0.1, 0.1, 0.2, 0.3, 0.9, 1.0]), np.array([1, 0, 0, 0, 1, 1], bool))
    expected = (abs(0.1 - 0.5) + abs(0.25 - 0) + abs(0.95 - 1)) / 3
    assert expected_calibration_error(counts, 3, equal_mass=True) == pytest.approx(expected)


def test_certain_and_right():
    scores = calibration_scores(tally(np.array([0, 1], np.float16), np.array([False, True])))
    assert scores.pop("nll") == pytest.approx(2**-12, rel=1e-3)  # half the step of float16 below 1
    assert set(scores.values()) == {0.0}


def test_certain_and_wrong():
    scores = calibration_scores(tally(np.array([0, 1], np.float16), np.array([True, False])))
    assert scores.pop("nll") == pytest.approx(12 * log(2))
    assert set(scores.values()) == {1.0}


def test_of_no_voxel():
    for kind in (np.float16, np.float32):
        assert all(isnan(value) for value in calibration_scores(tally(np.zeros(0, kind), np.zeros(0, bool))).values())


@given(st.lists(st.tuples(st.floats(0, 1, width=16), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_half_precision_is_counted_like_any_other(pairs, n_bins):
    p, is_true = np.array([p for p, _ in pairs]), np.array([t for _, t in pairs])
    half, full = tally(p.astype(np.float16), is_true), tally(p, is_true)
    assert half.probabilities.tolist() == full.probabilities.tolist()
    assert half.n_true_vox.tolist() == full.n_true_vox.tolist()
    assert expected_calibration_error(half, n_bins) == expected_calibration_error(full, n_bins)


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.booleans()), min_size=2, max_size=60), st.integers(1, 20))
def test_a_second_opinion(pairs, n_bins):
    p, is_true = np.array([p for p, _ in pairs]), np.array([t for _, t in pairs])
    counts = tally(p, is_true)
    assert brier_score(counts) == pytest.approx(brier_score_loss(is_true, p, labels=[False, True]))
    assert negative_log_likelihood(counts) == pytest.approx(log_loss(is_true, p, labels=[False, True]))
    expected = 0.0
    for number in range(n_bins):
        is_in = (p * n_bins >= number) & (p * n_bins < number + 1)
        if is_in.any():
            expected += abs(p[is_in].mean() - is_true[is_in].mean()) * is_in.mean()
    assert expected_calibration_error(counts, n_bins) == pytest.approx(expected)


def test_where_a_label_is_judged():
    reference, prediction = np.zeros((2, 9, 60), bool), np.zeros((2, 9, 60), bool)
    reference[0, 4, 5], prediction[1, 4, 50] = True, True
    near = near_masks(reference, prediction, (20.0, 3.0, 1.0))
    assert np.flatnonzero(near[0, 4]).tolist() == list(range(16))  # 10 mm to both sides of 5, cut by the border
    assert np.flatnonzero(near[1, 4]).tolist() == list(range(40, 60))
    assert near[0, 4 + int(NEAR_MM / 3), 5]
    assert not near[0, 0, 5]  # 12 mm
    assert not near_masks(np.zeros_like(reference), np.zeros_like(reference), (1.0, 1.0, 1.0)).any()


def test_ignored_voxels_are_not_judged(tmp_path):
    labels = LabelSet(labels=(Label(name="a", values=(1,)),), ignore_value=9)
    reference, prediction = np.zeros((2, 2, 3, 40), int)
    reference[0, 0, 3:5] = prediction[0, 0, 3:5] = 1
    reference[0, 0, 5:9] = 9  # near the label, and wrong with certainty there
    reference[0, 0, 30], far = 9, (0, 0, 31)
    of_label = np.zeros((2, 3, 40), np.float16)
    of_label[0, 0, 3:9] = of_label[0, 0, 30] = of_label[far] = 1
    np.savez(tmp_path / "p.npz", probabilities=np.stack([1 - of_label, of_label]))
    metrics = tuple(name for name, metric in METRICS.items() if metric.group == "calibration")
    grid, origin = Grid((2, 3, 40), np.eye(4)), Origin("c", "p")
    rows = score_case(reference, prediction, grid, labels, origin, ScoreSettings(metrics), tmp_path / "p.npz").rows
    values = {row.metric: row.value for row in rows}
    assert set(values) > set(metrics)
    assert values["brier"] == 0  # all that counts within 10 mm is right
    assert values["brier_image"] == pytest.approx(1 / (2 * 3 * 40 - 5))  # one far voxel is wrong
    with pytest.raises(DataError, match="c: calibration needs probabilities, but there are none"):
        score_case(reference, prediction, grid, labels, origin, ScoreSettings(metrics))


def test_of_a_label_that_is_in_neither_mask(tmp_path):
    softmax_file(tmp_path / "p.npz")
    empty = np.zeros(SHAPE, int)
    settings = ScoreSettings(("brier", "brier_image"))
    grid = Grid(SHAPE, np.eye(4))
    rows = score_case(empty, empty, grid, LABELS, Origin("c", "p"), settings, tmp_path / "p.npz").rows
    found = {(row.label, row.metric): row for row in rows}
    assert isnan(found["a", "brier"].value)  # there is no place near it
    assert found["a", "brier"].status == "both_empty"
    assert found["a", "brier_image"].value > 0
    means = {(row.label, row.metric): row for row in summarise(ScoreTable(rows))}
    assert means["a", "brier"].n_left_out == 1
    assert means["a", "brier_image"].mean == found["a", "brier_image"].value  # no policy replaces it


def softmax_file(path, n_outputs=3, dtype=np.float16, shape=SHAPE, **other):
    values = np.random.default_rng(1).random((n_outputs, *shape))
    values = (values / values.sum(axis=0)).astype(dtype)
    np.savez_compressed(path, **({"probabilities": values} | other))
    return values


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_file_is_read_label_by_label(tmp_path, dtype):
    values = softmax_file(tmp_path / "p.npz", dtype=dtype)
    found = list(read_probabilities(tmp_path / "p.npz", LABELS, SHAPE))
    assert [f.tolist() for f in found] == values[1:].tolist()
    assert found[0].dtype == dtype


def test_regions_have_no_background(tmp_path):
    regions = LabelSet(labels=(Label(name="w", values=(1, 2)), Label(name="c", values=(2,))), paint_values=(1, 2))
    values = softmax_file(tmp_path / "p.npz", n_outputs=2) / 2  # they need not add up to 1
    np.savez(tmp_path / "p.npz", probabilities=values)
    assert [f.tolist() for f in read_probabilities(tmp_path / "p.npz", regions, SHAPE)] == values.tolist()


BAD_FILES = [
    (dict(n_outputs=4), r"holds probabilities \(4, 2, 3, 4\) float16, expected floats \(3, 2, 3, 4\)"),
    (dict(shape=(2, 3, 5)), r"\(3, 2, 3, 5\) float16"),
    (dict(probabilities=np.zeros((3, *SHAPE), int)), "int64, expected floats"),
    (dict(probabilities=np.asfortranarray(np.zeros((3, *SHAPE), np.float16))), "in Fortran order"),
    (dict(probabilities=np.zeros((3, *SHAPE), np.float16)), "add up to 1 ± 1, expected 1"),
    (dict(probabilities=np.full((3, *SHAPE), np.nan, np.float16)), "output 0 holds values outside 0 to 1 or NaN"),
    (dict(probabilities=np.full((3, *SHAPE), 2, np.float16)), "output 0 holds values outside 0 to 1"),
    (dict(probabilities=np.array([None])), "expected floats"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_files_that_hold_something_else(tmp_path, content, message):
    softmax_file(tmp_path / "p.npz", **content)
    with pytest.raises(DataError, match=message):
        list(read_probabilities(tmp_path / "p.npz", LABELS, SHAPE))


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "p.npz"
    np.savez(path, other=np.zeros(3))
    for spoil in (lambda: None, lambda: path.write_bytes(b"no archive"), path.unlink):
        spoil()
        with pytest.raises(DataError, match="cannot be read as probabilities"):
            list(read_probabilities(path, LABELS, SHAPE))


def test_a_damaged_file(tmp_path):
    path = tmp_path / "p.npz"
    softmax_file(path, shape=(20, 30, 40))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"p\.npz: "):  # by its checksum, or sooner by its values
        list(read_probabilities(path, LABELS, (20, 30, 40)))


def test_the_file_beside_a_mask(tmp_path):
    mask = tmp_path / "case.1.nii.gz"
    with pytest.raises(DataError, match=r"no probabilities beside it, expected case.1_probabilities.npz"):
        probabilities_beside(mask)
    (tmp_path / "case.1.npz").touch()
    assert probabilities_beside(mask).name == "case.1.npz"  # as nnU-Net calls it
    (tmp_path / "case.1_probabilities.npz").touch()
    assert probabilities_beside(mask).name == "case.1_probabilities.npz"


def test_predictions_name_it_the_same_way(tmp_path):
    from segpipe.predict.outputs import mask_path, probabilities_path

    probabilities_path(tmp_path, "case").touch()
    assert probabilities_beside(mask_path(tmp_path, "case")) == probabilities_path(tmp_path, "case")
