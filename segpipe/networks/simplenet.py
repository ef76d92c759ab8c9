"""SimpleNet as an encoder: nothing but convolutions, norms and maxima, in widths that change within a stage."""

# Tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network.
from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional

from segpipe.networks.blocks import ConvStage, Layers, he_initialisation
from segpipe.networks.simplenet_table import simplenet_stages
from segpipe.networks.spec import NetworkSpec
from segpipe.networks.unet import UNet

_MAXIMA: dict[int, Callable[..., Tensor]] = {2: functional.max_pool2d, 3: functional.max_pool3d}  # by number of axes


def simplenet(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
    """SimpleNet's convolutions as the encoder of nnU-Net's U-Net: a control for networks with more in them.

    Source:
        Hasanpour et al. 2016, Let's keep it simple, arXiv 1608.06037: widths, kernels of one voxel, maxima in place of
        strides. Ours: the decoder, kernels and strides of the planner, and the spec's norm, activation and dropout;
        theirs are batch norm, ReLU and dropout behind the activation.
    """
    return he_initialisation(UNet(spec, SimpleEncoder(spec, n_channels), n_outputs))


class SimpleEncoder(nn.Module):
    """Stages of convolutions, with maxima over cells between them."""

    def __init__(self, spec: NetworkSpec, n_channels: int) -> None:
        super().__init__()
        make, stages, n_in = Layers(spec.n_axes, spec.parts, spec.thick_axis), nn.ModuleList(), n_channels
        rows = simplenet_stages(spec.kind, len(spec.features), spec.features[0])
        for row, kernel, stride in zip(rows, spec.kernels_zyx, spec.strides_zyx, strict=True):
            units = []
            for place, width in enumerate(row.widths):
                units.append(make.unit(n_in, width, (1,) * make.n_axes if place in row.pointwise else kernel))
                n_in = width
            convolutions = ConvStage(units, make.attention(n_in, "block"), checkpointing=make.parts.checkpointing)
            stages.append(nn.Sequential(*[CellMaxima(stride)] * (max(stride) > 1), convolutions))
        self.stages = stages

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class CellMaxima(nn.Module):
    """Maximum over cells of `stride` voxels: ceil(size / stride) of them, the last over the voxels that are there."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        cell = tuple(min(step, size) for step, size in zip(self.stride, x.shape[2:], strict=True))
        return _MAXIMA[len(cell)](x, cell, self.stride, ceil_mode=True)
