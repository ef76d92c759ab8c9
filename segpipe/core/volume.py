"""Image files to arrays and back. The only file that opens images, with core/itk.py for what SimpleITK reads.

Pictures are converted first, by core/pictures.py. Arrays leave here as (C, Z, Y, X) or (Z, Y, X);
NIfTI's (x, y, z) exists only inside this file.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core import itk
from segpipe.core.errors import DataError, GeometryError
from segpipe.core.files import whole_file
from segpipe.core.grid import Grid
from segpipe.core.grid import require_same_grid as require_same_grid
from segpipe.core.header import (
    ITK_ENDINGS,
    NIFTI_ENDINGS,
    Header,
    checked_ending,
    ending_of,
    grid_of,
    reading_fault,
    require_exact_size,
    require_numbers,
    require_plausible_size,
    require_sound_geometry,
    space_and_channels,
    stated_edges,
)

logging.getLogger("nibabel.global").setLevel(logging.ERROR)  # it reports repaired headers without naming the file
_BROKEN = (EOFError, zlib.error, OSError, ValueError, RuntimeError, OverflowError)  # by the reading libraries
_UNITS = {1: "m", 3: "µm"}  # of NIfTI's xyzt_units; 2 is mm, and what says nothing means mm too
_MAX_ROUNDING = 1e-3  # a label this far from an integer was interpolated, not scaled
_MAX_LABEL = np.iinfo(np.int32).max
SHARE_STEPS = 200  # of a map from 0 to 1: half a percent, and shares of 2, 4, 5 and 10 come out exactly


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in memory: voxels float32 (C, Z, Y, X) and their grid."""

    voxels_czyx: NDArray[np.float32]
    grid: Grid


def read_header(path: Path) -> Header:
    """Read the header of an image file.

    Raises:
        DataError: If it is missing, unreadable, in an unknown format, in colour, or not 2D to 4D.
        GeometryError: If its affine is unusable.
    """
    with _file_faults(path):
        if _is_itk(path):
            return itk.read_header(path)
        checked_ending(path)
        return _nifti_header(path)


def _is_itk(path: Path) -> bool:
    """True for files that ITK reads: NRRD, MetaImage, the folder of a DICOM series, or a DICOM file of many frames."""
    if path.is_dir() or not path.exists():
        return path.is_dir()
    return ending_of(path) in ITK_ENDINGS or (not ending_of(path) and itk.is_dicom_file(path))


def read_image(path: Path) -> Volume:
    """Read an image; the fourth axis of a 4D file becomes the channels.

    Raises:
        DataError: If the file cannot be read.
        GeometryError: If its grid is unusable, sheared, or contradicts pixdim.
    """
    header = read_header(path)
    require_sound_geometry(header)
    return Volume(np.ascontiguousarray(read_voxels(header)), header.grid)


def read_image_channels(paths: list[Path]) -> Volume:
    """Read the channels of a case, one file for each or one 4D file, and stack them.

    Raises:
        DataError: If a file cannot be read.
        GeometryError: If a grid is unusable or the files lie on different grids.
    """
    volumes = [read_image(path) for path in paths]
    first = volumes[0]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        require_same_grid(first.grid, volume.grid, f"{path} against {paths[0].name}")
    if len(volumes) == 1:
        return first
    return Volume(np.concatenate([v.voxels_czyx for v in volumes]), first.grid)


def read_labels(path: Path) -> tuple[NDArray[np.int32], Grid]:
    """Read a label map as integers (Z, Y, X) and its grid.

    Floats such as 0.99999997, left by scl_slope, are rounded.

    Raises:
        DataError: If the file cannot be read, has several channels, or values are not near integers.
        GeometryError: If its grid is unusable, sheared, or contradicts pixdim.
    """
    header = read_header(path)
    require_sound_geometry(header)
    return read_label_values(header), header.grid


def read_label_values(header: Header) -> NDArray[np.int32]:
    """The integers (Z, Y, X) of a label map whose header was read; its geometry is not judged.

    Raises:
        DataError: If voxels cannot be read, there are several channels, or values are not near integers.
    """
    if header.n_channels != 1:
        raise DataError(
            f"{header.path}: a label map with {header.n_channels} volumes, expected one integer per voxel. "
            "Merge one-hot channels into one map."
        )
    return whole_numbers(read_voxels(header, None)[0], header.path)


def write_mask(
    path: Path, mask_zyx: NDArray[np.integer[Any]], like: Path, before_naming: Callable[[], None] = lambda: None
) -> None:
    """Write a mask with the exact header geometry of the image file `like`.

    Args:
        path: Output, in any format that is read.
        mask_zyx: (Z, Y, X), any integer type; it is the type in the file.
        like: The image whose grid the mask lies on.
        before_naming: Called when the mask is written, before it gets its name: what must not be missing beside it.

    Raises:
        ValueError: If the shape is not the image's.
        ResourceError, SetupError: If it cannot be written.
    """
    header = read_header(like)
    if mask_zyx.shape != header.grid.shape_zyx:
        raise ValueError(f"mask {mask_zyx.shape} is not on the grid {header.grid.shape_zyx} of {like}")
    if ending_of(path) in ITK_ENDINGS:
        itk.write_mask(path, mask_zyx, header.grid, header.n_axes, before_naming)
        return
    data_xyz = np.asfortranarray(mask_zyx.transpose(2, 1, 0))
    _save_like(path, data_xyz, header, "label", before_naming=before_naming)


def write_shares(path: Path, shares_zyx: NDArray[np.uint8], like: Path) -> None:
    """Write a map of values from 0 to 1 as NIfTI, one byte a voxel, with the geometry of the image file `like`.

    Args:
        path: Output; readers get the stored values times 1 / `SHARE_STEPS`, since the header says so.
        shares_zyx: (Z, Y, X), 0 to `SHARE_STEPS` for 0 to 1.
        like: The image whose grid the map lies on.

    Raises:
        ResourceError, SetupError: If it cannot be written.
    """
    _save_like(path, np.asfortranarray(shares_zyx.transpose(2, 1, 0)), read_header(like), "estimate", 1 / SHARE_STEPS)


def write_voxels(path: Path, voxels_czyx: NDArray[np.float32], like: Path) -> None:
    """Write NIfTI with other voxels and the header of the image file `like`.

    Raises:
        ResourceError, SetupError: If it cannot be written.
    """
    data_xyzc = np.asfortranarray(voxels_czyx.transpose(3, 2, 1, 0))
    _save_like(path, data_xyzc[..., 0] if len(voxels_czyx) == 1 else data_xyzc, read_header(like), "none")


def _save_like(
    path: Path,
    data_xyz: NDArray[Any],
    header: Header,
    intent: str,
    slope: float | None = None,
    before_naming: Callable[[], None] = lambda: None,
) -> None:
    """Write NIfTI with the header geometry of an image; `slope` is what stored values are to be multiplied with."""
    import nibabel as nib

    data_xyz = data_xyz[..., 0] if header.n_axes == 2 else data_xyz
    kind: Any = nib.Nifti1Image
    template: Any = None
    if ending_of(header.path) in NIFTI_ENDINGS:
        with _file_faults(header.path):
            source = _nifti(header.path)
        kind, template = type(source), source.header.copy()
        template.set_data_shape(data_xyz.shape)
        template["cal_max"] = template["cal_min"] = 0
        template.extensions.clear()
    image = kind(data_xyz, header.grid.affine_ras_mm, template)
    image.set_data_dtype(data_xyz.dtype)
    image.header.set_intent(intent)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    if template is None:
        image.header.set_xyzt_units("mm")
    with whole_file(path) as temporary:
        nib.save(image, temporary)
        before_naming()


def write_image(path: Path, voxels_czyx: NDArray[Any], affine_ras_mm: NDArray[np.float64]) -> None:
    """Write an image as NIfTI, 3D for one channel and 4D for more; the type in the file is the array's.

    Raises:
        ResourceError, SetupError: If it cannot be written.
    """
    import nibabel as nib

    with whole_file(path) as temporary:
        nib.save(_new_nifti(voxels_czyx, affine_ras_mm), temporary)


def write_pixels(path: Path, pixels_zyx: NDArray[Any], spacing_zyx_mm: tuple[float, float, float], n_axes: int) -> None:
    """Write NIfTI of a voxel size and no orientation, which pictures do not have.

    Args:
        path: Output.
        pixels_zyx: (Z, Y, X); the type in the file is the array's.
        spacing_zyx_mm: Voxel edges.
        n_axes: 2 to write one slice with two axes, else 3.

    Raises:
        ResourceError, SetupError: If it cannot be written.
    """
    import nibabel as nib

    data = np.asfortranarray((pixels_zyx[0] if n_axes == 2 else pixels_zyx).transpose())
    image = nib.Nifti1Image(data, None)
    image.set_data_dtype(data.dtype)
    image.header.set_zooms(spacing_zyx_mm[::-1][:n_axes])
    image.header.set_xyzt_units("mm")
    with whole_file(path) as temporary:
        nib.save(image, temporary)


def nifti_bytes(voxels_czyx: NDArray[Any], affine_ras_mm: NDArray[np.float64]) -> bytes:
    """The bytes that `write_image` writes into an uncompressed file."""
    return bytes(_new_nifti(voxels_czyx, affine_ras_mm).to_bytes())


def _new_nifti(voxels_czyx: NDArray[Any], affine_ras_mm: NDArray[np.float64]) -> Any:
    import nibabel as nib

    data = voxels_czyx.transpose(3, 2, 1, 0)
    image = nib.Nifti1Image(data[..., 0] if data.shape[3] == 1 else data, affine_ras_mm)
    image.set_data_dtype(voxels_czyx.dtype)
    image.header.set_xyzt_units("mm")
    return image


def read_voxels(header: Header, dtype: Any = np.float32) -> NDArray[Any]:
    """(C, Z, Y, X), scaled by slope and intercept; geometry is not judged; `dtype` None keeps the stored type.

    Raises:
        DataError: If the voxels cannot be read.
    """
    with _file_faults(header.path), np.errstate(over="ignore"):  # what float32 does not hold is infinite, and found
        if _is_itk(header.path):
            array = itk.read_voxels(header)
            return array.astype(dtype or array.dtype, copy=False)
        data = _nifti_voxels(header.path)
        data = np.asarray(data, data.dtype.newbyteorder("="))
        z, y, x = header.grid.shape_zyx
        data = data.reshape((x, y, z, header.n_channels), order="F").transpose(3, 2, 1, 0)
        return data.astype(dtype or data.dtype, copy=False)


def _nifti_voxels(path: Path) -> NDArray[Any]:
    """(x, y, z, …), scaled; a compressed file is read to its end, where the checksum is."""
    image = _nifti(path)
    n_bytes = prod(image.shape) * image.get_data_dtype().itemsize
    if not path.name.lower().endswith(".gz"):
        require_exact_size(path, path.stat().st_size - image.dataobj.offset, n_bytes, image.shape)
        return np.asanyarray(image.dataobj)
    with gzip.open(path) as stream:
        data = np.asanyarray(type(image).from_stream(stream).dataobj)
        n_more = len(stream.read(2**20))
        require_exact_size(path, n_bytes + n_more, n_bytes, image.shape)
    return data


def _nifti(path: Path) -> Any:
    import nibabel as nib

    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise DataError(f"{path}: is a {type(image).__name__}, expected single-file NIfTI. Convert it to .nii.gz.")
    return image


def _nifti_header(path: Path) -> Header:
    image = _nifti(path)
    shape, n_channels = space_and_channels(path, image.shape)
    dtype = np.dtype(image.get_data_dtype())
    require_numbers(path, dtype)
    require_plausible_size(path, image.shape, dtype)
    header, grid = image.header, grid_of(path, shape, image.affine)
    with image.file_map["image"].get_prepare_fileobj() as stream:  # nibabel replaces a length of 0 by 1
        pixdim = type(header).from_fileobj(stream, check=False)["pixdim"]
    return Header(
        path=path,
        grid=grid,
        n_channels=n_channels,
        pixdim_zyx_mm=stated_edges(
            path, pixdim[1 : 1 + len(image.shape)].tolist(), grid, int(header["sform_code"]) > 0
        ),
        has_world=int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0,
        dtype=dtype,
        unit=_UNITS.get(int(header["xyzt_units"]) % 8, "mm"),
        qform_gap_mm=_qform_gap_mm(header, grid),
        is_scaled=(image.dataobj.slope, image.dataobj.inter) != (1, 0),
        n_axes=min(len(image.shape), 3),
    )


def _qform_gap_mm(header: Any, grid: Grid) -> float:
    """Distance between a corner voxel by sform and by qform; 0 unless both are set, inf if the qform is no rotation."""
    from nibabel.spatialimages import HeaderDataError

    if int(header["sform_code"]) == 0 or int(header["qform_code"]) == 0:
        return 0.0
    try:
        return grid.corner_gap_mm(Grid(grid.shape_zyx, header.get_qform()))
    except (HeaderDataError, GeometryError, ValueError):
        return float("inf")


@contextmanager
def _file_faults(path: Path) -> Iterator[None]:
    """Turn every error of a reading library on a broken file into a DataError that names the file."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        yield
    except (ImageFileError, HeaderDataError, *_BROKEN) as fault:
        raise reading_fault(path, fault) from None


def whole_numbers(values_zyx: NDArray[Any], path: Path) -> NDArray[np.int32]:
    """Convert labels of any type to integers of the same shape; 0.99999997 is 1.

    Args:
        values_zyx: (Z, Y, X) as read; intermediate results are held for one slice only.
        path: The file, for messages.

    Raises:
        DataError: If a value is not near an integer, not finite, or beyond 32 bits.
    """
    result = np.empty(values_zyx.shape, np.int32)
    for values, place in zip(values_zyx, result, strict=True):
        wrong = _no_labels(values)
        if wrong.any():
            raise DataError(
                f"{path}: label values are not whole numbers (such as {values[wrong][0]:g}), expected integers below "
                f"2³¹, within {_MAX_ROUNDING}. It was probably resampled with interpolation, or is not a label map: "
                "export it again with nearest neighbour."
            )
        place[...] = np.rint(values) if values.dtype.kind == "f" else values
    return result


def _no_labels(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind in "iu":
        return (values > _MAX_LABEL) | (values < -_MAX_LABEL)
    with np.errstate(invalid="ignore"):  # inf - inf
        return ~(np.abs(values - np.rint(values)) <= _MAX_ROUNDING) | (np.abs(values) > _MAX_LABEL)
