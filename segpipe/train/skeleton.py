"""Tubes around the centrelines of what is labelled, for the loss that asks whether these were found."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from torch import Tensor

_RADIUS_VOX = 2  # steps over faces


@torch.library.custom_op("segpipe::tubes", mutates_args=())
def tubes(indices_BZYX: Tensor) -> Tensor:
    """Whether a voxel is at most two steps from the centreline of the labelled voxels, all labels taken as one.

    Computed on the CPU, on whatever augmentation made of the labels: an interpolated centreline would have gaps. One
    operation for torch, so that memory can be predicted without labels.

    Args:
        indices_BZYX: Inside labels; background and ignored voxels, at most 0, are no structure.

    Returns:
        bool, same shape and device. Voxels outside the structure may be in a tube.

    Source:
        Kirchhoff et al. 2024, ECCV. They thin with scikit-image, which loses vessels of 2×2 voxels (core/thinning.py).
    """
    from segpipe.core.thinning import centreline  # numba is not wanted before it is needed

    labelled = (indices_BZYX > 0).cpu().numpy()
    grown = [binary_dilation(centreline(mask), iterations=_RADIUS_VOX) if mask.any() else mask for mask in labelled]
    return torch.from_numpy(np.stack(grown)).to(indices_BZYX.device)


@tubes.register_fake
def _(indices_BZYX: Tensor) -> Tensor:
    return torch.empty_like(indices_BZYX, dtype=torch.bool)
