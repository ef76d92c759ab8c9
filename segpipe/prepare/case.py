"""Prepare one case: turn, crop, normalise, resample; and note the way back for the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.core.choices import functions_for
from segpipe.core.errors import DataError
from segpipe.core.grid import Box, Grid, Reorientation, nonzero_box, reorientation, require_same_grid
from segpipe.core.records import Record
from segpipe.core.volume import Volume, read_image_channels, read_labels
from segpipe.data.dataset import Case
from segpipe.plan.geometry import resampled_shape
from segpipe.plan.laterality import AS_STORED
from segpipe.plan.schema import SCHEMES, Configuration, Normalisation, Plan
from segpipe.prepare.resample import IMAGE_ORDER, LABEL_ORDER, orders_for, resample_image, resample_indices

Voxels = NDArray[np.float32]  # (Z, Y, X) of a channel
Inside = NDArray[np.bool_] | None  # voxels that count; None for all

_MIN_STD = 1e-8  # a constant image becomes 0, not NaN


class Trace(Record):
    """Record of how a case was prepared, enough to go back. Axes and edges are those after turning.

    Args:
        shape_zyx: Voxels of the image file.
        axes_zyx, flips_zyx: The turn from the file's axes to the plan's.
        spacing_mm: Voxel edge of the image.
        box: What was kept by cropping.
        target_mm: Voxel edge after resampling.
        prepared_shape_zyx: Voxels after resampling.
    """

    shape_zyx: tuple[int, int, int]
    axes_zyx: tuple[int, int, int]
    flips_zyx: tuple[bool, bool, bool]
    spacing_mm: tuple[float, float, float]
    box: Box
    target_mm: tuple[float, float, float]
    prepared_shape_zyx: tuple[int, int, int]

    @property
    def turn(self) -> Reorientation:
        """From the file's axes to the plan's."""
        return Reorientation(self.axes_zyx, self.flips_zyx)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case as the network sees it.

    Args:
        image_czyx: (C, Z, Y, X) float32.
        indices_zyx: (Z, Y, X) int16 inside labels; None without a label map.
        trace: The way back.
        coarse: For a cascade what the coarser network sees of the case; its way back leads to this one's grid or, if
            `Configuration.guide` is masks, to the image's.
    """

    image_czyx: NDArray[np.float32]
    indices_zyx: NDArray[np.int16] | None
    trace: Trace
    coarse: Prepared | None = None


def prepare_case(case: Case, plan: Plan, configuration: Configuration) -> Prepared:
    """Read and prepare a case.

    Raises:
        DataError: If a file cannot be read or does not fit the plan.
        GeometryError: If the grids are unusable or do not agree.
    """
    normalised, trace, image_grid = _read_normalised(case, plan, configuration)  # what was read is gone by now
    image = _resample_volume(normalised, trace)
    del normalised
    if case.label is None:
        return Prepared(image, None, trace)
    values, grid = read_labels(Path(case.label))
    require_same_grid(image_grid, grid, f"{case.case_id}: label against image")
    indices = plan.labels.encode(values, case.label)
    del values
    return Prepared(image, prepare_indices(indices, trace), trace)


def _read_normalised(case: Case, plan: Plan, configuration: Configuration) -> tuple[NDArray[np.float32], Trace, Grid]:
    volume = read_case_image(case, plan)
    return (*_normalise_volume(volume, plan, configuration), volume.grid)


def read_case_image(case: Case, plan: Plan) -> Volume:
    """Read the channels of a case as stored, finite and as many as the plan has.

    Raises:
        DataError: If a file cannot be read or does not fit the plan.
        GeometryError: If the grids are unusable or do not agree.
    """
    volume = read_image_channels(case.image_paths)
    voxels = volume.voxels_czyx
    if len(voxels) != len(plan.channels):
        several = "Give one file for each channel, ending in _0000, _0001, …, or one 4D file with all of them."
        raise DataError(
            f"{case.case_id}: {len(voxels)} channels, the plan expects {len(plan.channels)} "
            f"({', '.join(plan.channels)}). "
            f"{several if len(plan.channels) > 1 else 'Write the one that is meant, or each time point, as a 3D file.'}"
        )
    require_finite(voxels, case.case_id)
    return volume


def require_finite(voxels: NDArray[np.float32], where: str) -> None:
    """Refuse an image with NaN or infinity.

    Raises:
        DataError: If there is one.
    """
    if not (np.isfinite(voxels.min()) and np.isfinite(voxels.max())):
        n_wrong = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
        raise DataError(
            f"{where}: holds {n_wrong} NaN or infinite voxels, expected finite numbers. Replace them; "
            "`segpipe check` lists the files."
        )


def prepare_image(volume: Volume, plan: Plan, configuration: Configuration) -> tuple[NDArray[np.float32], Trace]:
    """Turn, crop to non-zero, normalise, resample; in this order, as nnU-Net."""
    normalised, trace = _normalise_volume(volume, plan, configuration)
    return _resample_volume(normalised, trace), trace


def _normalise_volume(volume: Volume, plan: Plan, configuration: Configuration) -> tuple[NDArray[np.float32], Trace]:
    """Turned, cropped and normalised: a new array."""
    turn = turn_for(volume.grid, plan)
    turned = turn.apply(volume.voxels_czyx)
    spacing_mm = turn.permute(volume.grid.spacing_mm)
    target_z, target_y, target_x = configuration.spacing_mm
    target_mm = (spacing_mm[0] if target_z is None else target_z, target_y, target_x)
    box = nonzero_box(turned)
    shape = resampled_shape(box.shape_zyx, spacing_mm, target_mm)
    trace = Trace(
        shape_zyx=volume.grid.shape_zyx,
        axes_zyx=turn.axes_zyx,
        flips_zyx=turn.flips_zyx,
        spacing_mm=spacing_mm,
        box=box,
        target_mm=target_mm,
        prepared_shape_zyx=(shape[0], shape[1], shape[2]),
    )
    return normalise(turned[box.slices], plan.normalisation), trace


def _resample_volume(voxels_czyx: NDArray[np.float32], trace: Trace) -> NDArray[np.float32]:
    orders = orders_for(trace.spacing_mm, trace.target_mm, IMAGE_ORDER)
    return resample_image(voxels_czyx, trace.prepared_shape_zyx, orders)


def prepare_indices(indices_zyx: NDArray[np.int16], trace: Trace) -> NDArray[np.int16]:
    """Turn, crop and resample a map of inside labels like its image."""
    cropped = trace.turn.apply(indices_zyx)[trace.box.slices]
    orders = orders_for(trace.spacing_mm, trace.target_mm, LABEL_ORDER)
    return np.ascontiguousarray(resample_indices(cropped, trace.prepared_shape_zyx, orders))


def turn_for(grid: Grid, plan: Plan) -> Reorientation:
    """The turn to the plan's orientation, then to the plan's order of axes."""
    turn = reorientation(grid, grid.orientation if plan.orientation == AS_STORED else plan.orientation)
    first, second, third = (turn.flips_zyx[axis] for axis in plan.axis_order)
    return Reorientation(plan.axes_of(grid.orientation), (first, second, third))


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
        every channel is 0; we do not, since labels are unknown in prediction.
    """
    inside = None
    if any(s.within_nonzero for s in schemes):
        inside = ndimage.binary_fill_holes((voxels_czyx != 0).any(axis=0))
    result = np.array(voxels_czyx, np.float32, order="C")
    for channel, scheme in zip(result, schemes, strict=True):
        NORMALISE_IN_PLACE[scheme.scheme](channel, scheme, inside if scheme.within_nonzero else None)
    return result


def _by_dataset(voxels: Voxels, own: Normalisation, _: Inside) -> None:
    assert own.low is not None and own.high is not None and own.mean is not None and own.std
    np.clip(voxels, own.low, own.high, out=voxels)
    _shift_and_divide(voxels, own.mean, own.std)


def _by_own_statistics(voxels: Voxels, _: Normalisation, inside: Inside) -> None:
    mean, std = _mean_and_std(voxels, inside)
    _shift_and_divide(voxels, mean, max(std, _MIN_STD))
    if inside is not None:
        voxels *= inside


def _by_own_range(voxels: Voxels, *_: object) -> None:
    low = float(voxels.min())
    _shift_and_divide(voxels, low, max(float(voxels.max()) - low, _MIN_STD))


def _by_255(voxels: Voxels, *_: object) -> None:
    voxels /= np.float32(255)


def _shift_and_divide(voxels: NDArray[np.float32], shift: float, divisor: float) -> None:
    voxels -= np.float32(shift)
    voxels /= np.float32(divisor)


def _mean_and_std(voxels: NDArray[np.float32], inside: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Mean and standard deviation of the voxels inside, slice by slice in float64; (0, 0) if there are none."""
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


_NORMALISERS: dict[str, Callable[[Voxels, Normalisation, Inside], None]] = {
    "ct": _by_dataset,
    "zscore": _by_own_statistics,
    "rescale_0_1": _by_own_range,
    "rgb_0_1": _by_255,
    "none": lambda *_: None,
}
NORMALISE_IN_PLACE = functions_for(SCHEMES, _NORMALISERS, "SCHEMES of plan/schema.py")
