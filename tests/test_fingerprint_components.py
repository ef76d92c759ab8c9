"""fingerprint/labels.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from segpipe.core.labels import Label, LabelSet
from segpipe.fingerprint.labels import measure_labels
from segpipe.fingerprint.record import LabelMeasure

THREE = LabelSet(labels=tuple(Label(name=f"l{v}", values=(v,)) for v in (1, 2, 3)))
REGIONS = LabelSet(
    labels=(Label(name="whole", values=(1, 2, 3)), Label(name="core", values=(2, 3))), paint_values=(1, 2)
)
SPACING_MM = (2.5, 1.5, 1.0)
EMPTY = LabelMeasure(voxels=0, volume_mm3=0.0, n_components=0, extent_mm=(0.0, 0.0, 0.0))


def test_two_voxels_that_share_a_corner_are_one_part_by_hand():
    indices = np.zeros((4, 5, 6), np.int16)
    indices[0, 0, 1] = indices[1, 1, 0] = 1  # a corner in common
    indices[3, 4, 5] = 1  # apart
    indices[1, 1, 1] = 2  # between them, of another label
    found = measure_labels(indices, THREE, SPACING_MM)
    assert found["l1"] == LabelMeasure(voxels=3, volume_mm3=11.25, n_components=2, extent_mm=(10.0, 7.5, 6.0))
    assert found["l2"] == LabelMeasure(voxels=1, volume_mm3=3.75, n_components=1, extent_mm=SPACING_MM)
    assert found["l3"] == EMPTY


@pytest.mark.parametrize("place", [(0, 0, 5), (0, 4, 0), (0, 4, 5), (3, 0, 0)])
def test_the_end_of_a_row_does_not_touch_the_beginning_of_the_next(place):
    indices = np.zeros((4, 5, 6), np.int16)
    indices[place] = 1
    z, y, x = place
    indices[min(z + 1, 3), (y + 1) % 5, (x + 1) % 6] = 1  # its neighbour only if the volume were a ring
    expected = ndimage.label(indices, np.ones((3, 3, 3)))[1]
    assert measure_labels(indices, THREE, SPACING_MM)["l1"].n_components == expected


def slow(mask):
    """The obvious way: the whole volume for each label."""
    if not mask.any():
        return EMPTY
    z, y, x = ((i.max() - i.min() + 1) * mm for i, mm in zip(np.nonzero(mask), SPACING_MM, strict=True))
    n_voxels = int(mask.sum())
    return LabelMeasure(
        voxels=n_voxels,
        volume_mm3=n_voxels * 3.75,
        n_components=ndimage.label(mask, np.ones((3, 3, 3)))[1],
        extent_mm=(float(z), float(y), float(x)),
    )


@given(arrays.arrays(np.int16, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(-1, 3)))
def test_any_map_is_measured_as_the_slow_way_does(indices):
    assert measure_labels(indices, THREE, SPACING_MM) == {f"l{v}": slow(indices == v) for v in (1, 2, 3)}
    regions = {"whole": slow(indices > 0), "core": slow(indices > 1)}
    assert measure_labels(indices, REGIONS, SPACING_MM) == regions


def test_a_map_larger_than_a_piece_is_measured_as_the_slow_way_does():
    rng = np.random.default_rng(0)
    indices = np.where(rng.random((3, 1300, 1200)) < 0.05, 2, 0).astype(np.int16)  # 4.7 million voxels
    indices[:, 600:900] = 1
    assert measure_labels(indices, THREE, SPACING_MM) == {f"l{v}": slow(indices == v) for v in (1, 2, 3)}
