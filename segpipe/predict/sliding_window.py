"""Sliding-window prediction: overlapping patches, weighted by a Gaussian, mirrored, averaged over networks.

Windows move along the first axis last, so what lies behind the current one is final: rows leave as soon as they are,
and no more than a patch of them is held.
"""

# B batch, O outputs, C channels, Z Y X voxels.
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import prod
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from segpipe.core.errors import DataError
from segpipe.core.grid import ZYX
from segpipe.train.cascade import with_guides

_STEP = 0.5  # of a patch, at most
_SIGMA = 1 / 8  # of a patch

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Mirror:
    """One mirrored copy.

    Args:
        axes: Of (Z, Y, X), flipped.
        outputs: Where in the copy each output's structure is found; empty: in its own place.
        inputs: Which channel of the image each channel of the copy is; empty: its own.
    """

    axes: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sliding:
    """How windows are computed and added up.

    Args:
        patch_zyx: Window.
        mirrors: Mirrored copies whose mean is taken.
        precision: For autocast; float32 for none.
        n_batch: Windows in one forward pass.
        sum_on: Where windows are added up; None for the networks' device.
        n_guides: Labels that the last channel of the image holds instead of intensities, to guide a cascade; 0: none.
        on_window: Called after each window.
    """

    patch_zyx: ZYX
    mirrors: Sequence[Mirror] = (Mirror(),)
    precision: torch.dtype = torch.float32
    n_batch: int = 1
    sum_on: torch.device | None = None
    n_guides: int = 0
    on_window: Callable[[], None] | None = None


def window_starts(n_voxels: int, patch: int) -> list[int]:
    """Starts of windows along an axis: evenly spread, at most half a patch apart, the last one touching the end.

    Example:
        >>> window_starts(100, 40)
        [0, 20, 40, 60]

    Source:
        nnU-Net's compute_steps_for_sliding_window; a patch of one voxel moves by one, as nnU-Net's in 2D does.
    """
    if n_voxels <= patch:
        return [0]
    if patch == 1:
        return list(range(n_voxels))
    n_windows = int(np.ceil((n_voxels - patch) / (patch * _STEP))) + 1
    return [round(i * (n_voxels - patch) / (n_windows - 1)) for i in range(n_windows)]


def n_windows(size_zyx: Sequence[int], patch_zyx: Sequence[int]) -> int:
    """Windows of an image."""
    return prod(len(window_starts(n, p)) for n, p in zip(size_zyx, patch_zyx, strict=True))


def gaussian_line(patch: int) -> NDArray[np.float64]:
    """Weights along one axis of a window: a Gaussian of an eighth of it about its centre, at most 1, above 0.

    Source:
        nnU-Net's compute_gaussian, whose weights are the products of three such lines.
    """
    line = np.zeros(patch)
    line[patch // 2] = 1
    line = ndimage.gaussian_filter1d(line, patch * _SIGMA, mode="constant")
    return np.maximum(line, line[line > 0].min()) / line.max()


def window_shares(n_voxels: int, patch: int) -> dict[int, NDArray[np.float32]]:
    """By start of each window its share in the mean, (patch,); at every voxel the shares add up to 1.

    Windows lie on a grid and weights are products along the axes, so their sum is one too: sharing along each axis
    is the same as dividing the weighted sum of all windows by the sum of their weights.
    """
    line, total = gaussian_line(patch), np.zeros(n_voxels)
    for start in window_starts(n_voxels, patch):
        total[start : start + patch] += line
    return {start: (line / total[start : start + patch]).astype(np.float32) for start in window_starts(n_voxels, patch)}


def mirrors_of(
    mirror_axes: Sequence[int],
    patch_zyx: ZYX,
    swapped: Mapping[int, Sequence[int]] = MappingProxyType({}),
    swapped_inputs: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> list[Mirror]:
    """Every set of axes to flip, the empty one first; axes of one voxel are left out.

    Args:
        mirror_axes: That may be flipped.
        patch_zyx: Window.
        swapped: By axis, the output in which each output's structure is found when it is flipped: left and right.
        swapped_inputs: The same for the channels of the image.

    Example:
        >>> [mirror.axes for mirror in mirrors_of((0, 2), (8, 8, 8))]
        [(), (0,), (2,), (0, 2)]
    """
    axes = [a for a in mirror_axes if patch_zyx[a] > 1]
    chosen = (set_of for n in range(len(axes) + 1) for set_of in combinations(axes, n))

    def of_sides(axes: Sequence[int], by_axis: Mapping[int, Sequence[int]]) -> tuple[int, ...]:
        return next((tuple(by_axis[axis]) for axis in axes if axis in by_axis), ())

    return [Mirror(a, of_sides(a, swapped), of_sides(a, swapped_inputs)) for a in chosen]


def mirrored_mean(network: nn.Module, x_BCZYX: Tensor, mirrors: Sequence[Mirror]) -> Tensor:
    """Mean logits (B, O, Z, Y, X) float32 over mirrored copies of a patch."""
    total_BOZYX: Tensor | None = None
    for mirror in mirrors:
        dims = [axis + 2 for axis in mirror.axes]
        channels_BCZYX = x_BCZYX[:, list(mirror.inputs)] if mirror.inputs else x_BCZYX
        logits_BOZYX = network(channels_BCZYX.flip(dims))[0]
        if total_BOZYX is None:
            total_BOZYX = torch.zeros_like(logits_BOZYX, dtype=torch.float32)
        for output, place in zip(total_BOZYX.unbind(1), mirror.outputs or range(logits_BOZYX.shape[1]), strict=True):
            output.add_(logits_BOZYX[:, place].flip([dim - 1 for dim in dims]))  # a copy of one of them, not of all
        del logits_BOZYX  # of all outputs they are large: gone before the network runs again
    assert total_BOZYX is not None
    return total_BOZYX.div_(len(mirrors))


@torch.inference_mode()
def sliding_rows(networks: Sequence[nn.Module], image_czyx: Image, sliding: Sliding) -> Iterator[Tensor]:
    """Logits of a whole image row by row, averaged over networks.

    Args:
        networks: In evaluation mode, on one device.
        image_czyx: (C, Z, Y, X) prepared; smaller than the patch is padded with 0.
        sliding: How.

    Yields:
        (O, Y, X) float32 on `sum_on` for each z in order. A constant network gives constant rows, whatever the
        window. At most a patch of rows is held, whatever the image's length.

    Raises:
        DataError: If a logit is not finite.
    """
    size = image_czyx.shape[1:]
    spare = [max(p - n, 0) for p, n in zip(sliding.patch_zyx, size, strict=True)]
    image = np.pad(image_czyx, [(0, 0), *((s // 2, s - s // 2) for s in spare)]) if any(spare) else image_czyx
    (z0, z1), *plane = ((s // 2, s // 2 + n) for s, n in zip(spare, size, strict=True))
    for z, row in enumerate(_padded_rows(networks, image, sliding)):
        if not z0 <= z < z1:
            continue
        if not row.sum().isfinite():  # NaN and infinity survive every sum
            raise DataError(
                f"slice {z - z0} of {size[0]}: the network's output is not finite. Look for odd values in the image "
                "or predict in full precision (`training.precision: fp32` in the model's plan)."
            )
        yield row[:, slice(*plane[0]), slice(*plane[1])]


def _padded_rows(networks: Sequence[nn.Module], image_czyx: Image, sliding: Sliding) -> Iterator[Tensor]:
    """Rows of an image that is at least as large as the patch."""
    _, n_rows, n_lines, n_columns = image_czyx.shape
    edges = zip((n_rows, n_lines, n_columns), sliding.patch_zyx, strict=True)
    shares_z, shares_y, shares_x = (window_shares(n, p) for n, p in edges)
    rows, first = deque[Tensor](), 0
    for (z, y, x), logits_OZYX in _windows(networks, image_czyx, sliding, list(product(shares_z, shares_y, shares_x))):
        for _ in range(z - first):
            yield rows.popleft()
        first = z
        while len(rows) < sliding.patch_zyx[0]:
            shape, device = (len(logits_OZYX), n_lines, n_columns), sliding.sum_on or logits_OZYX.device
            rows.append(torch.zeros(shape, device=device))
        _add(rows, logits_OZYX, (y, x), shares_z[z], np.outer(shares_y[y], shares_x[x]))
        del logits_OZYX  # of all outputs they are large: gone before the next window is computed
        if sliding.on_window is not None:
            sliding.on_window()
    yield from rows


def _add(
    rows: Iterable[Tensor],
    logits_OZYX: Tensor,
    start_yx: tuple[int, int],
    share_z: NDArray[np.float32],
    share_yx: NDArray[np.float32],
) -> None:
    """Add a window's logits, each with its share, to the rows where it lies."""
    (y, x), (n_y, n_x) = start_yx, share_yx.shape
    share_YX = torch.from_numpy(share_yx).to(logits_OZYX.device)
    for row, share, logits_OYX in zip(rows, share_z.tolist(), logits_OZYX.unbind(1), strict=True):
        row[:, y : y + n_y, x : x + n_x].add_((logits_OYX * (share_YX * share)).to(row.device))


def _windows(
    networks: Sequence[nn.Module], image_czyx: Image, sliding: Sliding, starts: Sequence[ZYX]
) -> Iterator[tuple[ZYX, Tensor]]:
    """Start and logits (O, Z, Y, X) of each window.

    A window that holds one value throughout is computed once and its logits are taken again for the next such
    window: the same input has the same output. Air that was clipped is such a value.
    """
    known: tuple[bytes, Tensor] | None = None
    for first in range(0, len(starts), sliding.n_batch):
        batch = starts[first : first + sliding.n_batch]
        windows = [_window(image_czyx, start, sliding.patch_zyx) for start in batch]
        values = [_one_value(window) for window in windows]
        is_known = [known is not None and value == known[0] for value in values]
        fresh = [window for window, skip in zip(windows, is_known, strict=True) if not skip]
        computed = deque(_mean_logits(networks, fresh, sliding).unbind() if fresh else ())
        for start, value, skip in zip(batch, values, is_known, strict=True):
            if skip:
                assert known is not None
                yield start, known[1]
                continue
            if value is not None:
                known = (value, computed[0].clone())
            yield start, computed.popleft()


def _window(image_czyx: Image, start_zyx: ZYX, patch_zyx: ZYX) -> Image:
    z, y, x = (slice(s, s + p) for s, p in zip(start_zyx, patch_zyx, strict=True))
    return image_czyx[:, z, y, x]


def _one_value(window_czyx: Image) -> bytes | None:
    """The value of each channel if none of them varies, else None."""
    corner = window_czyx[:, :1, :1, :1]
    if (window_czyx[:, -1:, -1:, -1:] != corner).any() or (window_czyx != corner).any():  # most vary at once
        return None
    return corner.tobytes()


def _mean_logits(networks: Sequence[nn.Module], windows: Sequence[Image], sliding: Sliding) -> Tensor:
    """(B, O, Z, Y, X) float32 on the networks' device, mean over networks and mirrored copies."""
    device = next(networks[0].parameters()).device
    x_BCZYX = torch.from_numpy(np.stack(windows)).to(device)
    if sliding.n_guides:
        x_BCZYX = with_guides(x_BCZYX[:, :-1], x_BCZYX[:, -1], sliding.n_guides)
    total: Tensor | None = None
    with torch.autocast(device.type, sliding.precision, enabled=sliding.precision != torch.float32):
        for network in networks:
            logits = mirrored_mean(network, x_BCZYX, sliding.mirrors)
            total = logits if total is None else total.add_(logits)
    assert total is not None
    return total.div_(len(networks))
