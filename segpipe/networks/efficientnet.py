"""EfficientNet as the encoder of a U-Net, in 2D and 3D."""

# Tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network.
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor, nn
from torch.nn import functional

from segpipe.networks.blocks import (
    BlockShape,
    BlockStage,
    DropPath,
    Layers,
    drop_paths,
    he_initialisation,
)
from segpipe.networks.efficientnet_table import is_lite, levels, stem_features
from segpipe.networks.residual_blocks import residual_stage
from segpipe.networks.spec import NetworkSpec
from segpipe.networks.unet import UNet, encoder_shapes

_STEM_KERNEL = 3
_GATE_SHARE = 0.25  # hidden channels of a block's gate, as a share of the block's input


def efficientnet(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
    """A U-Net whose encoder is EfficientNet; gates, pyramid and decoder are the spec's.

    Source:
        Tan and Le 2019, EfficientNet, without its head. Beyond it: a residual block at full resolution for the top
        skip, strides and kernels of each axis, the spec's norm with its eps, drop path from 0 to the spec's fraction.
        New weights of the encoder keep the variance of what they are given back, as timm's do.
    """
    encoder = EfficientNetEncoder(spec, n_channels)
    network = he_initialisation(UNet(spec, encoder, n_outputs))
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and not name.startswith("top."):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, (2 / fan_out) ** 0.5)
    return network


class EfficientNetEncoder(nn.Module):
    """A residual block at full resolution and, beside it, EfficientNet from the image down."""

    def __init__(self, spec: NetworkSpec, n_channels: int) -> None:
        super().__init__()
        make, n_in, stride = (
            Layers(spec.n_axes, spec.parts, spec.thick_axis),
            stem_features(spec.kind),
            spec.strides_zyx[1],
        )
        kernel, lite = _wide_kernel(spec.kernels_zyx[1], _STEM_KERNEL, stride), is_lite(spec.kind)
        self.stem = _unit(make, BlockShape(n_channels, n_in, kernel, stride), lite=lite)
        self.top = residual_stage(make, encoder_shapes(spec, n_channels)[0], [0.0] * spec.blocks[0])
        found = levels(spec.kind, len(spec.features) - 1)
        self.ends = set(accumulate(len(level) for level in found))  # behind which a resolution is complete
        fractions = drop_paths([s.n_blocks for level in found for s in level], spec.parts.drop_path_fraction)
        ones, stages = (1,) * spec.n_axes, nn.ModuleList()
        for index, level in enumerate(found, 1):
            stride = spec.strides_zyx[index] if index > 1 else ones  # the stem has the first
            for stage in level:
                kernel = _wide_kernel(spec.kernels_zyx[index], stage.kernel, stride)
                shapes = BlockShape(n_in, stage.n_out, kernel, stride).in_a_row(stage.n_blocks)
                drops = fractions[len(stages)]
                pairs = zip(shapes, drops, strict=True)
                blocks = [MobileBlock(make, shape, stage.expansion, drop, lite=lite) for shape, drop in pairs]
                stages.append(BlockStage(blocks, checkpointing=spec.parts.checkpointing))
                n_in, stride = stage.n_out, ones
        self.stages = stages

    def forward(self, x: Tensor) -> list[Tensor]:
        maps, below = [self.top(x)], self.stem(x)
        for n_done, stage in enumerate(self.stages, 1):
            below = stage(below)
            if n_done in self.ends:
                maps.append(below)
        return maps


class MobileBlock(nn.Module):
    """MBConv: 1×1×1 to more channels, depthwise convolution, a gate, 1×1×1 back; added to its input if it is alike.

    Args:
        make: Makes layers. Between them is SiLU or ReLU6, whatever the spec's activation.
        shape: Channels, kernel and stride.
        expansion: Hidden channels as a multiple of `shape.n_in`; with 1 there is no first convolution.
        drop_path_fraction: In training, share of samples without the branch.
        lite: Without the gate, ReLU6 for SiLU.
    """

    def __init__(
        self, make: Layers, shape: BlockShape, expansion: int, drop_path_fraction: float, *, lite: bool = False
    ) -> None:
        super().__init__()
        ones, n_hidden = (1,) * make.n_axes, expansion * shape.n_in
        inside = BlockShape(n_hidden, n_hidden, shape.kernel, shape.stride)
        wide = BlockShape(shape.n_in, n_hidden, ones, ones)
        self.expand = _unit(make, wide, lite=lite) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(make, inside, groups=n_hidden, lite=lite)
        n_gate = max(1, int(_GATE_SHARE * shape.n_in))
        self.squeeze = nn.Identity() if lite else BlockGate(make, n_hidden, n_gate)
        self.project = make.linear_unit(n_hidden, shape.n_out, 1, bias=False)
        self.gate = make.attention(shape.n_out, "block")
        self.drop_path = DropPath(drop_path_fraction)
        self.gate_of_sum = make.attention(shape.n_out, "after_add")
        adds = shape.n_in == shape.n_out and shape.stride == ones
        self.add = make.addition(shape.n_out) if adds else None

    def forward(self, x: Tensor) -> Tensor:
        branch = self.gate(self.project(self.squeeze(self.depthwise(self.expand(x)))))
        if self.add is not None:
            branch = self.add(x, self.drop_path(branch))
        return self.gate_of_sum(branch)


class BlockGate(nn.Module):
    """Each channel by a gate that sees the means of all: EfficientNet's form of squeeze and excitation."""

    def __init__(self, make: Layers, n_features: int, n_hidden: int) -> None:
        super().__init__()
        self.reduce = make.convolution(n_features, n_hidden, bias=True)
        self.nonlin = nn.SiLU()
        self.expand = make.convolution(n_hidden, n_features, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        return x * self.expand(self.nonlin(self.reduce(means))).sigmoid()


class LatePadding(nn.Module):
    """Zeros for ceil(size / stride) windows and no more, the larger half behind: TensorFlow's padding `SAME`."""

    def __init__(self, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.kernel, self.stride = tuple(kernel), tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        widths = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel[::-1], self.stride[::-1], strict=True):
            missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            widths += [missing // 2, missing - missing // 2]
        return functional.pad(x, widths)


def _unit(make: Layers, shape: BlockShape, groups: int = 1, *, lite: bool = False) -> nn.Sequential:
    """Convolution without bias, the spec's norm, SiLU; lite: ReLU6."""
    layers: dict[str, nn.Module] = {}
    is_late = make.parts.padding == "tf_same" and max(shape.stride) > 1
    if is_late:
        layers["pad"] = LatePadding(shape.kernel, shape.stride)
    layers["conv"] = make.convolution(
        shape.n_in, shape.n_out, shape.kernel, shape.stride, bias=False, groups=groups, is_padded=not is_late
    )
    nonlin = nn.ReLU6() if lite else nn.SiLU()
    return nn.Sequential(OrderedDict(layers, norm=make.norm(shape.n_out), nonlin=nonlin))


def _wide_kernel(planned: Sequence[int], own: int, stride: Sequence[int]) -> tuple[int, ...]:
    """EfficientNet's kernel on the axes where 3 is planned; with a stride it leaves out no voxel."""
    return tuple(max(own if k == 3 else k, 2 * step - 1) for k, step in zip(planned, stride, strict=True))
