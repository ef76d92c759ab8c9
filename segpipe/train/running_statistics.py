"""Running statistics of norms: find them, and compute them again for weights that training did not see in this form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def running_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the norms that keep a running mean and variance, by their names in the network."""
    named = network.named_modules()
    return {name: m for name, m in named if isinstance(m, _BatchNorm) and m.running_mean is not None}


@contextmanager
def renewed_statistics(network: nn.Module, passes: Iterable[object]) -> Iterator[int]:
    """Replace running statistics by means over passes, each of which counts alike, until the body has ended.

    Statistics of training follow weights that have changed since, and layers with dropout. Averaged weights have never
    seen a batch at all: their statistics are averages of those of other weights.

    Args:
        network: In evaluation mode in the body; afterwards as it was, so that a training which is made longer goes on
            as if it had always been so long.
        passes: Each item is given after a forward pass of the network; none may change its mode.

    Yields:
        The number of norms.

    Source:
        Izmailov et al. 2018, Averaging weights leads to wider optima, section 3.2. There dropout is on meanwhile; here
        everything but these norms is as in prediction, against the shift of variance (Li et al. 2019).
    """
    norms = running_norms(network).values()
    modes = {module: module.training for module in network.modules()}
    before = [({name: value.clone() for name, value in norm.named_buffers()}, norm.momentum) for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    with torch.no_grad():
        for _ in passes if norms else ():
            pass
    network.eval()
    try:
        yield len(norms)
    finally:
        for norm, (values, momentum) in zip(norms, before, strict=True):
            norm.load_state_dict(values, strict=False)
            norm.momentum = momentum
        for module, is_training in modes.items():
            module.training = is_training
