"""evaluate/reliability.py and the calibration of a run: counts, temperatures, gaps and their intervals."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit, softmax

from segpipe.core.errors import DataError
from segpipe.core.labels import Label, LabelSet
from segpipe.core.probabilities import TEMPERATURE_RANGE
from segpipe.evaluate.calibration import N_BINS, expected_calibration_error, near_masks, tally
from segpipe.evaluate.reliability import (
    TEMPERATURES,
    UNCHANGED,
    CaseCounter,
    CaseCounts,
    fit_temperature,
    reliability,
)
from segpipe.pipeline.calibration import summarise_calibration
from segpipe.predict.segment import apply_temperature
from segpipe.report.sections import calibration_picture, calibration_table

LABELS = LabelSet(labels=(Label(name="a", values=(1,)), Label(name="b", values=(2,))), ignore_value=9)
REGIONS = LabelSet(labels=(Label(name="w", values=(1, 2)), Label(name="c", values=(2,))), paint_values=(1, 2))
SPACING_MM = (2.0, 1.0, 1.0)


def count_case(reference, logits, mask, labels=LABELS, rows=None, case_id="case"):
    """Counts of a case whose slabs have some rows."""
    counter, rows = CaseCounter(reference, SPACING_MM, labels, case_id), rows or len(reference)
    for start in range(0, len(reference), rows):
        part = slice(start, start + rows)
        places = counter.choose(start, mask[part])
        counter.add(start, places, logits[:, part].reshape(len(logits), -1)[:, np.unique(np.concatenate(places))])
    return counter.counts


def noisy_case(labels=LABELS, shape=(6, 12, 12), seed=0):
    """A block with a core, and logits whose probabilities are right: the reference is drawn from them."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (labels.n_outputs, *shape)).astype(np.float32)
    luck = random.random(shape)
    if labels.has_regions:
        whole, core = (luck < expit(z) for z in logits)
        reference = (whole.astype(np.int16) + core) * whole
        logits[1] = np.where(whole, logits[1], -20)  # the core is inside
        return reference, logits
    reference = (softmax(logits, axis=0).cumsum(axis=0) < luck).sum(axis=0).clip(max=2).astype(np.int16)
    return reference, logits


def test_three_voxels_by_hand():
    reference = np.array([[[1, 0, 2]]], np.int16)
    logits = np.log(np.array([[0.1, 0.7, 0.3], [0.85, 0.25, 0.45], [0.05, 0.05, 0.25]], np.float32))[:, None, None]
    counts = count_case(reference, logits, reference.astype(np.uint8))
    a = counts.n_vox[UNCHANGED, 0]
    assert np.flatnonzero(a).tolist() == [3, 6, 12] and a.sum() == 3  # 0.25, 0.45, 0.85 in fifteenths
    assert np.flatnonzero(counts.n_true_vox[UNCHANGED, 0]).tolist() == [12]
    assert counts.total_probability[UNCHANGED, 0][[3, 6, 12]] == pytest.approx([0.25, 0.45, 0.85])
    assert counts.nll[UNCHANGED] == pytest.approx([-np.log(0.85 * 0.7 * 0.25) / 3] * 2)


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_counts_are_those_of_the_metric_on_the_same_voxels(labels):
    reference, logits = noisy_case(labels)
    counts = count_case(reference, logits, np.zeros(reference.shape, np.uint8), labels)
    shares = expit(logits) if labels.has_regions else softmax(logits, axis=0)[1:]
    for place, (label, p) in enumerate(zip(labels.labels, shares, strict=True)):
        is_true = np.isin(reference, labels.indices_of(label))
        near = near_masks(is_true, is_true, SPACING_MM)
        parts = [part[UNCHANGED, place] / near.sum() for part in (counts.n_vox, counts.n_true_vox)]
        found = reliability(
            parts[0][None], parts[1][None], counts.total_probability[UNCHANGED, place][None] / near.sum()
        )
        assert found.ece == pytest.approx(expected_calibration_error(tally(p[near], is_true[near])), abs=1e-6)
        assert (found.low, found.note) == (None, "1 patient: too few for an interval of the gap")


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_slabs_add_up_and_a_case_may_begin_again(labels):
    reference, logits = noisy_case(labels)
    mask = np.ones(reference.shape, np.uint8)
    whole = count_case(reference, logits, mask, labels)
    parts = count_case(reference, logits, mask, labels, rows=2)
    assert np.array_equal(whole.n_vox, parts.n_vox) and np.allclose(whole.nll, parts.nll)
    counter = CaseCounter(reference, SPACING_MM, labels, "case")
    for _ in range(2):
        places = counter.choose(0, mask)
        counter.add(0, places, logits.reshape(len(logits), -1)[:, np.unique(np.concatenate(places))])
    assert np.array_equal(counter.counts.n_vox, whole.n_vox)


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_blocks_of_temperatures_count_like_one(labels, monkeypatch):
    reference, logits = noisy_case(labels)
    mask = np.ones(reference.shape, np.uint8)
    whole = count_case(reference, logits, mask, labels)
    monkeypatch.setattr("segpipe.evaluate.reliability._BLOCK", 10 * logits.size)  # 10, 10, 10 and 1 of 31
    parts = count_case(reference, logits, mask, labels)
    for part in fields(parts):
        assert np.array_equal(getattr(parts, part.name), getattr(whole, part.name)), part.name
    n_at_once = whole.n_vox.sum(axis=(1, 2))
    assert (n_at_once == n_at_once[0]).all() and n_at_once[0] > 100


def test_far_background_is_left_out_but_not_a_far_false_alarm_nor_are_ignored_voxels_judged():
    reference, mask = np.zeros((1, 3, 60), np.int16), np.zeros((1, 3, 60), np.uint8)
    reference[0, 1, 5], reference[0, 1, 6] = 1, -1
    mask[0, 1, 50:52] = 1
    counter = CaseCounter(reference, SPACING_MM, LABELS, "case")
    chosen = counter.choose(0, mask)[0]
    near = near_masks(reference == 1, reference == 1, SPACING_MM)
    near[reference == -1] = False
    assert chosen.tolist() == [*np.flatnonzero(near[0, :2]), 60 + 50, 60 + 51, *(120 + np.flatnonzero(near[0, 2]))]


def test_a_large_case_is_sampled_evenly_and_the_same_way_each_time():
    reference = np.zeros((40, 60, 60), np.int16)
    reference[12:28, 20:40, 20:40] = 1
    mask = reference.astype(np.uint8)
    mask[0, :2] = 1
    logits = np.zeros((3, *reference.shape), np.float32)
    logits[1] = np.where(reference == 1, 2, -2)
    counts, again = (count_case(reference, logits, mask, rows=n) for n in (40, 7))
    n_near = near_masks(reference == 1, reference == 1, SPACING_MM).sum()
    share = counts.n_vox[UNCHANGED, 0].sum() / n_near
    assert share < 0.6  # of 2048 voxels in the box around it
    assert counts.n_true_vox[UNCHANGED, 0].sum() / (reference == 1).sum() == pytest.approx(share, rel=0.1)
    assert np.array_equal(counts.n_true_vox, again.n_true_vox)
    other = count_case(reference, logits, mask, case_id="other")
    assert not np.array_equal(counts.n_true_vox, other.n_true_vox)


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("planted", [0.5, 1.0, 2.0])
def test_a_planted_temperature_is_found(labels, planted):
    reference, logits = noisy_case(labels, shape=(12, 24, 24))
    counts = count_case(reference, logits * np.float32(planted), np.ones(reference.shape, np.uint8), labels)
    assert TEMPERATURES[fit_temperature(counts.nll[None])] == pytest.approx(planted, rel=0.13)  # a step is 12 %


def test_labels_count_equally_and_what_is_nowhere_does_not_count():
    nll = np.full((3, len(TEMPERATURES), 3), np.nan)
    distance = np.abs(np.arange(len(TEMPERATURES)) - UNCHANGED)
    nll[:, :, 0] = (distance - 4.0) ** 2 * (np.arange(len(TEMPERATURES)) >= UNCHANGED) + 99 * (distance > 8)
    nll[0, :, 1] = np.abs(np.arange(len(TEMPERATURES)) - UNCHANGED - 6) * 9.0  # one patient, as heavy as three
    assert fit_temperature(nll) == UNCHANGED + 6
    assert fit_temperature(nll[:, :, :1]) in (UNCHANGED + 4, *range(UNCHANGED))
    assert fit_temperature(np.full_like(nll, np.nan)) == UNCHANGED


def test_a_gap_by_hand():
    # two bins; both patients say 0.8 for half of their voxels, which are right in 0.6 and 0.8; the rest is exact
    shares = np.full((2, 2), 0.5)
    p, true = np.array([[0.1, 0.4]] * 2), np.array([[0.1, 0.3], [0.1, 0.4]])
    found = reliability(shares, true, p)
    assert found.ece == pytest.approx(0.05)  # half of a gap of 0.1
    assert found.ece_debiased == pytest.approx(0)  # the second patient gives the first no sign, and adds 0 itself
    assert found.probability == pytest.approx((0.2, 0.8)) and found.frequency == pytest.approx((0.2, 0.7))
    assert found.share == (0.5, 0.5)


def patients(random, n, temperature=1.0, n_vox=300, spread=0.3):
    """(n, bins) shares, those of the label and sums of probabilities; logits are too large by `temperature`.

    Patients differ: the frequency at a probability is it only on average, by a probit with a random shift.
    """
    from scipy.special import ndtr, ndtri

    p = random.beta(0.35, 0.35, (n, n_vox)).clip(1e-6, 1 - 1e-6)
    shifted = ndtr(ndtri(p) * np.sqrt(1 + spread**2) + spread * random.normal(size=(n, 1)))
    is_true = random.random(p.shape) < shifted
    said = expit(logit(p) * temperature)
    bins = np.minimum((said * N_BINS).astype(int), N_BINS - 1) + N_BINS * np.arange(n)[:, None]
    weights = (None, is_true.ravel(), said.ravel())
    return [np.bincount(bins.ravel(), w, n * N_BINS).reshape(n, N_BINS) / n_vox for w in weights]


def test_right_probabilities_have_no_gap_once_the_bias_is_gone():
    random = np.random.default_rng(0)
    found = [reliability(*patients(random, 8)) for _ in range(300)]
    debiased = np.array([one.ece_debiased for one in found])
    assert abs(debiased.mean()) < 3 * debiased.std() / np.sqrt(300) < 0.005
    assert np.mean([one.ece for one in found]) > 0.015  # what chance alone adds
    assert np.mean([one.low == 0 for one in found]) > 0.95 - 3 * 0.0126  # the simulation's error


def test_many_small_gaps_by_chance_are_no_gap():
    random, even = np.random.default_rng(2), np.full((20, N_BINS), 1 / N_BINS)
    noise = random.normal(0, 0.01, (300, *even.shape))
    found = [reliability(even, even / 2, even / 2 + gaps) for gaps in noise]
    assert np.mean([one.low > 0 for one in found]) < 0.05 + 3 * 0.0126  # 0.13 without the test by random signs


def test_the_true_gap_lies_between_the_debiased_and_the_plain_one():
    random = np.random.default_rng(1)
    truth = reliability(*patients(random, 3000, 1.5)).ece
    found = [reliability(*patients(random, 8, 1.5)) for _ in range(200)]
    assert np.mean([one.ece_debiased for one in found]) < truth < np.mean([one.ece for one in found])
    assert np.mean([one.low <= truth <= one.high for one in found]) > 0.93


@given(
    arrays(np.float32, (4, 5), elements=st.floats(0, 1, width=32)),
    st.sampled_from(TEMPERATURES.tolist()),
    st.booleans(),
)
def test_a_temperature_changes_no_mask(values, temperature, has_regions):
    shares = torch.from_numpy(values)
    if not has_regions:
        shares = (shares + 1e-3) / (shares + 1e-3).sum(0)
    found = apply_temperature(shares.clone(), temperature, REGIONS if has_regions else LABELS)
    assert bool(((found >= 0) & (found <= 1)).all())
    if has_regions:  # exactly one half may move by the rounding of a logarithm
        clear = (shares - 0.5).abs() > 1e-6
        assert bool(((found > 0.5) == (shares > 0.5))[clear].all())
    else:
        assert bool((found.gather(0, shares.argmax(0)[None])[0] >= found.amax(0) - 1e-6).all())
        assert found.sum(0).numpy() == pytest.approx(1, abs=1e-5)


def test_probabilities_are_tempered_as_their_logits_are():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 4
    assert torch.allclose(apply_temperature(logits.softmax(0), 2.0, LABELS), (logits / 2).softmax(0), atol=1e-6)
    assert torch.allclose(apply_temperature(logits.sigmoid(), 0.5, REGIONS), (logits * 2).sigmoid(), atol=1e-6)


def test_a_temperature_at_an_end_of_the_list_is_told():
    assert (TEMPERATURES[0], TEMPERATURES[-1]) == TEMPERATURE_RANGE
    random, cases = np.random.default_rng(0), {}
    for number in range(2):
        reference = random.integers(0, 3, (4, 16, 16)).astype(np.int16)  # which sure networks cannot know
        logits = random.normal(0, 99, (3, 4, 16, 16)).astype(np.float32)
        cases[str(number)] = (count_case(reference, logits, logits.argmax(0).astype(np.uint8)),)
    found = summarise_calibration({"0": cases}, ("a", "b"), {})
    assert found.temperature == 8
    assert "Temperature 8.00 (the largest tried) from all folds: " in calibration_table(found).caption
    assert found.model_copy(update={"temperature": 0.25}).temperature_text == "0.25 (the smallest tried)"
    assert found.model_copy(update={"temperature": 1.0}).temperature_text == "1.00"


def test_each_fold_is_corrected_by_the_others():
    counts = {}
    for fold, planted in (("0", 1.0), ("1", 2.0), ("2", 2.0)):
        cases = [noisy_case(shape=(4, 16, 16), seed=int(fold) * 9 + n) for n in range(3)]
        ones = np.ones((4, 16, 16), np.uint8)
        counts[fold] = {
            f"p{n}": [count_case(reference, logits * np.float32(planted), ones)]
            for n, (reference, logits) in enumerate(cases)
        }
    found = summarise_calibration(counts, LABELS.names, {})
    assert found.temperature_of_fold["0"] == pytest.approx(2, rel=0.13)
    assert found.temperature_of_fold["0"] > found.temperature > 1 and found.n_patients == found.n_cases == 9
    assert found.temperature_of_fold["1"] == found.temperature_of_fold["2"] < 2
    alone = summarise_calibration({"1": counts["1"]}, LABELS.names, {})
    assert alone.temperature == pytest.approx(2, rel=0.13)
    assert alone.temperature_of_fold == {} and alone.labels[0].after is None
    pair = summarise_calibration({fold: counts[fold] for fold in "12"}, LABELS.names, {})
    assert all(label.after.ece < 0.5 * label.before.ece for label in pair.labels)
    assert not pair.makes_worse and pair.model_copy(update={"labels": (swapped(pair.labels[0]),)}).makes_worse
    rows = {row[0].text: row for row in calibration_table(pair).rows}
    assert float(rows["a"][1].text) == pytest.approx(pair.labels[0].before.ece, abs=5e-4)
    assert [row[-1].text for row in rows.values()] == ["6", "6"] and "[" in rows["b"][4].text
    assert calibration_table(alone).rows[0][3].text == "–"
    picture = calibration_picture(pair, {"a": "#000000"})
    assert f"a {pair.labels[0].before.ece:.3f} and {pair.labels[0].after.ece:.3f}" in picture.alt
    assert b"<svg" in picture.content


def swapped(label):
    return label.model_copy(update={"before": label.after, "after": label.before})


def test_a_label_that_is_nowhere_is_left_out_and_a_case_without_it_does_not_count():
    reference = np.zeros((2, 4, 4), np.int16)
    reference[0, 0, 0] = 1
    cases = [
        count_case(own, np.zeros((3, 2, 4, 4), np.float32), np.zeros((2, 4, 4))) for own in (reference, reference * 0)
    ]
    found = summarise_calibration({"0": {"p": [cases[0]], "q": [cases[1]]}}, LABELS.names, {})
    assert [(label.label, label.n_patients) for label in found.labels] == [("a", 1)] and found.n_patients == 2


def test_counts_are_read_as_they_were_written_and_refused_otherwise(tmp_path):
    counts = count_case(*noisy_case(), np.ones((6, 12, 12), np.uint8))
    counts.save(tmp_path / "c.npz")
    assert np.array_equal(CaseCounts.load(tmp_path / "c.npz", 2).total_probability, counts.total_probability)
    with pytest.raises(DataError, match=r"c\.npz: counts .*, expected \(31, 3, 15\)"):
        CaseCounts.load(tmp_path / "c.npz", 3)
    replace(counts, nll=counts.nll[:4]).save(tmp_path / "d.npz")
    with pytest.raises(DataError, match=r"d\.npz: counts"):
        CaseCounts.load(tmp_path / "d.npz", 2)
    (tmp_path / "e.npz").write_bytes(b"no archive")
    for name in ("e.npz", "none.npz"):
        with pytest.raises(DataError, match="cannot be read as counts"):
            CaseCounts.load(tmp_path / name, 2)
