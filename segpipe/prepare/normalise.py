"""Voxel values to network input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.plan.schema import Normalisation

_MIN_STD = 1e-8  # a constant image becomes 0, not NaN


def normalise(voxels_czyx: NDArray[np.float32], schemes: Sequence[Normalisation]) -> NDArray[np.float32]:
    """Normalise each channel by its scheme.

    Args:
        voxels_czyx: (C, Z, Y, X) float32, cropped, in the unit of the image; may be a view.
        schemes: One for each channel.

    Returns:
        A new array of the same shape; nothing else of that size is made, but a mask for `within_nonzero`. A constant
        channel becomes 0 (zscore, rescale_0_1).

    Source:
        nnU-Net's normalisation schemes. In training nnU-Net counts labelled voxels as within non-zero even where
        every channel is 0; since nobody knows them in prediction, we do not.
    """
    inside = None
    if any(s.within_nonzero for s in schemes):
        inside = ndimage.binary_fill_holes((voxels_czyx != 0).any(axis=0))
    result = np.array(voxels_czyx, np.float32, order="C")
    for channel, scheme in zip(result, schemes, strict=True):
        _normalise_in_place(channel, scheme, inside if scheme.within_nonzero else None)
    return result


def _normalise_in_place(voxels: NDArray[np.float32], scheme: Normalisation, inside: NDArray[np.bool_] | None) -> None:
    if scheme.scheme == "ct":
        assert scheme.low is not None and scheme.high is not None and scheme.mean is not None and scheme.std
        np.clip(voxels, scheme.low, scheme.high, out=voxels)
        _shift_and_divide(voxels, scheme.mean, scheme.std)
    elif scheme.scheme == "zscore":
        mean, std = _mean_and_std(voxels, inside)
        _shift_and_divide(voxels, mean, max(std, _MIN_STD))
        if inside is not None:
            voxels *= inside
    elif scheme.scheme == "rescale_0_1":
        low = float(voxels.min())
        _shift_and_divide(voxels, low, max(float(voxels.max()) - low, _MIN_STD))
    elif scheme.scheme == "rgb_0_1":
        voxels /= np.float32(255)


def _shift_and_divide(voxels: NDArray[np.float32], shift: float, divisor: float) -> None:
    voxels -= np.float32(shift)
    voxels /= np.float32(divisor)


def _mean_and_std(voxels: NDArray[np.float32], inside: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Of the voxels inside, in float64, of which only a slice is held; (0, 0) if there are none."""
    n = voxels.size if inside is None else int(np.count_nonzero(inside))
    if n == 0:
        return 0.0, 0.0
    mean = sum(float(part.sum(dtype=np.float64)) for part in _slices(voxels, inside)) / n
    squares = (np.square(part.astype(np.float64) - mean).sum() for part in _slices(voxels, inside))
    return mean, float(np.sqrt(sum(squares) / n))


def _slices(voxels: NDArray[np.float32], inside: NDArray[np.bool_] | None) -> Iterator[NDArray[np.float32]]:
    """The voxels inside, slice by slice."""
    if inside is None:
        yield from voxels
    else:
        yield from (plane[mask] for plane, mask in zip(voxels, inside, strict=True))
