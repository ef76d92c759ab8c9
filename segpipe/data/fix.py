"""Repair a dataset in a copy with the same layout. The input is never touched: files are copied, never linked."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, UsageError
from segpipe.core.files import remove_leftovers, resolve_links, whole_folder, write_text
from segpipe.core.grid import MAX_SHEAR, ZYX
from segpipe.core.header import NIFTI_ENDINGS, Header, beside, ending_of, may_be_read
from segpipe.core.labels import LabelSet
from segpipe.core.progress import map_threads
from segpipe.core.records import Record
from segpipe.core.text import count, csv_text
from segpipe.core.volume import read_header, read_label_values, read_voxels, write_mask, write_voxels
from segpipe.data.check import walk
from segpipe.data.inspect import kind_of, scaled_value, what_was_found
from segpipe.data.label_lists import are_scaled_differently, value_counts
from segpipe.data.layouts.dataset_json import DESCRIPTION_FILE
from segpipe.data.layouts.scan import CaseFiles, DatasetFiles
from segpipe.data.load import PATIENTS_FILE, find_layout
from segpipe.data.placement import Placement, drop_qform, placement, repair_edges, repair_unit

REPAIRS_FILE = "repairs.csv"
_RAW_ENDINGS = (".raw", ".zraw")  # voxels of a .mhd, which is only a header
_HEADER_REPAIRS: dict[str, tuple[Callable[[Header], str], Callable[[Header, Path], str]]] = {  # in this order
    "unit": (lambda header: "" if header.unit == "mm" else f"lengths in {header.unit}", repair_unit),
    "header_contradiction": (lambda header: header.contradiction, repair_edges),
    "two_places": (lambda header: "" if header.grid.shear > MAX_SHEAR else header.two_places, drop_qform),
}


class Repair(Record):
    """A repair of one file.

    Args:
        case_id: Its case; None if it belongs to none.
        file: Path below the copy.
        kind: The kind of fault.
        found: What was wrong, with values and units.
        done: What was done, or why nothing was done.
        is_repaired: False if the file was copied unchanged, or not copied.
    """

    case_id: str | None
    file: str
    kind: str
    found: str
    done: str
    is_repaired: bool

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{self.case_id or 'no case'}: {self.file}: {self.found}; {self.done}"


def fix_dataset(path: Path, out: Path, n_workers: int) -> tuple[Repair, ...]:
    """Write a copy of a dataset, repaired where no judgement is needed, with `repairs.csv` in it.

    Headers in other units, with an sform that contradicts pixdim or a qform that contradicts the sform, are repaired
    (`data.placement`). Label maps stored as floats or scaled become integers; those with other axes than their image,
    or shifted against it, get its axes and its header. NaN outside the body becomes the lowest value of its channel.
    Everything else is copied byte by byte, damaged files too.

    Args:
        path: A dataset's folder or `dataset.json`, a CSV manifest (it and the files it names are copied), or one image.
        out: The copy's folder; it must not exist or be empty. It appears when the copy is whole.
        n_workers: Number of parallel workers.

    Returns:
        One entry for each fault of a file that was repaired or could not be, in the order of the files.

    Raises:
        UsageError: If `out` is inside the dataset, contains it, or is not empty.
        DataError: If the dataset names files outside its folder or by absolute paths, which a copy cannot.
        ResourceError, SetupError: If the copy cannot be written.
    """
    path, out = path.absolute(), out.absolute()
    if path.name == DESCRIPTION_FILE and path.is_file():
        path = path.parent
    require_separate_folder(path, out)
    try:
        dataset = find_layout(path)
    except DataError:
        dataset = None  # headers can be repaired even so
    root, files = _files_to_copy(path, dataset)
    remove_leftovers(out.parent)
    with whole_folder(out) as copy:
        cases = dataset.cases if dataset else ()
        job = _Job(
            root,
            copy,
            {file: case for case in cases for file in (*case.images, case.label) if file},
            dataset.labels if dataset else None,
            _are_mixed(dataset, n_workers),
        )
        n_cases = Counter(case.label for case in cases if case.label)
        labels = [
            label for label, n in n_cases.items() if n == 1
        ]  # one label map of two images: what fits one may not fit the other
        per_file = map_threads(job.copy_file, files, f"copying {path.name}", n_workers)
        per_label = map_threads(job.repair_label, labels, "checking label maps", n_workers)
        _refuse_absolute(copy if path.is_dir() else copy / path.name, path)
        repairs = sorted((one for group in (*per_file, *per_label) for one in group), key=lambda one: one.file)
        write_text(copy / REPAIRS_FILE, repairs_table(repairs))
    return tuple(repairs)


def require_separate_folder(path: Path, out: Path) -> None:
    """Refuse a folder for a copy that exists and is not empty, is inside the dataset or contains it.

    Raises:
        UsageError: If it is one of these.
    """
    source, target = resolve_links(path), resolve_links(out)
    if path.is_dir() and (target == source or source in target.parents or target in source.parents):
        raise UsageError(
            f"{out}: is inside the dataset {path}, or contains it; expected a separate folder. Choose another."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not empty, expected a new folder. Choose another name.")


def _files_to_copy(path: Path, dataset: DatasetFiles | None) -> tuple[Path, list[Path]]:
    """Find the folder to copy and the files in it."""
    named = [file for case in dataset.cases for file in (*case.images, case.label) if file] if dataset else []
    root = path if path.is_dir() else path.parent
    home = resolve_links(root)
    outside = [file for file in named if ".." in file.parts and not resolve_links(file).is_relative_to(home)]
    outside += [file for file in named if not file.is_relative_to(root)]
    if outside:
        raise DataError(
            f"{path}: names {count(len(outside), 'file')} outside its folder, e.g. {outside[0]}; a copy cannot. "
            "Give the folder that holds all files, or repair single files (`segpipe check FILE --fix OUT`)."
        )
    if path.is_dir():
        return root, list(walk(path))
    raw = [beside(file, ending) for file in (path, *named) for ending in _RAW_ENDINGS]
    extra = [file for file in (root / PATIENTS_FILE, *raw) if file.is_file()]
    return root, sorted({path, *named, *extra}) if dataset else sorted({path, *set(extra) & set(raw)})


@dataclass(frozen=True)
class _Job:
    """A copy in the making: the source folder, the target folder, the case of each file, and the labels if listed.

    `are_mixed`: whether masks hold 0 and 1 in some cases, 0 and 255 in the others.
    """

    root: Path
    copy: Path
    case_of: dict[Path, CaseFiles]
    labels: LabelSet | None
    are_mixed: bool

    def target(self, file: Path) -> Path:
        return self.copy / file.relative_to(self.root)

    def repair(self, file: Path, kind: str, found: str, done: str, *, is_repaired: bool = True) -> Repair:
        case_id = self.case_of[file].case_id if file in self.case_of else None
        name = str(file.relative_to(self.root))
        return Repair(case_id=case_id, file=name, kind=kind, found=found, done=done, is_repaired=is_repaired)

    def copy_file(self, file: Path) -> list[Repair]:
        """Copy a file and repair the copy's header."""
        target = self.target(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():  # a broken link
            return [self.repair(file, "file_missing", "no such file", "not copied", is_repaired=False)]
        if not may_be_read(file):
            return [self.repair(file, "no_permission", "no permission to read it", "not copied", is_repaired=False)]
        shutil.copy2(file, target)
        repairs = []
        for kind, (trouble, repair) in _HEADER_REPAIRS.items():
            header = _header(target) if ending_of(target) in NIFTI_ENDINGS else None
            if header and (found := trouble(header)):
                repairs.append(self.repair(file, kind, found, repair(header, target)))
        return repairs + self._fill_outside(file)

    @property
    def _background(self) -> int:
        return 0 if self.labels is None else self.labels.background_value

    def _unscale(self, file: Path, label: Header) -> tuple[list[Repair], NDArray[np.int32] | None]:
        """Give a mask of 0 and another value the value of the only label, 1 without a list; nothing for other maps."""
        if self._background != 0 or (self.labels is not None and len(self.labels.values) != 1):
            return [], None
        scaled = scaled_value(label)
        if scaled is None or (float(scaled).is_integer() and self.labels is None and not self.are_mixed):
            return [], None
        value = 1 if self.labels is None else self.labels.values[0]
        if scaled == value:
            return [], None
        values = (read_voxels(label, None)[0] != 0).astype(np.int32) * value
        return [
            self.repair(file, "label_scaled", f"0 and {scaled:g} are its only values", f"stored as {value}")
        ], values

    def _fill_outside(self, file: Path) -> list[Repair]:
        """Give voxels of NaN outside the body, in the copy of an image, the value of the background."""
        target, case = self.target(file), self.case_of.get(file)
        header = _header(target) if ending_of(target) in NIFTI_ENDINGS else None
        if header is None or header.dtype.kind != "f" or (case is not None and file == case.label):
            return []
        try:
            voxels = np.array(read_voxels(header))
        except (DataError, MemoryError):  # which the check of the copy reports
            return []
        missing = np.isnan(voxels)
        if not missing.any() or missing.all(axis=(1, 2, 3)).any():
            return []
        found = f"{count(int(missing.sum()), 'voxel')} NaN"
        if not _is_outside(missing, None if case is None else case.label):
            done = "copied unchanged: NaN inside the body"
            return [self.repair(file, "not_finite", found, done, is_repaired=False)]
        values = [float(np.nanmin(channel)) for channel in voxels]
        for channel, value in zip(voxels, values, strict=True):
            channel[np.isnan(channel)] = value
        write_voxels(target, voxels, target)
        texts = ", ".join(f"{value:g}" for value in values)
        return [self.repair(file, "not_finite", f"{found} outside the body", f"replaced by the lowest value, {texts}")]

    def repair_label(self, file: Path) -> list[Repair]:
        """Repair the copy of a label map against the copy of its image."""
        target, images = self.target(file), self.case_of[file].images
        label, like = _header(target), _header(self.target(images[0])) if images else None
        if label is None or label.n_channels != 1:
            return []
        place = placement(like, label) if like else None
        displacement = _displacement(place, like, label) if place and like else None
        repairs, values = self._unscale(file, label)
        if label.holds_integers and displacement is None and not repairs:
            return []
        try:
            values = read_label_values(label) if values is None else values
        except DataError as problem:
            found = what_was_found(problem, target)
            return [self.repair(file, kind_of(problem), found, "copied unchanged", is_repaired=False)]
        dtype = _smallest(values)
        if not label.holds_integers and not repairs:
            done = f"stored as {dtype.name}"
            repairs.append(self.repair(file, "label_float", label.stored_as, done))
        if displacement and place and place.turn:
            values = place.turn.apply(values)
            if place.kind == "cropped" and like is not None:
                values = _pad(values, like.grid.shape_zyx, place.offset_zyx, self._background)
            repairs.append(self.repair(file, f"label_{place.kind}", *displacement))
        write_mask(target, values.astype(dtype), like=like.path if displacement and like else target)
        return repairs


def _are_mixed(dataset: DatasetFiles | None, n_workers: int) -> bool:
    """True if the masks of a dataset without a list of labels hold 0 and 1, or 0 and 255."""
    if dataset is None or dataset.labels is not None:
        return False
    headers = [header for case in dataset.cases if case.label and (header := _header(case.label))]

    def values_of(header: Header) -> set[int] | None:
        try:
            return set(value_counts(read_label_values(header)))
        except DataError:
            return None

    found = map_threads(values_of, headers, "reading label values", n_workers)
    return are_scaled_differently([values for values in found if values is not None])


def _is_outside(missing_czyx: NDArray[np.bool_], label: Path | None) -> bool:
    """True if the voxels of each piece reach the border of the image, and none of them is labelled."""
    from scipy.ndimage import label as pieces_of

    for missing in missing_czyx:
        _, n_pieces = pieces_of(np.pad(missing, 1, constant_values=True))
        if n_pieces > 1:  # the padding joins all that reach the border
            return False
    header = None if label is None else _header(label)
    if header is None or header.grid.shape_zyx != missing_czyx.shape[1:]:
        return label is None
    try:
        values = read_label_values(header)
        counts = value_counts(values)
        background = max(counts, key=lambda value: counts[value])  # whatever the list says, it is the commonest
        return bool((values[missing_czyx.any(axis=0)] == background).all())
    except DataError:
        return False


def _displacement(place: Placement, image: Header, label: Header) -> tuple[str, str] | None:
    """Describe what is wrong with the position of a label map and what is done; None if nothing is."""
    if place.kind == "turned":
        axes = f"axes {label.grid.orientation}, those of the image are {image.grid.orientation}"
        return axes, "reoriented to the image's axes and given its header; voxels keep their position"
    if place.kind == "shifted":
        found = f"a corner voxel is {place.gap_mm:.3g} mm from that of the image; shape, spacing and axes are equal"
        return found, f"given the image's header: moved by {place.gap_mm:.3g} mm"
    if place.kind == "cropped":
        found = f"covers part of its image, from voxel {place.offset_zyx[::-1]} on"
        return found, "padded with background to the image's shape and given its header"
    return None


def _pad(values: NDArray[np.int32], shape_zyx: ZYX, offset_zyx: ZYX, background: int) -> NDArray[np.int32]:
    padded = np.full(shape_zyx, background, np.int32)
    padded[tuple(slice(o, o + n) for o, n in zip(offset_zyx, values.shape, strict=True))] = values
    return padded


def _smallest(values: NDArray[np.int32]) -> np.dtype[np.integer[Any]]:
    """Find the smallest type that holds the values."""
    low, high = int(values.min()), int(values.max())
    kinds = (np.uint8, np.int16, np.int32)
    return np.dtype(next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max))


def _header(file: Path) -> Header | None:
    """Read the header of an image; None for other files and those that cannot be read, which `check` reports."""
    if not ending_of(file):
        return None
    try:
        return read_header(file)
    except DataError:
        return None


def _refuse_absolute(copy: Path, path: Path) -> None:
    """Refuse a list with absolute paths: in a copy it still names the input's files."""
    try:
        dataset = find_layout(copy)
    except DataError:  # the input's description is wrong too
        return
    root = copy if copy.is_dir() else copy.parent
    named = [file for case in dataset.cases for file in (*case.images, case.label) if file] if dataset else []
    outside = [file for file in named if not file.is_relative_to(root)]
    if outside:
        raise DataError(
            f"{path}: names {count(len(outside), 'file')} by absolute paths, e.g. {outside[0]}, to which a copy of the "
            "list would still point. Use paths relative to the list."
        )


def repairs_table(repairs: Sequence[Repair]) -> str:
    """The text of `repairs.csv`."""
    lines = ([r.case_id or "", r.file, r.kind, r.found, r.done, str(r.is_repaired).lower()] for r in repairs)
    return csv_text([list(Repair.model_fields), *lines])
