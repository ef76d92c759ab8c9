"""core/header.py: names of image files, and headers that contradict themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segpipe.core.errors import DataError
from segpipe.core.grid import Grid
from segpipe.core.header import Header, ending_of, space_and_channels, stem_of


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
        "the affine (sform) says voxels of 1 × 1 × 1 mm (x, y, z), pixdim says 1.56 × 1.56 × 10 mm"
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
    with pytest.raises(DataError, match=r"a\.nii: shape .*expected 2 or 3 axes"):
        space_and_channels(Path("a.nii"), shape)
