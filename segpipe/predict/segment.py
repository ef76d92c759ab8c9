"""One prepared case to its mask on the image's grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe.networks.device import resolve_precision
from segpipe.predict.model import Model
from segpipe.predict.window import mirrors_of, sliding_logits
from segpipe.prepare.case import Prepared
from segpipe.prepare.restore import restore_mask, restore_probabilities


@dataclass(frozen=True)
class SegmentOptions:
    """How a case is predicted.

    Args:
        mirror: Average over mirrored copies, along the axes that the plan allows.
        batch_windows: Windows in one forward pass.
        accumulate_on: Where windows are added up; None for the networks' device.
        with_probabilities: Keep probabilities as well.
    """

    mirror: bool = True
    batch_windows: int = 1
    accumulate_on: torch.device | None = None
    with_probabilities: bool = False


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found, on the grid of the image file.

    Args:
        mask_zyx: (Z, Y, X) file values of `labels.mask_dtype`; background outside the crop.
        probabilities_ozyx: (outputs, Z, Y, X) float16, background 1 outside the crop; None if not asked for.
    """

    mask_zyx: NDArray[Any]
    probabilities_ozyx: NDArray[np.float16] | None


def segment(model: Model, prepared: Prepared, options: SegmentOptions) -> Segmentation:
    """Predict a prepared case with every network of a model.

    Raises:
        torch.OutOfMemoryError: If the device's memory is not enough; smaller options may do.
    """
    patch = model.configuration.patch_zyx
    device = next(model.networks[0].parameters()).device
    logits = sliding_logits(
        model.networks,
        prepared.image_czyx,
        patch,
        mirrors_of(model.plan.mirror_axes if options.mirror else (), patch),
        resolve_precision(model.plan.training.precision, device),
        options.batch_windows,
    )
    labels, trace = model.plan.labels, prepared.trace
    chances = restore_probabilities(logits, trace, labels) if options.with_probabilities else None
    return Segmentation(restore_mask(logits, trace, labels), chances)
