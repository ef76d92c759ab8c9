"""Running statistics of norms against those of the maps that the norms are given in prediction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.core.records import Record
from segpipe.train.running_statistics import running_norms

_ERRORS = 4.0
ALLOWED_SHIFT = 0.05  # of the variance; dropout of one channel in ten makes 10 % or more, noise of ±10 % 0.3 %


class LayerVariance(Record):
    """A norm that keeps running statistics. Ratios are real variance over running variance, 1 if both agree.

    Args:
        layer: Name in the network.
        n_features: Channels.
        ratio: Median over channels.
        standard_error: Of the ratio, median over channels: how much batches differ, over the root of their number.
        lowest, highest: Over channels.
        mean_shift: Median over channels of the distance between real and running mean, in running standard deviations.
        is_shifted: Whether the median differs from 1 by more than 5 %, and by more than 4 standard errors: the running
            statistics were measured on few batches too.
    """

    layer: str
    n_features: int
    ratio: float
    standard_error: float
    lowest: float
    highest: float
    mean_shift: float
    is_shifted: bool


@torch.no_grad()
def measure_variance(network: nn.Module, passes: Iterable[object]) -> list[LayerVariance]:
    """Compare running statistics with those of the maps in prediction, norm by norm.

    Args:
        network: Left in evaluation mode.
        passes: Each item is given after a forward pass of the network; at least 2.

    Source:
        Li et al. 2019, Understanding the Disharmony between Dropout and Batch Normalization: the shift of variance,
        there over the channels' mean; here the median, which a channel without variance does not move.
    """
    network.eval()
    norms = running_norms(network)
    with _counted_inputs(norms) as counts:
        for _ in passes if norms else ():
            pass
    return [_layer(name, norm, counts[name]) for name, norm in norms.items() if name in counts]


def shift_ratio(mean: float, variance: float, dropout_fraction: float) -> float:
    """Real over running variance of a layer behind dropout, in theory.

    Args:
        mean, variance: Of what dropout is given.
        dropout_fraction: 0 to below 1.

    Example:
        >>> [round(shift_ratio(0.5, 1.0, fraction), 3) for fraction in (0.1, 0.3, 0.5)]
        [0.878, 0.651, 0.444]
    """
    return variance / ((mean**2 + variance) / (1 - dropout_fraction) - mean**2)


@contextmanager
def _counted_inputs(norms: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Number of batches, and sums over these of mean, mean square and its square, by channel, (4, C) float64.

    Values are taken from the running mean, so that little is lost where a mean is large beside its variance.
    """
    counts: dict[str, Tensor] = {}
    hooks = []
    for name, norm in norms.items():

        def count(module: Any, inputs: tuple[Tensor, ...], name: str = name) -> None:
            x = inputs[0].double().transpose(0, 1).flatten(1) - module.running_mean.double()[:, None]
            squares = x.square().mean(1)
            found = torch.stack([torch.ones_like(squares), x.mean(1), squares, squares.square()])
            counts[name] = counts[name] + found if name in counts else found

        hooks.append(norm.register_forward_pre_hook(count))
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _layer(name: str, norm: Any, counts: Tensor) -> LayerVariance:
    n, shift, squares, fourths = counts[0], *(counts[1:] / counts[0])
    running = norm.running_var.double()
    ratios = (squares - shift.square()) / running
    errors = ((fourths - squares.square()).clamp_min(0) / (n - 1).clamp_min(1)).sqrt() / running
    ratio, error = float(ratios.median()), float(errors.median())
    return LayerVariance(
        layer=name,
        n_features=len(ratios),
        ratio=ratio,
        standard_error=error,
        lowest=float(ratios.min()),
        highest=float(ratios.max()),
        mean_shift=float((shift.abs() / running.sqrt()).median()),
        is_shifted=abs(ratio - 1) > max(ALLOWED_SHIFT, _ERRORS * error),
    )
