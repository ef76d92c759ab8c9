"""Correct the voxel edges that a NIfTI header gives twice. Only header bytes change; voxels are copied as they are."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.files import whole_file
from segpipe.core.header import Header

_UNIT_TOLERANCE = 1e-3  # edges this near 1 mm are what a tool writes that knows none


class _Places(NamedTuple):
    """Bytes of a NIfTI header: its size, where pixdim and the sform's rows begin, and the number format."""

    size: int
    pixdim: int
    srow: int
    number: str


_NIFTI1 = _Places(size=348, pixdim=76, srow=280, number="f")
_NIFTI2 = _Places(size=540, pixdim=104, srow=400, number="d")


def repair_edges(source: Header, target: Path) -> str:
    """Write a copy of a NIfTI file in which sform and pixdim agree.

    The one that says 1×1×1 mm, or an edge of 0, is taken for the wrong one; if neither does, the sform is. The sform
    keeps its directions and its origin, its columns get pixdim's lengths.

    Args:
        source: Header of a file with a contradiction.
        target: The copy; may be the file itself.

    Returns:
        What was done, for people.

    Raises:
        DataError: If the file is not NIfTI.
        ResourceError, SetupError: If the copy cannot be written.
    """
    content = bytearray(_unzipped(source.path))
    places, order = _format(source.path, content)
    pixdim_xyz = np.array(source.pixdim_zyx_mm[::-1] if source.pixdim_zyx_mm else (0.0, 0.0, 0.0))
    edges_xyz = np.array(source.grid.spacing_mm[::-1])
    if (pixdim_xyz <= 0).any() or (_is_unit(pixdim_xyz) and not _is_unit(edges_xyz)):
        first = places.pixdim + struct.calcsize(places.number)  # pixdim[0] is the qform's handedness
        struct.pack_into(f"{order}3{places.number}", content, first, *edges_xyz)
        done = f"pixdim {_text(pixdim_xyz)} became {_text(edges_xyz)} mm as in the sform"
    else:
        affine = source.grid.affine_ras_mm[:3].copy()
        affine[:, :3] *= pixdim_xyz / np.linalg.norm(affine[:, :3], axis=0)
        struct.pack_into(f"{order}12{places.number}", content, places.srow, *affine.ravel())
        done = f"sform of {_text(edges_xyz)} mm rescaled to {_text(pixdim_xyz)} mm as in pixdim"
    with whole_file(target) as temporary:
        is_zipped = target.name.lower().endswith(".gz")
        temporary.write_bytes(gzip.compress(content, 6, mtime=0) if is_zipped else content)
    return done


def _unzipped(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _format(path: Path, content: bytes | bytearray) -> tuple[_Places, str]:
    """Version and byte order, told by the first number, which is the header's size."""
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", content)
        for places in (_NIFTI1, _NIFTI2):
            if size == places.size:
                return places, order
    raise DataError(f"{path}: begins with no NIfTI header, expected one of 348 or 540 bytes. Export the file again.")


def _is_unit(edges_mm: NDArray[np.float64]) -> bool:
    return bool(np.abs(edges_mm - 1).max() < _UNIT_TOLERANCE)


def _text(edges_mm: NDArray[np.float64]) -> str:
    return " × ".join(f"{edge:.4g}" for edge in edges_mm)
