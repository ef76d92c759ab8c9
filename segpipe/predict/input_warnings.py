"""Warnings about a new image that differs from the cases that a model was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from segpipe.core.volume import Volume
from segpipe.plan.laterality import AS_STORED
from segpipe.plan.schema import Plan
from segpipe.plan.training_stats import ChannelRange, Spans, TrainingStats
from segpipe.prepare.case import Trace

MARGIN = 0.25  # how far beyond the training cases an edge may lie, as a share of theirs: bodies and protocols vary so
_MIN_SHARE = 1e-4  # of voxels with intensities of the structures: small organs in whole-body scans are above it
_MIN_CONTRAST = 0.1  # range of the image against that of the structures alone, which is the narrower one, in the
# training case where it is least: scanners of MRI have units of their own, a thousandfold apart in one dataset
_MAX_SAMPLE = 1 << 20  # voxels of a channel that are looked at; enough for shares of a ten-thousandth
_DIRECTIONS = {"L": "left–right", "P": "front–back", "I": "head–feet"}
_DIRECTIONS |= {"R": _DIRECTIONS["L"], "A": _DIRECTIONS["P"], "S": _DIRECTIONS["I"]}


def warnings_of(volume: Volume, trace: Trace, plan: Plan, trained_on: TrainingStats | None) -> tuple[str, ...]:
    """One sentence for each oddity of an image.

    Args:
        volume: As it was read.
        trace: How it was prepared.
        plan: The model's.
        trained_on: What the model was trained on; None if that is not known: only constant channels are noted then.

    Returns:
        Empty if there is none. Edges of voxels and of the field of view (the box around everything that is not 0)
        are odd if they lie more than `MARGIN` beyond those of the training cases.
    """
    found: list[str] = []
    if trained_on is not None:
        orientation = volume.grid.orientation if plan.orientation == AS_STORED else plan.orientation
        names = [_DIRECTIONS[orientation[::-1][axis]] for axis in plan.axis_order]
        extent_mm = [n * mm for n, mm in zip(trace.box.shape_zyx, trace.spacing_mm, strict=True)]
        found += _outside("voxels", trace.spacing_mm, trained_on.spacing_mm, names)
        found += _outside("a field of view", extent_mm, trained_on.extent_mm, names)
        if trained_on.orientations and volume.grid.orientation not in trained_on.orientations:
            known = ", ".join(trained_on.orientations)
            found.append(f"stored as {volume.grid.orientation}, trained on {known}: it is turned, check left and right")
    seen = (trained_on.intensities if trained_on else ()) or [None] * len(plan.channels)
    for voxels, name, scheme, of_channel in zip(
        volume.voxels_czyx, plan.channels, plan.normalisation, seen, strict=True
    ):
        found += [f"channel {name}: {text}" for text in _intensity_oddities(voxels, scheme.scheme, of_channel)]
    return tuple(found)


def _outside(what: str, edges_mm: Sequence[float], spans: Spans, names: Sequence[str]) -> Iterator[str]:
    for edge_mm, span, name in zip(edges_mm, spans, names, strict=True):
        if not span.low / (1 + MARGIN) <= edge_mm <= span.high * (1 + MARGIN):
            yield f"{what} of {edge_mm:.4g} mm {name}, trained on {span.low:.4g} to {span.high:.4g} mm"


def _intensity_oddities(voxels_zyx: NDArray[np.float32], scheme: str, seen: ChannelRange | None) -> Iterator[str]:
    low, high = float(voxels_zyx.min()), float(voxels_zyx.max())
    if low == high:
        yield f"every voxel is {low:g}"
        return
    if seen is None:
        return
    if scheme == "ct" and low >= 0 > seen.min:
        yield f"holds no value below 0 ({low:g} to {high:g}), trained on Hounsfield units"
    flat = voxels_zyx.reshape(-1)
    sample = flat[:: max(1, flat.size // _MAX_SAMPLE) | 1]  # an odd step does not fall into step with rows of 2ⁿ
    values = sample[sample != 0]
    if not values.size:
        return
    share = float(np.mean((values >= seen.low) & (values <= seen.high)))
    first, last = np.percentile(values, (0.5, 99.5))
    least = seen.least_range if seen.least_range is not None else seen.high - seen.low if scheme == "ct" else 0.0
    found = f"intensities from {first:.4g} to {last:.4g}"
    if share < _MIN_SHARE:
        yield f"{found}, hardly any in the range of the structures trained on: {seen.low:.4g} to {seen.high:.4g}"
    elif last - first < _MIN_CONTRAST * least:
        yield f"{found}, far less contrast than the structures trained on had in any case: {least:.4g}"
