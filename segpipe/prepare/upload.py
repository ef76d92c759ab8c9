"""Copy arrays to a GPU without waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def upload(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on a device; on a CPU it shares the array's memory.

    CUDA copies from page-locked memory while it computes. From ordinary memory it copies at once, and the program waits
    until all that was asked for before is done.
    """
    import torch  # late: preparing needs none, and starts in a second less

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
