"""Voxel values to network input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.plan.schema import Normalisation

_MIN_STD = 1e-8  # a constant image becomes 0, not NaN


def normalise(voxels_czyx: NDArray[np.float32], schemes: Sequence[Normalisation]) -> NDArray[np.float32]:
    """Normalise each channel by its scheme.

    Args:
        voxels_czyx: (C, Z, Y, X) float32, cropped, in the unit of the image.
        schemes: One for each channel.

    Returns:
        A new array of the same shape. A constant channel becomes 0 (zscore, rescale_0_1).

    Source:
        nnU-Net's normalisation schemes.
    """
    inside = None
    if any(s.within_nonzero for s in schemes):
        inside = ndimage.binary_fill_holes((voxels_czyx != 0).any(axis=0))
    return np.stack([_channel(c, s, inside) for c, s in zip(voxels_czyx, schemes, strict=True)])


def _channel(
    voxels: NDArray[np.float32], scheme: Normalisation, inside: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    if scheme.scheme == "ct":
        assert scheme.low is not None and scheme.high is not None and scheme.mean is not None and scheme.std
        return (np.clip(voxels, scheme.low, scheme.high) - np.float32(scheme.mean)) / np.float32(scheme.std)
    if scheme.scheme == "zscore":
        if scheme.within_nonzero and inside is not None and inside.any():
            return np.where(inside, _zscore(voxels, voxels[inside]), np.float32(0))
        return _zscore(voxels, voxels)
    if scheme.scheme == "rescale_0_1":
        low, high = voxels.min(), voxels.max()
        return (voxels - low) / max(high - low, np.float32(_MIN_STD))
    if scheme.scheme == "rgb_0_1":
        return voxels / np.float32(255)
    return voxels.copy()


def _zscore(voxels: NDArray[np.float32], sample: NDArray[np.float32]) -> NDArray[np.float32]:
    mean, std = sample.mean(dtype=np.float64), sample.std(dtype=np.float64)
    return (voxels - np.float32(mean)) / np.float32(max(std, _MIN_STD))
