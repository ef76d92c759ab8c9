"""Placement of images and label maps: label maps against their image, and headers that contradict themselves."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.files import whole_file
from segpipe.core.grid import ZYX, Grid, Reorientation, turned_grid
from segpipe.core.header import MAX_GAP_VOX, Header

_MAX_TURN = 1e-3  # sine of the angle between axes taken for parallel: cosines rounded to three decimals
_MAX_EDGE_RATIO = 1e-2  # edges that differ less were rounded: 0.7 for 0.703125
_STILL = Reorientation((0, 1, 2), (False, False, False))


@dataclass(frozen=True)
class Placement:
    """The placement of a label map against its image.

    Args:
        kind: `same` position and axes; `turned`: same position, axes in another order or direction; `shifted`: same
            shape, edges and axes at another position; `cropped`: part of the image's voxels; `apart`: anything else.
        turn: The turn of the label map's array onto the image's axes; None if `apart`.
        gap_mm: Largest distance of a corner voxel after the turn; inf if shapes differ.
        offset_zyx: The image's voxel at the first voxel of the label map if `cropped`, else zeros.
    """

    kind: Literal["same", "turned", "shifted", "cropped", "apart"]
    turn: Reorientation | None
    gap_mm: float
    offset_zyx: ZYX = (0, 0, 0)


def placement(image: Header, label: Header) -> Placement:
    """Find the placement of a label map against its image.

    A file without orientation in its header is never called turned or shifted, since its axes are a guess of the
    reader. Nor is one that would be both: either its array or its header is wrong, and the files do not tell which.
    """
    gap_mm = image.grid.corner_gap_mm(label.grid)
    allowed_mm = MAX_GAP_VOX * min(image.grid.spacing_mm)
    if gap_mm <= allowed_mm:
        return Placement("same", _STILL, gap_mm)
    turn = _turn(image.grid, label.grid)
    if turn is None or not (image.has_world and label.has_world):
        return Placement("apart", None, gap_mm)
    turned = turned_grid(label.grid, turn)
    turned_gap_mm = image.grid.corner_gap_mm(turned)
    if turned_gap_mm <= allowed_mm:
        return Placement("turned", turn, turned_gap_mm)
    if turn == _STILL and (offset_zyx := _crop_offset(image.grid, label.grid)) is not None:
        return Placement("cropped", _STILL, gap_mm, offset_zyx)
    edges = np.divide(label.grid.spacing_mm, image.grid.spacing_mm)
    is_shift = np.isfinite(gap_mm) and turn == _STILL and bool((np.abs(edges - 1) <= _MAX_EDGE_RATIO).all())
    return Placement("shifted", turn, gap_mm) if is_shift else Placement("apart", None, gap_mm)


def _crop_offset(image: Grid, label: Grid) -> ZYX | None:
    """Find the voxel of the image at which a smaller grid begins whose voxels are the image's; None for others."""
    if image.shape_zyx == label.shape_zyx:
        return None
    to_index = np.linalg.inv(image.affine_ras_mm) @ label.affine_ras_mm
    last_xyz = np.array(label.shape_zyx[::-1]) - 1
    first = np.rint(to_index[:3, 3])
    gaps_vox = [to_index[:3, 3] - first, (to_index @ [*last_xyz, 1])[:3] - (first + last_xyz)]
    is_inside = (first >= 0).all() and (first + last_xyz < image.shape_zyx[::-1]).all()
    if np.abs(gaps_vox).max() > MAX_GAP_VOX or not is_inside:
        return None
    x, y, z = (int(n) for n in first)
    return z, y, x


def _turn(image: Grid, label: Grid) -> Reorientation | None:
    """Find the turn from the label map's axes to the image's; None if they are not parallel in pairs."""
    cosines = _directions(image).T @ _directions(label)  # image axis (x, y, z), label axis (x, y, z)
    whole = np.rint(cosines)
    is_permutation = (np.abs(whole).sum(0) == 1).all() and (np.abs(whole).sum(1) == 1).all()
    if not is_permutation or np.abs(cosines - whole).max() > _MAX_TURN:
        return None
    source_xyz = np.abs(whole).argmax(1)
    signs = whole.sum(1)
    z, y, x = (2 - int(source_xyz[axis]) for axis in (2, 1, 0))
    return Reorientation((z, y, x), (bool(signs[2] < 0), bool(signs[1] < 0), bool(signs[0] < 0)))


def _directions(grid: Grid) -> NDArray[np.float64]:
    affine = grid.affine_ras_mm[:3, :3]
    return affine / np.linalg.norm(affine, axis=0)


_UNIT_TOLERANCE = 1e-3  # edges this near 1 mm are a tool's default for unknown ones
_MM_OF = {"m": 1e3, "µm": 1e-3}
_MIN_EDGE_MM, _MAX_EDGE_MM = 1e-4, 100.0  # a voxel is not smaller than light resolves, nor larger than an organ
_MM_CODE, _SPACE_BITS = 2, 7  # of xyzt_units; its other bits are the unit of time


class _Places(NamedTuple):
    """Layout of a NIfTI header: its size, the offset of each field, and the formats of numbers, codes and units."""

    size: int
    pixdim: int
    qform_code: int
    qoffset: int
    srow: int
    xyzt_units: int
    number: str
    code: str
    units: str


_NIFTI1 = _Places(348, 76, 252, 268, 280, 123, "f", "h", "b")
_NIFTI2 = _Places(540, 104, 344, 376, 400, 500, "d", "i", "i")


class _Bytes:
    """A whole NIfTI file in memory, whose header fields can be read and replaced."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self.content = bytearray(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        self.places, self.order = _format(path, self.content)

    def get(self, place: int, kind: str, n_values: int) -> NDArray[np.float64]:
        return np.array(struct.unpack_from(f"{self.order}{n_values}{kind}", self.content, place), np.float64)

    def put(self, place: int, kind: str, *values: float) -> None:
        struct.pack_into(f"{self.order}{len(values)}{kind}", self.content, place, *values)

    def put_edges(self, edges_xyz: NDArray[np.float64]) -> None:
        first = self.places.pixdim + struct.calcsize(self.places.number)  # pixdim[0] is the qform's handedness
        self.put(first, self.places.number, *edges_xyz)

    def write(self, target: Path) -> None:
        with whole_file(target) as temporary:
            is_zipped = target.name.lower().endswith(".gz")
            temporary.write_bytes(gzip.compress(self.content, 6, mtime=0) if is_zipped else self.content)


def repair_edges(source: Header, target: Path) -> str:
    """Write a copy of a NIfTI file in which sform and pixdim agree.

    The one with 1×1×1 mm, or with an edge of 0, counts as wrong; if neither has them, the sform does. The sform keeps
    its directions and its origin, its columns get the lengths of pixdim.

    Args:
        source: Header of the file to repair.
        target: The copy; may be the file itself.

    Returns:
        A description of the repair.

    Raises:
        DataError: If the file is not NIfTI.
        ResourceError, SetupError: If the copy cannot be written.
    """
    file = _Bytes(source.path)
    pixdim_xyz, edges_xyz = _pixdim(source), np.array(source.grid.spacing_mm[::-1])
    if (pixdim_xyz <= 0).any() or (_is_unit(pixdim_xyz) and not _is_unit(edges_xyz)):
        file.put_edges(edges_xyz)
        done = f"pixdim {_text(pixdim_xyz)} replaced by {_text(edges_xyz)} mm of the sform"
    else:
        affine = source.grid.affine_ras_mm[:3].copy()
        affine[:, :3] *= pixdim_xyz / np.linalg.norm(affine[:, :3], axis=0)
        file.put(file.places.srow, file.places.number, *affine.ravel())
        done = f"sform rescaled from {_text(edges_xyz)} mm to {_text(pixdim_xyz)} mm of pixdim"
    file.write(target)
    return done


def repair_unit(source: Header, target: Path) -> str:
    """Write a copy of a NIfTI file in mm.

    Lengths are converted from the header's unit, unless voxels would be implausible: then only the unit is wrong.
    Arguments, result and errors are those of `repair_edges`.
    """
    file = _Bytes(source.path)
    places = file.places
    edges_xyz = _pixdim(source)
    edges_mm = edges_xyz * _MM_OF[source.unit]
    is_plausible = bool((edges_mm >= _MIN_EDGE_MM).all() and (edges_mm <= _MAX_EDGE_MM).all())
    if is_plausible:
        for place, n_values in ((places.qoffset, 3), (places.srow, 12)):
            values = file.get(place, places.number, n_values) * _MM_OF[source.unit]
            file.put(place, places.number, *values)
        file.put_edges(edges_mm)
    units = int(file.get(places.xyzt_units, places.units, 1)[0])
    file.put(places.xyzt_units, places.units, units & ~_SPACE_BITS | _MM_CODE)
    file.write(target)
    if is_plausible:
        return f"voxels of {_text(edges_xyz)} {source.unit} converted to {_text(edges_mm)} mm"
    return f"unit {source.unit} replaced by mm: voxels of {_text(edges_mm)} mm are implausible"


def drop_qform(source: Header, target: Path) -> str:
    """Write a copy of a NIfTI file without its qform; the sform, which segpipe reads, stays.

    Arguments, result and errors are those of `repair_edges`.
    """
    file = _Bytes(source.path)
    file.put(file.places.qform_code, file.places.code, 0)
    file.write(target)
    return "qform switched off (code 0), sform kept"


def _pixdim(source: Header) -> NDArray[np.float64]:
    return np.array(source.pixdim_zyx_mm[::-1] if source.pixdim_zyx_mm else (0.0, 0.0, 0.0))


def _format(path: Path, content: bytearray) -> tuple[_Places, str]:
    """Find version and byte order by the first number, the header's size."""
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", content)
        for places in (_NIFTI1, _NIFTI2):
            if size == places.size:
                return places, order
    raise DataError(
        f"{path}: does not begin with a NIfTI header, expected one of 348 or 540 bytes. Export the file again."
    )


def _is_unit(edges_mm: NDArray[np.float64]) -> bool:
    return bool(np.abs(edges_mm - 1).max() < _UNIT_TOLERANCE)


def _text(edges_mm: NDArray[np.float64]) -> str:
    return " × ".join(f"{edge:.4g}" for edge in edges_mm)
