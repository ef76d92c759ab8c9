"""ConvNeXt blocks in a U-Net whose skips are added: MedNeXt v1, and v2 with a response norm; 2D and 3D."""

# Tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network.
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.networks.blocks import BlockShape, BlockStage, DropPath, Layers, drop_paths
from segpipe.networks.spec import NetworkSpec
from segpipe.networks.unet import DecoderStyle, UNet, encoder_shapes

_EXPANSION = 4  # of a spec that names none: ConvNeXt's
_TRANSPOSED: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}  # by number of axes
_LINEAR = {2: "bilinear", 3: "trilinear"}


def convnext(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
    """MedNeXt: stem, a block down between stages, a block up, blocks, heads on all decoder stages and the deepest map.

    New weights are torch's own, uniform within ±1/√fan-in, biases alike; norms begin as 1 and 0, response norms as the
    identity.

    Source:
        Roy et al. 2023, MedNeXt (v1; sizes in mednext.py), the authors' code. With `response_norm` sum: the blocks of
        its v2. Heads are 1×1×1 convolutions, there transposed ones, which compute the same. Beyond it: strides and
        kernels of each axis, odd sizes, gates, pyramid and drop path.
    """
    style = DecoderStyle(up=_up, stage=_decoder_stage, adds_skips=True, head_on_bottleneck=True)
    return UNet(spec, ConvNeXtEncoder(spec, n_channels), n_outputs, style)


class ConvNeXtEncoder(nn.Module):
    """A 1×1×1 convolution, then stages of blocks; a block with the stride, on top of `spec.blocks`, leads to each."""

    def __init__(self, spec: NetworkSpec, n_channels: int) -> None:
        super().__init__()
        make = Layers(spec.n_axes, spec.parts, spec.thick_axis)
        self.stem = make.convolution(n_channels, spec.features[0], spec.parts.stem_kernel_zyx or 1, bias=True)
        fractions = drop_paths(spec.blocks, spec.parts.drop_path_fraction)
        stages = []
        for stage, shape in enumerate(encoder_shapes(spec, spec.features[0])):
            drops = [0.0, *fractions[stage]] if stage else fractions[stage]
            shapes = shape.in_a_row(len(drops))
            stages.append(_stage(make, shapes, _expansions(spec)[stage], drops))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, 1×1×1 to more channels, GELU, 1×1×1 back, added to the input.

    With a stride the input is projected by a 1×1×1 convolution with that stride. On the way up both are transposed
    convolutions, whose (size - 1) × stride + 1 voxels are completed by zeros in front, as MedNeXt does: what a block
    down took from voxel i comes back around voxel i + stride - 1.

    Args:
        make: Makes layers.
        shape: Channels, kernel, stride. With a stride the kernel reaches the next voxel that is kept: none is left out.
        expansion: Hidden channels as a multiple of `shape.n_in`.
        drop_path_fraction: In training, share of samples without the branch.
        is_up: Edges are multiplied by the stride, not divided.
    """

    def __init__(
        self, make: Layers, shape: BlockShape, expansion: int, drop_path_fraction: float = 0.0, *, is_up: bool = False
    ) -> None:
        super().__init__()
        n_in, n_out, stride = shape.n_in, shape.n_out, shape.stride
        kernel = tuple(max(k, 2 * step - 1) for k, step in zip(shape.kernel, stride, strict=True))
        resample = _upsampling_convolution if is_up else make.convolution
        self.depthwise = resample(n_in, n_in, kernel, stride, groups=n_in, bias=True)
        self.norm = make.norm(n_in)
        self.expand = make.convolution(n_in, expansion * n_in, bias=True)
        self.nonlin = nn.GELU()
        divisor = make.parts.response_norm
        self.response = nn.Identity() if divisor is None else ResponseNorm(expansion * n_in, divisor)
        self.reduce = make.convolution(expansion * n_in, n_out, bias=True)
        self.gate = make.attention(n_out, "block")
        self.drop_path = DropPath(drop_path_fraction)
        self.add = make.addition(n_out)
        changes = n_in != n_out or max(stride) > 1
        ones = (1,) * len(stride)
        self.skip = resample(n_in, n_out, ones, stride, bias=True) if changes else nn.Identity()
        self.front = [width for step in reversed(stride) for width in (step - 1, 0)] if is_up else []
        self.gate_of_sum = make.attention(n_out, "after_add")

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.response(self.nonlin(self.expand(self.norm(self.depthwise(x)))))
        branch = self.drop_path(self.gate(self.reduce(hidden)))
        total = self.add(self.skip(x), branch)
        return self.gate_of_sum(functional.pad(total, self.front) if any(self.front) else total)


class ResponseNorm(nn.Module):
    """Channels that respond more than the others become larger: x + scale · x · n + shift.

    n is the channel's Euclidean norm over all voxels, divided by the channels' mean or sum of it.

    Source:
        Woo et al. 2023, ConvNeXt V2 (mean); MedNeXt v2 divides by the sum. Begins as the identity.
    """

    def __init__(self, n_features: int, divisor: str) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(n_features))
        self.shift = nn.Parameter(torch.zeros(n_features))
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        norms = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=torch.float32)  # may exceed what fp16 holds
        others = norms.mean(1, True) if self.divisor == "mean" else norms.sum(1, True)
        scale, shift = (values.reshape(-1, *(1,) * len(axes)) for values in (self.scale, self.shift))
        return x * (1 + scale * norms / (others + 1e-6)).to(x.dtype) + shift.to(x.dtype)


def upkern(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network for the same one with kernels of another size: interpolated linearly.

    Args:
        weights: Tensors by name.
        like: Tensors of the other network by name.

    Returns:
        Those of `weights`. Kernels that differ from their namesake in `like` in size alone are interpolated, voxel edge
        to voxel edge; all else is as it was. A constant kernel stays so: neither the sum nor the response is kept.

    Source:
        Roy et al. 2023, MedNeXt: UpKern, which continues a network of kernel 3 as one of kernel 5.
    """
    fitted = dict(weights)
    for name in weights.keys() & like.keys():
        source, target = weights[name], like[name]
        n_axes = source.ndim - 2
        is_kernel = n_axes in _LINEAR and source.ndim == target.ndim and source.shape[:2] == target.shape[:2]
        if is_kernel and source.shape != target.shape:
            resized = functional.interpolate(source.float(), tuple(target.shape[2:]), mode=_LINEAR[n_axes])
            fitted[name] = resized.to(source.dtype)
    return fitted


def _expansions(spec: NetworkSpec) -> tuple[int, ...]:
    return spec.parts.expansion or (_EXPANSION,) * len(spec.features)


def _stage(make: Layers, shapes: list[BlockShape], expansion: int, drops: list[float]) -> BlockStage:
    blocks = [ConvNeXtBlock(make, shape, expansion, drop) for shape, drop in zip(shapes, drops, strict=True)]
    return BlockStage(blocks, checkpointing=make.parts.checkpointing)


def _decoder_expansion(spec: NetworkSpec, stage: int) -> int:
    return (spec.parts.decoder_expansion or _expansions(spec))[stage]


def _decoder_stage(spec: NetworkSpec, stage: int, n_in: int, n_out: int) -> nn.Module:
    shape = BlockShape(n_in, n_out, spec.kernels_zyx[stage], (1,) * spec.n_axes)
    n_blocks, make = spec.decoder_convolutions[stage], Layers(spec.n_axes, spec.parts, spec.thick_axis)
    return _stage(make, shape.in_a_row(n_blocks), _decoder_expansion(spec, stage), [0.0] * n_blocks)


def _up(spec: NetworkSpec, stage: int, n_in: int, n_out: int) -> nn.Module:
    """The mirror image of the block that led down from `stage`: its kernel, its stride."""
    shape = BlockShape(n_in, n_out, spec.kernels_zyx[stage + 1], spec.strides_zyx[stage + 1])
    make = Layers(spec.n_axes, spec.parts, spec.thick_axis)
    block = ConvNeXtBlock(make, shape, _decoder_expansion(spec, stage), is_up=True)
    return BlockStage([block], checkpointing=make.parts.checkpointing)


def _upsampling_convolution(
    n_in: int, n_out: int, kernel: tuple[int, ...], stride: tuple[int, ...], *, groups: int = 1, bias: bool
) -> nn.Module:
    """A transposed convolution to (size - 1) × stride + 1 voxels."""
    padding = tuple(k // 2 for k in kernel)
    return _TRANSPOSED[len(kernel)](n_in, n_out, kernel, stride, padding, groups=groups, bias=bias)
