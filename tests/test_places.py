"""prepare/places.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from plans import LABELS, REGIONS
from segpipe.prepare import places
from segpipe.prepare.places import ANNOTATED, Places, find_places


def test_places_by_hand():
    indices = np.array([[[0, 1, 1, 0, 1], [2, 0, 0, 0, 1]]], np.int16)
    found = find_places(indices, LABELS)
    assert found.voxels.tolist() == [1, 2, 4, 9, 5] and found.voxels.dtype == np.uint8
    assert found.components.tolist() == [[0, 2, 2], [0, 2, 2], [1, 1, 1]]
    assert {label: own.voxels.tolist() for label, own in found.by_label().items()} == {0: [1, 2, 4, 9], 1: [5]}
    assert found.by_label()[0].n_voxels == 4


def test_places_of_regions_and_of_what_is_annotated_by_hand():
    indices = np.array([[[1, 2, -1, -1, 0, 2]]], np.int16)
    found = {label: own.voxels.tolist() for label, own in find_places(indices, REGIONS).by_label().items()}
    assert found == {ANNOTATED: [0, 1, 4, 5], 0: [0, 1, 5], 1: [1, 5]}  # whole is 1 and 2, core is 2


@pytest.mark.parametrize("value", [0, -1])
def test_a_case_without_labels_has_no_places(value):
    found = find_places(np.full((2, 3, 4), value, np.int16), LABELS)
    assert found.by_label() == {} and found.components.shape == (0, 3)


@given(
    arrays.arrays(np.int16, arrays.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.integers(-1, 2)),
    st.integers(1, 30),
)
def test_components_are_scipys_and_large_ones_give_way(indices, limit):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(places, "MAX_LOCATIONS", limit)
        found = find_places(indices, LABELS).by_label()
    for label in (0, 1):
        parts, n_parts = ndimage.label(indices == label + 1, np.ones((3, 3, 3)))
        assert (label in found) == (n_parts > 0)
        if n_parts == 0:
            continue
        own = found[label]
        sizes, kept = np.diff(own.size_ends, prepend=0), np.diff(own.kept_ends, prepend=0)
        part_of_voxel = parts.flat[own.voxels]
        for first, last, size in zip(own.kept_ends - kept, own.kept_ends, sizes, strict=True):
            (part,) = set(part_of_voxel[first:last])  # one component, whose size is told
            assert (parts == part).sum() == size
        assert len(set(own.voxels.tolist())) == len(own.voxels) <= limit
        assert len(sizes) == min(n_parts, limit)
        cut = kept[kept < sizes]
        assert len(set(cut)) <= 1 and (cut.size == 0 or (kept <= cut[0]).all())  # the small ones are whole
        assert cut.size == 0 or len(own.voxels) + cut.size > limit  # one voxel more of each would be too many


def test_a_voxel_is_as_likely_whether_its_component_kept_all_or_some(monkeypatch):
    monkeypatch.setattr(places, "MAX_LOCATIONS", 12)
    indices = np.zeros((1, 1, 100), np.int16)
    indices[..., :90] = indices[..., 95:100] = 1
    own = find_places(indices, LABELS).by_label()[0]
    generator = np.random.default_rng(0)
    drawn = np.array([own.draw(generator, by_component=False) for _ in range(4000)])
    assert (drawn >= 95).mean() == pytest.approx(5 / 95, abs=0.015)  # kept: 7 of 90 and all 5
    drawn = np.array([own.draw(generator, by_component=True) for _ in range(4000)])
    assert (drawn >= 95).mean() == pytest.approx(1 / 2, abs=0.03)


def test_places_that_do_not_fit_their_components_are_refused():
    with pytest.raises(ValueError, match="3 voxels do not fit"):
        Places(np.zeros(3, np.uint8), np.array([[0, 2, 2]]))
