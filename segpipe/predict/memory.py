"""Predict a case within the memory there is: less at a time where it is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from segpipe.core.errors import ResourceError
from segpipe.core.progress import say
from segpipe.networks.device import memory_faults
from segpipe.predict.model import Model
from segpipe.predict.segment import Segmentation, SegmentOptions, segment
from segpipe.prepare.case import Prepared

_ADVICE = "Use --no-tta, another device, or a machine with more memory."
_CPU = torch.device("cpu")


def smaller_steps(options: SegmentOptions, device: torch.device) -> Iterator[SegmentOptions]:
    """Options that need less and less memory, the given ones first: half the windows, one, sums on the CPU.

    Example:
        >>> [o.batch_windows for o in smaller_steps(SegmentOptions(batch_windows=4), torch.device("cpu"))]
        [4, 2, 1]
    """
    yield options
    while options.batch_windows > 1:
        options = replace(options, batch_windows=options.batch_windows // 2)
        yield options
    if device != _CPU and options.accumulate_on is None:
        yield replace(options, accumulate_on=_CPU)


def segment_in_memory(
    model: Model, prepared: Prepared, options: SegmentOptions, case_id: str
) -> tuple[Segmentation, SegmentOptions]:
    """Predict a prepared case; where memory is not enough, again with less at a time.

    Returns:
        What was found, and the options that it took.

    Raises:
        ResourceError: If the least is too much. Errors of another kind pass as they are.
    """
    device = next(model.networks[0].parameters()).device
    steps = smaller_steps(options, device)
    wanted = next(steps)
    while True:
        try:
            with memory_faults(f"predicting {case_id}", _ADVICE):
                return segment(model, prepared, wanted), wanted
        except (ResourceError, MemoryError) as fault:
            shortage = str(fault)  # not the error itself: it would keep the tensors of its frames alive
        less = next(steps, None)
        if less is None:
            raise ResourceError(shortage or f"predicting {case_id}: memory is not enough. {_ADVICE}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
        say(f"{case_id}: memory is not enough with {_described(wanted)}; tried again with {_described(less)}.")
        wanted = less


def _described(options: SegmentOptions) -> str:
    windows = f"{options.batch_windows} window{'s' if options.batch_windows > 1 else ''} at a time"
    return f"{windows}, added up on the CPU" if options.accumulate_on == _CPU else windows
