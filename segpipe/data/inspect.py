"""Inspect one case at a time: read every file once, and note its faults and what the dataset needs of it.

Two scans of one patient under different names are found by their thumbnails.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from segpipe.core.errors import DataError, GeometryError, SeveralVolumesError
from segpipe.core.grid import MAX_SHEAR, Grid, reorientation, require_same_grid
from segpipe.core.header import Header, may_be_read
from segpipe.core.text import count
from segpipe.core.volume import read_header, read_label_values, read_voxels
from segpipe.data.faults import Fault, fault
from segpipe.data.label_lists import value_counts
from segpipe.data.layouts.scan import CaseFiles
from segpipe.data.placement import placement

# Scans of one patient under different names. A scan is reduced to a thumbnail: its first channel in canonical
# orientation, averaged to few voxels, less its local mean, ranked. Two thumbnails are correlated. Rescaled, noised,
# cropped, resampled, flipped and rounded copies stay alike, as do two scans of one patient. Scans of different patients
# do not, unless all are in one atlas space: therefore what counts is the correlation above that of most pairs.

ALIKE = 0.65  # correlation above the usual: copies and scans of one patient reach it
SAME = 0.97  # only copies are above it, and repeated scans of a patient who did not move
_SHAPE_ZYX = (24, 24, 24)
_ROUNDING = 1e-4  # of the range: differences below it are none
_LOCAL = 5  # voxels of the local mean along each axis
_BLOCK = 512  # thumbnails in one product
_MIN_PAIRS = 10  # to know what is usual


class AlikePair(NamedTuple):
    """Two scans, by their place in the list, and the correlation of their thumbnails."""

    first: int
    second: int
    correlation: float


def thumbnail(voxels_zyx: NDArray[np.float32], grid: Grid) -> NDArray[np.float16] | None:
    """Reduce an image to what is compared.

    Args:
        voxels_zyx: Finite values.
        grid: Where they are.

    Returns:
        Values of 0 mean and unit length, (13824,); None if nothing in the image stands out, as in a constant one.
    """
    small = reorientation(grid, "RAS").apply(voxels_zyx)
    for axis, n_wanted in enumerate(_SHAPE_ZYX):
        shares = _shares(small.shape[axis], n_wanted)
        small = np.moveaxis(np.tensordot(shares, small, axes=(1, axis)), 0, axis)
    span = float(np.ptp(small))
    if span <= _ROUNDING * float(np.abs(small).max()):
        return None
    # Without rounding, noise of the arithmetic would rank the voxels of an even background, alike in all scans.
    small = np.rint((small - uniform_filter(small, _LOCAL, mode="nearest")) / (_ROUNDING * span))
    _, places, counts = np.unique(small, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[places.ravel()].astype(np.float32)  # equal values share their mean rank
    ranks -= ranks.mean()
    length = float(np.linalg.norm(ranks))
    return (ranks / length).astype(np.float16) if length > 0 else None


def alike_pairs(thumbnails: Sequence[NDArray[np.float16] | None], patients: Sequence[str]) -> list[AlikePair]:
    """Find for each scan the earlier one of another patient that it is most like, if it is alike.

    Alike is a correlation of r with (r - m) / (1 - m) > `ALIKE`, where m is the median over pairs of different patients
    (0 if it is negative or there are few pairs). Memory grows with the number of scans, not of pairs.

    Args:
        thumbnails: One for each scan; None takes no part.
        patients: Of each scan.

    Returns:
        At most one pair for each scan, in the order of the second.
    """
    present = [(place, one) for place, one in enumerate(thumbnails) if one is not None]
    if not present:
        return []
    stack = np.stack([one for _, one in present])
    group = np.unique([patients[place] for place, _ in present], return_inverse=True)[1]
    best, partner, usual = np.full(len(stack), -1.0), np.zeros(len(stack), int), 0.0
    for start in range(0, len(stack), _BLOCK):
        rows = stack[start : start + _BLOCK].astype(np.float32)
        for begin in range(0, start + 1, _BLOCK):
            found = rows @ stack[begin : begin + _BLOCK].astype(np.float32).T
            later = np.arange(start, start + len(found))[:, None]
            earlier = np.arange(begin, begin + found.shape[1])[None]
            counts = (earlier < later) & (group[later] != group[earlier])
            if start == 0 and np.count_nonzero(counts) >= _MIN_PAIRS:
                usual = max(0.0, float(np.median(found[counts])))
            found[~counts] = -1
            nearest = found.argmax(axis=1)
            highest = found[np.arange(len(found)), nearest]
            is_better = highest > best[start : start + len(found)]
            best[start : start + len(found)][is_better] = highest[is_better]
            partner[start : start + len(found)][is_better] = begin + nearest[is_better]
    return [
        AlikePair(present[partner[place]][0], present[place][0], float(best[place]))
        for place in np.flatnonzero(best > usual + ALIKE * (1 - usual))
    ]


def _shares(n_vox: int, n_wanted: int) -> NDArray[np.float32]:
    """Share of each voxel of an axis in each of `n_wanted` equal parts of it, (n_wanted, n_vox)."""
    edges = np.linspace(0, n_vox, n_wanted + 1)[:, None]
    starts = np.arange(n_vox)[None]
    overlap = np.minimum(edges[1:], starts + 1) - np.maximum(edges[:-1], starts)
    return (np.maximum(overlap, 0) * (n_wanted / n_vox)).astype(np.float32)


_MAX_LABEL_VALUES = 256  # more are an image, or labels finer than those of any atlas
_MAX_BORDER = 0.25  # share of neighbours that differ: noise of a scan makes nearly all of them differ
Result = TypeVar("Result")


@dataclass(frozen=True)
class CaseFacts:
    """Facts about a case, read from its files.

    Args:
        case_id: The case.
        faults: Faults of its files.
        grid: Grid of its first image that could be read; None if none could.
        hashes: Digest of the voxels of each image file that could be read and is not constant.
        n_label_vox: Voxels of each value in the label map; None if there is none or it could not be read.
        thumbnail: Of its first channel, to find scans of one patient; None where there is nothing to compare.
    """

    case_id: str
    faults: tuple[Fault, ...]
    grid: Grid | None
    hashes: dict[Path, str]
    n_label_vox: dict[int, int] | None
    thumbnail: NDArray[np.float16] | None


def inspect_case(case: CaseFiles, n_channels: int | None) -> CaseFacts:
    """Read a case's files one after the other, so that only one is in memory.

    Args:
        case: Its files; missing ones have been reported already.
        n_channels: Number of channels in the dataset; None to accept any (images without a dataset).
    """
    headers, label, faults = inspect_headers(case, n_channels)
    hashes, small = {}, None
    for header in headers:
        found, more = _in_memory(_inspect_voxels, case, header)
        faults += more
        if found is not None:
            hashes[header.path] = found[0]
            small = found[1] if header.path == case.images[0] else small
    n_label_vox = None
    if label is not None:
        n_label_vox, more = _in_memory(_inspect_labels, case, label)
        faults += more
    return CaseFacts(case.case_id, tuple(faults), headers[0].grid if headers else None, hashes, n_label_vox, small)


def inspect_headers(case: CaseFiles, n_channels: int | None) -> tuple[list[Header], Header | None, list[Fault]]:
    """Read the headers of a case's images and of its label map, as far as possible, and find their faults.

    Args:
        case: Its files.
        n_channels: Number of channels in the dataset; None to accept any.
    """
    faults: list[Fault] = []
    headers = [header for path in case.images if (header := _header(case, path, faults)) is not None]
    if n_channels is not None and len(headers) == len(case.images):
        faults += _channel_faults(case, headers, n_channels)
    for header in headers:
        faults += [*_header_faults(case, header), *_image_place_faults(case, header, headers[0].grid)]
    label = None if case.label is None else _header(case, case.label, faults)
    if label is not None:
        faults += [*_header_faults(case, label), *(_label_place_faults(case, label, headers[0]) if headers else [])]
    return headers, label, faults


def _header(case: CaseFiles, path: Path, faults: list[Fault]) -> Header | None:
    try:
        return read_header(path)
    except SeveralVolumesError as problem:
        faults.append(fault("several_volumes", what_was_found(problem, path), case.case_id, path))
    except GeometryError as problem:
        faults.append(fault("grid_unusable", what_was_found(problem, path), case.case_id, path))
    except DataError as problem:
        kind = "unreadable" if may_be_read(path) else "no_permission"
        faults.append(fault(kind, what_was_found(problem, path), case.case_id, path))
    return None


def _channel_faults(case: CaseFiles, headers: list[Header], n_channels: int) -> list[Fault]:
    """Require one 4D file with all channels, or one 3D file for each; file names were checked before."""
    if len(headers) == 1 and headers[0].n_channels == n_channels:
        return []
    expected = "3D" if n_channels == 1 else f"3D, or 4D with the {n_channels} channels of the dataset in one file"
    if len(headers) == n_channels:
        wrong = [header for header in headers if header.n_channels != 1]
        return [
            fault("channel_count", f"4D with {count(header.n_channels, 'volume')}", case.case_id, header.path, expected)
            for header in wrong
        ]
    if len(headers) > 1:
        return []
    found = f"4D with {count(headers[0].n_channels, 'volume')}" if headers[0].n_channels > 1 else "3D, one channel"
    return [fault("channel_count", found, case.case_id, headers[0].path, expected)]


def _header_faults(case: CaseFiles, header: Header) -> list[Fault]:
    """Find the faults of a single header."""
    texts = {}
    if header.unit != "mm":
        texts["unit"] = f"lengths in {header.unit}"
    if header.contradiction:
        texts["header_contradiction"] = header.contradiction
    if header.two_places:
        texts["two_places"] = header.two_places
    if not header.has_world:
        texts["no_orientation"] = "sform and qform codes are 0"
    faults = [fault(kind, text, case.case_id, header.path) for kind, text in texts.items()]
    if header.grid.shear > MAX_SHEAR:
        text = f"cosine {header.grid.shear:.3f} between two axes"
        faults.append(fault("sheared", text, case.case_id, header.path, f"at most {MAX_SHEAR}"))
    return faults


def _image_place_faults(case: CaseFiles, header: Header, first: Grid) -> list[Fault]:
    """Compare the position of an image with that of the first one of its case."""
    try:
        require_same_grid(first, header.grid, header.path.name)
    except GeometryError:
        return [_apart(case, header, first)]
    return []


def _label_place_faults(case: CaseFiles, label: Header, image: Header) -> list[Fault]:
    """Compare the position of a label map with that of the first image of its case."""
    place = placement(image, label)
    if place.kind == "same":
        return []
    if place.kind == "turned":
        text, expected = f"axes {label.grid.orientation}", f"{image.grid.orientation} like the image"
        return [fault("label_turned", text, case.case_id, label.path, expected)]
    if place.kind == "shifted":
        text = f"same shape, spacing and axes, but a corner voxel is {place.gap_mm:.3g} mm from that of the image"
        return [fault("label_shifted", text, case.case_id, label.path)]
    if place.kind == "cropped":
        text = f"{_shape(label.grid)}, from voxel {place.offset_zyx[::-1]} of the image on"
        return [fault("label_cropped", text, case.case_id, label.path, f"{_shape(image.grid)} like the image")]
    return [_apart(case, label, image.grid)]


def _apart(case: CaseFiles, header: Header, first: Grid) -> Fault:
    gap_mm = first.corner_gap_mm(header.grid)
    if np.isinf(gap_mm):
        expected = f"{_shape(first)} like the first image"
        return fault("shape_mismatch", _shape(header.grid), case.case_id, header.path, expected)
    edges = " and ".join(" × ".join(f"{edge:.4g}" for edge in grid.spacing_mm[::-1]) for grid in (header.grid, first))
    text = f"a corner voxel is {gap_mm:.3g} mm from that of the first image; voxel sizes {edges} mm"
    return fault("place_mismatch", text, case.case_id, header.path)


def _in_memory(
    inspect: Callable[[CaseFiles, Header], tuple[Result | None, list[Fault]]], case: CaseFiles, header: Header
) -> tuple[Result | None, list[Fault]]:
    """Run `inspect`; a file that is too large, or claims to be, must not end the check of the others."""
    try:
        return inspect(case, header)
    except MemoryError:
        text = f"{_shape(header.grid)}, {count(header.n_channels, 'channel')} of {header.dtype}"
        return None, [fault("too_large", text, case.case_id, header.path)]


def _inspect_voxels(
    case: CaseFiles, header: Header
) -> tuple[tuple[str, NDArray[np.float16] | None] | None, list[Fault]]:
    """Digest the voxels of an image and make a thumbnail, None if they are faulty; and find their faults."""
    try:
        voxels = np.ascontiguousarray(read_voxels(header))
    except DataError as problem:
        return None, [fault("unreadable", what_was_found(problem, header.path), case.case_id, header.path)]
    faults = []
    for channel, voxels_zyx in enumerate(voxels):
        where = f" in volume {channel} of {len(voxels)}" if len(voxels) > 1 else ""
        low, high = float(voxels_zyx.min()), float(voxels_zyx.max())
        if not np.isfinite([low, high]).all():  # NaN passes through min and max
            n_wrong = int(np.count_nonzero(~np.isfinite(voxels_zyx)))
            share = n_wrong / voxels_zyx.size
            text = f"{count(n_wrong, 'voxel')} ({share:.2%}) NaN or infinite{where}"
            faults.append(fault("not_finite", text, case.case_id, header.path))
        elif low == high:
            faults.append(fault("constant", f"every voxel is {low:g}{where}", case.case_id, header.path))
        elif _is_like_labels(voxels_zyx):
            text = f"only whole numbers from {low:g} to {high:g}, in pieces{where}"
            faults.append(fault("like_labels", text, case.case_id, header.path))
    is_sound = all(one.severity == "warning" for one in faults)
    return ((_digest(voxels), thumbnail(voxels[0], header.grid)) if is_sound else None), faults


def _is_like_labels(voxels_zyx: NDArray[np.float32]) -> bool:
    """True if an image holds few whole numbers from 0 on, equal over large pieces, as a label map does."""
    begin = voxels_zyx.reshape(-1)[: 1 << 16]
    if begin.min() < 0 or len(np.unique(begin)) > _MAX_LABEL_VALUES or voxels_zyx.min() < 0:
        return False
    values = np.unique(voxels_zyx)
    if len(values) > _MAX_LABEL_VALUES or not np.array_equal(values, np.rint(values)) or values[0] != 0:
        return False
    steps = sum(np.count_nonzero(np.diff(voxels_zyx, axis=axis)) for axis in range(3))
    return bool(steps < _MAX_BORDER * 3 * voxels_zyx.size)


def _inspect_labels(case: CaseFiles, header: Header) -> tuple[dict[int, int] | None, list[Fault]]:
    if header.n_channels != 1:
        text = f"4D with {count(header.n_channels, 'volume')}"
        return None, [fault("label_channels", text, case.case_id, header.path)]
    try:
        values = read_label_values(header)
    except DataError as problem:
        if (scaled := scaled_value(header)) is not None:
            return None, [fault("label_scaled", f"0 and {scaled:g} are its only values", case.case_id, header.path)]
        return None, [fault(kind_of(problem), what_was_found(problem, header.path), case.case_id, header.path)]
    faults = []
    if not header.holds_integers:
        faults.append(fault("label_float", header.stored_as, case.case_id, header.path))
    return value_counts(values), faults


def scaled_value(header: Header) -> float | None:
    """The value besides 0 of a map that holds just two; None for others, and for what cannot be read."""
    try:
        values = np.unique(read_voxels(header, None))
    except DataError:
        return None
    return float(values[values != 0][0]) if len(values) == 2 and 0 in values and np.isfinite(values).all() else None


def _digest(voxels_czyx: NDArray[np.float32]) -> str:
    """Digest shape and voxels: equal images have equal digests however they were stored."""
    digest = hashlib.blake2b(repr(voxels_czyx.shape).encode(), digest_size=16)
    digest.update(voxels_czyx.data)
    return digest.hexdigest()


def _shape(grid: Grid) -> str:
    return " × ".join(map(str, grid.shape_zyx[::-1])) + " voxels (x, y, z)"


def kind_of(problem: DataError) -> str:
    """The kind of fault of a label map whose values could not be read."""
    return "label_not_integer" if "label values" in str(problem) else "unreadable"


def what_was_found(problem: DataError, path: Path) -> str:
    """The finding in a message, without the path and the advice, which a fault has anyway."""
    text = str(problem).removeprefix(f"{path}: ").replace(str(path), path.name)
    return re.split(r"[,;] expected ", text.split(". ")[0])[0].rstrip(".")
