"""core/grid.py: spacing, orientation, lossless turns."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segpipe.core.errors import GeometryError
from segpipe.core.grid import (
    Grid,
    Reorientation,
    check_grid,
    reorientation,
    require_same_grid,
    turn_between,
    turned_grid,
)

SHAPE_ZYX = (8, 10, 12)
ORIENTATIONS = sorted("".join(o) for p in permutations(("RL", "AP", "SI")) for o in product(*p))
orientations = st.sampled_from(ORIENTATIONS)
small_angles = st.floats(-0.35, 0.35)  # radians; the nearest anatomical axis stays the same


def affine_of(orientation: str, spacing_xyz_mm: tuple[float, float, float], angle: float = 0.0) -> NDArray[np.float64]:
    """Affine whose x, y, z axes grow towards the letters of `orientation`, turned by `angle` about S, then R."""
    axes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.zeros((4, 4))
    for column, letter in enumerate(orientation):
        row, sign = axes[letter]
        affine[row, column] = sign * spacing_xyz_mm[column]
    c, s = np.cos(angle), np.sin(angle)
    about_s = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine[:3, :3] = about_s @ affine[:3, :3]
    affine[:, 3] = (-30, 12, 5, 1)
    return affine


def world_ras_mm(grid: Grid) -> NDArray[np.float64]:
    """World position of every voxel, (3, Z, Y, X)."""
    z, y, x = np.indices(grid.shape_zyx)
    return np.einsum("ij,jzyx->izyx", grid.affine_ras_mm, np.stack([x, y, z, np.ones_like(x)]).astype(float))[:3]


def test_a_grid_by_hand() -> None:
    # x runs to the left in steps of 2 mm, y up in steps of 3, z to the front in steps of 4
    grid = Grid(SHAPE_ZYX, np.array([[-2.0, 0, 0, 9], [0, 0, 4, 8], [0, 3, 0, 7], [0, 0, 0, 1]]))
    assert grid.spacing_mm == (4.0, 3.0, 2.0)
    assert grid.orientation == "LSA"
    assert grid.shear == 0.0


def test_there_are_48_orientations_and_all_are_recognised() -> None:
    assert len(ORIENTATIONS) == 48
    assert [Grid(SHAPE_ZYX, affine_of(o, (1, 2, 3))).orientation for o in ORIENTATIONS] == ORIENTATIONS


@given(orientations, small_angles)
def test_orientation_agrees_with_nibabel(orientation: str, angle: float) -> None:
    affine = affine_of(orientation, (0.7, 1.3, 5.0), angle)
    assert "".join(nib.orientations.aff2axcodes(affine)) == Grid(SHAPE_ZYX, affine).orientation == orientation


@pytest.mark.parametrize("target", ORIENTATIONS)
def test_undo_turns_back_for_all_48(target: str) -> None:
    array = np.arange(2 * 8 * 10 * 12).reshape(2, *SHAPE_ZYX)
    turn = reorientation(Grid(SHAPE_ZYX, affine_of("PIL", (1, 2, 3), 0.2)), target)
    np.testing.assert_array_equal(turn.undo(turn.apply(array)), array)
    np.testing.assert_array_equal(turn.apply(turn.undo(turn.apply(array))), turn.apply(array))


@given(orientations, orientations, small_angles)
def test_turned_voxels_stay_where_they_are_in_the_world(source: str, target: str, angle: float) -> None:
    grid = Grid((3, 4, 5), affine_of(source, (0.7, 1.3, 5.0), angle))
    turn = reorientation(grid, target)
    world = turn.apply(world_ras_mm(grid))  # (3, Z, Y, X): where each voxel of the turned array lies
    origin = world[:, 0, 0, 0]
    steps = [world[:, 0, 0, 1], world[:, 0, 1, 0], world[:, 1, 0, 0]]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step - origin for step in steps], axis=1)
    affine[:3, 3] = origin
    turned = Grid((world.shape[1], world.shape[2], world.shape[3]), affine)
    assert turned.orientation == target
    assert turned.shape_zyx == turn.permute(grid.shape_zyx)
    assert turned.spacing_mm == pytest.approx(turn.permute(grid.spacing_mm))
    np.testing.assert_allclose(world_ras_mm(turned), world, atol=1e-9)


@given(orientations, orientations)
def test_a_turn_agrees_with_nibabel(source: str, target: str) -> None:
    array_zyx = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(source), nib.orientations.axcodes2ornt(target)
    )
    expected_xyz = nib.orientations.apply_orientation(array_zyx.T, change)
    turned = reorientation(Grid((3, 4, 5), affine_of(source, (1, 1, 1))), target).apply(array_zyx)
    np.testing.assert_array_equal(turned, expected_xyz.T)


def test_a_turn_by_hand() -> None:
    # RAS to LAS: only x runs backwards
    turn = reorientation(Grid((1, 1, 3), np.eye(4)), "LAS")
    assert turn == Reorientation((0, 1, 2), (False, False, True))
    assert turn.apply(np.array([[[1, 2, 3]]])).tolist() == [[[3, 2, 1]]]


@pytest.mark.parametrize("target", ["", "RA", "RAX", "RRS", "RLS", "ras", "RASS"])
def test_what_is_no_orientation_is_refused(target: str) -> None:
    with pytest.raises(GeometryError, match="48"):
        reorientation(Grid(SHAPE_ZYX, np.eye(4)), target)


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([1.0, 0.0, 1.0, 1.0]),
        np.full((4, 4), np.nan),
        np.eye(3),
        np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),  # x and y are one direction
    ],
)
def test_an_unusable_affine_is_refused(affine: NDArray[np.float64]) -> None:
    with pytest.raises(GeometryError, match="affine"):
        Grid(SHAPE_ZYX, affine)


def test_shear_is_the_cosine_between_axes() -> None:
    affine = np.eye(4)
    affine[0, 1], affine[1, 1] = 0.6, 0.8  # x·y = 0.6
    grid = Grid(SHAPE_ZYX, affine)
    assert grid.shear == pytest.approx(0.6)
    with pytest.raises(GeometryError, match=r"case 3: the grid is sheared \(cosine 0.600"):
        check_grid(grid, "case 3")


@given(orientations, small_angles)
def test_a_turned_grid_is_not_sheared(orientation: str, angle: float) -> None:
    check_grid(Grid(SHAPE_ZYX, affine_of(orientation, (0.5, 0.5, 9.0), angle)), "x")


def test_corner_gap_by_hand() -> None:
    a = Grid((3, 1, 11), np.diag([1.0, 1.0, 1.0, 1.0]))
    b = Grid((3, 1, 11), np.diag([1.1, 1.0, 1.0, 1.0]))  # 10 steps of 0.1 mm along x
    assert a.corner_gap_mm(b) == pytest.approx(1.0)
    assert a.corner_gap_mm(a) == 0.0
    assert a.corner_gap_mm(Grid((3, 1, 12), np.eye(4))) == np.inf


def test_grids_may_differ_by_a_tenth_of_a_voxel() -> None:
    a = Grid((1, 1, 2), np.eye(4))
    shift = np.eye(4)
    shift[1, 3] = 0.09
    require_same_grid(a, Grid((1, 1, 2), shift), "x")
    shift = np.eye(4)
    shift[1, 3] = 0.11
    with pytest.raises(GeometryError, match=r"m\.nii: same shape, but a corner voxel is 0\.110 mm apart"):
        require_same_grid(a, Grid((1, 1, 2), shift), "m.nii")
    with pytest.raises(GeometryError, match=r"shape 3 × 1 × 1 \(x, y, z\), expected 2 × 1 × 1"):
        require_same_grid(a, Grid((1, 1, 3), np.eye(4)), "m.nii")


def test_a_grid_that_is_only_turned_is_not_to_be_resampled() -> None:
    ras = Grid((2, 3, 4), np.diag([1.0, 1.0, 2.0, 1.0]))
    for orientation in ("SPR", "LAS", "LPS"):
        turned = turned_grid(ras, turn_between("RAS", orientation))
        with pytest.raises(GeometryError, match=rf"are {orientation}, those of the other RAS: reorient it") as fault:
            require_same_grid(ras, turned, "m.nii")
        assert "Resample" not in str(fault.value)
    with pytest.raises(GeometryError, match="Resample one"):
        require_same_grid(ras, Grid((4, 3, 3), affine_of("SPR", (1.0, 1.0, 2.0), 0.0)), "m.nii")


@pytest.mark.parametrize(
    "signs", [(1, 1, 1), (-1, -1, 1)]
)  # as nibabel and as SimpleITK write an array without a header
def test_of_a_lost_header_turning_is_not_advised(signs: tuple[int, int, int]) -> None:
    affine = np.diag([-1.0, -1.2, 2.0, 1.0])
    affine[:3, 3] = (10, 20, -5)
    image = Grid((3, 4, 4), affine)
    with pytest.raises(
        GeometryError, match=r"voxel size 1 × 1 × 1, expected 1 × 1.2 × 2 mm .*copy the header"
    ) as fault:
        require_same_grid(image, Grid((3, 4, 4), np.diag([*map(float, signs), 1.0])), "m.nii")
    assert "reorient" not in str(fault.value) and "origin 0, 0, 0, expected 10, 20, -5 mm" in str(fault.value)


def test_a_turn_that_would_not_fit_is_not_advised() -> None:
    image = Grid((3, 4, 4), np.diag([1.0, 1.0, 2.0, 1.0]))
    mirrored = Grid((3, 4, 4), np.diag([-1.0, 1.0, 2.0, 1.0]))  # origin 0: turned, it lies 3 mm to the left
    with pytest.raises(GeometryError, match=r"axes LAS, expected RAS\. Find out which header is right"):
        require_same_grid(image, mirrored, "m.nii")
