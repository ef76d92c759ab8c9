"""Atrous spatial pyramid pooling for the deepest stage: one map, seen with several dilations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segpipe.networks.blocks import Layers

_KERNEL = 3


def pyramid(make: Layers, n_in: int, n_out: int) -> nn.Module:
    """The spec's pyramid from `n_in` to `n_out` channels; the identity if it has none."""
    match make.parts.bottleneck:
        case "aspp_simple":
            return SimplePyramid(make, n_in, n_out)
        case "aspp_deeplab":
            return DeepLabPyramid(make, n_in, n_out)
        case None:
            return nn.Identity()


class SimplePyramid(nn.Module):
    """A 1×1×1 and the dilated convolutions side by side, then one 1×1×1 convolution, norm and activation.

    Source:
        MONAI SimpleASPP, with the spec's norm and activation instead of batch norm, and a projection to `n_out`.
    """

    def __init__(self, make: Layers, n_in: int, n_out: int) -> None:
        super().__init__()
        dilations = make.parts.dilations_zyx
        widths = _shares(n_out, 1 + len(dilations))
        convolutions = [make.convolution(n_in, widths[0], bias=True)]
        for width, dilation in zip(widths[1:], dilations, strict=True):
            convolutions.append(make.convolution(n_in, width, _KERNEL, dilation=dilation, bias=True))
        self.convs = nn.ModuleList(convolutions)
        self.project = make.unit(n_out, n_out, (1,) * make.n_axes)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([convolution(x) for convolution in self.convs], 1))


class DeepLabPyramid(nn.Module):
    """Branches of n_out / 4 channels with norm and activation, then a 1×1×1 convolution, norm and activation.

    Source:
        Chen et al. 2017, DeepLabV3. The mean over the patch is optional and has no norm: it is a single voxel.
    """

    def __init__(self, make: Layers, n_in: int, n_out: int) -> None:
        super().__init__()
        dilations, width = make.parts.dilations_zyx, max(1, n_out // 4)
        branches = [make.unit(n_in, width, (1,) * make.n_axes)]
        branches += [make.unit(n_in, width, (_KERNEL,) * make.n_axes, dilation=each) for each in dilations]
        self.branches = nn.ModuleList(branches)
        self.pooled = (
            nn.Sequential(nn.Linear(n_in, width), make.activation()) if make.parts.bottleneck_pooling else None
        )
        n_branches = len(branches) + make.parts.bottleneck_pooling
        self.project = make.unit(n_branches * width, n_out, (1,) * make.n_axes)

    def forward(self, x: Tensor) -> Tensor:
        maps = [branch(x) for branch in self.branches]
        if self.pooled is not None:
            mean_BC = self.pooled(x.flatten(2).mean(2))
            maps.append(mean_BC[(..., *(None,) * (x.ndim - 2))].expand(-1, -1, *x.shape[2:]))
        return self.project(torch.cat(maps, 1))


def _shares(total: int, n_parts: int) -> list[int]:
    """`total` in nearly equal parts, the first ones larger."""
    return [total // n_parts + (index < total % n_parts) for index in range(n_parts)]
