"""What the network says about a case, back on its image's grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.labels import LabelSet
from segpipe.prepare.case import Trace
from segpipe.prepare.resample import LABEL_ORDER, orders_for, resample


def restore_mask(logits: NDArray[np.float32], trace: Trace, labels: LabelSet) -> NDArray[Any]:
    """Logits on the prepared grid to file values on the image's grid.

    Args:
        logits: (outputs, Z, Y, X) float32 on the prepared grid.
        trace: How the case was prepared.
        labels: The structures.

    Returns:
        (Z, Y, X) of `labels.mask_dtype` on the grid of the image file; background outside the crop. One output is
        resampled at a time, so memory does not grow with their number.
    """
    orders = orders_for(trace.target_mm, trace.spacing_mm, LABEL_ORDER)
    shape = trace.box.shape_zyx
    if labels.has_regions:
        chosen = np.stack([resample(channel, shape, orders) > 0 for channel in logits])
    else:
        best = resample(logits[0], shape, orders)
        chosen = np.zeros(shape, np.int16)
        for index, channel in enumerate(logits[1:], 1):
            value = resample(channel, shape, orders)
            wins = value > best
            best[wins], chosen[wins] = value[wins], index
    turned = np.full(trace.turn.permute(trace.shape_zyx), labels.background_value, labels.mask_dtype)
    turned[trace.box.slices] = labels.decode(chosen)
    return np.ascontiguousarray(trace.turn.undo(turned))


def restore_probabilities(logits: NDArray[np.float32], trace: Trace, labels: LabelSet) -> NDArray[np.float16]:
    """Probabilities (outputs, Z, Y, X) float16 on the image's grid; background is 1 outside the crop."""
    orders = orders_for(trace.target_mm, trace.spacing_mm, LABEL_ORDER)
    values = resample(logits, trace.box.shape_zyx, orders)
    if labels.has_regions:
        shares = 1 / (1 + np.exp(-values))
    else:
        values -= values.max(axis=0)
        shares = np.exp(values)
        shares /= shares.sum(axis=0)
    turned = np.zeros((len(logits), *(int(n) for n in trace.turn.permute(trace.shape_zyx))), np.float16)
    if not labels.has_regions:
        turned[0] = 1
    turned[trace.box.slices] = shares
    return np.ascontiguousarray(trace.turn.undo(turned))
