"""Postprocessing of label maps: largest part, least volume, holes, with regions and several labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from segpipe.core.errors import PlanError
from segpipe.core.labels import Label, LabelSet
from segpipe.predict.postprocess import Postprocessing, Steps, postprocess

VOXEL_MM3 = 3.75
TWO = LabelSet(labels=(Label(name="a", values=(1,)), Label(name="b", values=(7,))))
NESTED = LabelSet(
    labels=(Label(name="whole", values=(1, 2, 3)), Label(name="core", values=(2, 3)), Label(name="hot", values=(3,))),
    paint_values=(1, 2, 3),
)


def empty(shape=(5, 7, 9)):
    return np.zeros(shape, np.uint8)


def done(values, labels, **steps):
    return postprocess(values, VOXEL_MM3, labels, Postprocessing(labels=steps))


def test_the_largest_part_of_one_label_stays_and_other_labels_too():
    values = empty()
    values[1:3, 1:3, 1:3] = 1  # 8 voxels
    values[4, 6, 8] = 1
    values[4, 0, 8] = 7
    expected = values.copy()
    expected[4, 6, 8] = 0
    before = values.copy()
    assert np.array_equal(done(values, TWO, a=Steps(keep_largest=True)), expected)
    assert np.array_equal(values, before), "the input was changed"


def test_parts_below_a_volume_go_and_a_part_of_just_that_volume_stays():
    values = empty()
    values[0, 0, 0:2] = 1  # 2 × 3.75 = 7.5 mm³
    values[4, 6, 3:6] = 1  # 11.25 mm³
    assert (done(values, TWO, a=Steps(min_volume_mm3=7.5)) == values).all()
    assert done(values, TWO, a=Steps(min_volume_mm3=7.6)).sum() == 3
    assert not done(values, TWO, a=Steps(min_volume_mm3=11.3)).any()
    assert not done(values, TWO, a=Steps(min_volume_mm3=11.3, keep_largest=True)).any()


def test_parts_that_touch_at_a_corner_are_one():
    values = empty()
    values[0, 0, 0] = values[1, 1, 1] = values[2, 2, 2] = 1
    values[4, 4, 4:6] = 1  # 2 voxels, fewer than the 3 of the diagonal
    assert done(values, TWO, a=Steps(keep_largest=True)).nonzero()[0].tolist() == [0, 1, 2]


def test_holes_are_filled_where_they_are_background():
    values = empty((5, 5, 6))
    values[0:5, 0:5, 0:5] = 1
    values[2, 2, 1:4] = (0, 7, 0)  # a hole of two voxels of background around another label
    filled = done(values, TWO, a=Steps(fill_holes=True))
    assert filled[2, 2].tolist() == [1, 1, 7, 1, 1, 0]
    values[2, 2, 4:] = 0  # now open to the border
    assert np.array_equal(done(values, TWO, a=Steps(fill_holes=True)), values)


def test_a_hole_open_at_a_corner_alone_is_a_hole():
    values = empty((3, 3, 3))
    values[:] = 1
    values[1, 1, 1] = values[0, 0, 0] = 0
    assert done(values, TWO, a=Steps(fill_holes=True))[1, 1, 1] == 1


def test_a_single_slice_has_holes_in_its_plane_and_a_flat_structure_in_a_volume_has_none():
    ring = np.ones((3, 3), np.uint8)
    ring[1, 1] = 0
    assert done(ring[None], TWO, a=Steps(fill_holes=True))[0, 1, 1] == 1
    volume = empty((3, 3, 3))
    volume[1] = ring
    assert np.array_equal(done(volume, TWO, a=Steps(fill_holes=True)), volume)


def test_a_region_that_goes_leaves_what_is_around_it_and_takes_what_is_inside():
    values = empty()
    values[0:3, 0:5, 0:5] = 1
    values[1, 1, 1:4] = (2, 3, 2)  # core of three voxels with a hot one
    values[1, 3, 3] = 2  # a second core
    values[4, 6, 8] = 3  # a lone voxel, which is whole, core and hot
    less_core = done(values, NESTED, core=Steps(keep_largest=True))
    assert less_core[1, 1, 1:4].tolist() == [2, 3, 2] and less_core[1, 3, 3] == 1
    assert less_core[4, 6, 8] == 1  # its core is gone; that it is whole was not asked
    less_whole = done(values, NESTED, whole=Steps(keep_largest=True))
    assert less_whole[4, 6, 8] == 0 and less_whole[1, 3, 3] == 2


def test_a_hole_of_a_region_becomes_the_region():
    values = empty((5, 5, 5))
    values[:] = 2
    values[2, 2, 1:4] = (0, 1, 3)
    filled = done(values, NESTED, core=Steps(fill_holes=True))
    assert filled[2, 2].tolist() == [2, 2, 2, 3, 2]  # background and whole become core; what is hot stays hot


def test_an_absent_label_and_unknown_values_stay():
    values = empty()
    values[1, 1, 1] = 9
    assert np.array_equal(done(values, TWO, a=Steps(keep_largest=True, fill_holes=True, min_volume_mm3=5.0)), values)


maps = arrays(np.uint8, (3, 4, 5), elements=st.sampled_from([0, 0, 1, 7, 9]))
steps = st.builds(
    Steps, min_volume_mm3=st.sampled_from([0.0, 8.0]), keep_largest=st.booleans(), fill_holes=st.booleans()
)


@given(maps, steps)
def test_one_label_changes_no_other_and_twice_is_once(values, own):
    once = done(values, TWO, b=own)
    assert np.array_equal(once == 1, values == 1) and np.array_equal(once == 9, values == 9)
    assert np.array_equal(done(once, TWO, b=own), once)


@given(maps)
def test_a_crop_in_a_larger_image_gives_the_same(values):
    own = {"a": Steps(keep_largest=True, fill_holes=True), "b": Steps(min_volume_mm3=8.0)}
    padded = np.pad(values, 2)
    assert np.array_equal(done(padded, TWO, **own), np.pad(done(values, TWO, **own), 2))


@given(arrays(bool, (3, 4, 5)))
def test_the_largest_part_agrees_with_an_obvious_version(mask):
    parts, n_parts = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = [int((parts == number).sum()) for number in range(1, n_parts + 1)]
    expected = parts == 1 + sizes.index(max(sizes)) if sizes else mask
    assert np.array_equal(done(mask.astype(np.uint8), TWO, a=Steps(keep_largest=True)) == 1, expected)


def test_a_file_is_strict_and_its_labels_must_exist(tmp_path):
    file = tmp_path / "postprocessing.yaml"
    wanted = Postprocessing(labels={"a": Steps(keep_largest=True), "b": Steps(min_volume_mm3=20.0)})
    wanted.save(file)
    assert Postprocessing.load(file) == wanted
    file.write_text("labels: {a: {keep_larges: true}}")
    with pytest.raises(PlanError, match="Did you mean 'keep_largest'"):
        Postprocessing.load(file)
    file.write_text("labels: {a: {min_volume_mm3: -1}}")
    with pytest.raises(PlanError, match="min_volume_mm3"):
        Postprocessing.load(file)
    with pytest.raises(PlanError, match="Did you mean 'b'"):
        Postprocessing(labels={"bb": Steps()}).require_known(TWO, file)
