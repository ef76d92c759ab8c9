"""Tubes around the centrelines of what is labelled, for the loss that asks whether these were found."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
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
    masks = (indices_BZYX > 0).cpu().numpy()
    with ThreadPoolExecutor(len(masks)) as pool:  # thinning lets other threads run
        return torch.from_numpy(np.stack(list(pool.map(_tube, masks)))).to(indices_BZYX.device)


def _tube(mask_ZYX: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from segpipe.core.thinning import centreline  # numba is not wanted before it is needed

    line_ZYX = centreline(mask_ZYX)
    return binary_dilation(line_ZYX, iterations=_RADIUS_VOX) if line_ZYX.any() else line_ZYX


@tubes.register_fake
def _(indices_BZYX: Tensor) -> Tensor:
    return torch.empty_like(indices_BZYX, dtype=torch.bool)
