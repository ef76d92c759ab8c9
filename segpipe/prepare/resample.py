"""Resampling of images as one small matrix for each axis, and of label maps without a mask for each label.

Spline interpolation on a grid is linear in the voxels and separable, prefilter included: along one axis it is a
matrix (voxels out × voxels in), of which only a band around the diagonal differs from 0. It is applied as a few
matrix products for each axis, to numpy arrays and to torch tensors on any device alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.core.grid import ZYX
from segpipe.plan.geometry import ANISOTROPY
from segpipe.prepare.upload import upload

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
        return _take(flat, n_out).reshape(*shape[:axis], n_out, *shape[axis + 1 :])
    result = _empty_like(array, (flat.shape[0], n_out, flat.shape[2]))
    is_numpy = isinstance(array, np.ndarray)
    for rows, columns, block in (
        axis_bands(n_in, n_out, order) if is_numpy else _tensor_bands(n_in, n_out, order, array.device)
    ):
        if flat.shape[2] == 1:  # the last axis: one large product instead of many small ones
            result[:, rows, 0] = flat[:, columns, 0] @ block.T
        else:
            result[:, rows] = block @ flat[:, columns]
    return result.reshape(*shape[:axis], n_out, *shape[axis + 1 :])


def _copy(array: Any) -> Any:
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def _empty_like(array: Any, shape: Sequence[int]) -> Any:
    return np.empty(shape, array.dtype) if isinstance(array, np.ndarray) else array.new_empty(shape)


def _take(flat: Any, n_out: int) -> Any:
    """The nearest old rows of an (…, n_in, …) array of three axes."""
    if isinstance(flat, np.ndarray):
        return flat[:, nearest_places(flat.shape[1], n_out)]
    return flat.index_select(1, _tensor_places(flat.shape[1], n_out, flat.device))


# Copied to a device once: the same few are needed thousands of times.


@lru_cache(maxsize=64)
def _tensor_bands(n_in: int, n_out: int, order: int, device: torch.device) -> list[tuple[slice, slice, Any]]:
    """`axis_bands` on a device."""
    return [(rows, columns, upload(entries, device)) for rows, columns, entries in axis_bands(n_in, n_out, order)]


@lru_cache(maxsize=64)
def _tensor_places(n_in: int, n_out: int, device: torch.device) -> Any:
    """`nearest_places` on a device."""
    return upload(nearest_places(n_in, n_out), device)


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


_TIE = 1e-5  # shares this near are equal but for rounding
_CHUNK_VOX = 2**16  # weighed at a time; what they need stays in the processor's cache
_UNDECIDED, _LOSER = np.iinfo(np.int16).min, np.iinfo(np.int16).max  # which no label has
_Places = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


def resample_indices(indices_zyx: NDArray[np.int16], shape_zyx: ZYX, orders_zyx: Sequence[int]) -> NDArray[np.int16]:
    """Resample a label map: each label's mask linearly, then the strongest wins. No label is invented.

    A new voxel is between eight old ones. Where they agree, nothing needs weighing; elsewhere the weights of those
    with the same label are added. The time depends on the surface between labels, not on their number.
    Of equally strong labels that of the nearest voxel wins, or else the smallest.

    Args:
        indices_zyx: (Z, Y, X) int16 inside labels.
        shape_zyx: Voxels after.
        orders_zyx: 1 or, along an axis that is much coarser, 0.

    Returns:
        (*shape_zyx) int16; the argument itself if it has this shape.

    Source:
        nnU-Net with batchgenerators 0.25.5. It calls labels equally strong if their sums in float64 are, so that
        rounding decides between halves; we allow for rounding. In earlier versions the last label of one
        half or more won, and where three labels met and none had a half, background.
    """
    if indices_zyx.shape == tuple(shape_zyx):
        return indices_zyx
    axes = zip(indices_zyx.shape, shape_zyx, orders_zyx, strict=True)
    places = [_places_along(n_in, n_out, order) for n_in, n_out, order in axes]
    labels = np.ascontiguousarray(indices_zyx)
    marked = np.where(_is_mixed(labels, places), np.int16(_UNDECIDED), labels)
    for axis, (low, _, _) in enumerate(places):
        marked = marked.take(low, axis)
    flat = marked.reshape(-1)
    undecided = np.flatnonzero(flat == _UNDECIDED)
    for start in range(0, undecided.size, _CHUNK_VOX):
        chosen = undecided[start : start + _CHUNK_VOX]
        flat[chosen] = _strongest(labels, places, np.unravel_index(chosen, shape_zyx))
    return marked


def _places_along(n_in: int, n_out: int, order: int) -> _Places:
    """For each new voxel the old ones before and after it, and the share of the latter."""
    if order == LABEL_ORDER and n_in != n_out:
        low, high, share = linear_places(n_in, n_out)
        return low, high, share.astype(np.float32)
    places = nearest_places(n_in, n_out)
    return places, places, np.zeros(n_out, np.float32)


def _is_mixed(labels: NDArray[np.int16], places: Sequence[_Places]) -> NDArray[np.bool_]:
    """Old voxels which differ from one of those after them that are weighed together with them."""
    least, most = labels.copy(), labels.copy()
    for axis, (low, high, _) in enumerate(places):
        if (low != high).any():
            for bound, choose in ((least, np.minimum), (most, np.maximum)):
                lines = np.moveaxis(bound, axis, 0)
                choose(lines[:-1], lines[1:], out=lines[:-1])
    return least != most


def _strongest(
    labels: NDArray[np.int16], places: Sequence[_Places], voxels_zyx: tuple[NDArray[np.intp], ...]
) -> NDArray[np.int16]:
    """The label with most weight around each of some new voxels (n,)."""
    sides, nearest = [], []
    for (low, high, share), index in zip(places, voxels_zyx, strict=True):
        after = share[index]
        sides.append([(low[index], 1 - after), (high[index], after)] if share.any() else [(low[index], None)])
        nearest.append(np.where(after < 0.5 - _TIE, low[index], high[index]))
    corners, weights = [], []
    for corner in product(*sides):
        corners.append(labels[tuple(index for index, _ in corner)])
        weights.append(np.prod([weight for _, weight in corner if weight is not None], axis=0))
    totals = [weight.copy() for weight in weights]
    for first, second in combinations(range(len(corners)), 2):
        same = corners[first] == corners[second]
        totals[first] += weights[second] * same
        totals[second] += weights[first] * same
    enough = np.max(totals, axis=0) - np.float32(_TIE)
    winners = [np.where(total < enough, np.int16(_LOSER), label) for label, total in zip(corners, totals, strict=True)]
    closest = labels[tuple(nearest)]
    return np.where(np.any([winner == closest for winner in winners], axis=0), closest, np.min(winners, axis=0))
