"""Layers and blocks that several families share, made from the parts of a spec.

Names of modules are those of dynamic-network-architectures, so that its weights, and nnU-Net's, fit as they are.
"""

# Tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network.
from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from segpipe.core.choices import functions_for
from segpipe.networks.convolutions import InstanceNorm2d, InstanceNorm3d
from segpipe.networks.gates import MAKE_GATE
from segpipe.networks.norms import BlendNorm, PhaseNorm, UniformNoise
from segpipe.networks.parts import ACTIVATIONS, NORM_EPS, NORMS, RESIDUAL_SCALES, Parts

# B batch, C features, V voxels of a map whose axes are flattened.

_NORM_GROUPS = 8
_LEAKY_SLOPE = 1e-2

_MakeLayer = Callable[..., nn.Module]
_CONVOLUTIONS: dict[int, _MakeLayer] = {2: nn.Conv2d, 3: nn.Conv3d}  # by the number of axes, as those below
_TRANSPOSED: dict[int, _MakeLayer] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_DROPOUTS: dict[int, _MakeLayer] = {2: nn.Dropout2d, 3: nn.Dropout3d}
_POOLS: dict[int, Callable[..., Tensor]] = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
_INSTANCE: dict[int, _MakeLayer] = {2: InstanceNorm2d, 3: InstanceNorm3d}
_BATCH: dict[int, _MakeLayer] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True)
class Layers:
    """Makes layers for 2 or 3 axes with the norm, activation and gates of a spec.

    Args:
        n_axes: 2 or 3.
        parts: The spec's.
        thick_axis: The spec's, 0 for the first.
    """

    n_axes: int
    parts: Parts
    thick_axis: int = 0

    def convolution(
        self,
        n_in: int,
        n_out: int,
        kernel: Sequence[int] | int = 1,
        stride: Sequence[int] | int = 1,
        *,
        bias: bool | None = None,
        groups: int = 1,
        dilation: Sequence[int] | int = 1,
        is_padded: bool = True,
    ) -> nn.Module:
        """A convolution; padded, its output has ceil(size / stride) voxels; odd kernels. `bias` None: the spec's."""
        kernel, dilation = self._per_axis(kernel), self._per_axis(dilation)
        padding = tuple(is_padded * d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        stride = self._per_axis(stride)
        bias = self.parts.bias if bias is None else bias
        return _CONVOLUTIONS[self.n_axes](n_in, n_out, kernel, stride, padding, dilation, groups, bias)

    def transposed_convolution(self, n_in: int, n_out: int, stride: Sequence[int], *, bias: bool = True) -> nn.Module:
        """Multiplies every edge by `stride`; the kernel is as large as the stride."""
        return _TRANSPOSED[self.n_axes](n_in, n_out, tuple(stride), tuple(stride), bias=bias)

    def norm(self, n_features: int) -> nn.Module:
        """The spec's norm with a scale and a shift for each channel, and the spec's eps."""
        norm = MAKE_NORM[self.parts.norm](self.n_axes, n_features)
        if self.parts.norm_eps != NORM_EPS:
            assert hasattr(norm, "eps"), f"norm {self.parts.norm} has none"
            norm.eps = self.parts.norm_eps  # type: ignore[assignment]  # a number, of no parameter
        return norm

    def activation(self) -> nn.Module:
        """The spec's activation; it may overwrite its input."""
        return MAKE_ACTIVATION[self.parts.activation]()

    def unit(
        self,
        n_in: int,
        n_out: int,
        kernel: Sequence[int],
        stride: Sequence[int] | int = 1,
        dilation: Sequence[int] | int = 1,
    ) -> nn.Module:
        """Convolution, dropout of whole channels or uniform noise if the spec has it, norm, activation."""
        layers = {"conv": self.convolution(n_in, n_out, kernel, stride, dilation=dilation)}
        if self.parts.dropout_fraction:
            layers["dropout"] = _DROPOUTS[self.n_axes](self.parts.dropout_fraction)
        if self.parts.uout:
            layers["noise"] = UniformNoise(self.parts.uout)
        return nn.Sequential(OrderedDict(layers, norm=self.norm(n_out), nonlin=self.activation()))

    def linear_unit(
        self, n_in: int, n_out: int, kernel: Sequence[int] | int, *, bias: bool | None = None
    ) -> nn.Sequential:
        """Convolution and norm, as before an addition."""
        convolution = self.convolution(n_in, n_out, kernel, bias=bias)
        return nn.Sequential(OrderedDict(conv=convolution, norm=self.norm(n_out)))

    def addition(self, n_features: int) -> BranchSum:
        """Adds a branch, by the spec's scale, to the input of its block."""
        return BranchSum(self.parts.residual_scale, n_features)

    def attention(self, n_features: int, position: str) -> nn.Module:
        """The spec's gate if it sits at this position (`Parts.attention_position`), otherwise the identity."""
        kind = self.parts.attention
        if kind is None or self.parts.attention_position != position:
            return nn.Identity()
        return MAKE_GATE[kind](self, n_features)

    def _per_axis(self, value: Sequence[int] | int) -> tuple[int, ...]:
        return (value,) * self.n_axes if isinstance(value, int) else tuple(value)


@dataclass(frozen=True)
class BlockShape:
    """Channels, kernel and stride of a block, or of a stage of blocks.

    Args:
        n_in, n_out: Channels.
        kernel: Odd, one entry for each axis.
        stride: Of the first convolution, one entry for each axis.
    """

    n_in: int
    n_out: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]

    def in_a_row(self, n_blocks: int) -> list[BlockShape]:
        """The shapes of `n_blocks` that follow each other: all but the first keep channels and size."""
        rest = BlockShape(self.n_out, self.n_out, self.kernel, (1,) * len(self.stride))
        return [self, *[rest] * (n_blocks - 1)]


class CellMeans(nn.Module):
    """Mean over cells of `stride` voxels: ceil(size / stride) of them, the last over the voxels that are there."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        cell = tuple(min(step, size) for step, size in zip(self.stride, x.shape[2:], strict=True))
        return _POOLS[len(cell)](x, cell, self.stride, ceil_mode=True)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel, as in ConvNeXt."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.eps = NORM_EPS
        self.weight = nn.Parameter(torch.ones(n_features))
        self.bias = nn.Parameter(torch.zeros(n_features))

    def forward(self, x: Tensor) -> Tensor:
        normed = functional.layer_norm(x.movedim(1, -1), (x.shape[1],), self.weight, self.bias, self.eps)
        return normed.movedim(-1, 1)


_NORM_MAKERS: dict[str, Callable[[int, int], nn.Module]] = {  # from the number of axes and of features
    "instance": lambda n_axes, n_features: _INSTANCE[n_axes](n_features, eps=1e-5, affine=True),
    "batch": lambda n_axes, n_features: _BATCH[n_axes](n_features),
    "group": lambda _, n_features: nn.GroupNorm(math.gcd(_NORM_GROUPS, n_features), n_features),
    "layer": lambda _, n_features: ChannelNorm(n_features),
    "pcnorm": lambda _, n_features: PhaseNorm(n_features),
    "ccnorm": lambda _, n_features: PhaseNorm(n_features, centred=True),
    "scnorm": lambda _, n_features: BlendNorm(n_features),
}
MAKE_NORM = functions_for(NORMS, _NORM_MAKERS, "NORMS of networks/parts.py")
_ACTIVATION_MAKERS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(_LEAKY_SLOPE, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "silu": lambda: nn.SiLU(inplace=True),
}
MAKE_ACTIVATION = functions_for(ACTIVATIONS, _ACTIVATION_MAKERS, "ACTIVATIONS of networks/parts.py")


class DropPath(nn.Module):
    """Sets a residual branch to 0 for some samples of a training batch, and enlarges the others to keep the mean.

    Source:
        Huang et al. 2016, Deep Networks with Stochastic Depth.
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.fraction:
            return x
        kept = 1 - self.fraction
        return x * (x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(kept) / kept)


class BranchSum(nn.Module):
    """The input of a block plus its scaled branch. The rules that follow the depth need `follow_depth`.

    Args:
        rule: `Parts.residual_scale`.
        n_features: Channels.
    """

    def __init__(self, rule: float | str, n_features: int) -> None:
        super().__init__()
        self.rule = rule
        self.factor = 1.0 if isinstance(rule, str) else rule
        numbers = {"layerscale": n_features, "rezero": 1}.get(str(rule))  # of those learned
        self.scale = None if numbers is None else nn.Parameter(torch.ones(numbers))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        if self.scale is None:
            return torch.add(x, branch, alpha=self.factor)
        return x + self.scale.to(branch.dtype).view(-1, *(1,) * (branch.ndim - 2)) * branch


def follow_depth(network: nn.Module) -> nn.Module:
    """Set all scales that follow the number of additions; the network is changed in place and returned."""
    sums = [module for module in network.modules() if isinstance(module, BranchSum)]
    for module in sums:
        if isinstance(module.rule, str):
            factor = SCALE_OF_DEPTH[module.rule](len(sums))
            if module.scale is None:
                module.factor = factor
            else:
                nn.init.constant_(module.scale, factor)
    return network


_DEPTH_RULES: dict[str, Callable[[int], float]] = {  # from the number of additions; of learned scales the first value
    "none": lambda _: 1.0,
    "inv_sqrt_depth": lambda n_additions: n_additions**-0.5,
    "inv_depth": lambda n_additions: 1 / n_additions,
    "layerscale": lambda n_additions: 0.1 if n_additions <= 18 else 1e-5 if n_additions <= 24 else 1e-6,
    "rezero": lambda _: 0.0,
}
SCALE_OF_DEPTH = functions_for(RESIDUAL_SCALES, _DEPTH_RULES, "RESIDUAL_SCALES of networks/parts.py")


class ConvStage(nn.Module):
    """Convolutions with norm and activation, the first with a stride."""

    def __init__(self, units: Iterable[nn.Module], gate: nn.Module, *, checkpointing: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(units)
        self.gate = gate
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(through(self.convs, x, checkpointing=self.checkpointing))


class ResidualBlock(nn.Module):
    """Two convolutions added to the input, which is averaged and projected where it has another shape (ResNet-D).

    Args:
        make: Makes layers.
        shape: Channels, kernel and stride.
        drop_path_fraction: In training, share of samples without the branch.
        branch: Takes the place of the two convolutions: all up to the last one, and the last one with its norm.

    Source:
        dynamic-network-architectures, BasicBlockD. The gate comes before the drop path, there behind it; odd sizes.
    """

    def __init__(
        self,
        make: Layers,
        shape: BlockShape,
        drop_path_fraction: float = 0.0,
        branch: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        n_out = shape.n_out
        self.conv1, self.conv2 = branch or (
            make.unit(shape.n_in, n_out, shape.kernel, shape.stride),
            make.linear_unit(n_out, n_out, shape.kernel),
        )
        self.nonlin2 = make.activation()
        self.gate = make.attention(n_out, "block")
        self.drop_path = DropPath(drop_path_fraction)
        self.add = make.addition(n_out)
        self.gate_of_sum = make.attention(n_out, "after_add")
        steps: list[nn.Module] = [CellMeans(shape.stride)] if max(shape.stride) > 1 else []
        if shape.n_in != n_out:
            steps.append(make.linear_unit(shape.n_in, n_out, 1, bias=False))
        self.skip = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, self.conv2(self.conv1(x)))

    def finish(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return the block's result, from its input and what the convolutions made of it."""
        branch = self.drop_path(self.gate(branch))
        return self.nonlin2(self.gate_of_sum(self.add(self.skip(x), branch)))


class BlockStage(nn.Module):
    """Blocks in a row."""

    def __init__(self, blocks: Iterable[nn.Module], *, checkpointing: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        return through(self.blocks, x, checkpointing=self.checkpointing)


def conv_stage(make: Layers, shape: BlockShape, n_units: int) -> ConvStage:
    """`n_units` convolutions, the first from `shape.n_in` with the stride, and the gate if it sits in blocks."""
    units = [make.unit(each.n_in, each.n_out, each.kernel, each.stride) for each in shape.in_a_row(n_units)]
    return ConvStage(units, make.attention(shape.n_out, "block"), checkpointing=make.parts.checkpointing)


def drop_paths(n_blocks: Sequence[int], fraction: float) -> list[list[float]]:
    """Drop path of each block of each stage: linear from 0 at the first to `fraction` at the last.

    Example:
        >>> drop_paths([1, 2], 0.5)
        [[0.0], [0.25, 0.5]]
    """
    last = max(1, sum(n_blocks) - 1)
    rising = iter([fraction * index / last for index in range(sum(n_blocks))])
    return [[next(rising) for _ in range(n)] for n in n_blocks]


def through(blocks: Iterable[nn.Module], x: Tensor, *, checkpointing: bool) -> Tensor:
    """One block after the other; with `checkpointing` only their inputs are kept for the gradient."""
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if checkpointing and torch.is_grad_enabled() else block(x)
    return x


def he_initialisation(network: nn.Module) -> nn.Module:
    """New weights: He for leaky ReLU, biases 0; a residual branch starts at 0, so that its block is the identity;
    not where its scale is learned, which does the same.

    Other layers (linear, 1D convolutions) keep torch's own. The network is changed in place and returned.

    Source:
        nnU-Net: InitWeights_He(1e-2) and init_last_bn_before_add_to_0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=_LEAKY_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ResidualBlock) and isinstance(module.conv2, nn.Sequential) and module.add.scale is None:
            for values in module.conv2[1].parameters():  # times a learned scale of 0, neither would ever learn
                nn.init.zeros_(values)
    return network
