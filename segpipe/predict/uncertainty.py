"""How sure a prediction is, voxel by voxel: entropy of what was found, and how many networks found something else."""

# O outputs, N rows of a slab, Y X voxels.
from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.core.labels import LabelSet
from segpipe.core.volume import SHARE_STEPS


def entropy(shares_ONYX: Tensor, labels: LabelSet) -> Tensor:
    """Entropy of the predicted probabilities, as a share of the largest there is.

    Args:
        shares_ONYX: (O, N, Y, X) probabilities that the mask is made of.
        labels: The structures. Regions are questions of their own: the one that is least sure counts.

    Returns:
        (N, Y, X), 0 (one output has it all, or every region is surely there or not) to 1 (all outputs are equally
        likely, or one region is as likely as not).

    Source:
        Shannon 1948, Bell System Technical Journal 27(3); "predictive entropy" in Gal 2016, PhD thesis, section 3.3.
    """
    parts_ONYX = torch.special.entr(shares_ONYX)
    if not labels.has_regions:
        return parts_ONYX.sum(0) / log(labels.n_outputs)
    return (parts_ONYX + torch.special.entr(1 - shares_ONYX)).amax(0) / log(2)


def disagreement(mask: NDArray[Any], others: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Share of networks whose own mask says something else than the mask of all.

    Args:
        mask: File values, any shape.
        others: One mask of the same shape for each network.

    Returns:
        Same shape, 0 (all agree) to 1.

    Source:
        The variation ratio (Freeman 1965, Elementary Applied Statistics), there against the most frequent answer.
    """
    n_differ = np.zeros(mask.shape, np.float32)
    for other in others:
        n_differ += other != mask
    return n_differ / np.float32(len(others))


def as_bytes(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """0 to 1 as whole steps, 0 to `SHARE_STEPS`."""
    return np.rint(values * SHARE_STEPS).astype(np.uint8)
