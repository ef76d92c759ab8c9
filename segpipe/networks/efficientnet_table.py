"""The stages of EfficientNet and EfficientNet-Lite as numbers, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

KIND_PREFIX = "efficientnet_"
_SCALES: dict[str, tuple[float, float]] = {  # factors of channels and of blocks
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
    "lite0": (1.0, 1.0),
}
KINDS_OF_EFFICIENTNET = tuple(KIND_PREFIX + size for size in _SCALES)
_STEM_FEATURES = 32
_FIRST_OF_LEVEL = (0, 1, 2, 3, 5, 7)  # of the seven stages; the others keep the resolution


@dataclass(frozen=True)
class MobileStage:
    """A stage of MBConv blocks.

    Args:
        n_blocks: Blocks, the first of which changes channels and size.
        kernel: Of the depthwise convolutions.
        expansion: Hidden channels as a multiple.
        n_out: Channels.
    """

    n_blocks: int
    kernel: int
    expansion: int
    n_out: int


_B0 = (
    MobileStage(1, 3, 1, 16),
    MobileStage(2, 3, 6, 24),
    MobileStage(2, 5, 6, 40),
    MobileStage(3, 3, 6, 80),
    MobileStage(3, 5, 6, 112),
    MobileStage(4, 5, 6, 192),
    MobileStage(1, 3, 6, 320),
)


def is_lite(kind: str) -> bool:
    """True for EfficientNet-Lite: no gates, ReLU6 for SiLU."""
    return kind.startswith(f"{KIND_PREFIX}lite")


def stem_features(kind: str) -> int:
    """Channels of the first convolution."""
    return _widen(_STEM_FEATURES, _SCALES[kind.removeprefix(KIND_PREFIX)][0])


def levels(kind: str, n_levels: int) -> list[tuple[MobileStage, ...]]:
    """The seven stages, by the resolution at which they work.

    Args:
        kind: One of `KINDS_OF_EFFICIENTNET`.
        n_levels: Resolutions below the full one, 1 to 5. EfficientNet has five; with fewer the last one holds all
            stages that are left, so that images too small to be halved five times still get the whole network.

    Source:
        Tan and Le 2019, EfficientNet, table 1, and the authors' rules of rounding.

    Example:
        >>> [[stage.n_out for stage in level] for level in levels("efficientnet_b0", 4)]
        [[16], [24], [40], [80, 112, 192, 320]]
    """
    width, depth = _SCALES[kind.removeprefix(KIND_PREFIX)]
    stages = [MobileStage(math.ceil(depth * s.n_blocks), s.kernel, s.expansion, _widen(s.n_out, width)) for s in _B0]
    bounds = (*_FIRST_OF_LEVEL[:n_levels], len(stages))
    return [tuple(stages[first:end]) for first, end in pairwise(bounds)]


def _widen(n_features: int, factor: float) -> int:
    """The multiple of 8 next to the product, but not below nine tenths of it."""
    wanted = n_features * factor
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded
