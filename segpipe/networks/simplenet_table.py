"""The stages of SimpleNet as numbers, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class PlainStage:
    """Convolutions at one resolution.

    Args:
        widths: Channels behind each.
        pointwise: Which of them, counted from 0, have a kernel of one voxel.
    """

    widths: tuple[int, ...]
    pointwise: tuple[int, ...] = ()


_SIMPLENETS: dict[str, tuple[PlainStage, ...]] = {
    "simplenet": (  # for CIFAR, 5 million parameters
        PlainStage((64, 128, 128, 128)),
        PlainStage((128, 128, 256)),
        PlainStage((256, 256)),
        PlainStage((512, 2048, 256), (1, 2)),
        PlainStage((256,)),
    ),
    "simplenet_310k": (
        PlainStage((64, 32, 32, 32)),
        PlainStage((32, 32, 64)),
        PlainStage((64, 64)),
        PlainStage((128, 256, 64), (1, 2)),
        PlainStage((64,)),
    ),
    "simplenet_460k": (  # its authors' name; they also publish it as one of 390 thousand, which it has
        PlainStage((32, 32, 32, 64)),
        PlainStage((64, 64, 64)),
        PlainStage((64, 64)),
        PlainStage((96, 96, 96), (1, 2)),
        PlainStage((100,)),
    ),
    "simplenet_imagenet_5m": (
        PlainStage((64,)),
        PlainStage((128, 128)),
        PlainStage((128, 128, 128)),
        PlainStage((256, 256, 256, 512)),
        PlainStage((2048, 256, 256), (0, 1)),
    ),
    "simplenet_imagenet_9m": (
        PlainStage((128,)),
        PlainStage((192, 192)),
        PlainStage((192, 192, 192)),
        PlainStage((320, 320, 320, 640)),
        PlainStage((2560, 320, 320), (0, 1)),
    ),
}
KINDS_OF_SIMPLENET = tuple(_SIMPLENETS)
SIMPLENET_STAGES = 5


def simplenet_stages(kind: str, n_stages: int, n_first: int | None = None) -> tuple[PlainStage, ...]:
    """The convolutions of each resolution, the full one first.

    Args:
        kind: One of `KINDS_OF_SIMPLENET`.
        n_stages: 2 to 5. With fewer than five, the last one holds all convolutions that are left, so that images too
            small to be halved four times still get the whole network.
        n_first: Channels behind the first stage, by which all widths are scaled; None: the authors'.

    Raises:
        ValueError: If a width would be no whole number.

    Source:
        Hasanpour et al. 2016, arXiv 1608.06037, and the authors' code. The networks for ImageNet halve the image at the
        first, second and fourth convolution (their mode 2); there the first map is already half as large.

    Example:
        >>> [stage.widths for stage in simplenet_stages("simplenet", 3, 32)]
        [(16, 32, 32, 32), (32, 32, 64), (64, 64, 128, 512, 64, 64)]
    """
    rows = _SIMPLENETS[kind]
    kept, rest = rows[: n_stages - 1], rows[n_stages - 1 :]
    rest_widths = tuple(width for row in rest for width in row.widths)
    starts = [sum(len(row.widths) for row in rest[:index]) for index in range(len(rest))]
    rest_pointwise = tuple(start + place for start, row in zip(starts, rest, strict=True) for place in row.pointwise)
    scale = Fraction(n_first or rows[0].widths[-1], rows[0].widths[-1])
    joined = (*kept, PlainStage(rest_widths, rest_pointwise))
    return tuple(PlainStage(tuple(_multiple(width, scale) for width in row.widths), row.pointwise) for row in joined)


def _multiple(width: int, scale: Fraction) -> int:
    if (width * scale).denominator > 1:
        raise ValueError(f"{scale} of the width {width} is no whole number")
    return int(width * scale)
