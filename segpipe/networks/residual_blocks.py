"""The blocks of residual stages: a table of their makers, and the stage that is made of them."""

# Tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network.
from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from segpipe.core.choices import functions_for
from segpipe.networks.blocks import BlockShape, BlockStage, Layers, ResidualBlock
from segpipe.networks.mixers import ConvMixerBlock
from segpipe.networks.parts import BLOCKS

MakeBlock = Callable[[Layers, BlockShape, float], nn.Module]  # from shape and drop path fraction


def residual_stage(make: Layers, shape: BlockShape, drop_path_fractions: Sequence[float]) -> BlockStage:
    """One block of the spec's kind for each drop path, the first from `shape.n_in` with the stride."""
    shapes, make_block = shape.in_a_row(len(drop_path_fractions)), MAKE_BLOCK[make.parts.block]
    blocks = [make_block(make, *each) for each in zip(shapes, drop_path_fractions, strict=True)]
    return BlockStage(blocks, checkpointing=make.parts.checkpointing)


def _convmixer(make: Layers, shape: BlockShape, drop_path_fraction: float) -> nn.Module:
    """A ConvMixer block; where channels or size change, behind the authors' convolution of patches with GELU and norm.

    Its kernel is 2 · stride - 1, not the stride: patches overlap, so that odd sizes are rounded up as elsewhere.
    """
    block = ConvMixerBlock(make, shape.n_out, shape.kernel, drop_path_fraction)
    if shape.n_in == shape.n_out and max(shape.stride) == 1:
        return block
    kernel = tuple(2 * step - 1 for step in shape.stride)
    patches = make.convolution(shape.n_in, shape.n_out, kernel, shape.stride, bias=True)
    return nn.Sequential(patches, nn.GELU(), make.norm(shape.n_out), block)


_BLOCK_MAKERS: dict[str, MakeBlock] = {"basic": ResidualBlock, "convmixer": _convmixer}
MAKE_BLOCK = functions_for(BLOCKS, _BLOCK_MAKERS, "BLOCKS of networks/parts.py")
