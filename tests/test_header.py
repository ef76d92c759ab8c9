"""core/header.py: names of image files, and headers that contradict themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segpipe.core.errors import DataError, GeometryError
from segpipe.core.grid import Grid
from segpipe.core.header import Header, ending_of, space_and_channels, stated_edges, stem_of


@pytest.mark.parametrize(
    ("name", "stem", "ending"),
    [
        ("case.1.nii.gz", "case.1", ".nii.gz"),
        ("CASE.NII.GZ", "CASE", ".nii.gz"),
        ("case.nii", "case", ".nii"),
        ("case.nrrd", "case", ".nrrd"),
        ("case.mha", "case", ".mha"),
        ("brain.mgz", "brain", ""),
        ("notes", "notes", ""),
    ],
)
def test_names(name: str, stem: str, ending: str) -> None:
    assert (stem_of(Path("a.b") / name), ending_of(Path("a.b") / name)) == (stem, ending)


def header(affine_diagonal: tuple[float, float, float], pixdim_zyx: tuple[float, float, float] | None) -> Header:
    grid = Grid((4, 5, 6), np.diag([*affine_diagonal, 1.0]))
    return Header(Path("a.nii"), grid, 1, pixdim_zyx, True, np.dtype(np.int16))


def test_a_unit_affine_against_pixdim_is_a_contradiction() -> None:
    assert header((1, 1, 1), (10.0, 1.56, 1.56)).contradiction == (
        "the voxel size is 1 × 1 × 1 mm (x, y, z) in the affine (sform), but 1.56 × 1.56 × 10 mm in pixdim"
    )


def test_rounding_is_no_contradiction() -> None:
    assert header((1.5, 1.5, 10.0), (10.0, 1.514, 1.5)).contradiction == ""  # 0.9 % apart
    assert header((1.5, 1.5, 10.0), (10.0, 1.516, 1.5)).contradiction != ""  # 1.06 %
    assert header((1, 1, 1), None).contradiction == ""  # formats without pixdim


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 5, 4), ((6, 5, 4), 1)),
        ((6, 5), ((6, 5, 1), 1)),
        ((6, 5, 4, 3), ((6, 5, 4), 3)),
        ((6, 5, 1, 3), ((6, 5, 1), 3)),
        ((6, 5, 4, 1, 3), ((6, 5, 4), 3)),  # NIfTI keeps vectors in the fifth axis
        ((6, 5, 4, 1, 1), ((6, 5, 4), 1)),
    ],
)
def test_axes_of_space_and_channels(shape: tuple[int, ...], expected: tuple[tuple[int, int, int], int]) -> None:
    assert space_and_channels(Path("a.nii"), shape) == expected


@pytest.mark.parametrize("shape", [(6,), (), (6, 5, 4, 2, 3), (6, 0, 4), (6, 5, 4, 0)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"a\.nii: shape .*expected 2 or 3 spatial axes"):
        space_and_channels(Path("a.nii"), shape)


def test_edges_of_axes_with_one_voxel_are_the_grids_where_pixdim_says_none() -> None:
    """A slice often has no thickness in pixdim, and a 2D file no third axis; an edge of 0 elsewhere is told."""
    grid = Grid((1, 5, 6), np.diag([2.0, 3.0, 4.0, 1.0]))
    assert stated_edges(Path("a.nii"), [2.0, -3.0, 0.0], grid, has_sform=False) == (4.0, 3.0, 2.0)
    assert stated_edges(Path("a.nii"), [2.0, 3.0], grid, has_sform=True) == (4.0, 3.0, 2.0)
    assert stated_edges(Path("a.nii"), [0.0, 3.0, 0.0], grid, has_sform=True) == (4.0, 3.0, 0.0)
    with pytest.raises(GeometryError, match=r"voxel size is 0 × 3 × 4 mm .* lengths above 0"):
        stated_edges(Path("a.nii"), [0.0, 3.0, 0.0], grid, has_sform=False)


def test_places_further_apart_than_a_tenth_of_a_voxel_are_two() -> None:
    near = header((1, 1.5, 2.5), (2.5, 1.5, 1.0))
    assert near.two_places == ""
    assert replace(near, qform_gap_mm=0.1).two_places == ""
    assert (
        replace(near, qform_gap_mm=0.11).two_places
        == "the positions of a corner voxel by sform and by qform are 0.11 mm apart"
    )
    contradictory = header((1, 1, 1), (10.0, 1.56, 1.56))
    assert replace(contradictory, qform_gap_mm=50.0).two_places == ""  # it follows from the contradiction


def test_scaled_integers_are_no_integers() -> None:
    plain = header((1, 1, 1), None)
    assert (plain.holds_integers, plain.stored_as) == (True, "stored as int16")
    scaled = replace(plain, is_scaled=True)
    assert (scaled.holds_integers, scaled.stored_as) == (False, "stored as int16 and scaled")
