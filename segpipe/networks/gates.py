"""Gates on a feature map: weights for its channels, its voxels, or its kernels."""

# B batch, C features; tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network.
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segpipe.core.choices import functions_for
from segpipe.networks.parts import GATES, Parts

_MIN_HIDDEN = 4  # fewer cannot tell channels apart
_SPATIAL_KERNEL = 7
_PLAIN: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


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
        self.voxels = _PLAIN[n_axes](2, 1, _SPATIAL_KERNEL, padding=_SPATIAL_KERNEL // 2, bias=False)

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
        self.voxels = _PLAIN[n_axes](n_features, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(self.channels(x), x * self.voxels(x).sigmoid())


class MakesLayers(Protocol):
    """Stands for `blocks.Layers`, whose file imports this one."""

    @property
    def n_axes(self) -> int:
        """2 or 3."""

    @property
    def parts(self) -> Parts:
        """The spec's."""

    @property
    def thick_axis(self) -> int:
        """The spec's."""

    def convolution(self, n_in: int, n_out: int, *args: Any, **kwargs: Any) -> nn.Module:
        """A convolution."""

    def norm(self, n_features: int) -> nn.Module:
        """The spec's norm."""

    def activation(self) -> nn.Module:
        """The spec's activation."""


class SelectiveKernel(nn.Module):
    """Convolutions with several kernels side by side, blended channel by channel with weights that sum to 1.

    Args:
        make: Makes layers.
        n_features: Channels.
        dilations: Of the branches.
        kernels: Edges of the branches' kernels.
        split: Whether each branch gets its share of the channels, or all.
        kept_axis: Axis (0 is the first of the map) along which each position has weights of its own; None: one weight
            for the whole map.

    Source:
        Li et al. 2019, Selective Kernel Networks; defaults and counts are those of timm's SelectiveKernel. The norm of
        the hidden layer is over its channels, since instance and batch norms cannot see a single voxel. `kept_axis`
        follows the frequency axis of Mun et al. 2022, arXiv 2204.01005, but its weights also differ between channels,
        and one layer serves all positions, so that any number of slices works.
    """

    def __init__(
        self,
        make: MakesLayers,
        n_features: int,
        *,
        dilations: Sequence[int] = (1, 2),
        kernels: Sequence[int] = (3, 3),
        split: bool = True,
        kept_axis: int | None = None,
    ) -> None:
        super().__init__()
        self.splits = split and n_features >= len(kernels)
        self.widths = _widths(n_features, len(kernels)) if self.splits else [n_features] * len(kernels)
        self.kept_axis = kept_axis
        self.branches = nn.ModuleList(
            nn.Sequential(
                make.convolution(width, n_features, kernel, dilation=dilation, bias=False),
                make.norm(n_features),
                make.activation(),
            )
            for width, kernel, dilation in zip(self.widths, kernels, dilations, strict=True)
        )
        hidden = max(_MIN_HIDDEN, n_features // make.parts.attention_reduction)
        self.reduce = nn.Sequential(nn.Linear(n_features, hidden, bias=False), nn.LayerNorm(hidden), nn.SiLU())
        self.select = nn.Linear(hidden, len(kernels) * n_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(torch.split(x, self.widths, 1)) if self.splits else [x] * len(self.branches)
        maps = [branch(part) for branch, part in zip(self.branches, parts, strict=True)]
        axes = [axis for axis in range(2, x.ndim) if self.kept_axis is None or axis != 2 + self.kept_axis]
        means = _total([each.mean(axes, keepdim=True) for each in maps]).movedim(1, -1)
        logits = self.select(self.reduce(means)).unflatten(-1, (len(maps), -1)).movedim(-1, 1)
        weights = logits.softmax(-1).to(maps[0].dtype).unbind(-1)
        return _total([each * weight for each, weight in zip(maps, weights, strict=True)])


def _total(maps: list[Tensor]) -> Tensor:
    return reduce(torch.add, maps)


def _widths(total: int, n_parts: int) -> list[int]:
    return [total // n_parts + (index < total % n_parts) for index in range(n_parts)]


def _selective_kernel(make: MakesLayers, n_features: int, kept_axis: int | None) -> SelectiveKernel:
    dilated = make.parts.sk_dilated
    kernels, dilations = ((3, 3), (1, 2)) if dilated else ((3, 5), (1, 1))
    return SelectiveKernel(
        make, n_features, kernels=kernels, dilations=dilations, split=make.parts.sk_split, kept_axis=kept_axis
    )


_MakeGate = Callable[[MakesLayers, int], nn.Module]  # from the number of features
_MAKERS: dict[str, _MakeGate] = {
    "se": lambda make, n: SqueezeExcitation(n, make.parts.attention_reduction),
    "eca": lambda _, n: EfficientChannelAttention(n),
    "cbam": lambda make, n: BlockAttention(make.n_axes, n, make.parts.attention_reduction),
    "scse": lambda make, n: SpatialAndChannel(make.n_axes, n, make.parts.attention_reduction),
    "sk": lambda make, n: _selective_kernel(make, n, None),
    "sk_axis": lambda make, n: _selective_kernel(make, n, make.thick_axis),
}
MAKE_GATE = functions_for(GATES, _MAKERS, "GATES of networks/parts.py")
