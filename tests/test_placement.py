"""Where a label map lies to its image: turned without loss, shifted by a known distance, or left alone."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from datasets import SHAPE_ZYX, oblique_affine, tiny_labels
from hypothesis import given
from hypothesis import strategies as st

from segpipe.core.grid import Grid, Reorientation, turned_grid
from segpipe.core.header import Header
from segpipe.data.placement import placement

TURNS = [
    Reorientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))
    for axes in permutations(range(3))
    for flips in product((False, True), repeat=3)
]


def header(grid: Grid, *, has_world: bool = True) -> Header:
    return Header(Path("a.nii"), grid, 1, None, has_world, np.dtype(np.uint8))


def grid(affine: np.ndarray | None = None) -> Grid:
    return Grid(SHAPE_ZYX, oblique_affine() if affine is None else affine)


def test_a_flipped_label_map_by_hand():
    """The label map runs from right to left, so its origin lies 11 edges of 1 mm to the right of the image's."""
    image = grid(np.diag([1.0, 1.5, 2.5, 1.0]))
    affine = np.diag([-1.0, 1.5, 2.5, 1.0])
    affine[0, 3] = 11.0
    found = placement(header(image), header(grid(affine)))
    assert (found.kind, found.turn) == ("turned", Reorientation((0, 1, 2), (False, False, True)))
    assert found.gap_mm == 0.0


@given(st.sampled_from(TURNS), st.floats(-np.pi, np.pi))
def test_every_turn_is_found_and_undone(turn: Reorientation, angle: float):
    """At 45° two axes share a letter of orientation: directions decide, not letters."""
    image = grid(oblique_affine(angle))
    stored = turn.apply(tiny_labels())
    found = placement(header(image), header(turned_grid(image, turn)))
    assert found.turn is not None and found.kind == ("same" if turn == TURNS[0] else "turned")
    np.testing.assert_array_equal(found.turn.apply(stored), tiny_labels())


@pytest.mark.parametrize("turn", TURNS)
def test_turned_grids_are_those_of_nibabel(turn: Reorientation):
    """nibabel's orientation arrays count axes x, y, z and say where each input axis goes."""
    goes_to = [
        (2 - turn.axes_zyx.index(2 - x), -1 if turn.flips_zyx[turn.axes_zyx.index(2 - x)] else 1) for x in range(3)
    ]
    image = nib.Nifti1Image(tiny_labels().transpose(2, 1, 0), oblique_affine()).as_reoriented(np.array(goes_to))
    ours = turned_grid(grid(), turn)
    assert ours.shape_zyx == image.shape[::-1]
    np.testing.assert_allclose(ours.affine_ras_mm, image.affine, atol=1e-9)
    np.testing.assert_array_equal(turn.apply(tiny_labels()), np.asarray(image.dataobj).transpose(2, 1, 0))


def test_a_shift_by_hand():
    affine = oblique_affine()
    affine[:3, 3] += (3.0, 0.0, 4.0)
    found = placement(header(grid()), header(grid(affine)))
    assert (found.kind, found.gap_mm) == ("shifted", pytest.approx(5.0))


def test_rounded_edges_are_a_shift_of_the_far_corner():
    """1.5 mm written as 1.51: 9 edges further the last voxel is 0.09 mm off; as 1.512 mm, 0.108 mm."""
    for edge_mm, kind in ((1.51, "same"), (1.512, "shifted")):
        affine = oblique_affine()
        affine[:3, 1] *= edge_mm / 1.5
        assert placement(header(grid()), header(grid(affine))).kind == kind


def displaced(how: str) -> np.ndarray:
    affine = oblique_affine()
    if how == "other edges":
        affine[:3, 1] *= 1.02
    elif how == "other directions":
        affine[:3, :3] = oblique_affine(0.31)[:3, :3]
    elif how == "turned and shifted":  # the header was lost, or the array was turned: nobody knows
        affine[:3, 0] *= -1
    elif how == "no header at all":
        return np.eye(4)
    return affine


@pytest.mark.parametrize("how", ["other edges", "other directions", "turned and shifted", "no header at all"])
def test_what_cannot_be_told_is_left_alone(how: str):
    found = placement(header(grid()), header(grid(displaced(how))))
    assert (found.kind, found.turn) == ("apart", None)


def test_other_shapes_are_apart():
    small = Grid((8, 10, 11), oblique_affine())
    assert placement(header(grid()), header(small)).gap_mm == np.inf


@pytest.mark.parametrize("which", ["image", "label"])
def test_without_orientation_nothing_is_turned_or_shifted(which: str):
    affine = oblique_affine()
    affine[0, 3] += 5
    for other in (grid(affine), turned_grid(grid(), TURNS[5])):
        found = placement(header(grid(), has_world=which != "image"), header(other, has_world=which != "label"))
        assert found.kind == "apart"
    assert placement(header(grid()), header(grid(), has_world=False)).kind == "same"
