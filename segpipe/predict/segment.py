"""One prepared case to its mask on the image's grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.core.volume import Volume
from segpipe.networks.device import resolve_precision
from segpipe.plan.laterality import sideways_axis, swapped_indices, swapped_outputs
from segpipe.predict.model import Model
from segpipe.predict.restore import Keep, restore
from segpipe.predict.sliding_window import Sliding, mirrors_of, sliding_rows
from segpipe.prepare.case import Prepared, prepare_image


@dataclass(frozen=True)
class SegmentOptions:
    """How a case is predicted.

    Args:
        mirror: Average over mirrored copies, along the axes that the plan allows.
        batch_windows: Windows in one forward pass.
        accumulate_on: Where windows are added up; None for the networks' device.
        with_probabilities: Keep probabilities as well, which takes memory for outputs × volume.
        keep: What takes the probabilities of each slab, where they are not to be in memory as a whole.
        with_uncertainty: Make maps of it as well; every network then holds its own rows of logits.
        on_window: Called after each window of a model, or with uncertainty of a network.
    """

    mirror: bool = True
    batch_windows: int = 1
    accumulate_on: torch.device | None = None
    with_probabilities: bool = False
    keep: Keep | None = None
    with_uncertainty: bool = False
    on_window: Callable[[], None] | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found, on the grid of the image file.

    Args:
        mask_zyx: (Z, Y, X) file values of `labels.mask_dtype`; background outside the crop.
        probabilities_ozyx: (outputs, Z, Y, X) float16, background 1 outside the crop; None if not asked for.
        uncertainty: Maps (Z, Y, X) by name, 0 to `SHARE_STEPS` for 0 to 1, 0 outside the crop: `entropy`, and
            of several networks `disagreement` (see predict/uncertainty.py); empty if not asked for.
    """

    mask_zyx: NDArray[Any]
    probabilities_ozyx: NDArray[np.float16] | None
    uncertainty: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


def prepared_for(model: Model, volume: Volume) -> Prepared:
    """An image as a model needs it, and as the model that guides it does."""
    image, trace = prepare_image(volume, model.plan, model.configuration)
    if model.guide is None:
        return Prepared(image, None, trace)
    coarse = prepared_for(model.guide, volume)
    return Prepared(image, None, trace, replace(coarse, trace=coarse.trace.onto(trace)))


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
        keep=options.keep,
    )
    return Segmentation(mask, probabilities)


def guided(model: Model, prepared: Prepared, options: SegmentOptions) -> Prepared:
    """Of a cascade, the case with the labels that the coarser model predicts as last channel; else as it is."""
    if prepared.coarse is None or model.guide is None:
        return prepared
    own = replace(options, with_probabilities=False, keep=None, with_uncertainty=False)
    mask = segment(model.guide, prepared.coarse, own).mask_zyx
    labels = model.plan.labels.encode(mask, "labels of the coarser configuration").astype(np.float32)
    return replace(prepared, image_czyx=np.concatenate([prepared.image_czyx, labels[None]]), coarse=None)


def logit_rows(model: Model, prepared: Prepared, options: SegmentOptions) -> Iterator[Tensor]:
    """(outputs, Y, X) for each z of the prepared grid, mean over the model's networks."""
    plan, patch = model.plan, model.configuration.patch_zyx
    device = next(model.networks[0].parameters()).device
    prepared = guided(model, prepared, options)
    n_images, n_inputs = len(plan.channels), plan.n_inputs(model.configuration)
    sideways = sideways_axis(plan.orientation, plan.axis_order)
    swapped, swapped_inputs = {}, {}
    if plan.mirror_swaps:
        swapped[sideways] = swapped_outputs(plan.labels, plan.mirror_swaps)
        labels = swapped_indices(plan.labels, plan.mirror_swaps)[1 : 1 + n_inputs - n_images]
        swapped_inputs[sideways] = (*range(n_images), *(n_images - 1 + label for label in labels))
    sliding = Sliding(
        patch_zyx=patch,
        mirrors=mirrors_of(plan.mirror_axes if options.mirror else (), patch, swapped, swapped_inputs),
        precision=resolve_precision(plan.training.precision, device),
        n_batch=options.batch_windows,
        sum_on=options.accumulate_on,
        n_guides=n_inputs - n_images,
        on_window=options.on_window,
    )
    return sliding_rows(model.networks, prepared.image_czyx, sliding)
