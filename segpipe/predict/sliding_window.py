"""Run the networks over an image: overlapping windows, weighted by a Gaussian, mirrored, averaged.

Windows move along the first axis last, so rows behind the current window are final: they leave at once, and no more
than a patch of them is held.
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
from segpipe.train.cascade import add_guides

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
    """Settings of computing windows and adding them up.

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

    Windows form a grid and weights are products along the axes, so their sum is one too: sharing along each axis
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


def mirrored_mean(networks: Sequence[nn.Module], x_BCZYX: Tensor, mirrors: Sequence[Mirror]) -> Tensor:
    """Run the networks: mean logits (B, O, Z, Y, X) float32 over them and over mirrored copies of some windows."""
    total_BOZYX: Tensor | None = None
    for network in networks:
        of_network_BOZYX: Tensor | None = None
        for mirror in mirrors:
            dims = [axis + 2 for axis in mirror.axes]
            channels_BCZYX = x_BCZYX[:, list(mirror.inputs)] if mirror.inputs else x_BCZYX
            logits_BOZYX = network(channels_BCZYX.flip(dims))[0]
            if of_network_BOZYX is None:
                of_network_BOZYX = torch.zeros_like(logits_BOZYX, dtype=torch.float32)
            places = mirror.outputs or range(logits_BOZYX.shape[1])
            for output, place in zip(of_network_BOZYX.unbind(1), places, strict=True):
                output.add_(logits_BOZYX[:, place].flip([dim - 1 for dim in dims]))  # copies one output, not all
            del logits_BOZYX  # of all outputs they are large: gone before the network runs again
        assert of_network_BOZYX is not None
        of_network_BOZYX.div_(len(mirrors))
        total_BOZYX = of_network_BOZYX if total_BOZYX is None else total_BOZYX.add_(of_network_BOZYX)
    assert total_BOZYX is not None
    return total_BOZYX.div_(len(networks))


@torch.inference_mode()
def sliding_rows(networks: Sequence[nn.Module], image_czyx: Image, sliding: Sliding) -> Iterator[Tensor]:
    """Logits of a whole image row by row, averaged over networks.

    A window that holds one value throughout, such as clipped air, is computed once; the next window of that value gets
    the same logits, since the same input has the same output.

    Args:
        networks: In evaluation mode, on one device.
        image_czyx: (C, Z, Y, X) prepared; smaller than the patch is padded with 0.
        sliding: How.

    Yields:
        (O, Y, X) float32 on `sum_on` for each z in order. A constant network gives constant rows for any
        window. At most a patch of rows is held, however long the image is.

    Raises:
        DataError: If a logit is not finite.
    """
    device = next(networks[0].parameters()).device
    padded = _Padded(image_czyx, sliding.patch_zyx)
    n_rows, n_lines, n_columns = padded.image_czyx.shape[1:]
    edges = zip((n_rows, n_lines, n_columns), sliding.patch_zyx, strict=True)
    shares_z, shares_y, shares_x = (window_shares(n, p) for n, p in edges)
    starts = list(product(shares_z, shares_y, shares_x))
    rows, first = deque[Tensor](), 0  # rows that a window may still add to; the first of them is row `first`
    known: tuple[bytes, Tensor] | None = None  # value and logits of the last window of one value
    for n in range(0, len(starts), sliding.n_batch):
        batch = starts[n : n + sliding.n_batch]
        windows = [padded.window(start) for start in batch]
        values = [_one_value(window) for window in windows]
        reused = known  # of earlier batches; this one may replace what is known
        is_known = [reused is not None and value == reused[0] for value in values]
        fresh = [window for window, skip in zip(windows, is_known, strict=True) if not skip]
        computed = deque[Tensor]()
        if fresh:
            x_BCZYX = _network_input(fresh, sliding.n_guides, device)
            with torch.autocast(device.type, sliding.precision, enabled=sliding.precision != torch.float32):
                computed.extend(mirrored_mean(networks, x_BCZYX, sliding.mirrors).unbind())
            del x_BCZYX
        for (z, y, x), value, skip in zip(batch, values, is_known, strict=True):
            if skip:
                assert reused is not None
                logits_OZYX = reused[1]
            else:
                logits_OZYX = computed.popleft()
                known = (value, logits_OZYX.clone()) if value is not None else known
            for _ in range(z - first):  # windows move along Z last, so no later one reaches these rows
                yield from padded.crop(first, rows.popleft())
                first += 1
            while len(rows) < sliding.patch_zyx[0]:
                shape = (len(logits_OZYX), n_lines, n_columns)
                rows.append(torch.zeros(shape, device=sliding.sum_on or device))
            _add(rows, logits_OZYX, (y, x), shares_z[z], np.outer(shares_y[y], shares_x[x]))
            del logits_OZYX  # of all outputs they are large: gone before the next window is computed
            if sliding.on_window is not None:
                sliding.on_window()
    for z, row in enumerate(rows, first):
        yield from padded.crop(z, row)


class _Padded:
    """An image that is at least as large as the patch, and where its own rows are in it.

    Args:
        image_czyx: (C, Z, Y, X); what it lacks of a patch is added half before and half after it, as 0.
        patch_zyx: Window.
    """

    def __init__(self, image_czyx: Image, patch_zyx: ZYX) -> None:
        size = image_czyx.shape[1:]
        spare = [max(p - n, 0) for p, n in zip(patch_zyx, size, strict=True)]
        widths = [(0, 0), *((s // 2, s - s // 2) for s in spare)]
        self.image_czyx = np.pad(image_czyx, widths) if any(spare) else image_czyx
        self.patch_zyx = patch_zyx
        self.z, self.y, self.x = (slice(s // 2, s // 2 + n) for s, n in zip(spare, size, strict=True))

    def window(self, start_zyx: ZYX) -> Image:
        """A patch: a view."""
        z, y, x = (slice(s, s + p) for s, p in zip(start_zyx, self.patch_zyx, strict=True))
        return self.image_czyx[:, z, y, x]

    def crop(self, z: int, row_OYX: Tensor) -> Iterator[Tensor]:
        """The part of a row that is the image's; nothing if the row is padding.

        Raises:
            DataError: If a logit is not finite.
        """
        if not self.z.start <= z < self.z.stop:
            return
        if not row_OYX.sum().isfinite():  # NaN and infinity survive every sum
            raise DataError(
                f"slice {z - self.z.start} of {self.z.stop - self.z.start}: the network's output is not finite. Look "
                "for odd values in the image, or predict in full precision (`training.precision: fp32` in the model's "
                "plan)."
            )
        yield row_OYX[:, self.y, self.x]


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


def _one_value(window_czyx: Image) -> bytes | None:
    """The value of each channel if none of them varies, else None."""
    corner = window_czyx[:, :1, :1, :1]
    if (window_czyx[:, -1:, -1:, -1:] != corner).any() or (window_czyx != corner).any():  # most vary at once
        return None
    return corner.tobytes()


def _network_input(windows: Sequence[Image], n_guides: int, device: torch.device) -> Tensor:
    """(B, C, Z, Y, X) on the device; guides become one channel for each label."""
    x_BCZYX = torch.from_numpy(np.stack(windows)).to(device)
    return add_guides(x_BCZYX[:, :-1], x_BCZYX[:, -1], n_guides) if n_guides else x_BCZYX
