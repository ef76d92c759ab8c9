"""Areas of the surface in a cell."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.evaluate.cells import cell_measures

edges = st.floats(0.2, 6.0)


def test_one_corner_cuts_off_a_triangle():
    # midpoints 0.5, 0.5, 0.5 from the corner: an equilateral triangle of side sqrt(0.5)
    assert cell_measures((1.0, 1.0, 1.0))[0b00000001] == pytest.approx(sqrt(3) / 4 * 0.5)


def test_a_flat_face_has_the_area_of_a_voxel_face():
    areas = cell_measures((3.0, 2.0, 1.0))
    assert areas[0b01010101] == pytest.approx(2.0)  # half the cell along axis 0: a face of axes 1 and 2
    assert areas[0b00110011] == pytest.approx(3.0)
    assert areas[0b00001111] == pytest.approx(6.0)


def test_contour_lengths_by_hand():
    lengths = cell_measures((2.0, 1.0))
    assert lengths[0b0001] == pytest.approx(sqrt(2**2 + 1**2) / 2)  # 1.118034
    assert lengths[0b0011] == 2.0  # the two pixels of a row along axis 0
    assert lengths[0b0101] == 1.0
    assert lengths[0b1001] == pytest.approx(sqrt(5))  # opposite pixels, each cut off


def test_no_surface_inside_or_outside():
    for n_axes in (1, 2, 3):
        measures = cell_measures((1.5,) * n_axes)
        assert len(measures) == 2 ** (2**n_axes)
        assert measures[0] == measures[-1] == 0
        assert (measures[1:-1] > 0).all()


@given(edges, edges, edges)
def test_a_code_and_its_complement_have_the_same_area(a, b, c):
    areas = cell_measures((a, b, c))
    assert areas == pytest.approx(areas[::-1])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 2.0, 1.0), (0.7, 0.7, 3.0), (1.0, 5.0, 1.3)])
def test_the_published_table_agrees(spacing):
    """MONAI carries DeepMind's table; ours comes from geometry."""
    from monai.metrics.utils import get_code_to_measure_table

    table, kernel = get_code_to_measure_table(spacing)
    theirs, weights = table.numpy().ravel(), np.asarray(kernel).reshape(2, 2, 2)
    ours = cell_measures(spacing)
    for code in range(256):
        inside = [(k & 1, k >> 1 & 1, k >> 2 & 1) for k in range(8) if code >> k & 1]
        assert ours[code] == pytest.approx(theirs[int(sum(weights[i] for i in inside))], abs=2e-6)  # float32


def test_four_axes_are_refused():
    with pytest.raises(ValueError, match="expected 1 to 3"):
        cell_measures((1.0,) * 4)
