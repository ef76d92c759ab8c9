"""Bring a network's logits back to the grid of the image, slab by slab along the first axis.

Rows of logits come in one by one, and a slab of the image is a mixture of the few rows beside it. Nothing of the size
outputs × volume exists on either grid, unless probabilities are requested.
"""

# O outputs, N rows of a slab, Z Y X voxels.
from __future__ import annotations

import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.core.files import disk_fault, whole_file
from segpipe.core.grid import ZYX, Box
from segpipe.core.labels import LabelSet
from segpipe.prepare.case import Trace
from segpipe.prepare.resample import LABEL_ORDER, axis_matrix, linear_places, nearest_places, orders_for, resample
from segpipe.prepare.upload import upload

# O outputs, N rows of a slab, Y X voxels.

_DTYPE = np.dtype(np.float16)


class ProbabilitySpool:
    """A nameless file of float16 (outputs, rows, Y, X), of the turned and cropped image; gone when it is closed.

    The final file is compressed and holds one output after the other, but slabs bring some rows of all outputs. Until
    it is written, the spool takes two bytes of disk for each voxel and output.

    Args:
        folder: On whose disk it lies.
        trace: How the case was prepared.
        labels: The structures.

    Raises:
        ResourceError, SetupError: If it cannot be made.
    """

    def __init__(self, folder: Path, trace: Trace, labels: LabelSet) -> None:
        self.folder, self.trace, self.labels = folder, trace, labels
        try:
            self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives until the file is written)
        except OSError as fault:
            raise disk_fault(fault, folder) from fault

    def add(self, slab: Slab, shares_ONYX: NDArray[np.float16]) -> None:
        """Keep what a slab brings.

        Raises:
            OSError: If the disk is full.
        """
        n_rows, *plane = self.trace.box.shape_zyx
        row_bytes = int(np.prod(plane)) * _DTYPE.itemsize
        for output, shares_NYX in enumerate(shares_ONYX):
            self._file.seek((output * n_rows + slab.start) * row_bytes)
            self._file.write(np.ascontiguousarray(shares_NYX))
        self._file.flush()

    def write(self, path: Path) -> None:
        """Write `probabilities`, float16 (outputs, Z, Y, X) on the image's grid, compressed, as numpy's `.npz`.

        Raises:
            ResourceError, SetupError: If it cannot be written.
        """
        labels, trace = self.labels, self.trace
        self._file.seek(0)
        about = {"descr": _DTYPE.str, "fortran_order": False, "shape": (labels.n_outputs, *trace.shape_zyx)}
        with (
            whole_file(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("probabilities.npy", "w", force_zip64=True) as stream,
        ):
            np.lib.format.write_array_header_1_0(stream, about)
            for output in range(labels.n_outputs):
                for plane in self._next_output(int(output == 0 and not labels.has_regions)):
                    stream.write(plane)

    def _next_output(self, outside: int) -> NDArray[np.float16]:
        """(Z, Y, X) on the image's grid."""
        whole = np.full(self.trace.shape_zyx, outside, _DTYPE)
        inside = self.trace.turn.apply(whole)[self.trace.box.slices]
        for row in inside:
            row[...] = np.frombuffer(self._file.read(row.size * _DTYPE.itemsize), _DTYPE).reshape(row.shape)
        return whole

    def close(self) -> None:
        """Give the disk back."""
        with suppress(OSError):  # of a full disk, when the last rows are flushed: they are not needed any more
            self._file.close()


@contextmanager
def open_spool(folder: Path, trace: Trace, labels: LabelSet) -> Iterator[ProbabilitySpool]:
    """A spool for the body to fill. It stays open after the body, unless that fails.

    Raises:
        ResourceError, SetupError: If it cannot be made, or the disk is full.
    """
    spool = ProbabilitySpool(folder, trace, labels)
    try:
        yield spool
    except BaseException as fault:
        spool.close()
        if isinstance(fault, OSError):  # of the spool: nothing else in the body writes
            raise disk_fault(fault, folder) from fault
        raise


_SLAB_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}  # of a slab's logits; more if one row of all outputs has more
Part = TypeVar("Part")
Keep = Callable[["Slab", NDArray[np.float16]], None]
"""Takes a slab and its probabilities (outputs, N, Y, X)."""
Observe = Callable[["Slab", NDArray[Any]], None]
"""Takes a slab and its mask (N, Y, X) of file values."""
_BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 1 << 28}  # of the logits compared at once: on a CPU what its cache holds


_UNREAD_BYTES = 1 << 28  # of small results that stay on a GPU until they are read
_Key = TypeVar("_Key")


class Unread(Generic[_Key]):
    """Results that stay on a GPU until they are read together: it is waited for once for all of them.

    Args:
        axis: Along which they have different lengths.
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._held: list[tuple[_Key, Tensor]] = []

    def add(self, key: _Key, result: Tensor) -> None:
        """Hold a result, with what it belongs to."""
        self._held.append((key, result))

    @property
    def is_full(self) -> bool:
        """True if results should be read: they take much memory, or are not on a GPU, where nothing is waited for."""
        held = [result for _, result in self._held]
        return any(not result.is_cuda for result in held) or sum(result.nbytes for result in held) >= _UNREAD_BYTES

    def read(self) -> Iterator[tuple[_Key, NDArray[Any]]]:
        """Give everything that is held, in its order, and forget it."""
        held, self._held = self._held, []
        if held:
            ends = np.cumsum([result.shape[self._axis] for _, result in held])
            together = torch.cat([result for _, result in held], self._axis).cpu().numpy()
            for (key, _), part in zip(held, np.split(together, ends[:-1], self._axis), strict=True):
                yield key, part

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()


@dataclass(frozen=True, eq=False)
class Slab:
    """Rows of a turned and cropped image, whose logits are computed when asked for.

    Args:
        start, stop: Which rows.
        rows_OYX: The prepared rows beside them.
        mixture: (stop - start, prepared rows), the share of each.
        shape_yx: Voxels of a row of the image.
        orders: Along each axis, as `orders_for` says.
    """

    start: int
    stop: int
    rows_OYX: Sequence[Tensor]
    mixture: NDArray[np.floating[Any]]
    shape_yx: tuple[int, int]
    orders: ZYX

    @property
    def place(self) -> slice:
        """Its rows in the image."""
        return slice(self.start, self.stop)

    @property
    def n_outputs(self) -> int:
        """Channels of the network."""
        return len(self.rows_OYX[0])

    def logits(self, outputs: slice = slice(None)) -> Tensor:
        """(O, N, Y, X) float32 of some outputs: a new tensor on the device of the rows."""
        parts = [row_OYX[outputs] for row_OYX in self.rows_OYX]
        n_outputs, *plane = parts[0].shape
        mixed_ONYX = torch.zeros((n_outputs, self.stop - self.start, *plane), device=parts[0].device)
        for n, shares in enumerate(self.mixture.tolist()):
            for part_OYX, share in zip(parts, shares, strict=True):
                if share:
                    mixed_ONYX[:, n].add_(part_OYX, alpha=share)
        return resample(mixed_ONYX, (self.stop - self.start, *self.shape_yx), self.orders)

    def logits_at(self, places: NDArray[np.intp]) -> Tensor:
        """(O, n) logits of one or more voxels, flat places in (N, Y, X), without computing those of all.

        They are on the device of the rows, for which nothing waits.
        """
        n, y, x = np.unravel_index(places, (self.stop - self.start, *self.shape_yx))
        device, sizes = self.rows_OYX[0].device, self.rows_OYX[0].shape[1:]
        ends_y, ends_x = (
            [(end[at], weight[at]) for end, weight in _ends(size, n_out, order)]
            for at, size, n_out, order in zip((y, x), sizes, self.shape_yx, self.orders[1:], strict=True)
        )
        rows, places_3n, shares_n = [], [], []  # for each row and corner: which voxels take from it, where, how much
        for row, shares in enumerate(self.mixture.T):
            here = np.flatnonzero(shares[n])  # few: each voxel lies between two rows at most
            for (own_y, weight_y), (own_x, weight_x) in product(ends_y, ends_x):
                weight = shares[n[here]] * weight_y[here] * weight_x[here]
                at = here[np.flatnonzero(weight)]
                if at.size:
                    rows.append(row)
                    places_3n.append(np.stack([at, own_y[at], own_x[at]]))
                    shares_n.append(weight[weight != 0].astype(np.float32))
        found_On = torch.zeros((self.n_outputs, len(places)), device=device)
        start, from_3n = 0, upload(np.concatenate(places_3n, axis=1), device)
        weights_n = upload(np.concatenate(shares_n), device)
        for row, size in zip(rows, map(len, shares_n), strict=True):
            part = slice(start, start + size)
            at_n, y_n, x_n = from_3n[:, part]
            found_On.index_add_(1, at_n, self.rows_OYX[row][:, y_n, x_n] * weights_n[part])
            start += size
        return found_On


def _ends(n_in: int, n_out: int, order: int) -> list[tuple[NDArray[np.intp], NDArray[np.float64]]]:
    """Old voxels that each new one is a mixture of, along an axis, and the weight of each."""
    if order == LABEL_ORDER:
        low, high, share = linear_places(n_in, n_out)
        return [(low, 1 - share), (high, share)]
    return [(nearest_places(n_in, n_out), np.ones(n_out))]


def _span(matrix: NDArray[np.floating[Any]]) -> slice:
    """From the first to the last column that is not 0."""
    used = np.flatnonzero(matrix.any(axis=0))
    return slice(int(used[0]), int(used[-1]) + 1)


def slabs(rows: Iterable[Tensor], trace: Trace, rows_per_slab: int) -> Iterator[Slab]:
    """The image in slabs, linear along each axis, nearest along one that is much coarser.

    Args:
        rows: (outputs, Y, X) for each z of the prepared grid, in order, on one device.
        trace: How the case was prepared.
        rows_per_slab: Rows of each slab but the last: the same for models that are to be averaged slab by slab.

    Yields:
        Slabs that cover the crop of the turned image from its first row to its last.
    """
    orders = orders_for(trace.target_mm, trace.spacing_mm, LABEL_ORDER)
    n_rows, n_y, n_x = trace.box.shape_zyx
    along_z = axis_matrix(trace.prepared_shape_zyx[0], n_rows, orders[0])
    held, first, coming = deque[Tensor](), 0, iter(rows)
    for start in range(0, n_rows, rows_per_slab):
        stop = min(start + rows_per_slab, n_rows)
        beside = _span(along_z[start:stop])
        while first + len(held) < beside.stop:
            held.append(next(coming))
        for _ in range(beside.start - first):
            held.popleft()
        first = beside.start
        yield Slab(start, stop, tuple(held), along_z[start:stop, beside], (n_y, n_x), orders)


def slab_bytes(device: torch.device) -> int:
    """Bytes of the logits of all outputs that are held at once; a GPU is waited for once in so many."""
    return _SLAB_BYTES.get(device.type, _SLAB_BYTES["cpu"])


def rows_per_slab(n_outputs: int, trace: Trace, device: torch.device) -> int:
    """Rows of the image whose logits of all outputs are held at once where they are added up."""
    _, n_y, n_x = trace.box.shape_zyx
    return max(1, slab_bytes(device) // (4 * n_outputs * n_y * n_x))


def strongest_outputs(slab: Slab, labels: LabelSet) -> Tensor:
    """(N, Y, X) on the device: 0 is background, else the number of the strongest output, or of the region painted last.

    Of equal outputs the first wins; a region whose logit is 0, a probability of one half, is not painted.
    """
    shape, device = (slab.stop - slab.start, *slab.shape_yx), slab.rows_OYX[0].device
    kind = torch.uint8 if labels.n_outputs < 256 else torch.int32
    chosen_NYX = torch.zeros(shape, dtype=kind, device=device)
    best_NYX = torch.full(shape, 0.0 if labels.has_regions else -torch.inf, device=device)
    at_once = max(1, _BLOCK_BYTES.get(device.type, _BLOCK_BYTES["cpu"]) // (4 * best_NYX.numel()))
    for first in range(0, slab.n_outputs, at_once):
        for number, logits_NYX in enumerate(slab.logits(slice(first, first + at_once)), first + labels.has_regions):
            wins = logits_NYX > best_NYX
            torch.maximum(chosen_NYX, wins.to(kind).mul_(number), out=chosen_NYX)  # they rise, so the last one stays
            if not labels.has_regions:
                torch.maximum(best_NYX, logits_NYX, out=best_NYX)
    return chosen_NYX


def mask_of(chosen_NYX: NDArray[np.integer[Any]], labels: LabelSet) -> NDArray[Any]:
    """File values, of `labels.mask_dtype`, of what `strongest_outputs` finds."""
    values = labels.paint_values if labels.has_regions else labels.values
    return np.array([labels.background_value, *values], labels.mask_dtype)[chosen_NYX]


def probabilities(slab: Slab, labels: LabelSet, temperature: float = 1.0) -> NDArray[np.float16]:
    """(O, N, Y, X): softmax over outputs that exclude each other, or each region's sigmoid, of logits / temperature."""
    logits = slab.logits()
    if temperature != 1:
        logits.div_(temperature)
    shares: Tensor = logits.sigmoid_() if labels.has_regions else logits.softmax(0)
    return shares.half().cpu().numpy()


@dataclass(frozen=True, eq=False)
class SlabFinding:
    """Mask of a slab, and what else is requested.

    Args:
        slab: Its place.
        chosen_NYX: (N, Y, X) what `strongest_outputs` finds, still on the device.
        shares_ONYX: (O, N, Y, X) probabilities; None if they are not needed.
        maps: (N, Y, X) maps of uncertainty by name, 0 to `SHARE_STEPS`.
    """

    slab: Slab
    chosen_NYX: Tensor
    shares_ONYX: NDArray[np.float16] | None = None
    maps: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


def find_in_slab(slab: Slab, labels: LabelSet, *, with_probabilities: bool, temperature: float = 1.0) -> SlabFinding:
    """The mask of a slab of one model, in as little memory as comparing outputs one by one takes.

    The temperature is of the probabilities alone, so that it cannot change the mask, not even by rounding.
    """
    shares = probabilities(slab, labels, temperature) if with_probabilities else None
    return SlabFinding(slab, strongest_outputs(slab, labels), shares)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Mask of a case, and what else is requested, on the grid of the image file.

    Args:
        mask_zyx: (Z, Y, X) file values of `labels.mask_dtype`; background outside the crop.
        probabilities_ozyx: (outputs, Z, Y, X) float16, background 1 outside the crop; None unless they are held.
        uncertainty: Maps (Z, Y, X) by name, 0 to `SHARE_STEPS` for 0 to 1, 0 outside the crop: `entropy`, and
            with several networks `disagreement`; empty unless requested.
    """

    mask_zyx: NDArray[Any]
    probabilities_ozyx: NDArray[np.float16] | None
    uncertainty: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


def assemble(
    parts: Iterable[Part],
    find: Callable[[Part], SlabFinding],
    trace: Trace,
    labels: LabelSet,
    *,
    holds_probabilities: bool = False,
    keep: Keep | None = None,
    observe: Observe | None = None,
    maps: Sequence[str] = (),
) -> Segmentation:
    """Put slabs together on the grid of the image file.

    Args:
        parts: What each slab is found in: the slab, or those of several models.
        find: Finds the mask of a part, and its probabilities if they are held or kept.
        trace: How the case was prepared.
        labels: The structures.
        holds_probabilities: Whether the result has them, which takes memory for outputs × volume.
        keep: Takes the probabilities of each slab instead.
        observe: Takes each slab with its mask.
        maps: Names of the maps of uncertainty that `find` makes.
    """
    mask = np.full(trace.shape_zyx, labels.background_value, labels.mask_dtype)
    uncertainty = {name: np.zeros(trace.shape_zyx, np.uint8) for name in maps}
    shares = None
    if holds_probabilities:
        shares = np.zeros((labels.n_outputs, *trace.shape_zyx), np.float16)
        shares[0] = not labels.has_regions
    chosen = Unread[slice](axis=0)
    for part in parts:
        found = find(part)
        chosen.add(found.slab.place, found.chosen_NYX)
        if observe is not None or chosen.is_full:
            _read_into(mask, chosen, trace, labels)
        for name, values in found.maps.items():
            slab_view(uncertainty[name], trace, found.slab.place)[...] = values
        if shares is not None:
            slab_view(shares, trace, found.slab.place)[...] = found.shares_ONYX
        if keep is not None:
            assert found.shares_ONYX is not None
            keep(found.slab, found.shares_ONYX)
        if observe is not None:
            observe(found.slab, np.ascontiguousarray(slab_view(mask, trace, found.slab.place)))
        del found  # before the next slab is computed
    _read_into(mask, chosen, trace, labels)
    return Segmentation(mask, shares, uncertainty)


def restore(
    rows: Iterable[Tensor],
    trace: Trace,
    labels: LabelSet,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (a device does not change)
    *,
    with_probabilities: bool = False,
) -> Segmentation:
    """Logits of one model on the prepared grid to a mask on the image's grid.

    Args:
        rows: (outputs, Y, X) for each z of the prepared grid, in order.
        trace: How the case was prepared.
        labels: The structures.
        device: Where the rows are.
        with_probabilities: Whether to hold them, which takes memory for outputs × volume.
    """
    parts = slabs(rows, trace, rows_per_slab(labels.n_outputs, trace, device))
    find = partial(find_in_slab, labels=labels, with_probabilities=with_probabilities)
    return assemble(parts, find, trace, labels, holds_probabilities=with_probabilities)


def _read_into(mask: NDArray[Any], chosen: Unread[slice], trace: Trace, labels: LabelSet) -> None:
    for place, chosen_NYX in chosen.read():
        slab_view(mask, trace, place)[...] = mask_of(chosen_NYX, labels)


def slab_view(array: NDArray[Any], trace: Trace, place: slice) -> NDArray[Any]:
    """The part of an array on the image file's grid that a slab covers."""
    return trace.turn.apply(array)[trace.box.slices][..., place, :, :]


def trace_onto(coarse: Trace, finer: Trace) -> Trace:
    """The way back to the prepared grid of another configuration instead of the image's: both fill the same box."""
    return Trace(
        shape_zyx=finer.prepared_shape_zyx,
        axes_zyx=(0, 1, 2),
        flips_zyx=(False, False, False),
        spacing_mm=finer.target_mm,
        box=Box.whole(finer.prepared_shape_zyx),
        target_mm=coarse.target_mm,
        prepared_shape_zyx=coarse.prepared_shape_zyx,
    )
