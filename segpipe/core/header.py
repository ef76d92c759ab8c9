"""Headers and names of image files. Opens no image: core/volume.py does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, GeometryError, ResourceError, SegpipeError, is_out_of_memory
from segpipe.core.grid import Grid, check_grid
from segpipe.core.text import nfc

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".nrrd", ".mha", ".mhd")
IMAGE_ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS
FOREIGN_ENDINGS = (".mgz", ".mgh", ".hdr", ".img", ".dcm", ".ima", ".mnc", ".nhdr", ".par")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2")
PICTURE_ADVICE = (
    "Convert them: `segpipe check DATA --fix OUT --spacing Z,Y,X` (voxel edges in mm) writes NIfTI. The slices of a 3D "
    "image are in a folder with the name of the case, or the pages of one TIFF file."
)
_SPACING_TOLERANCE = 1e-2  # relative; rounding in published headers stays far below
MAX_GAP_VOX = 0.1  # grids nearer than this are one: float32 headers and rounded quaternions stay far below
_GZIP_MAGIC = b"\x1f\x8b"
_LFS_POINTER = b"version https://git-lfs"
_NIFTI_MAGIC_AT = (4, 344)  # where versions 2 and 1 say that they are NIfTI
_MAX_COMPRESSION = 1032  # deflate writes at least one bit for 129 bytes


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    Args:
        path: The file.
        grid: Position of the voxels.
        n_channels: 1 for a 3D file, the length of the fourth axis for a 4D one.
        pixdim_zyx_mm: Voxel edges in the header's pixdim; None for formats without it.
        has_world: False if the header holds no orientation (sform and qform codes are both 0).
        dtype: Type of the stored voxels.
        unit: Of every length above: mm; m or µm where the header says so, which is a fault.
        qform_gap_mm: Distance between a corner voxel by sform, which counts, and by qform; 0 unless both are set.
        is_scaled: True if stored voxels are multiplied or shifted when they are read.
        n_axes: 2 for a file with two axes, whose mask has two as well; else 3.
    """

    path: Path
    grid: Grid
    n_channels: int
    pixdim_zyx_mm: tuple[float, float, float] | None
    has_world: bool
    dtype: np.dtype[Any]
    unit: str = "mm"
    qform_gap_mm: float = 0.0
    is_scaled: bool = False
    n_axes: int = 3

    @property
    def contradiction(self) -> str:
        """The disagreement of the affine and pixdim about the voxel edges; empty if they agree."""
        if self.pixdim_zyx_mm is None:
            return ""
        pairs = zip(self.grid.spacing_mm, self.pixdim_zyx_mm, strict=True)
        if all(abs(a - p) <= _SPACING_TOLERANCE * max(a, p) for a, p in pairs):
            return ""
        affine, pixdim = (" × ".join(f"{v:.4g}" for v in s[::-1]) for s in (self.grid.spacing_mm, self.pixdim_zyx_mm))
        return f"the voxel size is {affine} mm (x, y, z) in the affine (sform), but {pixdim} mm in pixdim"

    @property
    def two_places(self) -> str:
        """The disagreement of sform and qform about the position; empty if they agree, or pixdim is at fault anyway."""
        if self.contradiction or self.qform_gap_mm <= MAX_GAP_VOX * min(self.grid.spacing_mm):
            return ""
        return f"the positions of a corner voxel by sform and by qform are {self.qform_gap_mm:.3g} mm apart"

    @property
    def holds_integers(self) -> bool:
        """True if voxels are stored as the whole numbers that they mean."""
        return self.dtype.kind in "iu" and not self.is_scaled

    @property
    def stored_as(self) -> str:
        """The type of the stored voxels, for people."""
        return f"stored as {self.dtype}" + (" and scaled" if self.is_scaled else "")


def ending_of(path: Path) -> str:
    """The image ending of a file name, lower case; empty if segpipe does not read it."""
    return next((e for e in IMAGE_ENDINGS if path.name.lower().endswith(e)), "")


def stem_of(path: Path) -> str:
    """File name without its image ending, in one Unicode form, so that names copied by a Mac equal others."""
    return nfc(_bare_name(path))


def beside(path: Path, ending: str) -> Path:
    """The path of a file in the same folder whose name differs in its image ending alone.

    Example:
        >>> beside(Path("a/b.nii.gz"), ".tsv").as_posix()
        'a/b.tsv'
    """
    return path.with_name(f"{_bare_name(path)}{ending}")


def _bare_name(path: Path) -> str:
    return path.name[: len(path.name) - len(ending_of(path))] if ending_of(path) else path.stem


def checked_ending(path: Path) -> str:
    """The image ending of a file that exists.

    Raises:
        DataError: If there is no such file or its name says another format.
    """
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"{path}: a link to {path.readlink()}, which is missing. Copy the file to it; with git-annex or DataLad, "
            "run `git annex get` or `datalad get`."
        )
    if not path.exists():
        raise DataError(f"{path}: no such file.")
    if path.suffix.lower() in PICTURE_ENDINGS:
        raise DataError(f"{path}: a picture ({path.suffix}), not a format that segpipe reads. {PICTURE_ADVICE}")
    if not ending_of(path):
        raise DataError(
            f"{path}: not a format that segpipe reads ({', '.join(IMAGE_ENDINGS)}). "
            "Convert it, e.g. with `mri_convert` (.mgz), `fslchfiletype` (.hdr/.img) or `dcm2niix` (DICOM)."
        )
    return ending_of(path)


def space_and_channels(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Split a shape into three edges (x, y, z) and the number of channels; later axes of length 1 are dropped.

    Raises:
        DataError: If there are fewer than two axes, an empty one, or several of channels.
    """
    x, y, z, *rest = (*shape, *(1,) * (3 - len(shape)))
    channels = [n for n in rest if n != 1] or [1]
    if len(shape) < 2 or len(channels) > 1 or 0 in (x, y, z, *rest):
        text = " × ".join(map(str, shape))
        raise DataError(f"{path}: shape {text}, expected 2 or 3 spatial axes and at most one channel axis, none empty.")
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


def require_sound_geometry(header: Header) -> None:
    """Refuse a header whose lengths cannot be trusted.

    Raises:
        GeometryError: If its unit is not mm, its axes are sheared, or sform and pixdim disagree.
    """
    repair = "`segpipe check DATA --fix OUT` writes a repaired copy."
    if header.unit != "mm":
        raise GeometryError(f"{header.path}: the header's lengths are in {header.unit}, expected mm. {repair}")
    check_grid(header.grid, str(header.path))
    if header.contradiction:
        raise GeometryError(f"{header.path}: {header.contradiction}; one of them is wrong. {repair}")


def stated_edges(path: Path, pixdim_xyz: list[float], grid: Grid, has_sform: bool) -> tuple[float, float, float]:
    """Voxel edges along Z, Y, X by pixdim; by the grid for axes of one voxel, for which pixdim may be empty.

    Args:
        path: For messages.
        pixdim_xyz: One length for each axis the file has, as it is stored.
        grid: The grid by the file's affine.
        has_sform: True if the lengths of the affine come from the sform; else they come from pixdim.

    Raises:
        GeometryError: If an edge is 0 or not finite and no sform says better.
    """
    edges = list(grid.spacing_mm[::-1])
    for axis, length in enumerate(pixdim_xyz[:3]):
        if grid.shape_zyx[2 - axis] > 1 or length > 0:
            edges[axis] = abs(length)
    if not has_sform and not all(np.isfinite(edge) and edge > 0 for edge in edges):
        text = " × ".join(f"{edge:.4g}" for edge in edges)
        raise GeometryError(f"{path}: the voxel size is {text} mm (x, y, z) in pixdim, expected lengths above 0.")
    return (edges[2], edges[1], edges[0])


def require_exact_size(path: Path, n_found: int, n_needed: int, shape: tuple[int, ...]) -> None:
    """Refuse a file that holds more or less than its header says: some number of the header is wrong.

    Args:
        path: The file.
        n_found: Bytes from the first voxel to the end, or as many as were read of a compressed file.
        n_needed: Bytes of the voxels.
        shape: By the header.

    Raises:
        DataError: If it does.
    """
    if n_found == n_needed:
        return
    text = " × ".join(map(str, shape))
    how = "fewer" if n_found < n_needed else "more"
    raise DataError(
        f"{path}: cannot be read as an image (it holds {how} than the {text} voxels of its header, {n_needed} bytes). "
        "The header is wrong, or the file was cut or joined: copy or export it again."
    )


def require_plausible_size(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse a file that cannot hold the voxels of its header, before memory is allocated for them.

    Raises:
        DataError: If it is too small for them, even if compressed as far as gzip can.
    """
    size, n_needed = path.stat().st_size, prod(shape) * dtype.itemsize
    if n_needed > size * (_MAX_COMPRESSION if path.name.lower().endswith(".gz") else 1):
        text = " × ".join(map(str, shape))
        raise DataError(
            f"{path}: cannot be read as an image ({size} bytes, too few for the {text} voxels of its header, "
            f"{n_needed} bytes). The header is wrong or the file is truncated: copy or export it again."
        )


def require_numbers(path: Path, dtype: np.dtype[Any]) -> None:
    """Refuse voxels that are not plain numbers.

    Raises:
        DataError: If they are colours or complex.
    """
    if dtype.fields or dtype.kind not in "iuf":
        kind = "colour (RGB)" if dtype.fields else "complex" if dtype.kind == "c" else str(dtype)
        raise DataError(f"{path}: holds {kind} voxels, expected one number per voxel. Convert it to grey values.")


def reading_fault(path: Path, fault: Exception) -> SegpipeError:
    """The error to show when a library cannot read an image: no memory, no permission, wrong name, or damaged."""
    if is_out_of_memory(fault):
        return ResourceError(f"{path}: ran out of memory while it was read. Use fewer workers (-j).")
    if not may_be_read(path):
        return DataError(f"{path}: no permission to read it. Ask its owner, or run `chmod u+r` on it.")
    if _is_lfs_pointer(path):
        return DataError(f"{path}: a pointer of Git LFS, its content is missing. Fetch it with `git lfs pull`.")
    if renamed := _right_name(path):
        state = "is" if renamed.endswith(".gz") else "is not"
        return DataError(
            f"{path}: {state} compressed with gzip, contrary to its name; it should be {renamed}. Rename it."
        )
    last_line = str(fault).strip().splitlines()[-1:] or [type(fault).__name__]
    size = path.stat().st_size if path.is_file() else 0
    return DataError(
        f"{path}: cannot be read as an image ({size} bytes; {last_line[0].strip()[:200]}). "
        "It is damaged, truncated or in another format: copy or export it again."
    )


def _is_lfs_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def _right_name(path: Path) -> str:
    """The right name of a NIfTI file whose name contradicts its compression; empty for others."""
    if ending_of(path) not in NIFTI_ENDINGS or not path.is_file():
        return ""
    with path.open("rb") as file:
        begin = file.read(_NIFTI_MAGIC_AT[-1] + 2)
    is_named_gz = path.name.lower().endswith(".gz")
    if begin[:2] == _GZIP_MAGIC:
        return "" if is_named_gz else f"{path.name}.gz"
    is_nifti = any(begin[at : at + 2] == b"n+" for at in _NIFTI_MAGIC_AT)
    return path.name[: -len(".gz")] if is_named_gz and is_nifti else ""


def may_be_read(path: Path) -> bool:
    """False if permissions keep this user from a file that is there, or from its folder."""
    try:
        return os.access(path, os.R_OK) or not path.exists()
    except PermissionError:
        return False
