"""Maps of file values: indexed, counted and boxed in one go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.core.labels import Label, LabelSet
from segpipe.evaluate.metrics import Overlap
from segpipe.evaluate.surfaces.indexed_maps import index_maps


def label_set(*values, ignore=None, background=0):
    labels = tuple(Label(name=f"l{v}", values=(v,)) for v in values)
    return LabelSet(labels=labels, ignore_value=ignore, background_value=background)


def test_two_small_maps_by_hand():
    reference, prediction = np.zeros((2, 2, 3, 5), np.uint8)
    reference[0, 1, 1:4] = 1
    prediction[0, 1, 2:5] = 1
    prediction[1, 2, 0] = 2
    maps = index_maps(reference, prediction, label_set(1, 2))
    assert maps.counts.tolist() == [[25, 1, 1], [1, 2, 0], [0, 0, 0]]
    assert maps.overlap((1,)) == Overlap(3, 3, 2)
    assert maps.overlap((1, 2)) == Overlap(3, 4, 2)
    assert maps.box((1,)) == (slice(0, 1), slice(1, 2), slice(1, 5))
    assert maps.box((2,)) == (slice(1, 2), slice(2, 3), slice(0, 1))
    assert maps.box((1, 2)) == (slice(0, 2), slice(1, 3), slice(0, 5))
    assert np.shares_memory(maps.reference, reference)  # nothing was copied


def test_a_structure_that_is_nowhere_has_no_box():
    empty = np.zeros((3, 4, 5), np.uint8)
    maps = index_maps(empty, empty, label_set(1))
    assert maps.box((1,)) is None
    assert maps.overlap((1,)) == Overlap(0, 0, 0)


def test_ignored_voxels_are_background_in_both():
    reference, prediction = np.array([[[0, 9, 9, 5]]]), np.array([[[9, 5, 0, 5]]])
    maps = index_maps(reference, prediction, label_set(5, ignore=9))
    assert maps.reference.tolist() == [[[0, 0, 0, 1]]]
    assert maps.prediction.tolist() == [[[0, 0, 0, 1]]]  # its own 9 is no structure either
    assert maps.is_ignored.tolist() == [[[False, True, True, False]]]
    assert maps.n_counted_vox == 2
    assert maps.has_strange == (False, False)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_values_of_no_label_are_background_and_said(dtype):
    plain, strange = np.array([[[0, 1, 2]]], dtype), np.array([[[0, 1, 7]]], dtype)
    maps = index_maps(plain, strange, label_set(1, 2))
    assert maps.has_strange == (False, True)
    assert maps.prediction.tolist() == [[[0, 1, 0]]]


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 2, 3), (3, 1, 2), (-5, 7), (2_000_000, -3), (-(2**31), 2**31 - 1), tuple(range(2, 400))]),
    st.sampled_from([np.uint8, np.int16, np.int32, np.int64, np.uint16]),
    st.sampled_from([None, 100]),
    st.sampled_from([1, 3]),
)
def test_a_slow_version_agrees(seed, values, dtype, ignore, n_threads):
    random = np.random.default_rng(seed)
    shape = (int(random.integers(1, 70)), *random.integers(1, 6, 2))
    info = np.iinfo(dtype)
    choices = [v for v in (*values[:5], values[-1], 0, 100, 101) if info.min <= v <= info.max]
    pair = [random.choice(choices, shape).astype(dtype) for _ in range(2)]
    if values[-1] > 100 and ignore is not None:
        values = values[:50]
    labels = label_set(*values, ignore=ignore)
    maps = index_maps(*pair, labels, n_threads)
    index_of = {v: i + 1 for i, v in enumerate(values)}
    expected = [np.vectorize(lambda v: index_of.get(int(v), 0), otypes=[int])(one) for one in pair]
    if ignore is not None:
        for one in expected:
            one[pair[0] == ignore] = 0
    assert (maps.reference == expected[0]).all()
    assert (maps.prediction == expected[1]).all()
    counts = np.zeros((len(values) + 1,) * 2, int)
    np.add.at(counts, tuple(one.ravel() for one in expected), 1)
    assert (maps.counts == counts).all()
    for index in range(1, len(values) + 1):
        places = np.argwhere((expected[0] == index) | (expected[1] == index))
        found = maps.box((index,))
        assert (found is None) == (len(places) == 0)
        if found is not None:
            assert [s.start for s in found] == places.min(0).tolist()
            assert [s.stop for s in found] == (places.max(0) + 1).tolist()
    assert maps.has_strange == tuple(bool(set(np.unique(one).tolist()) - labels.known_values) for one in pair)
