"""What an image file says of itself, and its name. Opens nothing: that is done in core/volume.py."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, GeometryError
from segpipe.core.grid import Grid

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".nrrd", ".mha", ".mhd")
IMAGE_ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS
_SPACING_TOLERANCE = 1e-2  # relative; rounding in published headers stays far below
_MAX_COMPRESSION = 1032  # deflate writes at least one bit for 129 bytes


@dataclass(frozen=True)
class Header:
    """What a file says of itself, without its voxels.

    Args:
        path: The file.
        grid: Place of the voxels.
        n_channels: 1 for a 3D file, the length of the fourth axis for a 4D one.
        pixdim_zyx_mm: Voxel edges as the header's pixdim says; None for formats without it.
        has_world: False if the header holds no orientation (sform and qform codes are both 0).
        dtype: Type of the stored voxels.
    """

    path: Path
    grid: Grid
    n_channels: int
    pixdim_zyx_mm: tuple[float, float, float] | None
    has_world: bool
    dtype: np.dtype[Any]

    @property
    def contradiction(self) -> str:
        """How the affine and pixdim disagree about the voxel edges; empty if they agree."""
        if self.pixdim_zyx_mm is None:
            return ""
        pairs = zip(self.grid.spacing_mm, self.pixdim_zyx_mm, strict=True)
        if all(abs(a - p) <= _SPACING_TOLERANCE * max(a, p) for a, p in pairs):
            return ""
        affine, pixdim = (" × ".join(f"{v:.4g}" for v in s[::-1]) for s in (self.grid.spacing_mm, self.pixdim_zyx_mm))
        return f"the affine (sform) says voxels of {affine} mm (x, y, z), pixdim says {pixdim} mm"


def ending_of(path: Path) -> str:
    """The image ending of a file name, lower case; empty if it is none that segpipe reads."""
    return next((e for e in IMAGE_ENDINGS if path.name.lower().endswith(e)), "")


def stem_of(path: Path) -> str:
    """File name without its image ending."""
    return path.name[: len(path.name) - len(ending_of(path))] if ending_of(path) else path.stem


def checked_ending(path: Path) -> str:
    """The image ending of a file that exists.

    Raises:
        DataError: If there is no such file or its name says another format.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file.")
    if not ending_of(path):
        raise DataError(
            f"{path}: is in no format that segpipe reads ({', '.join(IMAGE_ENDINGS)}). "
            "Convert it, e.g. with `mri_convert` (.mgz), `fslchfiletype` (.hdr/.img) or `dcm2niix` (DICOM)."
        )
    return ending_of(path)


def space_and_channels(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Three edges (x, y, z) and the number of channels; axes of length 1 after the third are dropped.

    Raises:
        DataError: If there are fewer than two axes, an empty one, or several of channels.
    """
    x, y, z, *rest = (*shape, *(1,) * (3 - len(shape)))
    channels = [n for n in rest if n != 1] or [1]
    if len(shape) < 2 or len(channels) > 1 or 0 in (x, y, z, *rest):
        text = " × ".join(map(str, shape))
        raise DataError(f"{path}: shape {text}, expected 2 or 3 axes in space and at most one of channels, none empty.")
    return (x, y, z), channels[0]


def grid_of(path: Path, shape_xyz: tuple[int, int, int], affine: NDArray[np.float64]) -> Grid:
    """The grid that a file's header describes.

    Raises:
        GeometryError: If the affine is unusable; the message names the file.
    """
    try:
        return Grid((shape_xyz[2], shape_xyz[1], shape_xyz[0]), np.asarray(affine, np.float64))
    except GeometryError as fault:
        raise GeometryError(f"{path}: {fault} Repair the header.") from None


def require_plausible_size(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse a file that cannot hold the voxels of its header, before memory is asked for them.

    Raises:
        DataError: If it is too small for them, even if compressed as far as gzip can.
    """
    size, n_needed = path.stat().st_size, prod(shape) * dtype.itemsize
    if n_needed > size * (_MAX_COMPRESSION if path.name.lower().endswith(".gz") else 1):
        text = " × ".join(map(str, shape))
        raise DataError(
            f"{path}: cannot be read as an image ({size} bytes, too few for the {text} voxels of its header, "
            f"{n_needed} bytes). The header is wrong or the file is cut short: copy or export it again."
        )


def voxel_kind(dtype: np.dtype[Any]) -> str:
    """The type of voxels, for people."""
    return "colour (RGB)" if dtype.fields else "complex" if dtype.kind == "c" else str(dtype)
