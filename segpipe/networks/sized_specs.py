"""EffResUNet, B0 to B7, as specs of the kinds `efficientnet_…`, without torch: the planner reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from segpipe.networks.efficientnet_table import KIND_PREFIX, KINDS_OF_EFFICIENTNET, levels
from segpipe.networks.parts import Parts, aspp_dilations
from segpipe.networks.spec import NetworkSpec

EFFNET_SIZES = tuple(kind.removeprefix(KIND_PREFIX) for kind in KINDS_OF_EFFICIENTNET)
_MAX_LEVELS = 5
EFFNET_STAGES = _MAX_LEVELS + 1  # with that at full resolution
_TOP_FEATURES = 16  # of the block at full resolution, which EfficientNet has not
_DECODER_FEATURES = (16, 32, 48, 64, 128)
_PYRAMID_FEATURES = 256


def effnet(
    size: str,
    strides_zyx: tuple[tuple[int, ...], ...],
    kernels_zyx: tuple[tuple[int, ...], ...],
    spacing_mm: Sequence[float],
    patch_vox: Sequence[int],
) -> NetworkSpec:
    """The network for the planner's strides and kernels: EfficientNet, gated skips, pyramid, residual decoder.

    Args:
        size: b0 to b7.
        strides_zyx: Of each stage, at least two. EfficientNet halves five times: deeper stages are left out.
        kernels_zyx: Of each stage. A 3 becomes 5 in the blocks where EfficientNet has 5.
        spacing_mm: Edges of a voxel, as many axes as the strides have.
        patch_vox: Edges of a patch, same axes.

    Source:
        After the abstract of Behzadpour et al. 2025, arXiv 2501.11196, on 2D slices: ResUNet, EfficientNet encoder,
        channel attention, atrous pyramid. All else is ours: three axes, the block at full resolution, instance norm,
        widths of the decoder, dilations by spacing, no mean over the patch in the pyramid.
    """
    n_levels = min(_MAX_LEVELS, len(strides_zyx) - 1)
    kind, strides = KIND_PREFIX + size, strides_zyx[: n_levels + 1]
    found = levels(kind, n_levels)
    total = [math.prod(steps) for steps in zip(*strides, strict=True)]
    deepest_mm = [edge * step for edge, step in zip(spacing_mm, total, strict=True)]
    deepest_vox = [math.ceil(edge / step) for edge, step in zip(patch_vox, total, strict=True)]
    return NetworkSpec(
        kind=kind,
        features=(_TOP_FEATURES, *(level[-1].n_out for level in found)),
        strides_zyx=strides,
        kernels_zyx=kernels_zyx[: n_levels + 1],
        blocks=(1, *(sum(stage.n_blocks for stage in level) for level in found)),
        decoder_convolutions=(1,) * n_levels,
        parts=Parts(
            bias=False,
            attention="se",
            bottleneck="aspp_deeplab",
            dilations_zyx=aspp_dilations(deepest_mm, deepest_vox),
            bottleneck_features=_PYRAMID_FEATURES,
            decoder="residual",
            decoder_features=_DECODER_FEATURES[:n_levels],
        ),
    )


_FEATURES = 32  # of the first stage, doubled at each


@dataclass(frozen=True)
class Size:
    """Stage by stage, the highest resolution first; the decoder mirrors the encoder.

    Args:
        blocks: Of each stage, without those that lead down and up.
        expansion: Hidden channels as a multiple.
        checkpointing: Whether blocks are computed twice, since what they would keep is too much.
    """

    blocks: tuple[int, ...]
    expansion: tuple[int, ...]
    checkpointing: bool = False


SIZES: dict[str, Size] = {
    "s": Size((2, 2, 2, 2, 2), (2, 2, 2, 2, 2)),
    "b": Size((2, 2, 2, 2, 2), (2, 3, 4, 4, 4)),
    "m": Size((3, 4, 4, 4, 4), (2, 3, 4, 4, 4), checkpointing=True),
    "l": Size((3, 4, 8, 8, 8), (3, 4, 8, 8, 8), checkpointing=True),
}


def mednext(
    size: str,
    strides_zyx: tuple[tuple[int, ...], ...],
    kernels_zyx: tuple[tuple[int, ...], ...],
    *,
    features: int = _FEATURES,
    kernel: Literal[3, 5] = 3,
    response_norm: Literal["mean", "sum"] | None = None,
) -> NetworkSpec:
    """A MedNeXt for the planner's strides and kernels.

    Args:
        size: One of `SIZES`.
        strides_zyx: Of each stage. MedNeXt has five: deeper ones are left out.
        kernels_zyx: Of each stage.
        features: Of the first stage. MedNeXt v2 is size l with 32 or 64 and response norm sum.
        kernel: Takes the place of each 3 in `kernels_zyx`.
        response_norm: See `Parts`.

    Source:
        Roy et al. 2023, MedNeXt, table of the authors' code. They know isotropic volumes and five stages alone.
    """
    row = SIZES[size]
    n_stages = min(len(row.blocks), len(strides_zyx))
    return NetworkSpec(
        kind="convnext",
        features=tuple(features * 2**stage for stage in range(n_stages)),
        strides_zyx=strides_zyx[:n_stages],
        kernels_zyx=tuple(tuple(kernel if k == 3 else k for k in each) for each in kernels_zyx[:n_stages]),
        blocks=row.blocks[:n_stages],
        decoder_convolutions=row.blocks[: n_stages - 1],
        parts=Parts(expansion=row.expansion[:n_stages], response_norm=response_norm, checkpointing=row.checkpointing),
    )
