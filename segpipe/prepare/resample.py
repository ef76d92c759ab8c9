"""Resampling as one small matrix for each axis.

Spline interpolation on a grid is linear in the voxels and separable, prefilter included: along one axis it is a
matrix (voxels out × voxels in). The matrix is made by resampling the unit vectors with scipy, so it is scipy's own
interpolation; applying it is a matrix product for each axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.core.grid import ZYX
from segpipe.plan.spacing import ANISOTROPY

IMAGE_ORDER, LABEL_ORDER = 3, 1
_NEAREST = 0


@lru_cache(maxsize=256)
def axis_matrix(n_in: int, n_out: int, order: int) -> NDArray[np.float32]:
    """(n_out, n_in) interpolation along one axis whose ends keep their place in mm.

    Args:
        n_in: Voxels before.
        n_out: Voxels after.
        order: 0 nearest, 1 linear, 3 cubic spline; voxels beyond the edge repeat the edge.

    Source:
        scipy.ndimage.zoom with grid_mode, which skimage's resize (nnU-Net's resampling) calls.
    """
    if n_in == n_out:
        return np.eye(n_in, dtype=np.float32)
    if order == _NEAREST:
        places = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        nearest = np.clip(np.floor(places + 0.5), 0, n_in - 1).astype(int)
        return np.eye(n_in, dtype=np.float32)[nearest]
    unit = np.eye(n_in, dtype=np.float64)
    columns = [ndimage.zoom(u, n_out / n_in, order=order, mode="nearest", grid_mode=True) for u in unit]
    matrix = np.stack(columns, axis=1).astype(np.float32)
    assert matrix.shape == (n_out, n_in)
    return matrix


def resample(array: NDArray[np.float32], shape_zyx: ZYX, orders_zyx: Sequence[int]) -> NDArray[np.float32]:
    """Resample the last three axes.

    Args:
        array: (..., Z, Y, X) float32.
        shape_zyx: Voxels after.
        orders_zyx: Spline order along each axis.

    Returns:
        (..., *shape_zyx) float32, a new array; values may overshoot for order 3.
    """
    if array.shape[-3:] == shape_zyx:
        return array.copy()
    lead = array.ndim - 3
    # the axis that shrinks most goes first: the later products are then smaller
    for axis in sorted(range(3), key=lambda a: shape_zyx[a] / array.shape[lead + a]):
        n_in, n_out = array.shape[lead + axis], shape_zyx[axis]
        if n_in != n_out:
            moved = np.moveaxis(array, lead + axis, -2)
            array = np.moveaxis(axis_matrix(n_in, n_out, orders_zyx[axis]) @ moved, -2, lead + axis)
    return np.ascontiguousarray(array)


def resample_image(voxels_czyx: NDArray[np.float32], shape_zyx: ZYX, orders_zyx: Sequence[int]) -> NDArray[np.float32]:
    """Resample an image; a new array.

    Each channel is clipped to its range before, as skimage's resize does; along a nearest axis, slice by slice, as
    nnU-Net does by resizing slices.
    """
    in_plane = tuple(a for a in range(3) if orders_zyx[a] != _NEAREST)
    z, y, x = (shape_zyx[a] if a in in_plane else voxels_czyx.shape[1 + a] for a in range(3))

    def one(channel: NDArray[np.float32]) -> NDArray[np.float32]:
        low, high = channel.min(axis=in_plane, keepdims=True), channel.max(axis=in_plane, keepdims=True)
        return resample(np.clip(resample(channel, (z, y, x), orders_zyx), low, high), shape_zyx, orders_zyx)

    return np.stack([one(channel) for channel in voxels_czyx])


def resample_indices(indices_zyx: NDArray[np.int16], shape_zyx: ZYX, orders_zyx: Sequence[int]) -> NDArray[np.int16]:
    """Resample a label map: each label's mask linearly, then the strongest wins. No label is invented.

    nnU-Net takes the last label above one half and background where none is; where three labels meet we take the
    strongest instead.
    """
    if indices_zyx.shape == shape_zyx:
        return indices_zyx
    best = np.full(shape_zyx, -np.inf, np.float32)
    result = np.zeros(shape_zyx, np.int16)
    for label in np.unique(indices_zyx):
        share = resample((indices_zyx == label).astype(np.float32), shape_zyx, orders_zyx)
        wins = share > best
        best[wins] = share[wins]
        result[wins] = label
    return result


def orders_for(spacing_mm: Sequence[float], target_mm: Sequence[float], order: int) -> tuple[int, int, int]:
    """`order` along each axis, but nearest along an axis that alone is much coarser.

    The case's own spacing decides if it is anisotropic, else the target's.

    Source:
        nnU-Net's separate-z rule, ratio above 3; if two axes are equally coarse none is treated apart.
    """
    orders = [order] * 3
    for edges in (np.asarray(spacing_mm, float), np.asarray(target_mm, float)):
        if edges.max() / edges.min() > ANISOTROPY:
            coarse = np.flatnonzero(edges == edges.max())
            if len(coarse) == 1:
                orders[int(coarse[0])] = _NEAREST
            break
    return (orders[0], orders[1], orders[2])
