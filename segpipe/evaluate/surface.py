"""Distances between the surfaces of two masks, in two models of what a surface is.

`lattice`: an element at every voxel corner whose neighbouring voxels are not all alike, weighted by the area of the
surface that passes it (`cells.py`). `voxel`: the voxels of the mask that have a neighbour outside, all of weight 1.
Outside the array there is only background. An axis of length 1 is no axis: a mask of one slice is measured as a
contour in its plane, with lengths for areas; otherwise its flat sides would outweigh the contour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from segpipe.evaluate.cells import cell_measures
from segpipe.evaluate.far import MAX_LENGTH, far_distances_mm

Mask = NDArray[np.bool_]
_N_PROBES = 64
_TREE_US, _TREE_FAR_US = 2.0, 0.1  # a query of the tree, and more with the square of the distance in voxels
_PASS_START_US, _PASS_US = 5e5, 0.016  # the other way: loading compiled code, then each voxel of the box
_SLACK = 1e-9  # relative; sums of areas in another order differ by 1e-15, and must not move a percentile


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """For every element of each surface the distance to the other surface.

    Args:
        reference_mm: (n,) float64, from elements of the reference to the prediction; inf if the prediction is empty.
        prediction_mm: (m,) float64, from elements of the prediction to the reference.
        reference_weights: (n,) float64: area in mm², length in mm for one slice, or 1 for each voxel.
        prediction_weights: (m,) float64.
    """

    reference_mm: NDArray[np.float64]
    prediction_mm: NDArray[np.float64]
    reference_weights: NDArray[np.float64]
    prediction_weights: NDArray[np.float64]

    @property
    def pooled_mm(self) -> NDArray[np.float64]:
        """Both directions together, (n+m,)."""
        return np.concatenate([self.reference_mm, self.prediction_mm])

    @property
    def pooled_weights(self) -> NDArray[np.float64]:
        """Weights of `pooled_mm`."""
        return np.concatenate([self.reference_weights, self.prediction_weights])


def lattice_distances(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> SurfaceDistances:
    """Distances between surface elements at voxel corners, weighted by area.

    Args:
        reference: Mask, bool, one to three axes longer than 1.
        prediction: Mask of the same shape.
        spacing_mm: Voxel edge along each axis.

    Raises:
        ValueError: If shapes differ or a mask is not bool.

    Source:
        DeepMind's surface-distance, taken over by the BraTS challenges. We search neighbours in a tree where it fills
        a distance map; elements, areas and distances are the same.
    """
    reference, prediction, spacing_mm = _boxed(reference, prediction, spacing_mm)
    measures = cell_measures(spacing_mm)
    codes = _cell_codes(reference), _cell_codes(prediction)
    full = len(measures) - 1
    is_surface = [(code != 0) & (code != full) for code in codes]
    weights = [measures[code[mixed]] for code, mixed in zip(codes, is_surface, strict=True)]
    del codes
    return SurfaceDistances(*_distances(is_surface[0], is_surface[1], spacing_mm), weights[0], weights[1])


def voxel_distances(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> SurfaceDistances:
    """Distances between the outermost voxels of two masks, every voxel of weight 1.

    Args, Raises: As `lattice_distances`.

    Source:
        The surface of MONAI, MedPy and Metrics Reloaded: a mask less its erosion by one voxel across faces, where
        voxels at the rim of the image count as outermost.
    """
    reference, prediction, spacing_mm = _boxed(reference, prediction, spacing_mm)
    rims = _rim(reference), _rim(prediction)
    distances = _distances(*rims, spacing_mm)
    return SurfaceDistances(*distances, np.ones(len(distances[0])), np.ones(len(distances[1])))


def hausdorff_mm(distances: SurfaceDistances) -> float:
    """Largest distance in mm; inf if one mask is empty, NaN if both are."""
    return _combined(distances, lambda mm, _: float(mm.max()))


def hausdorff_percentile_mm(distances: SurfaceDistances, fraction: float) -> float:
    """Maximum over the two directions of the distance that a share `fraction` of the surface does not exceed.

    Args:
        fraction: 0 (excluded) to 1; 0.95 for HD95.

    Returns:
        mm; a distance that occurs, nothing is interpolated; inf if one mask is empty, NaN if both are.

    Source:
        DeepMind's surface-distance, compute_robust_hausdorff. At an exact tie of the share its answer depends on
        rounding; here the smaller distance wins.
    """

    def percentile(mm: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
        order = np.argsort(mm, kind="stable")
        area = np.cumsum(weights[order])
        return float(mm[order[np.searchsorted(area, fraction * area[-1] * (1 - _SLACK))]])

    return _combined(distances, percentile)


def hausdorff_interpolated_mm(distances: SurfaceDistances, fraction: float) -> float:
    """Maximum over the two directions of the interpolated percentile, weights ignored: MONAI's HD95 with `voxel`."""
    return _combined(distances, lambda mm, _: float(np.quantile(mm, fraction)))


def hausdorff_pooled_mm(distances: SurfaceDistances, fraction: float) -> float:
    """Interpolated percentile of both directions pooled, weights ignored: MedPy's HD95 with `voxel`."""
    return _pooled(distances, lambda mm, _: float(np.quantile(mm, fraction)))


def mean_surface_distance_mm(distances: SurfaceDistances) -> float:
    """Weighted mean of both directions pooled (ASSD) in mm; inf if one mask is empty, NaN if both are."""
    return _pooled(distances, lambda mm, weights: float(np.average(mm, weights=weights)))


def mean_directed_distance_mm(distances: SurfaceDistances) -> float:
    """Mean of the two directed weighted means (MASD) in mm; inf if one mask is empty, NaN if both are."""
    if not len(distances.reference_mm) or not len(distances.prediction_mm):
        return float("inf") if len(distances.pooled_mm) else float("nan")
    one = np.average(distances.reference_mm, weights=distances.reference_weights)
    return float(one + np.average(distances.prediction_mm, weights=distances.prediction_weights)) / 2


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Share of both surfaces that lies within a tolerance of the other one (NSD).

    Args:
        tolerance_mm: 0 or more; a distance equal to it is within.

    Returns:
        0 to 1; 0 if one mask is empty, NaN if both are.

    Source:
        Nikolov et al. 2021, J Med Internet Res 23(7):e26151, eq. 1.
    """
    if len(distances.pooled_mm) == 0:
        return float("nan")
    is_within = distances.pooled_mm <= tolerance_mm * (1 + _SLACK) + _SLACK
    return float(distances.pooled_weights[is_within].sum() / distances.pooled_weights.sum())


MODELS: dict[str, Callable[[Mask, Mask, tuple[float, ...]], SurfaceDistances]] = {
    "lattice": lattice_distances,
    "voxel": voxel_distances,
}
Statistic = Callable[[NDArray[np.float64], NDArray[np.float64]], float]


def _combined(distances: SurfaceDistances, statistic: Statistic) -> float:
    """Larger of the two directed values."""
    if not len(distances.reference_mm) or not len(distances.prediction_mm):
        return float("inf") if len(distances.pooled_mm) else float("nan")
    return max(
        statistic(distances.reference_mm, distances.reference_weights),
        statistic(distances.prediction_mm, distances.prediction_weights),
    )


def _pooled(distances: SurfaceDistances, statistic: Statistic) -> float:
    if not len(distances.reference_mm) or not len(distances.prediction_mm):
        return float("inf") if len(distances.pooled_mm) else float("nan")
    return statistic(distances.pooled_mm, distances.pooled_weights)


def _boxed(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> tuple[Mask, Mask, tuple[float, ...]]:
    """Both masks cut to the box of their union, padded by one voxel of background, without axes of length 1."""
    if reference.shape != prediction.shape or reference.dtype != bool or prediction.dtype != bool:
        found = f"{reference.shape} {reference.dtype} and {prediction.shape} {prediction.dtype}"
        raise ValueError(f"masks are {found}, expected two bool arrays of one shape")
    if len(spacing_mm) != reference.ndim:
        raise ValueError(f"spacing {spacing_mm} for masks with {reference.ndim} axes")
    spacing_mm = tuple(s for s, n in zip(spacing_mm, reference.shape, strict=True) if n > 1) or spacing_mm[-1:]
    axes = tuple(n for n in reference.shape if n > 1) or (1,)
    reference, prediction = reference.reshape(axes), prediction.reshape(axes)
    box = _union_box(reference, prediction)
    return np.pad(reference[box], 1), np.pad(prediction[box], 1), spacing_mm


def _union_box(reference: Mask, prediction: Mask) -> tuple[slice, ...]:
    box = []
    for axis in range(reference.ndim):
        others = tuple(a for a in range(reference.ndim) if a != axis)
        filled = np.flatnonzero(reference.any(axis=others) | prediction.any(axis=others))
        box.append(slice(filled[0], filled[-1] + 1) if len(filled) else slice(0, 1))
    return tuple(box)


def _cell_codes(mask: Mask) -> NDArray[np.uint8]:
    """Code of every cell, one shorter than `mask` along each axis (see `cells.py` for the bits)."""
    codes = mask.view(np.uint8)
    for axis in range(mask.ndim):
        before, after = (np.moveaxis(codes, axis, 0)[s] for s in (slice(None, -1), slice(1, None)))
        codes = np.moveaxis(before | after << np.uint8(1 << axis), 0, axis)
    return codes


def _rim(mask: Mask) -> Mask:
    """Voxels of a mask, padded by background, that have a neighbour across a face outside it."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        kept, source = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        kept[1:] &= source[:-1]
        kept[:-1] &= source[1:]
    return mask & ~inner


def _distances(
    reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From every True of one array to the nearest True of the other, in C order of the elements, in mm."""
    shared = reference & prediction
    return _nearest_mm(reference, prediction, shared, spacing_mm), _nearest_mm(
        prediction, reference, shared, spacing_mm
    )


def _nearest_mm(source: Mask, target: Mask, shared: Mask, spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    elements = np.flatnonzero(source)
    is_apart = ~shared.ravel()[elements]  # elements of both surfaces are at distance 0 and need no search
    result = np.zeros(len(elements))
    if not is_apart.any():
        return result
    if not target.any():
        result[:] = np.inf
        return result
    spacing = np.array(spacing_mm)
    found = np.flatnonzero(target), elements[is_apart]
    goals, starts = (np.stack(np.unravel_index(places, target.shape), axis=1) for places in found)
    tree = cKDTree(goals * spacing)
    if _is_far(tree, starts * spacing, target.shape, spacing):
        result[is_apart] = far_distances_mm(target, starts, spacing_mm)
        return result
    _, nearest = tree.query(starts * spacing)
    steps = goals[nearest] - starts
    result[is_apart] = np.sqrt(((steps * spacing) ** 2).sum(axis=1))  # from whole steps: the same wherever the box lies
    return result


def _is_far(tree: Any, points_mm: NDArray[np.float64], shape: tuple[int, ...], spacing_mm: NDArray[np.float64]) -> bool:
    """Whether the tree would take longer than a pass over the box; either way the distances are the same."""
    if len(shape) != 3 or max(shape) > MAX_LENGTH or len(points_mm) < _N_PROBES:
        return False
    probed_mm, _ = tree.query(points_mm[:: len(points_mm) // _N_PROBES])
    distance_vox = float(probed_mm.mean()) / float(np.prod(spacing_mm)) ** (1 / 3)
    return len(points_mm) * (_TREE_US + _TREE_FAR_US * distance_vox**2) > _PASS_START_US + _PASS_US * prod(shape)
