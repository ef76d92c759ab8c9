"""Prepared cases on disk: compressed, with random access to a patch; a case is whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import blosc2
import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.files import whole_folder, write_text
from segpipe.core.grid import ZYX
from segpipe.core.labels import LabelSet
from segpipe.core.progress import map_threads
from segpipe.core.records import Record
from segpipe.core.seeds import generator_for
from segpipe.prepare.case import Prepared, Trace

_MAX_LOCATIONS = 10_000  # for each label and case; enough places to centre a patch on
_MEMORY_SHARE = 0.4  # of what is free, for keeping decompressed cases


class StoredCase(Record):
    """Beside the arrays of a prepared case.

    Args:
        case_id: Which.
        signature: Of the files it was made from.
        trace: The way back.
    """

    case_id: str
    signature: str
    trace: Trace


@dataclass(frozen=True, eq=False)
class PatchCase:
    """A prepared case to cut patches from; arrays in memory or on disk, both sliced alike.

    Args:
        folder: Where it is stored; named by the case.
        image: (C, Z, Y, X) float32.
        indices: (Z, Y, X) int16.
        locations: For each label some of its voxels, (n, 3) int32 (z, y, x); labels that are absent are left out.
    """

    folder: Path
    image: Any
    indices: Any
    locations: dict[str, NDArray[np.int32]]

    @property
    def shape_zyx(self) -> ZYX:
        """Voxels."""
        z, y, x = self.image.shape[1:]
        return (int(z), int(y), int(x))


def store_case(folder: Path, prepared: Prepared, about: StoredCase, labels: LabelSet, patch_zyx: ZYX) -> None:
    """Write a prepared case that has labels, whole or not at all, in chunks of the patch.

    Raises:
        ResourceError, SetupError: If it cannot be written.
    """
    assert prepared.indices_zyx is not None
    locations = _locations(prepared, labels)
    with whole_folder(folder) as temporary:
        _write_array(temporary / "image.b2nd", prepared.image_czyx, patch_zyx)
        _write_array(temporary / "indices.b2nd", prepared.indices_zyx, patch_zyx)
        np.savez(temporary / "locations.npz", **locations)  # type: ignore[arg-type]  # numpy's stub lacks **arrays
        write_text(temporary / "case.json", about.to_json())


def _locations(prepared: Prepared, labels: LabelSet) -> dict[str, NDArray[np.int32]]:
    """Up to `_MAX_LOCATIONS` voxels of each label by its position in the label set."""
    assert prepared.indices_zyx is not None
    found = {}
    for position, label in enumerate(labels.labels):
        voxels = np.argwhere(np.isin(prepared.indices_zyx, labels.indices_of(label))).astype(np.int32)
        if len(voxels) > _MAX_LOCATIONS:
            voxels = voxels[np.sort(generator_for(0, position).choice(len(voxels), _MAX_LOCATIONS, replace=False))]
        if len(voxels):
            found[str(position)] = voxels
    return found


def _write_array(path: Path, array: NDArray[Any], patch_zyx: Sequence[int]) -> None:
    chunks = [min(p, n) for p, n in zip(patch_zyx, array.shape[-3:], strict=True)]
    chunks = [1, *chunks] if array.ndim == 4 else chunks
    cparams = {"codec": blosc2.Codec.LZ4, "clevel": 5, "nthreads": 1}
    packed = blosc2.asarray(np.ascontiguousarray(array), chunks=chunks, cparams=cparams, contiguous=True)
    path.write_bytes(packed.to_cframe())  # by Python, since blosc2 does not tell a full disk from other faults


def open_cases(folder: Path, case_ids: Sequence[str], n_workers: int) -> list[PatchCase]:
    """Open prepared cases, kept in memory if all of them fit into a share of what is free.

    Raises:
        DataError: If a case is not there or damaged.
    """
    files = [folder / case_id for case_id in case_ids]
    on_disk = [_opened(path) for path in files]
    in_memory = sum(case.image.nbytes + case.indices.nbytes for case in on_disk) < _MEMORY_SHARE * _free_bytes()
    return map_threads(_loaded, on_disk, "loading", n_workers) if in_memory else on_disk


def _opened(folder: Path) -> PatchCase:
    with _damage_named(folder):
        image, indices = (blosc2.open(str(folder / f"{name}.b2nd"), mode="r") for name in ("image", "indices"))
        with np.load(folder / "locations.npz") as stored:
            locations = {name: stored[name] for name in stored.files}
        return PatchCase(folder, image, indices, locations)


def _loaded(case: PatchCase) -> PatchCase:
    with _damage_named(case.folder):
        return replace(case, image=case.image[...], indices=case.indices[...])


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, BadZipFile) as fault:
        raise DataError(f"{folder}: the prepared case cannot be read ({fault}). Delete it and run again.") from None


def _free_bytes() -> int:
    """Memory that is free here, a container's limit included; 0 where the system does not say."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except ValueError:  # macOS
        return 0
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, int(text) - int(used.read_text()))
    return free
