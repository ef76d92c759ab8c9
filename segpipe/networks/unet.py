"""The U-Net that all families share: encoder, bottleneck, gated skips, decoder, an output for each resolution."""

# Tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network.
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segpipe.core.choices import functions_for
from segpipe.networks.blocks import BlockShape, Layers, conv_stage, drop_paths, follow_depth
from segpipe.networks.mixers import bottleneck_mixing
from segpipe.networks.parts import PYRAMIDS
from segpipe.networks.residual_blocks import residual_stage, residual_stages, through_stages
from segpipe.networks.spec import NetworkSpec

_KERNEL = 3


def pyramid(make: Layers, n_in: int, n_out: int) -> nn.Module:
    """The spec's pyramid from `n_in` to `n_out` channels; the identity if it has none."""
    kind = make.parts.bottleneck
    return nn.Identity() if kind is None else MAKE_PYRAMID[kind](make, n_in, n_out)


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


_PYRAMID_MAKERS: dict[str, Callable[[Layers, int, int], nn.Module]] = {
    "aspp_simple": SimplePyramid,
    "aspp_deeplab": DeepLabPyramid,
}
MAKE_PYRAMID = functions_for(PYRAMIDS, _PYRAMID_MAKERS, "PYRAMIDS of networks/parts.py")


def _shares(total: int, n_parts: int) -> list[int]:
    """`total` in nearly equal parts, the first ones larger."""
    return [total // n_parts + (index < total % n_parts) for index in range(n_parts)]


MakeUp = Callable[[NetworkSpec, int, int, int], nn.Module]  # (spec, stage, channels in, channels out)
MakeStage = Callable[[NetworkSpec, int, int, int], nn.Module]


def transposed_up(spec: NetworkSpec, stage: int, n_in: int, n_out: int) -> nn.Module:
    """Make one transposed convolution with a bias, from the resolution below `stage` to that of `stage`."""
    return Layers(spec.n_axes, spec.parts, spec.thick_axis).transposed_convolution(
        n_in, n_out, spec.strides_zyx[stage + 1]
    )


def decoder_stage(spec: NetworkSpec, stage: int, n_in: int, n_out: int) -> nn.Module:
    """The convolutions or residual blocks of a decoder stage, as the spec says."""
    make, n_blocks = Layers(spec.n_axes, spec.parts, spec.thick_axis), spec.decoder_convolutions[stage]
    shape = BlockShape(n_in, n_out, spec.kernels_zyx[stage], (1,) * spec.n_axes)
    if spec.parts.decoder == "residual":
        return residual_stage(make, shape, [0.0] * n_blocks)
    return conv_stage(make, shape, n_blocks)


@dataclass(frozen=True)
class DecoderStyle:
    """The way in which a family builds its decoder; the defaults are nnU-Net's.

    Args:
        up: Makes the way up to a stage.
        stage: Makes what follows the meeting with the skip.
        adds_skips: The skip is added, not put beside: `up` must end with the skip's channels.
        head_on_bottleneck: One more output, from the deepest stage.
    """

    up: MakeUp = transposed_up
    stage: MakeStage = decoder_stage
    adds_skips: bool = False
    head_on_bottleneck: bool = False


class Decoder(nn.Module):
    """Goes from the deepest map up, stage by stage; module lists begin with the deepest stage."""

    def __init__(self, spec: NetworkSpec, n_below: int, n_outputs: int, style: DecoderStyle) -> None:
        super().__init__()
        make, last = Layers(spec.n_axes, spec.parts, spec.thick_axis), len(spec.features) - 2
        ups, stages, heads = [], [], []
        for stage in range(last, -1, -1):
            n_skip, n_out = spec.features[stage], spec.decoder_features[stage]
            n_up = n_skip if style.adds_skips else n_out
            ups.append(style.up(spec, stage, n_below, n_up))
            stages.append(style.stage(spec, stage, n_skip if style.adds_skips else n_up + n_skip, n_out))
            used = spec.parts.deep_supervision or stage == 0
            heads.append(make.convolution(n_out, n_outputs, bias=True) if used else nn.Identity())
            n_below = n_out
        self.transpconvs = nn.ModuleList(ups)
        self.stages = nn.ModuleList(stages)
        self.seg_layers = nn.ModuleList(heads)
        self.adds_skips = style.adds_skips
        self.deep_supervision = spec.parts.deep_supervision

    def forward(self, below: Tensor, skips: list[Tensor]) -> list[Tensor]:
        """Logits, the highest resolution first. `skips` are ordered alike."""
        outputs = []
        for up, stage, head, skip in zip(self.transpconvs, self.stages, self.seg_layers, reversed(skips), strict=True):
            raised = up(below)[(..., *(slice(size) for size in skip.shape[2:]))]  # an odd size was rounded up below
            below = stage(raised + skip if self.adds_skips else torch.cat((raised, skip), 1))
            outputs.append(head(below))
        return outputs[::-1] if self.deep_supervision else outputs[-1:]


class UNet(nn.Module):
    """Encoder, attention or mixer on the deepest map, pyramid, gates on the skips, decoder.

    Args:
        spec: Channels, strides and parts.
        encoder: Gives one map for each stage of the spec, the highest resolution first; map s has
            `spec.features[s]` channels and ceil(size / stride) voxels of map s - 1.
        n_outputs: Channels of the result.
        style: The family's decoder.
    """

    def __init__(
        self, spec: NetworkSpec, encoder: nn.Module, n_outputs: int, style: DecoderStyle | None = None
    ) -> None:
        super().__init__()
        make, style = Layers(spec.n_axes, spec.parts, spec.thick_axis), style or DecoderStyle()
        self.encoder = encoder
        n_below = spec.parts.bottleneck_features or spec.features[-1]
        self.mixing = bottleneck_mixing(make, spec.features[-1])
        self.bottleneck = pyramid(make, spec.features[-1], n_below)
        self.gates = nn.ModuleList(make.attention(n, "skip") for n in spec.features[:-1])
        self.decoder = Decoder(spec, n_below, n_outputs, style)
        has_head = style.head_on_bottleneck and spec.parts.deep_supervision
        self.bottleneck_head = make.convolution(n_below, n_outputs, bias=True) if has_head else None
        follow_depth(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits for each resolution, the highest first; the first has the size of `x`, whatever it is."""
        *skips, deepest = self.encoder(x)
        below = self.bottleneck(self.mixing(deepest))
        gated = [gate(skip) for gate, skip in zip(self.gates, skips, strict=True)]
        outputs = self.decoder(below, gated)
        return outputs if self.bottleneck_head is None else [*outputs, self.bottleneck_head(below)]


class ConvEncoder(nn.Module):
    """Stages of plain convolutions. Source: dynamic-network-architectures, PlainConvEncoder."""

    def __init__(self, spec: NetworkSpec, n_channels: int) -> None:
        super().__init__()
        make = Layers(spec.n_axes, spec.parts, spec.thick_axis)
        shapes = encoder_shapes(spec, n_channels)
        self.stages = nn.ModuleList(
            nn.Sequential(conv_stage(make, shape, n)) for shape, n in zip(shapes, spec.blocks, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class ResidualEncoder(nn.Module):
    """A convolution at full resolution, then stages of residual blocks. Source: as before, ResidualEncoder."""

    def __init__(self, spec: NetworkSpec, n_channels: int) -> None:
        super().__init__()
        make = Layers(spec.n_axes, spec.parts, spec.thick_axis)
        kernel = spec.parts.stem_kernel_zyx or spec.kernels_zyx[0]
        self.stem = nn.ModuleDict({"convs": nn.Sequential(make.unit(n_channels, spec.features[0], kernel))})
        shapes = encoder_shapes(spec, spec.features[0])
        fractions = drop_paths(spec.blocks, spec.parts.drop_path_fraction)
        self.stages = residual_stages(make, shapes, fractions)

    def forward(self, x: Tensor) -> list[Tensor]:
        return through_stages(self.stages, self.stem["convs"](x))


def encoder_shapes(spec: NetworkSpec, n_in: int) -> list[BlockShape]:
    """Return the shape of each encoder stage if the first one is given `n_in` channels."""
    entering = (n_in, *spec.features[:-1])
    return [BlockShape(*each) for each in zip(entering, spec.features, spec.kernels_zyx, spec.strides_zyx, strict=True)]
