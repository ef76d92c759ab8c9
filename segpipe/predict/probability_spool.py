"""Spool probabilities on disk, slab by slab, so that no more than one output is in memory when they are written."""

# O outputs, N rows of a slab, Y X voxels.
from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.files import disk_fault, whole_file
from segpipe.core.labels import LabelSet
from segpipe.predict.restore import Slab
from segpipe.prepare.case import Trace

_DTYPE = np.dtype(np.float16)


class ProbabilitySpool:
    """A nameless file of float16 (outputs, rows, Y, X), of the turned and cropped image; gone when it is closed.

    The final file is compressed and holds one output after the other, but slabs bring some rows of all outputs. Until
    it is written, the spool takes two bytes of disk for each voxel and output.

    Args:
        folder: On whose disk it lies.
        trace: How the case was prepared.
        labels: The structures.

    Raises:
        ResourceError, SetupError: If it cannot be made.
    """

    def __init__(self, folder: Path, trace: Trace, labels: LabelSet) -> None:
        self.folder, self.trace, self.labels = folder, trace, labels
        try:
            self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives until the file is written)
        except OSError as fault:
            raise disk_fault(fault, folder) from fault

    def add(self, slab: Slab, shares_ONYX: NDArray[np.float16]) -> None:
        """Keep what a slab brings.

        Raises:
            OSError: If the disk is full.
        """
        n_rows, *plane = self.trace.box.shape_zyx
        row_bytes = int(np.prod(plane)) * _DTYPE.itemsize
        for output, shares_NYX in enumerate(shares_ONYX):
            self._file.seek((output * n_rows + slab.start) * row_bytes)
            self._file.write(np.ascontiguousarray(shares_NYX))
        self._file.flush()

    def write(self, path: Path) -> None:
        """Write `probabilities`, float16 (outputs, Z, Y, X) on the image's grid, compressed, as numpy's `.npz`.

        Raises:
            ResourceError, SetupError: If it cannot be written.
        """
        labels, trace = self.labels, self.trace
        self._file.seek(0)
        about = {"descr": _DTYPE.str, "fortran_order": False, "shape": (labels.n_outputs, *trace.shape_zyx)}
        with (
            whole_file(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("probabilities.npy", "w", force_zip64=True) as stream,
        ):
            np.lib.format.write_array_header_1_0(stream, about)
            for output in range(labels.n_outputs):
                for plane in self._next_output(int(output == 0 and not labels.has_regions)):
                    stream.write(plane)

    def _next_output(self, outside: int) -> NDArray[np.float16]:
        """(Z, Y, X) on the image's grid."""
        whole = np.full(self.trace.shape_zyx, outside, _DTYPE)
        inside = self.trace.turn.apply(whole)[self.trace.box.slices]
        for row in inside:
            row[...] = np.frombuffer(self._file.read(row.size * _DTYPE.itemsize), _DTYPE).reshape(row.shape)
        return whole

    def close(self) -> None:
        """Give the disk back."""
        with suppress(OSError):  # of a full disk, when the last rows are flushed: they are not needed any more
            self._file.close()


@contextmanager
def open_spool(folder: Path, trace: Trace, labels: LabelSet) -> Iterator[ProbabilitySpool]:
    """A spool for the body to fill. It stays open after the body, unless that fails.

    Raises:
        ResourceError, SetupError: If it cannot be made, or the disk is full.
    """
    spool = ProbabilitySpool(folder, trace, labels)
    try:
        yield spool
    except BaseException as fault:
        spool.close()
        if isinstance(fault, OSError):  # of the spool: nothing else in the body writes
            raise disk_fault(fault, folder) from fault
        raise
