"""A network as it predicts: evaluated, on its device, by the convolutions that are fast there."""

# Tensors are (B, C, Z, Y, X).
from __future__ import annotations

import torch
from torch import Tensor, nn

from segpipe.networks.norms import memory_format


class OneDnnConv3d(nn.Conv3d):
    """torch's, with the same values to rounding.

    For a batch of one in float32 whose channels × depth × height are at most 20480, torch leaves oneDNN for a loop of
    its own that unfolds the image: 7 to 13 times slower for windows of anisotropic images, and in hundreds of MiB more.
    """

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.padding, str) or not self._may_skip_torch(x):
            return super().forward(x)
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )

    def _may_skip_torch(self, x: Tensor) -> bool:
        return (
            type(x) is Tensor  # tensors that only trace memory have no oneDNN
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.dim() == 5
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and self.padding_mode == "zeros"
        )


def ready_to_predict(network: nn.Module, kind: str, n_axes: int, device: torch.device) -> nn.Module:
    """Take a network to its device, in the order of memory that is fast there; it is changed in place.

    Args:
        network: With its weights.
        kind, n_axes: Of its `NetworkSpec`.
        device: Where it predicts.
    """
    order = memory_format(kind, n_axes, device, trains=False)
    network = network.to(memory_format=order).to(device).eval()
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type == "cpu" and has_onednn:
        for module in network.modules():
            if type(module) is nn.Conv3d:
                module.__class__ = OneDnnConv3d
    return network
