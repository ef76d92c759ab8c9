"""Prepared cases on disk: compressed, with random access to a patch; a case is whole or absent."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.files import whole_folder, write_text
from segpipe.core.grid import ZYX
from segpipe.core.labels import LabelSet
from segpipe.core.machine import free_bytes
from segpipe.core.progress import map_threads
from segpipe.core.records import Record
from segpipe.prepare.case import Prepared, Trace
from segpipe.prepare.places import LabelPlaces, Places, find_places

if TYPE_CHECKING:
    import torch

_ARRAYS = ("image", "indices")
GUIDE, _GUIDE_RECORD = "guide", "guide.json"
KEPT_SHARE = 0.4  # of what is free, for keeping decompressed cases
_DEVICE_SHARE = 0.1  # of what is free on a GPU: training, which begins later, was planned for all of it
_BLOCK_EDGE_VOX = 32  # what is decompressed at once; this and the next are compared in benchmarks/bench_store.py
_COMPRESSION = {"codec": blosc2.Codec.LZ4HC, "clevel": 1, "filters": [blosc2.Filter.NOFILTER], "nthreads": 1}


class StoredCase(Record):
    """Beside the arrays of a prepared case.

    Args:
        case_id: Which.
        signature: Of the names, sizes and times of the files it was made from.
        content: Of their bytes, as the fingerprint has it.
        trace: The way back.
    """

    case_id: str
    signature: str
    content: str
    trace: Trace


@dataclass(frozen=True)
class DiskArray:
    """An array in a file, read where it is indexed. It is opened each time: no handle to share between threads.

    Args:
        path: The file.
        shape: Of the array.
        dtype: Of the array.
        crc32: Of the file when it was written.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    crc32: int

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Decompressed."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __getitem__(self, place: Any) -> NDArray[Any]:
        """Voxels at a place, in memory.

        Raises:
            DataError: If the file is gone, or so damaged there that it cannot be decompressed.
        """
        with _naming_damage(self.path, self.path.parent):
            found: NDArray[Any] = _open(self.path)[place]
            return found

    def whole(self) -> NDArray[Any]:
        """All of it, in memory.

        Raises:
            DataError: If the file is gone, or not a byte as it was written.
        """
        with _naming_damage(self.path, self.path.parent):
            packed = self.path.read_bytes()
            if zlib.crc32(packed) != self.crc32:
                raise ValueError("its checksum is not that of what was written")
            found: NDArray[Any] = blosc2.ndarray_from_cframe(packed)[...]
            return found


@dataclass(frozen=True, eq=False)
class PatchCase:
    """A prepared case to cut patches from; wherever the arrays are, they are sliced alike.

    Args:
        folder: Where it is stored; named by the case.
        image: (C, Z, Y, X) float32: a `DiskArray`, in memory a numpy array, on a device a tensor.
        indices: (Z, Y, X) int8, or int16 where labels are many; likewise.
        places: Voxels of each label that is present, by its position in the label set.
        guide: (Z, Y, X) inside labels that a coarser configuration predicts, likewise; None outside a cascade.
    """

    folder: Path
    image: Any
    indices: Any
    places: dict[int, LabelPlaces]
    guide: Any = None

    @property
    def case_id(self) -> str:
        """The case's name."""
        return self.folder.name

    @property
    def shape_zyx(self) -> ZYX:
        """Voxels."""
        z, y, x = self.image.shape[1:]
        return (int(z), int(y), int(x))

    @property
    def size_bytes(self) -> int:
        """Size of its arrays in memory."""
        return sum(array.nbytes for array in (self.image, self.indices, self.guide) if array is not None)

    def with_arrays(self, change: Callable[[Any], Any]) -> PatchCase:
        """A copy of the case with every array changed by a function."""
        guide = None if self.guide is None else change(self.guide)
        return replace(self, image=change(self.image), indices=change(self.indices), guide=guide)


def store_case(folder: Path, prepared: Prepared, about: StoredCase, labels: LabelSet, patch_zyx: ZYX) -> None:
    """Write a prepared case that has labels, whole or not at all, in chunks of the patch.

    Raises:
        ResourceError, SetupError: If it cannot be written.
    """
    assert prepared.indices_zyx is not None
    places = find_places(prepared.indices_zyx, labels)
    with whole_folder(folder) as temporary:
        indices = smallest_type(prepared.indices_zyx, labels)
        write_arrays(temporary, dict(zip(_ARRAYS, (prepared.image_czyx, indices), strict=True)), patch_zyx)
        np.save(temporary / "voxels.npy", places.voxels, allow_pickle=False)
        np.save(temporary / "components.npy", places.components, allow_pickle=False)
        write_text(temporary / "case.json", about.to_json())


def smallest_type(indices_zyx: NDArray[np.int16], labels: LabelSet) -> NDArray[Any]:
    """Inside labels as they are stored."""
    return indices_zyx.astype(np.int8 if len(labels.values) <= np.iinfo(np.int8).max else np.int16)


def write_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]], patch_zyx: ZYX) -> None:
    """Compressed, by name, with their checksums in that order."""
    crc32 = [_write_array(folder / f"{name}.b2nd", array, patch_zyx) for name, array in arrays.items()]
    np.save(folder / "crc32.npy", np.array(crc32, np.uint32), allow_pickle=False)


def _write_array(path: Path, array: NDArray[Any], patch_zyx: Sequence[int]) -> int:
    """Returns the CRC-32 of the file."""
    chunks = [min(p, n) for p, n in zip(patch_zyx, array.shape[-3:], strict=True)]
    blocks = [min(c, _BLOCK_EDGE_VOX) for c in chunks]
    lead = [1] * (array.ndim - 3)
    packed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=[*lead, *chunks],
        blocks=[*lead, *blocks],
        cparams=_COMPRESSION,
        contiguous=True,
    ).to_cframe()
    path.write_bytes(packed)  # by Python, since blosc2 does not tell a full disk from other faults
    return zlib.crc32(packed)


def open_cases(
    folder: Path,
    case_ids: Sequence[str],
    n_workers: int,
    device: torch.device | None = None,
    guides: Path | None = None,
) -> list[PatchCase]:
    """Open prepared cases: on the training device, in memory or on disk; the first of which a free share suffices.

    Args:
        folder: Of the prepared cases.
        case_ids: Which.
        n_workers: Threads to load with.
        device: Where training computes; None: they are not wanted there.
        guides: Folder of what guides a cascade; None outside of one.

    Raises:
        DataError: If a case is not there or damaged.
    """
    on_disk = [open_case(folder / case_id, guides and guides / case_id) for case_id in case_ids]
    size_bytes = sum(case.size_bytes for case in on_disk)
    if device is not None and size_bytes < _DEVICE_SHARE * _free_device_bytes(device):
        return map_threads(lambda case: on_device(load_case(case), device), on_disk, f"loading to {device}", n_workers)
    if size_bytes < KEPT_SHARE * free_bytes():
        return map_threads(load_case, on_disk, "loading", n_workers)
    return on_disk


def on_device(case: PatchCase, device: torch.device) -> PatchCase:
    """A case in memory as tensors on a device."""
    import torch  # late: preparing needs none, and starts in a second less

    return case.with_arrays(lambda array: torch.from_numpy(array).to(device))


def _free_device_bytes(device: torch.device) -> int:
    """Memory that is free on a GPU; 0 for devices of which it is the machine's."""
    if device.type != "cuda":
        return 0
    import torch

    return torch.cuda.mem_get_info(device)[0]


def open_case(folder: Path, guide_folder: Path | None = None) -> PatchCase:
    """A prepared case on disk, and what guides a cascade in it.

    Raises:
        DataError: If it is not there or damaged.
    """
    guide = _disk_arrays(guide_folder, (GUIDE,))[0] if guide_folder else None
    image, indices = _disk_arrays(folder, _ARRAYS)
    with _naming_damage(folder, folder):
        voxels = np.load(folder / "voxels.npy", mmap_mode="r", allow_pickle=False)
        places = Places(voxels, np.load(folder / "components.npy", allow_pickle=False))
        return PatchCase(folder, image, indices, places.by_label(), guide)


def content_of_stored(case: PatchCase) -> str:
    """Digests of the files that a prepared case was made from, as `StoredCase.content` has them.

    Raises:
        DataError: If what lies beside it cannot be read.
    """
    return StoredCase.load(case.folder / "case.json").content


def _disk_arrays(folder: Path, names: Sequence[str]) -> list[DiskArray]:
    with _naming_damage(folder, folder):
        crc32 = np.load(folder / "crc32.npy", allow_pickle=False).tolist()
        return [_describe_array(folder / f"{name}.b2nd", crc) for name, crc in zip(names, crc32, strict=True)]


def _describe_array(path: Path, crc32: int) -> DiskArray:
    with _naming_damage(path, path.parent):
        array = _open(path)
        return DiskArray(path, tuple(array.shape), array.dtype, crc32)


def _open(path: Path) -> Any:
    return blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})


def load_case(case: PatchCase) -> PatchCase:
    """Load a case's arrays into memory.

    Raises:
        DataError: If they are damaged.
    """
    return case.with_arrays(DiskArray.whole)


@contextmanager
def _naming_damage(path: Path, folder: Path) -> Iterator[None]:
    """Report a file that cannot be read with the name of its case, which is that of its folder."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as fault:
        raise DataError(
            f"{path}: the prepared case {folder.name} cannot be read ({fault}). Delete {folder} and rerun the command."
        ) from None


class StoredGuide(Record):
    """guide.json beside the labels that guide a case: what they were made from.

    Args:
        case_id: Which.
        model: Digest of the weights that predicted them.
        content: Of the bytes of the case's files, as the fingerprint has it.
        seen_as: Name of the folder of what the coarser network saw of it.
    """

    case_id: str
    model: str
    content: str
    seen_as: str


def has_guide(guides: Path, about: StoredGuide) -> bool:
    """True if the stored labels of the case are from exactly these weights and files."""
    beside = guides / about.case_id / _GUIDE_RECORD
    return beside.is_file() and StoredGuide.load(beside) == about


def store_guide(guides: Path, about: StoredGuide, indices_zyx: NDArray[np.int16], labels: LabelSet, patch: ZYX) -> None:
    """Write the labels that guide a case, whole or not at all, in chunks of the patch; older ones are replaced.

    Raises:
        ResourceError, SetupError: If they cannot be written.
    """
    with whole_folder(guides / about.case_id) as temporary:
        arrays: dict[str, NDArray[Any]] = {GUIDE: smallest_type(indices_zyx, labels)}
        write_arrays(temporary, arrays, patch)
        about.save(temporary / _GUIDE_RECORD)
