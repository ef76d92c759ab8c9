"""Run the networks over an image: overlapping windows, weighted by a Gaussian, mirrored, averaged.

Windows move along the first axis last, so rows behind the current window are final: they leave at once, and no more
than a patch of them is held.
"""

# B batch, O outputs, C channels, Z Y X voxels.
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from math import prod
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from segpipe.core.errors import DataError
from segpipe.core.grid import ZYX
from segpipe.prepare.upload import upload
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
            # a list as an index would be copied to a GPU, which waits for it
            channels_BCZYX = torch.stack([x_BCZYX[:, n] for n in mirror.inputs], 1) if mirror.inputs else x_BCZYX
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
    edges = zip(padded.image_czyx.shape[1:], sliding.patch_zyx, strict=True)
    shares = [window_shares(n, p) for n, p in edges]
    starts: list[ZYX] = [(z, y, x) for z, y, x in product(*shares)]
    sums = _Sums(padded.image_czyx.shape[1:], shares, sliding.sum_on or device)
    known: Tensor | None = None  # logits of the last window of one value
    for batch in _one_ahead(_batches(padded, starts, sliding, device), device):
        reused = known  # of earlier batches; this one may replace what is known
        computed = deque[Tensor]()
        if batch.x_BCZYX is not None:
            with torch.autocast(device.type, sliding.precision, enabled=sliding.precision != torch.float32):
                computed.extend(mirrored_mean(networks, batch.x_BCZYX, sliding.mirrors).unbind())
        for start, is_known, is_new in zip(batch.starts, batch.is_known, batch.is_new, strict=True):
            logits_OZYX = reused if is_known else computed.popleft()
            assert logits_OZYX is not None
            if is_new:
                known = logits_OZYX.clone()
            for first, block_NOYX in sums.release(start[0]):  # windows move along Z last: no later one adds to it
                yield from padded.crop(first, block_NOYX)
            sums.add(logits_OZYX, start)
            del logits_OZYX  # of all outputs they are large: gone before the next window is computed
            if sliding.on_window is not None:
                sliding.on_window()
    for first, block_NOYX in sums.release(padded.image_czyx.shape[1]):
        yield from padded.crop(first, block_NOYX)


@dataclass(frozen=True, eq=False)
class _WindowBatch:
    """Windows that are computed together.

    Args:
        starts: Of each.
        is_known: Whether its logits are those of the last window of one value in earlier batches.
        is_new: Whether its logits are kept for later batches, since it holds one value that is not known.
        x_BCZYX: What the network is given of the others, on its device; None if there are none.
    """

    starts: Sequence[ZYX]
    is_known: Sequence[bool]
    is_new: Sequence[bool]
    x_BCZYX: Tensor | None


def _batches(padded: _Padded, starts: Sequence[ZYX], sliding: Sliding, device: torch.device) -> Iterator[_WindowBatch]:
    image_CZYX = _near(padded.image_czyx, device)
    known: bytes | None = None
    for n in range(0, len(starts), sliding.n_batch):
        batch = starts[n : n + sliding.n_batch]
        values = [_one_value(padded.image_czyx[padded.place(start)]) for start in batch]
        is_known = [value is not None and value == known for value in values]
        is_new = [value is not None and not skip for value, skip in zip(values, is_known, strict=True)]
        fresh = [image_CZYX[padded.place(start)] for start, skip in zip(batch, is_known, strict=True) if not skip]
        yield _WindowBatch(batch, is_known, is_new, _network_input(fresh, sliding.n_guides, device) if fresh else None)
        known = next((value for value, new in zip(values[::-1], is_new[::-1], strict=True) if new), known)


def _one_ahead(batches: Iterator[_WindowBatch], device: torch.device) -> Iterator[_WindowBatch]:
    """Make a batch before the one in front of it is used; its upload is then asked for before a GPU is waited for.

    On a CPU, where a batch is no copy that takes time, each is made when it is used.
    """
    coming = deque[_WindowBatch]()
    for batch in batches:
        coming.append(batch)
        if len(coming) > (device.type == "cuda"):
            yield coming.popleft()
    yield from coming


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

    def place(self, start_zyx: ZYX) -> tuple[slice, slice, slice, slice]:
        """The place of a patch in (C, Z, Y, X)."""
        z, y, x = (slice(s, s + p) for s, p in zip(start_zyx, self.patch_zyx, strict=True))
        return slice(None), z, y, x

    def crop(self, first: int, block_NOYX: Tensor) -> Iterator[Tensor]:
        """The part of rows from `first` on that is the image's, row by row; nothing of rows that are padding.

        Raises:
            DataError: If a logit is not finite.
        """
        if not block_NOYX.sum().isfinite():  # NaN and infinity survive every sum; a GPU is waited for once a block
            raise DataError(
                f"slice {max(first - self.z.start, 0)} of {self.z.stop - self.z.start}: the network's output is not "
                "finite. Look for odd values in the image, or predict in full precision "
                "(`training.precision: fp32` in the model's plan)."
            )
        for z, row_OYX in enumerate(block_NOYX, first):
            if self.z.start <= z < self.z.stop:
                yield row_OYX[:, self.y, self.x]


class _Sums:
    """Weighted logits of windows, added up in blocks of rows that no later window reaches when they are given away.

    On a CPU a block is one row, which takes the least memory. On a GPU it is all rows between the ends of windows, so
    that a window is added in a few operations and not in some for each row.

    Args:
        size_zyx: Of the padded image.
        shares_zyx: `window_shares` along each axis.
        device: Where they are added up.
    """

    def __init__(
        self, size_zyx: Sequence[int], shares_zyx: Sequence[Mapping[int, NDArray[np.float32]]], device: torch.device
    ) -> None:
        n_rows, *self.plane = size_zyx
        self.shares_zyx, self.device = shares_zyx, device
        ends = {end for start, share in shares_zyx[0].items() for end in (start, start + len(share))}
        bounds = sorted(ends) if device.type == "cuda" else range(n_rows + 1)
        self.coming = deque(pairwise(bounds))  # first row and end of blocks that no window has reached
        self.blocks = deque[tuple[int, Tensor]]()  # first row, (N, O, Y, X)
        self.on_device: dict[torch.device, list[dict[int, Tensor]]] = {}

    def add(self, logits_OZYX: Tensor, start_zyx: ZYX) -> None:
        """Add a window's logits, each with its share, to the rows where it lies: the oldest that are held."""
        first, y, x = start_zyx
        _, n_z, n_y, n_x = logits_OZYX.shape
        share_Z, share_Y, share_X = self._shares(start_zyx, logits_OZYX.device)
        share_YX = share_Y[:, None] * share_X
        while self.coming and self.coming[0][0] < first + n_z:
            start, stop = self.coming.popleft()
            shape = (stop - start, len(logits_OZYX), *self.plane)
            self.blocks.append((start, torch.zeros(shape, device=self.device)))
        for start, block_NOYX in self.blocks:
            rows = slice(start - first, start - first + len(block_NOYX))
            weighted_NOYX = logits_OZYX.transpose(0, 1)[rows] * (share_Z[rows, None, None, None] * share_YX)
            block_NOYX[..., y : y + n_y, x : x + n_x].add_(weighted_NOYX.to(self.device))

    def release(self, before: int) -> Iterator[tuple[int, Tensor]]:
        """Give away the blocks of rows before one, each with the number of its first row."""
        while self.blocks and self.blocks[0][0] < before:
            yield self.blocks.popleft()

    def _shares(self, start_zyx: ZYX, device: torch.device) -> list[Tensor]:
        """Shares of a window along each axis, copied to a device once."""
        if device not in self.on_device:
            self.on_device[device] = [
                {start: upload(share, device) for start, share in along.items()} for along in self.shares_zyx
            ]
        return [along[start] for along, start in zip(self.on_device[device], start_zyx, strict=True)]


_IMAGE_SHARE = 0.1  # of what is free on a GPU, for an image to lie there as a whole


def _near(image_czyx: Image, device: torch.device) -> Tensor:
    """(C, Z, Y, X) on a GPU that has room for it, else in memory as it is."""
    image_CZYX = torch.from_numpy(np.ascontiguousarray(image_czyx))
    if device.type == "cuda" and image_CZYX.nbytes < _IMAGE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return image_CZYX.to(device)  # waits once; to lock the pages of a whole image takes longer
    return image_CZYX


def _one_value(window_czyx: Image) -> bytes | None:
    """The value of each channel if none of them varies, else None."""
    corner = window_czyx[:, :1, :1, :1]
    if (window_czyx[:, -1:, -1:, -1:] != corner).any() or (window_czyx != corner).any():  # most vary at once
        return None
    return corner.tobytes()


def _network_input(windows: Sequence[Tensor], n_guides: int, device: torch.device) -> Tensor:
    """(B, C, Z, Y, X) on the device; guides become one channel for each label."""
    x_BCZYX = torch.stack(list(windows))
    if device.type == "cuda" and not x_BCZYX.is_cuda:
        x_BCZYX = x_BCZYX.pin_memory()  # from there the copy runs beside what the GPU computes
    x_BCZYX = x_BCZYX.to(device, non_blocking=True)
    return add_guides(x_BCZYX[:, :-1], x_BCZYX[:, -1], n_guides) if n_guides else x_BCZYX
