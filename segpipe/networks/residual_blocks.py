"""The blocks of residual stages: a table of their makers, and the stage that is made of them."""

# Tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network.
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from segpipe.core.choices import functions_for
from segpipe.networks.blocks import BlockShape, BlockStage, CellMeans, Layers, ResidualBlock
from segpipe.networks.mixers import ConvMixerBlock
from segpipe.networks.parts import BLOCKS
from segpipe.networks.regulated import RegulatedBlock, RegulatedStage

MakeBlock = Callable[
    [Layers, BlockShape, float, int], nn.Module
]  # from shape, drop path fraction, place in the network


def residual_stage(
    make: Layers,
    shape: BlockShape,
    drop_path_fractions: Sequence[float],
    *,
    n_before: int = 0,
    n_state: int | None = None,
) -> BlockStage | RegulatedStage:
    """One block of the spec's kind for each drop path, the first from `shape.n_in` with the stride.

    Args:
        make: Makes layers.
        shape: Of the first block.
        drop_path_fractions: In training, share of samples without the branch of each block.
        n_before: Blocks before the stage, with which block p3d_cycle goes on counting.
        n_state: Channels of the recurrent state that enters; None: none does.
    """
    shapes, make_block = shape.in_a_row(len(drop_path_fractions)), MAKE_BLOCK[make.parts.block]
    pairs = zip(shapes, drop_path_fractions, strict=True)
    blocks = [make_block(make, *each, n_before + index) for index, each in enumerate(pairs)]
    if make.parts.regulator is None or (len(blocks) == 1 and n_state is None):
        return BlockStage(blocks, checkpointing=make.parts.checkpointing)
    return RegulatedStage(make, shape, [_with_state(make, shape.n_out, block) for block in blocks], n_state)


def _with_state(make: Layers, n_features: int, block: nn.Module) -> RegulatedBlock:
    assert isinstance(block, ResidualBlock), "BLOCKS of networks/parts.py lets no other block have a regulator"
    return RegulatedBlock(make, n_features, block)


def residual_stages(
    make: Layers, shapes: Iterable[BlockShape], drop_path_fractions: Sequence[Sequence[float]]
) -> nn.ModuleList:
    """The stages of an encoder, which hand a recurrent state on if the spec has a regulator."""
    stages, n_before, n_state = nn.ModuleList(), 0, None
    for shape, fractions in zip(shapes, drop_path_fractions, strict=True):
        stage = residual_stage(make, shape, fractions, n_before=n_before, n_state=n_state)
        stages.append(stage)
        n_before += len(fractions)
        n_state = shape.n_out if isinstance(stage, RegulatedStage) else None
    return stages


def through_stages(stages: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """The map behind each stage; each regulated stage begins with the state of the one before it."""
    maps: list[Tensor] = []
    state: tuple[Tensor, ...] = ()
    for stage in stages:
        if isinstance(stage, RegulatedStage):
            x, state = stage.pass_on(x, state)
        else:
            x = stage(x)
        maps.append(x)
    return maps


class PseudoConvolution(nn.Module):
    """A convolution within slices (S) and one along the thick axis (T), each with a norm: 12 C² weights, not 27 C².

    - a: y = act(T act(S x))
    - b: y = act(act(S x) + T x)
    - c: h = act(S x), y = act(h + T h)

    Args:
        make: Makes layers; its thick axis is that of T.
        n_features: C.
        kernel: The stage's. Where it is 1 along the thick axis, so is T's.
        form: a, b or c.

    Source:
        Qiu et al. 2017, Pseudo-3D Residual Networks: activations where the authors' prototxt has them. A popular port
        has no activation behind the sums of b and c.
    """

    def __init__(self, make: Layers, n_features: int, kernel: Sequence[int], form: Literal["a", "b", "c"]) -> None:
        super().__init__()
        within = tuple(1 if axis == make.thick_axis else k for axis, k in enumerate(kernel))
        along = tuple(k if axis == make.thick_axis else 1 for axis, k in enumerate(kernel))
        self.within = make.unit(n_features, n_features, within)
        self.along = make.linear_unit(n_features, n_features, along)
        self.nonlin = make.activation()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        h = self.within(x)
        if self.form == "a":
            return self.nonlin(self.along(h))
        return self.nonlin(h + self.along(x if self.form == "b" else h))


def _pseudo_3d(
    make: Layers, shape: BlockShape, drop_path_fraction: float, form: Literal["a", "b", "c"]
) -> ResidualBlock:
    """The authors' bottleneck block with as many channels inside as outside, not a quarter.

    Like the shortcut, the branch averages where the authors' 1×1×1 convolution with a stride leaves voxels out.
    """
    ones, n_out = (1,) * make.n_axes, shape.n_out
    enter = [*_averages(shape), make.unit(shape.n_in, n_out, ones), PseudoConvolution(make, n_out, shape.kernel, form)]
    return ResidualBlock(make, shape, drop_path_fraction, (nn.Sequential(*enter), make.linear_unit(n_out, n_out, 1)))


def _averages(shape: BlockShape) -> list[nn.Module]:
    return [CellMeans(shape.stride)] if max(shape.stride) > 1 else []


_INCEPTION_WIDTHS = ((1,), (1, 1), (1, 1.5, 2))  # of the convolutions of each branch, in tenths of the channels


class InceptionBranches(nn.Module):
    """1×1×1 | 1×1×1, kernel | 1×1×1, kernel, kernel: side by side, with norm and activation.

    Args:
        make: Makes layers.
        n_in: Channels of the input.
        n_features: Channels of the block, of which the branches' widths are shares.
        kernel: The stage's.

    Source:
        Szegedy et al. 2017, Inception-ResNet, Block35: 32 | 32, 32 | 32, 48, 64 of 320 channels; here in 3D too.
    """

    def __init__(self, make: Layers, n_in: int, n_features: int, kernel: Sequence[int]) -> None:
        super().__init__()
        ones, branches, self.n_out = (1,) * make.n_axes, [], 0
        for tenths in _INCEPTION_WIDTHS:
            widths = [max(1, round(n_features * share / 10)) for share in tenths]
            kernels = (ones, *[tuple(kernel)] * (len(widths) - 1))
            pairs = zip((n_in, *widths), widths, kernels, strict=False)
            branches.append(nn.Sequential(*(make.unit(*each) for each in pairs)))
            self.n_out += widths[-1]
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _inception_residual(make: Layers, shape: BlockShape, drop_path_fraction: float, _: int) -> ResidualBlock:
    branches = InceptionBranches(make, shape.n_in, shape.n_out, shape.kernel)
    join = make.convolution(branches.n_out, shape.n_out, bias=True)
    return ResidualBlock(make, shape, drop_path_fraction, (nn.Sequential(*_averages(shape), branches), join))


def _convmixer(make: Layers, shape: BlockShape, drop_path_fraction: float, _: int) -> nn.Module:
    """A ConvMixer block; where channels or size change, behind the authors' convolution of patches with GELU and norm.

    Its kernel is 2 · stride - 1, not the stride: patches overlap, so that odd sizes are rounded up as elsewhere.
    """
    block = ConvMixerBlock(make, shape.n_out, shape.kernel, drop_path_fraction)
    if shape.n_in == shape.n_out and max(shape.stride) == 1:
        return block
    kernel = tuple(2 * step - 1 for step in shape.stride)
    patches = make.convolution(shape.n_in, shape.n_out, kernel, shape.stride, bias=True)
    return nn.Sequential(patches, nn.GELU(), make.norm(shape.n_out), block)


_FORMS: tuple[Literal["a", "b", "c"], ...] = ("a", "b", "c")
_BLOCK_MAKERS: dict[str, MakeBlock] = {
    "basic": lambda make, shape, drop, _: ResidualBlock(make, shape, drop),
    "convmixer": _convmixer,
    "p3d_a": lambda make, shape, drop, _: _pseudo_3d(make, shape, drop, "a"),
    "p3d_b": lambda make, shape, drop, _: _pseudo_3d(make, shape, drop, "b"),
    "p3d_c": lambda make, shape, drop, _: _pseudo_3d(make, shape, drop, "c"),
    "p3d_cycle": lambda make, shape, drop, place: _pseudo_3d(make, shape, drop, _FORMS[place % 3]),
    "inception_residual": _inception_residual,
}
MAKE_BLOCK = functions_for(BLOCKS, _BLOCK_MAKERS, "BLOCKS of networks/parts.py")
