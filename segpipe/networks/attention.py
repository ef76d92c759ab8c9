"""Gates: modules that multiply a feature map by numbers between 0 and 1 that they draw from it."""

# B batch, C features, V voxels of a map whose axes are flattened.
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from segpipe.core.choices import functions_for
from segpipe.networks.parts import GATES

_MIN_HIDDEN = 4  # fewer cannot tell channels apart
_SPATIAL_KERNEL = 7
_CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


def _bottleneck(n_features: int, reduction: int, *, bias: bool) -> nn.Sequential:
    """C to max(4, C / reduction) and back.

    Between them is SiLU, as in EfficientNet, not the authors' ReLU: behind an instance norm the means are nearly the
    same for every image, so a ReLU that begins closed stays so, and of four hidden channels all do in one gate of 16.
    """
    hidden = max(_MIN_HIDDEN, n_features // reduction)
    return nn.Sequential(nn.Linear(n_features, hidden, bias=bias), nn.SiLU(), nn.Linear(hidden, n_features, bias=bias))


def _mean_BC(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


def _like(gate_BC: Tensor, x: Tensor) -> Tensor:
    return gate_BC.reshape(gate_BC.shape + (1,) * (x.ndim - 2))


class SqueezeExcitation(nn.Module):
    """Each channel by a gate that sees the mean of all channels.

    Source:
        Hu et al. 2018, Squeeze-and-Excitation Networks; the hidden layer has at least 4 channels.
    """

    def __init__(self, n_features: int, reduction: int) -> None:
        super().__init__()
        self.gate = _bottleneck(n_features, reduction, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return x * _like(self.gate(_mean_BC(x)).sigmoid(), x)


class EfficientChannelAttention(nn.Module):
    """Each channel by a gate that sees the means of its neighbours in channel order.

    Source:
        Wang et al. 2020, ECA-Net: the kernel is the odd number at or above (log2 C + 1) / 2, rounded down, at least 3.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        kernel = max(3, int((math.log2(n_features) + 1) / 2) | 1)
        self.convolution = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate_BC = self.convolution(_mean_BC(x).unsqueeze(1)).squeeze(1).sigmoid()
        return x * _like(gate_BC, x)


class BlockAttention(nn.Module):
    """Channels by their means and maxima, then voxels by the mean and maximum over channels around them.

    Source:
        Woo et al. 2018, CBAM. No norm behind the spatial convolution and no biases.
    """

    def __init__(self, n_axes: int, n_features: int, reduction: int) -> None:
        super().__init__()
        self.channels = _bottleneck(n_features, reduction, bias=False)
        self.voxels = _CONVOLUTIONS[n_axes](2, 1, _SPATIAL_KERNEL, padding=_SPATIAL_KERNEL // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        maxima_BC = x.flatten(2).amax(2)
        x = x * _like((self.channels(_mean_BC(x)) + self.channels(maxima_BC)).sigmoid(), x)
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.voxels(seen).sigmoid()


class SpatialAndChannel(nn.Module):
    """The larger of two gated maps: channels as SqueezeExcitation, voxels by a weighted sum of their channels.

    Source:
        Roy et al. 2018, Concurrent Spatial and Channel Squeeze & Excitation, with the maximum as combination.
    """

    def __init__(self, n_axes: int, n_features: int, reduction: int) -> None:
        super().__init__()
        self.channels = SqueezeExcitation(n_features, reduction)
        self.voxels = _CONVOLUTIONS[n_axes](n_features, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(self.channels(x), x * self.voxels(x).sigmoid())


_MakeGate = Callable[[int, int, int], nn.Module]  # from the number of axes, of features, and the reduction
_MAKERS: dict[str, _MakeGate] = {
    "se": lambda _, n_features, reduction: SqueezeExcitation(n_features, reduction),
    "eca": lambda _, n_features, __: EfficientChannelAttention(n_features),
    "cbam": BlockAttention,
    "scse": SpatialAndChannel,
}
MAKE_GATE = functions_for(GATES, _MAKERS, "GATES of networks/parts.py")
