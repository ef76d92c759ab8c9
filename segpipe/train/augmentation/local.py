"""Changes of intensities that differ from place to place: drawn as a list for each sample, applied one by one.

Source:
    nnunetv2's trainer DA5 and the transforms of batchgeneratorsv2 0.3.6. They come after all others, where DA5 filters
    by medians first; in patches that are turned in-plane only, planes are filtered and sharpened each by itself.
"""

# Z Y X voxels of one channel.
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor
from torch.nn import functional

from segpipe.core.choices import functions_for
from segpipe.core.grid import ZYX
from segpipe.plan.augmentation import LOCAL_CHANGES, Augmentation

_CHANNEL_SHARE = 0.5  # of the channels of a chosen sample
_BLANK_PARTS = (10, 3)  # smallest and largest edge of a blank box, as divisors of the patch's
_HILL_PARTS = 6  # smallest width of a hill, as a divisor of the patch's edge; the largest is the edge
_HILL_PLACES = (-0.5, 1.5)  # its middle, as a share of the edge: it may lie outside
_MIN_EXTENT = 1e-8
_MOST_NUMBERS = 1 << 24  # of the windows whose medians are looked for together

Hill = tuple[tuple[float, float], ...]  # middle and width along each axis, voxels


@dataclass(frozen=True)
class LocalChange:
    """One of `LOCAL_CHANGES`, done to a channel.

    Args:
        name: Of the change.
        channel: Which.
        amount: Voxels of the median's window along an axis; what is added; a gamma; a share of the Laplacian.
        start_zyx, stop_zyx: Of a blank box, else empty.
        hill: Where the amount is reached and how it fades, else empty.
    """

    name: str
    channel: int
    amount: float = 0.0
    start_zyx: tuple[int, ...] = ()
    stop_zyx: tuple[int, ...] = ()
    hill: Hill = ()


def draw_local(
    augmentation: Augmentation, patch_zyx: ZYX, shape: tuple[int, int], generator: np.random.Generator
) -> tuple[tuple[LocalChange, ...], ...]:
    """Draw what is done to the (samples, channels), in order; `generator` is the source of all randomness."""
    # what never happens draws no number, so a new row of the table leaves the draws of the others as they were
    chances = {name: chance for name in LOCAL_CHANGES if (chance := getattr(augmentation, f"p_{name}"))}
    return tuple(
        tuple(
            change
            for name, chance in chances.items()
            if generator.random() < chance
            for channel in np.flatnonzero(generator.random(shape[1]) < _CHANNEL_SHARE).tolist()
            for change in _DRAWERS.get(name, _draw_nothing)(augmentation, name, channel, patch_zyx, generator)
        )
        for _ in range(shape[0])
    )


def alter_locally_(images_BCZYX: Tensor, changes: Sequence[Sequence[LocalChange]], *, keep_planes: bool) -> None:
    """Alter images in place; `keep_planes`: each plane is filtered by itself."""
    for image_CZYX, of_sample in zip(images_BCZYX, changes, strict=False):
        for change in of_sample:
            CHANGE[change.name](image_CZYX[change.channel], change, keep_planes)


def hill_ZYX(hill: Hill, shape: Sequence[int], device: torch.device) -> Tensor:
    """A product of normal distributions, stretched to 0 … 1; 0 where it is flat."""
    sides = []
    for (middle, width), edge in zip(hill, shape, strict=True):
        ends = (np.arange(edge + 1) - 0.5 - middle) / width
        sides.append(torch.from_numpy(np.diff(ndtr(ends)).astype(np.float32)).to(device, non_blocking=True))
    result = sides[0][:, None, None] * sides[1][:, None] * sides[2]
    result = result - result.min()
    return result / result.max().clamp_min(torch.finfo(torch.float32).tiny)


def _draw_hill(patch_zyx: ZYX, generator: np.random.Generator) -> Hill:
    return tuple(
        (
            float(generator.uniform(*_HILL_PLACES)) * edge,
            math.exp(generator.uniform(math.log(max(1, edge // _HILL_PARTS)), math.log(edge))),
        )
        for edge in patch_zyx
    )


def _draw_nothing(_: Augmentation, name: str, channel: int, *__: object) -> list[LocalChange]:
    return [LocalChange(name, channel)]


def _draw_size(
    augmentation: Augmentation, name: str, channel: int, _: ZYX, generator: np.random.Generator
) -> list[LocalChange]:
    low, high = augmentation.median_vox
    return [LocalChange(name, channel, float(generator.integers(low, high + 1)))]


def _draw_shift(
    augmentation: Augmentation, name: str, channel: int, _: ZYX, generator: np.random.Generator
) -> list[LocalChange]:
    return [LocalChange(name, channel, float(generator.normal(0, augmentation.shift_std)))]


def _draw_boxes(
    augmentation: Augmentation, name: str, channel: int, patch_zyx: ZYX, generator: np.random.Generator
) -> list[LocalChange]:
    boxes = []
    for _ in range(int(generator.integers(1, augmentation.blank_boxes + 1))):
        least = [max(1, edge // _BLANK_PARTS[0]) for edge in patch_zyx]
        most = [max(n + 1, edge // _BLANK_PARTS[1]) for n, edge in zip(least, patch_zyx, strict=True)]
        sizes = generator.integers(least, most)
        start = generator.integers(0, np.array(patch_zyx) - sizes + 1)
        boxes.append(LocalChange(name, channel, 0.0, tuple(start.tolist()), tuple((start + sizes).tolist())))
    return boxes


def _draw_gradient(
    augmentation: Augmentation, name: str, channel: int, patch_zyx: ZYX, generator: np.random.Generator
) -> list[LocalChange]:
    strength = float(generator.uniform(*augmentation.gradient)) * (1 if generator.random() < 0.5 else -1)
    return [LocalChange(name, channel, strength, hill=_draw_hill(patch_zyx, generator))]


def _draw_gamma(
    augmentation: Augmentation, name: str, channel: int, patch_zyx: ZYX, generator: np.random.Generator
) -> list[LocalChange]:
    limits = augmentation.local_gamma_below if generator.random() < 0.5 else augmentation.local_gamma_above
    return [LocalChange(name, channel, float(generator.uniform(*limits)), hill=_draw_hill(patch_zyx, generator))]


def _draw_sharpening(
    augmentation: Augmentation, name: str, channel: int, _: ZYX, generator: np.random.Generator
) -> list[LocalChange]:
    return [LocalChange(name, channel, float(generator.uniform(*augmentation.sharpening)))]


def _median_(x_ZYX: Tensor, change: LocalChange, keep_planes: bool) -> None:
    """The upper median of a window, the image continued by its mirror image, as scipy's median_filter."""
    size = int(change.amount)
    sizes = [1 if keep_planes else size, size, size]
    wide = x_ZYX
    for axis, n in enumerate(sizes):
        places = np.arange(-(n // 2), x_ZYX.shape[axis] + (n - 1) // 2) % (2 * x_ZYX.shape[axis])
        places = np.minimum(places, 2 * x_ZYX.shape[axis] - 1 - places)
        wide = wide.index_select(axis, torch.from_numpy(places).to(x_ZYX.device, non_blocking=True))
    windows = wide.unfold(0, sizes[0], 1).unfold(1, sizes[1], 1).unfold(2, sizes[2], 1)
    n_window = math.prod(sizes)
    n_planes = max(1, _MOST_NUMBERS // (n_window * x_ZYX[0].numel()))
    result = [part.flatten(3).kthvalue(n_window // 2 + 1).values for part in torch.split(windows, n_planes)]
    x_ZYX.copy_(torch.cat(result))


def _shift_(x_ZYX: Tensor, change: LocalChange, _: bool) -> None:
    x_ZYX.add_(change.amount)


def _blank_(x_ZYX: Tensor, change: LocalChange, _: bool) -> None:
    box = x_ZYX[tuple(itertools.starmap(slice, zip(change.start_zyx, change.stop_zyx, strict=True)))]
    box.copy_(box.mean().expand_as(box))


def _add_hill_(x_ZYX: Tensor, change: LocalChange, _: bool) -> None:
    x_ZYX.add_(hill_ZYX(change.hill, x_ZYX.shape, x_ZYX.device), alpha=change.amount)


def _gamma_(x_ZYX: Tensor, change: LocalChange, _: bool) -> None:
    """x^gamma on the channel's range where the hill is 1, x where it is 0, and between in between."""
    low, high = x_ZYX.aminmax()
    extent = (high - low).clamp_min(_MIN_EXTENT)
    unit = (x_ZYX - low).div_(extent)
    x_ZYX.copy_(unit.lerp(unit.pow(change.amount), hill_ZYX(change.hill, unit.shape, unit.device)) * extent + low)


def _sharpen_(x_ZYX: Tensor, change: LocalChange, keep_planes: bool) -> None:
    """Move values away from the mean of the neighbours over faces; the border continues beyond the image."""
    wide = functional.pad(x_ZYX[None, None], (1,) * 6, mode="replicate")[0, 0]
    laplacian = torch.zeros_like(x_ZYX)
    middle = [slice(1, -1)] * 3
    for axis in range(1 if keep_planes else 0, 3):
        for side in (slice(0, -2), slice(2, None)):
            beside = wide[tuple(side if other == axis else middle[other] for other in range(3))]
            laplacian.add_(x_ZYX - beside)
    x_ZYX.add_(laplacian, alpha=change.amount)


_Draw = Callable[[Augmentation, str, int, ZYX, np.random.Generator], list[LocalChange]]
_Apply = Callable[[Tensor, LocalChange, bool], None]
_DRAWERS: dict[str, _Draw] = {  # of the changes that need numbers
    "median": _draw_size,
    "shift": _draw_shift,
    "blank": _draw_boxes,
    "gradient": _draw_gradient,
    "local_gamma": _draw_gamma,
    "sharpening": _draw_sharpening,
}
_CHANGERS: dict[str, _Apply] = {
    "median": _median_,
    "shift": _shift_,
    "blank": _blank_,
    "gradient": _add_hill_,
    "local_gamma": _gamma_,
    "sharpening": _sharpen_,
}
CHANGE = functions_for(LOCAL_CHANGES, _CHANGERS, "LOCAL_CHANGES of plan/augmentation.py")
