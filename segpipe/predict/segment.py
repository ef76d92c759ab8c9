"""One prepared case to its mask on the image's grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.networks.device import resolve_precision
from segpipe.plan.sides import sideways_axis, swapped_outputs
from segpipe.predict.model import Model
from segpipe.predict.window import Sliding, mirrors_of, sliding_rows
from segpipe.prepare.case import Prepared
from segpipe.prepare.restore import restore


@dataclass(frozen=True)
class SegmentOptions:
    """How a case is predicted.

    Args:
        mirror: Average over mirrored copies, along the axes that the plan allows.
        batch_windows: Windows in one forward pass.
        accumulate_on: Where windows are added up; None for the networks' device.
        half_sums: Add them up in float16, in half the memory.
        with_probabilities: Keep probabilities as well, which takes memory for outputs × volume.
        with_uncertainty: Make maps of it as well; every network then holds its own rows of logits.
    """

    mirror: bool = True
    batch_windows: int = 1
    accumulate_on: torch.device | None = None
    half_sums: bool = False
    with_probabilities: bool = False
    with_uncertainty: bool = False


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found, on the grid of the image file.

    Args:
        mask_zyx: (Z, Y, X) file values of `labels.mask_dtype`; background outside the crop.
        probabilities_ozyx: (outputs, Z, Y, X) float16, background 1 outside the crop; None if not asked for.
        uncertainty: Maps (Z, Y, X) by name, 0 to 255 for 0 to 1, 0 outside the crop: `entropy`, and of several networks
            `disagreement` (see predict/uncertainty.py); empty if not asked for.
    """

    mask_zyx: NDArray[Any]
    probabilities_ozyx: NDArray[np.float16] | None
    uncertainty: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


def segment(model: Model, prepared: Prepared, options: SegmentOptions) -> Segmentation:
    """Predict a prepared case with every network of a model.

    Raises:
        DataError: If the network's output is not finite.
        torch.OutOfMemoryError: If the device's memory is not enough; other options may do.
    """
    mask, probabilities = restore(
        logit_rows(model, prepared, options),
        prepared.trace,
        model.plan.labels,
        with_probabilities=options.with_probabilities,
    )
    return Segmentation(mask, probabilities)


def logit_rows(model: Model, prepared: Prepared, options: SegmentOptions) -> Iterator[Tensor]:
    """(outputs, Y, X) for each z of the prepared grid, mean over the model's networks."""
    plan, patch = model.plan, model.configuration.patch_zyx
    device = next(model.networks[0].parameters()).device
    sideways = sideways_axis(plan.orientation, plan.axis_order)
    swapped = {sideways: swapped_outputs(plan.labels, plan.mirror_swaps)} if plan.mirror_swaps else {}
    sliding = Sliding(
        patch_zyx=patch,
        mirrors=mirrors_of(plan.mirror_axes if options.mirror else (), patch, swapped),
        precision=resolve_precision(plan.training.precision, device),
        n_batch=options.batch_windows,
        sum_on=options.accumulate_on,
        sum_in=torch.float16 if options.half_sums else torch.float32,
    )
    return sliding_rows(model.networks, prepared.image_czyx, sliding)
