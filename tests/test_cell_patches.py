"""Areas of the surface in a cell."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.evaluate.surfaces.packed_masks import cell_patches

edges = st.floats(0.2, 6.0)


def test_one_corner_cuts_off_a_triangle():
    # midpoints 0.5, 0.5, 0.5 from the corner: an equilateral triangle of side sqrt(0.5)
    assert cell_patches((1.0, 1.0, 1.0)).areas_mm2[0b00000001] == pytest.approx(sqrt(3) / 4 * 0.5)


def test_a_flat_face_has_the_area_of_a_voxel_face():
    areas = cell_patches((3.0, 2.0, 1.0)).areas_mm2
    assert areas[0b01010101] == pytest.approx(2.0)  # half the cell along axis 0: a face of axes 1 and 2
    assert areas[0b00110011] == pytest.approx(3.0)
    assert areas[0b00001111] == pytest.approx(6.0)


def test_contour_lengths_by_hand():
    lengths = cell_patches((1.0, 2.0, 1.0)).areas_mm2  # nothing changes along axis 0: both layers have the same bits
    assert lengths[0b00000011] == pytest.approx(sqrt(2**2 + 1**2) / 2)  # 1.118034
    assert lengths[0b00001111] == 2.0  # the two pixels of a row along axis 1
    assert lengths[0b00110011] == 1.0
    assert lengths[0b11000011] == pytest.approx(sqrt(5))  # opposite pixels, each cut off


def test_no_surface_inside_or_outside():
    patches = cell_patches((1.5, 1.0, 2.0))
    assert patches.areas_mm2[0] == patches.areas_mm2[-1] == 0
    assert (patches.areas_mm2[1:-1] > 0).all()
    assert (patches.centres_vox[[0, -1]] == 0).all()


def test_centres_by_hand():
    centres = cell_patches((2.0, 1.0, 0.5)).centres_vox
    # the triangle between (0, -½, -½), (-½, 0, -½) and (-½, -½, 0)
    assert centres[0b00000001] == pytest.approx([-1 / 3] * 3)
    assert centres[0b01010101] == pytest.approx([0, 0, 0])  # a flat face in the middle
    # two voxels along axis 0: a slanted face between the middles of four edges
    assert centres[0b00000011] == pytest.approx([0, -1 / 4, -1 / 4])
    assert centres[0b10000001] == pytest.approx([0, 0, 0])  # opposite corners, both cut off


@given(edges, edges, edges, st.permutations(range(3)), st.sets(st.integers(0, 2)))
def test_turning_a_cell_turns_its_patch(a, b, c, axes, flips):
    spacing = (a, b, c)
    patches, turned = cell_patches(spacing), cell_patches(tuple(spacing[i] for i in axes))
    sign = np.array([-1 if axis in flips else 1 for axis in range(3)])
    for code in range(256):
        corners = np.array([code >> k & 1 for k in range(8)]).reshape(2, 2, 2).transpose(2, 1, 0)  # bit 0 is axis 0
        moved = np.flip(corners.transpose(axes), tuple(flips)).transpose(2, 1, 0).ravel()
        other = sum(int(bit) << k for k, bit in enumerate(moved))
        assert turned.areas_mm2[other] == pytest.approx(patches.areas_mm2[code], rel=1e-9)
        assert turned.centres_vox[other] == pytest.approx(patches.centres_vox[code][list(axes)] * sign, abs=1e-9)


@given(edges, edges, edges)
def test_a_code_and_its_complement_have_the_same_area(a, b, c):
    areas = cell_patches((a, b, c)).areas_mm2
    assert areas == pytest.approx(areas[::-1])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 2.0, 1.0), (0.7, 0.7, 3.0), (1.0, 5.0, 1.3)])
def test_the_published_table_agrees(spacing):
    """MONAI carries DeepMind's table; ours comes from geometry."""
    from monai.metrics.utils import get_code_to_measure_table

    table, kernel = get_code_to_measure_table(spacing)
    theirs, weights = table.numpy().ravel(), np.asarray(kernel).reshape(2, 2, 2)
    ours = cell_patches(spacing).areas_mm2
    for code in range(256):
        inside = [(k & 1, k >> 1 & 1, k >> 2 & 1) for k in range(8) if code >> k & 1]
        assert ours[code] == pytest.approx(theirs[int(sum(weights[i] for i in inside))], abs=2e-6)  # float32
