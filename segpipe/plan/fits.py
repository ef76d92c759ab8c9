"""The nearest configuration that fits a device's memory, whatever predicts the memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

from segpipe.plan.schema import Configuration

_MIN_BATCH = 2  # as in the planner: of a single patch neither the gradient nor batch Dice says much
_MIN_COARSE_VOX = 2  # a coarsest map of one voxel along an axis has no neighbours to convolve


def nearest_fit(
    configuration: Configuration, predict_bytes: Callable[[Configuration], int], limit_bytes: int
) -> Configuration | None:
    """First fewer patches in a batch, down to 2; then a smaller patch, for the same network.

    Args:
        configuration: What is wanted.
        predict_bytes: Memory of training a configuration; not larger for a smaller batch or patch. It is asked a few
            times only, since the candidates are ordered.
        limit_bytes: What there is.

    Returns:
        The configuration itself if it fits; None if even the smallest patch does not.

    Source:
        The patch shrinks as in nnU-Net's planner: along the axis that covers most of the median image. There the
        network may lose a stage on the way; here it stays, so that the step is always its divisor.
    """
    candidates = [configuration, *_smaller(configuration)]
    first = bisect_left(candidates, True, key=lambda candidate: predict_bytes(candidate) <= limit_bytes)
    return candidates[first] if first < len(candidates) else None


def _smaller(configuration: Configuration) -> Iterator[Configuration]:
    """Ever smaller configurations, one step at a time."""
    for batch_size in range(configuration.batch_size - 1, _MIN_BATCH - 1, -1):
        configuration = configuration.model_copy(update={"batch_size": batch_size})
        yield configuration
    divisors = (*(1,) * (3 - configuration.network.n_axes), *configuration.network.divisors_zyx)
    while True:
        patch, median = configuration.patch_zyx, configuration.median_shape_zyx
        free = [a for a in range(3) if patch[a] > _MIN_COARSE_VOX * divisors[a]]
        if not free:
            return
        longest = max(free, key=lambda a: (patch[a] / median[a], a))
        smaller = tuple(p - divisors[a] * (a == longest) for a, p in enumerate(patch))
        configuration = configuration.model_copy(update={"patch_zyx": smaller})
        yield configuration
