"""The sizes of MedNeXt as specs of kind `convnext`, without torch: the planner reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segpipe.networks.parts import Parts
from segpipe.networks.spec import NetworkSpec

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
