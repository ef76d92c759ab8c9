"""Files of probabilities beside masks, as segpipe and nnU-Net write them. Read one output at a time."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.header import beside
from segpipe.core.labels import LabelSet

_MAX_SUM_GAP = 0.02  # of a softmax in float16 with many outputs


def probabilities_beside(mask: Path) -> Path:
    """Find the file of probabilities that belongs to a mask.

    Raises:
        DataError: If there is none.
    """
    places = [beside(mask, "_probabilities.npz"), beside(mask, ".npz")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DataError(
            f"{mask}: no probabilities beside it, expected {places[0].name} (or {places[1].name} of nnU-Net). "
            "Write them with `segpipe predict --save-probabilities`."
        )
    return path


def read_outputs(path: Path, labels: LabelSet, shape_zyx: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Yield the probabilities of each output, (Z, Y, X) floats of the type in the file; one is in memory at a time.

    Args:
        path: An `.npz` with `probabilities` (outputs, Z, Y, X), as segpipe and nnU-Net write it.
        labels: The structures of the model; its order is the order of the outputs, background first without regions.
        shape_zyx: Shape of the image.

    Raises:
        DataError: If the file cannot be read, holds another number of outputs, another shape, values that are not
            probabilities, or without regions ones that do not add up to 1.
    """
    total = np.zeros(shape_zyx, np.float32)
    for index, values in enumerate(_outputs(path, (labels.n_outputs, *shape_zyx))):
        if not (values.min(initial=0) >= 0 and values.max(initial=0) <= 1):
            raise DataError(f"{path}: output {index} holds values outside 0 to 1 or NaN, expected probabilities.")
        if not labels.has_regions:
            total += values
        yield values
    gap = 0.0 if labels.has_regions else float(np.abs(total - 1).max(initial=0))
    if gap > _MAX_SUM_GAP:
        raise DataError(f"{path}: the outputs of a voxel add up to 1 ± {gap:.2g}, expected 1. Are they a softmax?")


def _outputs(path: Path, shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Yield the arrays along the first axis of `probabilities`, read one after the other."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("probabilities.npy") as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("a newer version of the format")
            stored, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            if stored != shape or is_fortran or dtype.kind != "f":
                raise DataError(
                    f"{path}: holds probabilities {stored} {dtype}{' in Fortran order' * is_fortran}, expected floats "
                    f"{shape} (background and labels, or regions; Z; Y; X). They belong to another image or model."
                )
            n_values = int(np.prod(shape[1:]))
            for _ in range(shape[0]):
                yield np.frombuffer(stream.read(n_values * dtype.itemsize), dtype, n_values).reshape(shape[1:])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as fault:
        raise DataError(f"{path}: cannot be read as probabilities ({fault}). Predict the case again.") from None
