"""predict/restore.py"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plans import LABELS, REGIONS
from segpipe.core.grid import Box
from segpipe.core.labels import Label, LabelSet
from segpipe.predict.restore import mask_of, probabilities, restore, slabs, strongest_outputs
from segpipe.prepare.case import Trace
from segpipe.prepare.resample import LABEL_ORDER, axis_matrix, orders_for

EDGES = st.sampled_from([0.7, 1.0, 1.3, 2.0, 5.0])


def trace_between(before, after, target_mm=(1.0, 1.0, 1.0), spacing_mm=(1.0, 1.0, 1.0)):
    """Neither turned nor cropped, from `before` voxels of the prepared grid to `after` of the image."""
    return Trace(
        shape_zyx=after,
        axes_zyx=(0, 1, 2),
        flips_zyx=(False, False, False),
        spacing_mm=spacing_mm,
        box=Box(start_zyx=(0, 0, 0), stop_zyx=after),
        target_mm=target_mm,
        prepared_shape_zyx=before,
    )


@st.composite
def traces(draw):
    """Turned, cropped, resampled; now and then with one axis much coarser than the others."""
    shape, start = draw(st.tuples(*(st.integers(1, 14),) * 3)), []
    axes = draw(st.sampled_from(list(permutations(range(3)))))
    turned = [shape[a] for a in axes]
    start = [draw(st.integers(0, n - 1)) for n in turned]
    stop = [draw(st.integers(low + 1, n)) for low, n in zip(start, turned, strict=True)]
    return Trace(
        shape_zyx=shape,
        axes_zyx=axes,
        flips_zyx=draw(st.tuples(*(st.booleans(),) * 3)),
        spacing_mm=draw(st.tuples(*(EDGES,) * 3)),
        box=Box(start_zyx=tuple(start), stop_zyx=tuple(stop)),
        target_mm=draw(st.tuples(*(EDGES,) * 3)),
        prepared_shape_zyx=draw(st.tuples(*(st.integers(1, 14),) * 3)),
    )


def random_logits(n_outputs, trace, seed=0):
    return np.random.default_rng(seed).normal(size=(n_outputs, *trace.prepared_shape_zyx)).astype(np.float32)


def rows_of(logits):
    return iter(torch.from_numpy(logits).unbind(1))


def on_the_crop(logits, trace):
    """All at once and in double precision: a matrix for each axis."""
    orders = orders_for(trace.target_mm, trace.spacing_mm, LABEL_ORDER)
    sizes = zip(trace.prepared_shape_zyx, trace.box.shape_zyx, orders, strict=True)
    along = [axis_matrix(*size).astype(np.float64) for size in sizes]
    return np.einsum("ozyx,az,by,cx->oabc", logits.astype(np.float64), *along, optimize=True)


def on_the_image(values, outside, trace):
    """Uncropped and turned back."""
    turned = np.full((*values.shape[:-3], *trace.turn.permute(trace.shape_zyx)), outside, values.dtype)
    turned[trace.box.slices] = values
    return trace.turn.undo(turned)


def clear(expected):
    """Where the two strongest outputs are further apart than rounding."""
    strongest = np.sort(expected, 0)
    return strongest[-1] - strongest[-2] > 1e-5


def test_two_rows_become_four_by_hand():
    logits = np.zeros((3, 2, 1, 1), np.float32)
    logits[:, 0, 0, 0] = 8, 0, 0
    logits[:, 1, 0, 0] = 0, 0, 4
    found = list(slabs(rows_of(logits), trace_between((2, 1, 1), (4, 1, 1)), 1))
    # the new rows lie at -0.25 (the edge repeats), 0.25, 0.75 and 1.25 old ones
    assert [slab.logits()[:, 0, 0, 0].tolist() for slab in found] == [[8, 0, 0], [6, 0, 1], [2, 0, 3], [0, 0, 4]]
    assert [len(slab.rows_OYX) for slab in found] == [1, 2, 2, 1]
    assert [mask_of(strongest_outputs(slab, LABELS).numpy(), LABELS).item() for slab in found] == [0, 0, 2, 2]


@settings(max_examples=60)
@given(traces(), st.integers(1, 5), st.integers(0, 99))
def test_slabs_equal_the_whole_volume(trace, rows_per_slab, seed):
    logits = random_logits(3, trace, seed)
    found = list(slabs(rows_of(logits), trace, rows_per_slab))
    assert [slab.start for slab in found] == list(range(0, trace.box.shape_zyx[0], rows_per_slab))
    assert [slab.stop for slab in found] == [*(slab.start for slab in found[1:]), trace.box.shape_zyx[0]]
    together = torch.cat([slab.logits() for slab in found], 1).numpy()
    assert together == pytest.approx(on_the_crop(logits, trace), abs=1e-5)
    assert torch.allclose(found[0].logits(slice(1, 2)), found[0].logits()[1:2], atol=1e-5)
    for slab in found:
        whole = slab.logits().flatten(1).numpy()
        places = np.unique(np.random.default_rng(seed).integers(0, whole.shape[1], 20))
        assert slab.logits_at(places).numpy() == pytest.approx(whole[:, places], abs=1e-5)


@settings(max_examples=60)
@given(traces(), st.integers(0, 99))
def test_a_mask_is_the_strongest_output_and_background_outside_the_crop(trace, seed):
    logits = random_logits(3, trace, seed)
    found = restore(rows_of(logits), trace, LABELS, with_probabilities=True)
    mask, chances = found.mask_zyx, found.probabilities_ozyx
    expected = on_the_crop(logits, trace)
    sure = on_the_image(clear(expected), True, trace)
    assert mask.shape == trace.shape_zyx and mask.dtype == LABELS.mask_dtype
    assert (mask == on_the_image(expected.argmax(0), 0, trace))[sure].all()
    shares = np.exp(expected) / np.exp(expected).sum(0)
    outside = np.array([1, 0, 0])[:, None, None, None]
    assert chances.dtype == np.float16
    assert chances == pytest.approx(on_the_image(shares, outside, trace), abs=1e-3)


@settings(max_examples=60)
@given(traces(), st.integers(0, 99))
def test_regions_are_painted_in_order_where_their_logit_is_above_0(trace, seed):
    logits = random_logits(2, trace, seed)
    found = restore(rows_of(logits), trace, REGIONS, with_probabilities=True)
    mask, chances = found.mask_zyx, found.probabilities_ozyx
    whole, core = expected = on_the_crop(logits, trace)
    sure = on_the_image((np.abs(expected) > 1e-5).all(0), True, trace)
    assert (mask == on_the_image(np.where(core > 0, 2, whole > 0), 0, trace))[sure].all()
    assert chances == pytest.approx(on_the_image(1 / (1 + np.exp(-expected)), 0, trace), abs=1e-3)


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_rows_so_large_that_outputs_are_compared_one_after_the_other(labels):
    trace = trace_between((1, 1100, 1000), (1, 1100, 1000))
    logits = random_logits(labels.n_outputs, trace)
    expected = logits.argmax(0) if labels is LABELS else np.where(logits[1] > 0, 2, logits[0] > 0)
    assert (restore(rows_of(logits), trace, labels).mask_zyx == expected).all()


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_ties_go_to_the_first_output_and_one_half_is_no_region(labels):
    trace = trace_between((2, 2, 2), (2, 2, 2))
    assert (restore(rows_of(np.zeros((labels.n_outputs, 2, 2, 2), np.float32)), trace, labels).mask_zyx == 0).all()


@pytest.mark.parametrize("n_labels", [253, 254, 255, 300])
def test_many_labels_with_values_of_their_own(n_labels):
    labels = LabelSet(
        labels=tuple(Label(name=f"l{i}", values=(2 * i + 10,)) for i in range(n_labels)), background_value=7
    )
    trace = trace_between((1, 1, labels.n_outputs), (1, 1, labels.n_outputs))
    logits = np.eye(labels.n_outputs, dtype=np.float32).reshape(labels.n_outputs, 1, 1, -1)
    mask = restore(rows_of(logits), trace, labels).mask_zyx
    assert mask.ravel().tolist() == [7, *labels.values]


@pytest.mark.parametrize(
    ("target_mm", "spacing_mm", "before", "after"),
    [
        ((1.5, 1.5, 1.5), (1.0, 0.8, 0.8), (10, 12, 11), (15, 22, 20)),
        ((5.0, 1.0, 1.0), (4.0, 0.9, 0.9), (6, 12, 11), (8, 14, 12)),  # nearest between slices
        ((1.0, 1.0, 1.0), (1.2, 5.0, 1.1), (14, 20, 12), (12, 4, 11)),  # nearest along Y, as the image says
        ((5.0, 1.0, 1.0), (5.0, 1.0, 0.5), (6, 9, 8), (6, 9, 16)),
    ],
)
def test_masks_agree_with_nnunets_resampling(target_mm, spacing_mm, before, after):
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    trace = trace_between(before, after, target_mm, spacing_mm)
    logits = random_logits(3, trace)
    theirs = resample_data_or_seg_to_shape(
        logits, after, target_mm, spacing_mm, order=1, order_z=0, force_separate_z=None
    )
    mask = restore(rows_of(logits), trace, LABELS).mask_zyx
    assert (mask == theirs.argmax(0))[clear(theirs)].all()
    assert clear(theirs).mean() > 0.99


def test_models_of_different_resolution_are_averaged_slab_by_slab():
    fine, coarse = trace_between((9, 7, 8), (6, 5, 4)), trace_between((4, 3, 2), (6, 5, 4))
    logits = random_logits(3, fine), random_logits(3, coarse)
    streams = (slabs(rows_of(one), trace, 2) for one, trace in zip(logits, (fine, coarse), strict=True))
    means = [np.mean([probabilities(slab, LABELS) for slab in pair], 0) for pair in zip(*streams, strict=True)]
    expected = [on_the_crop(one, trace) for one, trace in zip(logits, (fine, coarse), strict=True)]
    shares = [np.exp(one) / np.exp(one).sum(0) for one in expected]
    assert np.concatenate(means, 1) == pytest.approx(np.mean(shares, 0), abs=1e-3)


def test_only_the_rows_beside_a_slab_are_taken_from_the_network():
    trace, taken = trace_between((20, 3, 3), (60, 3, 3)), []

    def rows():
        for z, row in enumerate(rows_of(random_logits(3, trace))):
            taken.append(z)
            yield row

    for slab in slabs(rows(), trace, 3):
        assert len(slab.rows_OYX) <= 3
        assert taken[-1] <= slab.stop / 3 + 1  # a third of the rows, and the one beside
