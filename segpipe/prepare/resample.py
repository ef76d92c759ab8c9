"""Resampling as one small matrix for each axis.

Spline interpolation on a grid is linear in the voxels and separable, prefilter included: along one axis it is a
matrix (voxels out × voxels in), of which only a band around the diagonal differs from 0. It is applied as a few
matrix products for each axis, to numpy arrays and to torch tensors on any device alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.core.grid import ZYX
from segpipe.plan.spacing import ANISOTROPY

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", NDArray[np.float32], "torch.Tensor")
IMAGE_ORDER, LABEL_ORDER = 3, 1
_NEAREST = 0
_SPLINE_MARGIN = 12  # voxels that scipy repeats beyond each end before it filters; 0.27^12 is 1e-7
_NEGLIGIBLE = 1e-7  # smaller entries of a matrix are below the rounding of float32
_BAND_ROWS = 64  # of a matrix in one product: few enough to leave out most zeros, enough to be fast


def axis_matrix(n_in: int, n_out: int, order: int) -> NDArray[np.float32]:
    """(n_out, n_in) interpolation along one axis whose ends keep their place in mm.

    Args:
        n_in: Voxels before.
        n_out: Voxels after.
        order: 0 nearest, 1 linear, 3 cubic spline; voxels beyond the edge repeat the edge.

    Source:
        scipy.ndimage.zoom with grid_mode, which skimage's resize (nnU-Net's resampling) calls; for nearest,
        scipy.ndimage.map_coordinates as nnU-Net calls it.
    """
    return _exact_matrix(n_in, n_out, order).astype(np.float32)


def _exact_matrix(n_in: int, n_out: int, order: int) -> NDArray[np.float64]:
    unit = np.eye(n_in)
    if n_in == n_out:
        return unit
    if order == _NEAREST:
        return unit[nearest_places(n_in, n_out)]
    if order == LABEL_ORDER:
        low, high, share = linear_places(n_in, n_out)
        return (1 - share)[:, None] * unit[low] + share[:, None] * unit[high]
    if order != IMAGE_ORDER:
        raise ValueError(f"spline order {order} is none of 0, 1, 3")
    places = _places(n_in, n_out)
    repeated = np.pad(unit, ((_SPLINE_MARGIN, _SPLINE_MARGIN), (0, 0)), mode="edge")
    weights = ndimage.spline_filter1d(repeated, IMAGE_ORDER, axis=0, mode="nearest")
    first = np.floor(places).astype(int) + _SPLINE_MARGIN - 1  # of the four voxels around each place
    t = (places - np.floor(places))[:, None]
    basis = ((1 - t) ** 3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2, t**3 / 6)
    matrix: NDArray[np.float64] = np.zeros((n_out, n_in))
    for k, share in enumerate(basis):
        matrix += share * weights[first + k]
    return matrix


def nearest_places(n_in: int, n_out: int) -> NDArray[np.intp]:
    """(n_out,) the old voxel nearest to each new one; halfway the later."""
    return np.floor(_places(n_in, n_out).clip(0, n_in - 1) + 0.5).astype(np.intp)


def linear_places(n_in: int, n_out: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """(n_out,) each: the old voxels before and after each new one, and the share of the latter, 0 to 1."""
    places = _places(n_in, n_out).clip(0, n_in - 1)
    low = np.floor(places).astype(np.intp)
    share = np.asarray(places - low, np.float64)
    return low, np.minimum(low + 1, n_in - 1), share


def _places(n_in: int, n_out: int) -> NDArray[np.float64]:
    """Centres of the new voxels, counted in old ones."""
    return np.asarray(n_in / n_out * (np.arange(n_out) + 0.5) - 0.5, np.float64)


@lru_cache(maxsize=64)
def axis_bands(n_in: int, n_out: int, order: int) -> list[tuple[slice, slice, NDArray[np.float32]]]:
    """`axis_matrix`, some rows at a time: which rows, the columns that are not 0 in them, and these entries."""
    matrix = axis_matrix(n_in, n_out, order)
    bands = []
    for start in range(0, n_out, _BAND_ROWS):
        rows = slice(start, min(start + _BAND_ROWS, n_out))
        used = np.flatnonzero((np.abs(matrix[rows]) > _NEGLIGIBLE).any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((rows, columns, np.ascontiguousarray(matrix[rows, columns])))
    return bands


def resample(array: Array, shape_zyx: ZYX, orders_zyx: Sequence[int]) -> Array:
    """Resample the last three axes.

    Args:
        array: (..., Z, Y, X) float32, of numpy or torch.
        shape_zyx: Voxels after.
        orders_zyx: Spline order along each axis: 0, 1 or 3.

    Returns:
        (..., *shape_zyx) float32, a new array where the argument lies; values may overshoot for order 3.
    """
    first, result = array.ndim - 3, array
    # the axis that shrinks most goes first: the later products are then smaller
    for axis in sorted(range(3), key=lambda a: shape_zyx[a] / array.shape[first + a]):
        result = _along(result, first + axis, shape_zyx[axis], orders_zyx[axis])
    return _copy(array) if result is array else result


def _along(array: Array, axis: int, n_out: int, order: int) -> Array:
    """Resample one axis; the same array if its length stays."""
    shape = tuple(array.shape)
    n_in = shape[axis]
    if n_in == n_out:
        return array
    flat = array.reshape(math.prod(shape[:axis]), n_in, math.prod(shape[axis + 1 :]))
    if order == _NEAREST:
        return flat[:, nearest_places(n_in, n_out)].reshape(*shape[:axis], n_out, *shape[axis + 1 :])
    result = _empty_like(array, (flat.shape[0], n_out, flat.shape[2]))
    for rows, columns, entries in axis_bands(n_in, n_out, order):
        block = _beside(entries, array)
        if flat.shape[2] == 1:  # the last axis: one large product instead of many small ones
            result[:, rows, 0] = flat[:, columns, 0] @ block.T
        else:
            result[:, rows] = block @ flat[:, columns]
    return result.reshape(*shape[:axis], n_out, *shape[axis + 1 :])


def _copy(array: Any) -> Any:
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def _empty_like(array: Any, shape: Sequence[int]) -> Any:
    return np.empty(shape, array.dtype) if isinstance(array, np.ndarray) else array.new_empty(shape)


def _beside(matrix: NDArray[np.float32], array: Any) -> Any:
    """The matrix as what `array` is, on its device."""
    return matrix if isinstance(array, np.ndarray) else array.new_tensor(matrix)


def resample_image(voxels_czyx: Array, shape_zyx: ZYX, orders_zyx: Sequence[int]) -> Array:
    """Resample an image.

    Each channel is clipped to its range before, as skimage's resize does; along a nearest axis, slice by slice, as
    nnU-Net does by resizing slices.

    Args:
        voxels_czyx: (C, Z, Y, X) float32, of numpy or torch.
        shape_zyx: Voxels after.
        orders_zyx: Spline order along each axis.

    Returns:
        (C, *shape_zyx) float32; the argument itself if it has this shape.
    """
    if tuple(voxels_czyx.shape[1:]) == tuple(shape_zyx):
        return voxels_czyx
    result = _empty_like(voxels_czyx, (len(voxels_czyx), *shape_zyx))
    for channel, place in zip(voxels_czyx, result, strict=True):
        place[...] = _one_channel(channel, shape_zyx, orders_zyx)
    return result


def _one_channel(channel: Any, shape_zyx: ZYX, orders_zyx: Sequence[int]) -> Any:
    in_plane = tuple(axis for axis in range(3) if orders_zyx[axis] != _NEAREST)
    resampled = resample(channel, shape_zyx, orders_zyx)
    if isinstance(channel, np.ndarray):
        low, high = channel.min(axis=in_plane, keepdims=True), channel.max(axis=in_plane, keepdims=True)
    else:
        low, high = channel.amin(in_plane, keepdim=True), channel.amax(in_plane, keepdim=True)
    z, y, x = (1 if axis in in_plane else shape_zyx[axis] for axis in range(3))
    low, high = (resample(bound, (z, y, x), orders_zyx) for bound in (low, high))
    return resampled.clip(low, high)


def orders_for(spacing_mm: Sequence[float], target_mm: Sequence[float], order: int) -> tuple[int, int, int]:
    """`order` along each axis, but nearest along an axis that alone is much coarser.

    The case's own spacing decides if it is anisotropic, else the target's.

    Source:
        nnU-Net's separate-z rule, ratio above 3; if two axes are equally coarse none is treated apart.
    """
    orders = [order] * 3
    for edges in (np.asarray(spacing_mm, float), np.asarray(target_mm, float)):
        if edges.max() / edges.min() > ANISOTROPY:
            coarse = np.flatnonzero(edges.max() / edges == 1)
            if len(coarse) == 1:
                orders[int(coarse[0])] = _NEAREST
            break
    return (orders[0], orders[1], orders[2])
