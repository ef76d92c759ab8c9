"""Distances between the surfaces of two masks in three models of a surface, and the metrics made of them.

`lattice`: an element at every voxel corner whose neighbouring voxels differ, weighted by the area of the surface that
passes it (`cell_patches`). `voxel`: the voxels of the mask that have a neighbour outside, each of weight 1. `mc`:
the elements of `lattice`, each moved to the middle of its piece of surface: nearly as good as a mesh, and the nearest
to the truth where that is known. Outside the array there is only background. An axis of length 1 is no axis: a mask of
one slice is measured as a contour in its plane, with lengths for areas; otherwise its flat sides would outweigh the
contour.

Elements that both surfaces have are only counted: their distance is 0, and they are often more than half. Every metric
is inf (NSD 0) if one mask is empty, NaN if both are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import floor, inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.labels import Mask
from segpipe.evaluate.surfaces.packed_masks import CellPatches, cell_patches

if TYPE_CHECKING:
    from types import ModuleType

Box = tuple[slice, slice, slice]
_FLAT = 1e3  # mm in place of the spacing of an axis that is none: no row is searched along it
_EVERY = 32  # of so many elements one is tried before the search among near rows, which is slow where it is in vain
_ROUNDING = 1e-9  # of a voxel: what lies within the slack must not be lost
_SLACK = 1e-9  # relative; sums of areas in another order differ by 1e-15, and must not move a percentile


@dataclass(frozen=True, eq=False)
class Directed:
    """Distances from the elements of one surface to the other surface.

    Args:
        apart_mm: (n,) float64, of the elements that the other surface does not have; inf if it has none.
        apart_weights: (n,) float64: area in mm², length in mm for one slice, or 1 for each voxel.
        n_shared: Elements that the other surface has too; their distance is 0.
        shared_weight: What they weigh together.
    """

    apart_mm: NDArray[np.float64]
    apart_weights: NDArray[np.float64]
    n_shared: int
    shared_weight: float

    @property
    def n(self) -> int:
        """Number of elements."""
        return len(self.apart_mm) + self.n_shared

    @cached_property
    def weight(self) -> float:
        """Total weight of all elements."""
        return float(self.apart_weights.sum()) + self.shared_weight

    @cached_property
    def moment(self) -> float:
        """Sum of weights times distances."""
        return float((self.apart_mm * self.apart_weights).sum())  # a dot product would start threads of its own


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Both directions; an empty mask has no elements."""

    from_reference: Directed
    from_prediction: Directed


def lattice_distances(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> SurfaceDistances:
    """Distances between surface elements at voxel corners, weighted by area.

    Args:
        reference: Mask (Z, Y, X), bool.
        prediction: Mask of the same shape.
        spacing_mm: Voxel edge along each axis.

    Raises:
        ValueError: If shapes differ or a mask is not bool or has not three axes.

    Source:
        DeepMind's surface-distance, taken over by the BraTS challenges. We look for the nearest element where it
        fills a distance map; elements, areas and distances are the same.
    """
    return mask_distances(reference, prediction, spacing_mm, ("lattice",))["lattice"]


def voxel_distances(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> SurfaceDistances:
    """Distances between the outermost voxels of two masks, every voxel of weight 1.

    Args, Raises: As `lattice_distances`.

    Source:
        The surface of MONAI, MedPy and Metrics Reloaded: a mask less its erosion by one voxel across faces, where
        voxels at the rim of the image count as outermost.
    """
    return mask_distances(reference, prediction, spacing_mm, ("voxel",))["voxel"]


def mc_distances(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> SurfaceDistances:
    """Distances between the middles of the pieces of the marching-cubes surface, weighted by their area.

    Args, Raises: As `lattice_distances`.

    Source:
        Lorensen and Cline 1987, Computer Graphics 21(4), for the surface. No tool defines its metrics so: taking the
        corner for the piece of surface, as `lattice` does, scatters elements by half a voxel to both sides, and the
        nearest one is then always one that sticks out, so that ASSD comes out too small and NSD too large.
    """
    return mask_distances(reference, prediction, spacing_mm, ("mc",))["mc"]


def mask_distances(
    reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...], models: Collection[str]
) -> dict[str, SurfaceDistances]:
    """Distances between the surfaces of two masks in several models.

    Args, Raises: As `lattice_distances`.

    Returns:
        By model, in the order of `MODELS`.
    """
    if reference.shape != prediction.shape or reference.dtype != bool or prediction.dtype != bool:
        found = f"{reference.shape} {reference.dtype} and {prediction.shape} {prediction.dtype}"
        raise ValueError(f"masks are {found}, expected two bool arrays of one shape")
    if reference.ndim != 3 or len(spacing_mm) != 3:
        raise ValueError(f"spacing {spacing_mm} for masks with {reference.ndim} axes, expected three")
    maps = (np.ascontiguousarray(reference).view(np.uint8), np.ascontiguousarray(prediction).view(np.uint8))
    return surface_distances(maps, (1,), _union_box(reference, prediction), spacing_mm, models)


def surface_distances(
    maps: tuple[NDArray[Any], NDArray[Any]],
    values: Collection[int],
    box: Box | None,
    spacing_mm: tuple[float, ...],
    models: Collection[str],
) -> dict[str, SurfaceDistances]:
    """Distances between the surfaces of one structure in two maps of labels.

    Args:
        maps: Reference and prediction, (Z, Y, X) unsigned integers.
        values: Those of the structure.
        box: A box that holds the structure in both maps; None if it is in neither.
        spacing_mm: Voxel edge along Z, Y, X.
        models: Names in `MODELS`.

    Returns:
        By model, in the order of `MODELS`.
    """
    chosen = [model for model in MODELS if model in models]
    if box is None or not chosen:
        return {model: SurfaceDistances(_NOTHING, _NOTHING) for model in chosen}
    is_flat = np.array([n == 1 for n in maps[0].shape])
    low, size = np.array([s.start for s in box]), np.array([s.stop - s.start for s in box])
    wanted = np.array(sorted(values), maps[0].dtype)
    reference, prediction = (_packed_masks().mask_bits(labels, wanted, low, size, is_flat) for labels in maps)
    pair = _Pair(reference, prediction, is_flat, spacing_mm)
    is_empty = [not mask.any() for mask in pair.masks]
    if any(is_empty):
        found = [_NOTHING if empty else _ALONE for empty in is_empty]
        return {model: SurfaceDistances(found[0], found[1]) for model in chosen}
    return {model: SurfaceDistances(*MODELS[model](pair)) for model in chosen}


_NOTHING = Directed(np.zeros(0), np.zeros(0), 0, 0.0)
_ALONE = Directed(np.array([inf]), np.ones(1), 0, 0.0)  # where there is nothing to be near to, one element says it


class _Pair:
    """Bits of two masks in one box, and what is computed from both."""

    def __init__(
        self,
        reference: NDArray[np.uint64],
        prediction: NDArray[np.uint64],
        is_flat: NDArray[np.bool_],
        spacing_mm: tuple[float, ...],
    ) -> None:
        self.masks = (reference, prediction)
        self.is_flat = is_flat
        z, y, x = (_FLAT if flat else mm for mm, flat in zip(spacing_mm, is_flat, strict=True))
        self.search_mm = (z, y, x)
        z, y, x = (1.0 if flat else mm for mm, flat in zip(spacing_mm, is_flat, strict=True))
        self.patches: CellPatches = cell_patches((z, y, x))
        self._cells: tuple[NDArray[np.uint64], ...] = ()

    @property
    def cells(self) -> tuple[NDArray[np.uint64], ...]:
        """Bits of the mixed cells of both masks."""
        if not self._cells:
            self._cells = tuple(_packed_masks().mixed_cells(mask, self.is_flat) for mask in self.masks)
        return self._cells


def _lattice(pair: _Pair) -> tuple[Directed, Directed]:
    one, other = pair.cells
    return _lattice_from(pair, 0, one, other), _lattice_from(pair, 1, other, one)


def _lattice_from(pair: _Pair, side: int, own: NDArray[np.uint64], other: NDArray[np.uint64]) -> Directed:
    packed, mask, areas = _packed_masks(), pair.masks[side], pair.patches.areas_mm2
    places, n_shared = _apart(own, other)
    shared = float(packed.code_counts(own, other, mask) @ areas)
    return Directed(_nearest_mm(places, other, pair), areas[packed.codes_of(mask, places)], n_shared, shared)


def _voxel(pair: _Pair) -> tuple[Directed, Directed]:
    one, other = (_packed_masks().rim_voxels(mask, pair.is_flat) for mask in pair.masks)
    return _voxel_from(pair, one, other), _voxel_from(pair, other, one)


def _voxel_from(pair: _Pair, own: NDArray[np.uint64], other: NDArray[np.uint64]) -> Directed:
    places, n_shared = _apart(own, other)
    return Directed(_nearest_mm(places, other, pair), np.ones(len(places)), n_shared, float(n_shared))


def _mc(pair: _Pair) -> tuple[Directed, Directed]:
    same = _packed_masks().equal_cells(*pair.masks, pair.cells[0])
    return _mc_from(pair, 0, same), _mc_from(pair, 1, same)


def _mc_from(pair: _Pair, side: int, same: NDArray[np.uint64]) -> Directed:
    """Cells with the same code have the same point; all others are searched for."""
    from segpipe.evaluate.surfaces.distance_loops import far_squares, near_point_squares

    packed, patches, spacing = _packed_masks(), pair.patches, np.array(pair.search_mm)
    (own, other), (mask, other_mask) = pair.cells[:: 1 - 2 * side], pair.masks[:: 1 - 2 * side]
    places, n_shared = _apart(own, same)
    centres, codes = patches.centres_vox, packed.codes_of(mask, places)
    goals = packed.codes_in(other, other_mask, int(packed.count_both(other, other)[0]))
    slack_vox = 2 * float(np.abs(centres).max()) + _ROUNDING
    rows = _rows(pair.search_mm, slack_vox)

    def near(part: Any) -> NDArray[np.float64]:
        return near_point_squares(places[part], codes[part], other, goals, centres, *rows, spacing, slack_vox)

    def far(part: Any) -> NDArray[np.float64]:
        return far_squares(places[part] + centres[codes[part]], _all_places(other) + centres[goals], spacing)

    squares = _near_or_far(near, far, len(places))
    shared = float(packed.code_counts(own, same, mask) @ patches.areas_mm2)
    return Directed(np.sqrt(squares), patches.areas_mm2[codes], n_shared, shared)


MODELS: dict[str, Callable[[_Pair], tuple[Directed, Directed]]] = {"lattice": _lattice, "voxel": _voxel, "mc": _mc}


def _apart(own: NDArray[np.uint64], other: NDArray[np.uint64]) -> tuple[NDArray[np.int32], int]:
    """Places of the elements that `other` has not, and the number of the rest."""
    n_own, n_shared = (int(n) for n in _packed_masks().count_both(own, other))
    return _packed_masks().places_of(own, other, n_own - n_shared), n_shared


def _all_places(elements: NDArray[np.uint64]) -> NDArray[np.int32]:
    return _packed_masks().places_of(
        elements, np.zeros_like(elements), int(_packed_masks().count_both(elements, elements)[0])
    )


def _nearest_mm(places: NDArray[np.int32], target: NDArray[np.uint64], pair: _Pair) -> NDArray[np.float64]:
    from segpipe.evaluate.surfaces.distance_loops import far_squares, near_squares

    spacing, rows = np.array(pair.search_mm), _rows(pair.search_mm, 0.0)

    def near(part: Any) -> NDArray[np.float64]:
        return near_squares(places[part], target, *rows, spacing)

    def far(part: Any) -> NDArray[np.float64]:
        return far_squares(places[part].astype(np.float64), _all_places(target).astype(np.float64), spacing)

    return np.sqrt(_near_or_far(near, far, len(places)))


def _near_or_far(
    near: Callable[[Any], NDArray[np.float64]], far: Callable[[Any], NDArray[np.float64]], n: int
) -> NDArray[np.float64]:
    """Squared distances of n elements, by `far` where `near` does not find any; both take indices or a slice."""
    sample = np.arange(0, n, _EVERY)
    if len(sample) >= _EVERY and np.isinf(near(sample)).mean() > 0.5:
        return far(slice(None))
    squares = near(slice(None))
    is_far = np.isinf(squares)
    if is_far.any():
        squares[is_far] = far(is_far)
    return squares


@lru_cache(maxsize=64)
def _rows(spacing_mm: tuple[float, float, float], slack_vox: float) -> tuple[Any, Any, float]:
    from segpipe.evaluate.surfaces.distance_loops import rows_near

    return rows_near(spacing_mm, slack_vox)


@lru_cache(maxsize=1)
def _packed_masks() -> ModuleType:
    """The compiled loops, with a word to the person who waits if they are to be compiled first."""
    from segpipe.core.compiled import say_first_use
    from segpipe.evaluate.surfaces import packed_masks

    say_first_use(packed_masks.mask_bits)
    return packed_masks


def _union_box(reference: Mask, prediction: Mask) -> Box | None:
    """Smallest box around two masks (Z, Y, X); None if both are empty."""
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        filled = np.flatnonzero(reference.any(axis=others) | prediction.any(axis=others))
        if not len(filled):
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return box[0], box[1], box[2]


def hausdorff_mm(distances: SurfaceDistances) -> float:
    """Largest distance in mm (HD)."""
    return _over_both(distances, lambda one, other: max(_largest(one), _largest(other)))


def hausdorff_percentile_mm(distances: SurfaceDistances, fraction: float) -> float:
    """Maximum over the two directions of the distance that a share `fraction` of the surface does not exceed.

    Args:
        fraction: 0 (excluded) to 1; 0.95 for HD95.

    Returns:
        mm; a distance that occurs, nothing is interpolated.

    Source:
        DeepMind's surface-distance, compute_robust_hausdorff. At an exact tie of the share its answer depends on
        rounding; here the smaller distance wins.
    """
    return _over_both(distances, lambda *sides: max(_percentile(side, fraction) for side in sides))


def hausdorff_interpolated_mm(distances: SurfaceDistances, fraction: float) -> float:
    """Maximum over the two directions of the interpolated percentile, weights ignored: MONAI's HD95 with `voxel`."""
    return _over_both(distances, lambda *sides: max(_interpolated_percentile(fraction, side) for side in sides))


def hausdorff_pooled_mm(distances: SurfaceDistances, fraction: float) -> float:
    """Interpolated percentile of both directions pooled, weights ignored: MedPy's HD95 with `voxel`."""
    return _over_both(distances, lambda one, other: _interpolated_percentile(fraction, one, other))


def mean_surface_distance_mm(distances: SurfaceDistances) -> float:
    """Weighted mean of both directions pooled (ASSD) in mm."""
    return _over_both(distances, lambda one, other: (one.moment + other.moment) / (one.weight + other.weight))


def mean_directed_distance_mm(distances: SurfaceDistances) -> float:
    """Mean of the two directed weighted means (MASD) in mm.

    Source:
        Metrics Reloaded, MASD. Unlike ASSD the larger surface does not count more.
    """
    return _over_both(distances, lambda one, other: (one.moment / one.weight + other.moment / other.weight) / 2)


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Share of both surfaces that lies within a tolerance of the other one (NSD).

    Args:
        tolerance_mm: 0 or more; a distance equal to it is within.

    Returns:
        0 to 1.

    Source:
        Nikolov et al. 2021, J Med Internet Res 23(7):e26151, eq. 1.
    """
    sides = (distances.from_reference, distances.from_prediction)
    total = sum(side.weight for side in sides)
    if total == 0:
        return nan
    limit_mm = tolerance_mm * (1 + _SLACK) + _SLACK
    within = sum(side.shared_weight + float(side.apart_weights[side.apart_mm <= limit_mm].sum()) for side in sides)
    return min(within / total, 1.0)


def _over_both(distances: SurfaceDistances, statistic: Callable[[Directed, Directed], float]) -> float:
    one, other = distances.from_reference, distances.from_prediction
    if one.n == 0 or other.n == 0:
        return nan if one.n == other.n else inf
    return statistic(one, other)


def _largest(side: Directed) -> float:
    return float(side.apart_mm.max()) if len(side.apart_mm) else 0.0


def _percentile(side: Directed, fraction: float) -> float:
    from segpipe.evaluate.surfaces.distance_loops import least_reaching

    wanted = fraction * side.weight * (1 - _SLACK)
    if side.shared_weight >= wanted:
        return 0.0
    return float(least_reaching(side.apart_mm, side.apart_weights, wanted - side.shared_weight))


def _interpolated_percentile(fraction: float, *sides: Directed) -> float:
    """`np.quantile` of all distances, without writing down the zeros."""
    mm = np.concatenate([side.apart_mm for side in sides])
    n_zeros = sum(side.n_shared for side in sides)
    place = fraction * (len(mm) + n_zeros - 1)
    lower = floor(place)
    upper = min(lower + 1, len(mm) + n_zeros - 1)
    wanted = [max(k - n_zeros, 0) for k in (lower, upper)]
    if len(mm):
        mm = np.partition(mm, wanted)
    low, high = (0.0 if k < n_zeros else float(mm[k - n_zeros]) for k in (lower, upper))
    return low + (high - low) * (place - lower)
