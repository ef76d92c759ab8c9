"""Voxels of a label map to integers: stored as floats or scaled they are near one, interpolated they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError

_MAX_ROUNDING = 1e-3  # a label this far from an integer was interpolated, not scaled
_MAX_LABEL = np.iinfo(np.int32).max


def whole_numbers(values_zyx: NDArray[Any], path: Path) -> NDArray[np.int32]:
    """Labels of any type as integers, same shape; 0.99999997 is 1.

    Args:
        values_zyx: (Z, Y, X), what was read; of what is computed on the way only a slice is held.
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
                f"2³¹, within {_MAX_ROUNDING}. It was probably resampled with interpolation or is no label map: export "
                "it again with nearest neighbour."
            )
        place[...] = np.rint(values) if values.dtype.kind == "f" else values
    return result


def _no_labels(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind in "iu":
        return (values > _MAX_LABEL) | (values < -_MAX_LABEL)
    with np.errstate(invalid="ignore"):  # inf - inf
        return ~(np.abs(values - np.rint(values)) <= _MAX_ROUNDING) | (np.abs(values) > _MAX_LABEL)
