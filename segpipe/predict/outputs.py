"""Files of a prediction: masks, probabilities, labels, a row for each case; and whose the folder of masks is."""

from __future__ import annotations

import csv
import math
import os
import zipfile
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, ResourceError, SegpipeError, UsageError
from segpipe.core.files import append_synced, resolve_links, write_text
from segpipe.core.grid import Grid
from segpipe.core.itk import chosen_series
from segpipe.core.labels import LabelSet
from segpipe.core.progress import say
from segpipe.core.records import Record
from segpipe.core.text import count, csv_cells, csv_text
from segpipe.core.volume import SHARE_STEPS, read_header, read_labels, read_voxels
from segpipe.data.dataset import Case, signature_of
from segpipe.data.label_lists import value_counts
from segpipe.predict.options import PredictOptions
from segpipe.predict.postprocess import NO_POSTPROCESSING, Postprocessing

ABOUT = "prediction.json"


class MadeWith(Record):
    """The model and the images that the masks of a folder were made with; another model must not go on in it.

    Args:
        model: Digest of the weights.
        mirrored: Whether mirrored copies were averaged.
        images: Signature of each case's image files.
        postprocessing: What was done to the masks afterwards.
        labels: The structures; None if an earlier version did not note them.
        temperature: Of the probabilities; 1 if they are not calibrated.
    """

    model: str
    mirrored: bool
    images: dict[str, str]
    postprocessing: Postprocessing = NO_POSTPROCESSING
    labels: LabelSet | None = None
    temperature: float = 1.0


def check_claim(folder: Path, cases: Sequence[Case], made: MadeWith) -> tuple[MadeWith, list[str]]:
    """Check that masks of these cases may be written into a folder; nothing is changed.

    Returns:
        What the folder's masks will be made with and of, and the cases whose masks are of images that changed since.

    Raises:
        UsageError: If the folder holds masks of another model or of unknown origin, or holds the images.
    """
    about = folder / ABOUT
    images = [resolve_links(path) for case in cases for path in case.image_paths]
    if resolve_links(folder) in {*images, *(image.parent for image in images)}:  # a DICOM series is a folder itself
        raise UsageError(f"{folder}: holds the images. Choose another output folder, so that none is overwritten.")
    known = MadeWith.load(about) if about.is_file() else made
    if known.labels is None:
        known = known.model_copy(update={"labels": made.labels})
    if known.model_copy(update={"images": {}}) != made:
        raise UsageError(
            f"{folder}: holds masks of another model (or with other mirroring, postprocessing or calibration). Choose "
            "another output folder."
        )
    current = {case.case_id: _images_signature(case) for case in cases}
    existing = [case_id for case_id in current if mask_path(folder, case_id).exists()]
    if foreign := [case_id for case_id in existing if case_id not in known.images]:
        others = f" ({count(len(foreign), 'such file')})" if len(foreign) > 1 else ""
        raise UsageError(
            f"{mask_path(folder, foreign[0])}: exists already, and not from this command{others}. Choose another "
            "output folder."
        )
    changed = [case_id for case_id in existing if known.images[case_id] != current[case_id]]
    return known.model_copy(update={"images": known.images | current}), changed


def claim_folder(folder: Path, cases: Sequence[Case], made: MadeWith) -> None:
    """Record what the folder's masks are made with and of; masks of images that changed since are removed.

    Raises:
        UsageError: As `check_claim`.
    """
    record, changed = check_claim(folder, cases, made)
    for case_id in changed:
        say(f"{mask_path(folder, case_id)}: was made from another image of this name; it is predicted again.")
        mask_path(folder, case_id).unlink()
        for extra in (probabilities_path(folder, case_id), *uncertainty_paths(folder, case_id).values()):
            extra.unlink(missing_ok=True)
    record.save(folder / ABOUT)


def _images_signature(case: Case) -> str:
    """Signature of the image files, and which series of them is read; empty if that fails, as reading them will."""
    try:
        series = [chosen_series(path) for path in case.image_paths if path.is_dir()]
        return " ".join(filter(None, (signature_of(case.model_copy(update={"label": None})), *series)))
    except DataError:
        return ""


LABEL_TABLE = "dseg.tsv"
PREDICTIONS = "predictions.csv"
UNCERTAINTY_FOLDER, UNCERTAINTY = "uncertainty", ("entropy", "disagreement")
UNKNOWN_WARNING = "made by an earlier command whose row is gone: seconds and warnings are not known"
_MM3_IN_ML = 1000.0
_LENGTH_BYTES = 4  # at the end of gzip: length of the content, modulo 2³²
_NIFTI_HEADER_BYTES = 352  # before the voxels, of version 1 without extensions
_SEPARATOR = "; "  # between warnings


def mask_path(folder: Path, case_id: str) -> Path:
    """Path of a case's mask."""
    return folder / f"{case_id}.nii.gz"


def probabilities_path(folder: Path, case_id: str) -> Path:
    """Path of a case's probabilities."""
    return folder / f"{case_id}_probabilities.npz"


def uncertainty_paths(folder: Path, case_id: str) -> dict[str, Path]:
    """Paths of a case's maps of uncertainty, in a folder of their own, so that none is taken for a mask."""
    return {name: folder / UNCERTAINTY_FOLDER / f"{case_id}_{name}.nii.gz" for name in UNCERTAINTY}


def is_whole(file: Path) -> bool:
    """True if a mask, map or file of probabilities is complete.

    What was cut short lacks the end: of gzip the length of the content, of zip the list of parts. Another length than
    segpipe writes is no fault by itself (a person may have edited the mask), so the file is then read.
    """
    if not file.is_file():
        return False
    if file.suffix == ".npz":
        return zipfile.is_zipfile(file)
    try:
        header = read_header(file)
        with file.open("rb") as stream:
            stream.seek(-_LENGTH_BYTES, os.SEEK_END)
            length = int.from_bytes(stream.read(), "little")
        n_bytes = _NIFTI_HEADER_BYTES + math.prod(header.grid.shape_zyx) * header.dtype.itemsize
        if length != n_bytes % 2 ** (8 * _LENGTH_BYTES):
            read_voxels(header, None)
    except (DataError, OSError):
        return False
    return True


def is_done(folder: Path, case_id: str, options: PredictOptions, maps: Sequence[str]) -> bool:
    """True if the folder has every file that the options ask for, each complete; damaged ones are reported.

    Never, if existing files are to be overwritten.

    Args:
        folder: Where the masks are.
        case_id: The case.
        options: Say which files.
        maps: Names of the maps of uncertainty that the networks make.
    """
    if options.overwrite:
        return False
    files = [mask_path(folder, case_id)]
    files += [probabilities_path(folder, case_id)] if options.probabilities else []
    paths = uncertainty_paths(folder, case_id)
    files += [paths[name] for name in maps] if options.uncertainty else []
    whole = [is_whole(file) for file in files]
    if damaged := [file.name for file, is_good in zip(files, whole, strict=True) if file.is_file() and not is_good]:
        say(f"{folder}: {', '.join(damaged)}: damaged, perhaps truncated; made again.")
    return all(whole)


def write_label_table(folder: Path, labels: LabelSet) -> None:
    """Write what the values of the folder's masks mean, as BIDS does: `dseg.tsv` with the columns index and name.

    One file for the folder, since its masks share one list of labels. With regions a value is named after the region
    that is painted with it last.
    """
    values = labels.paint_values if labels.has_regions else labels.values
    names = {labels.background_value: "background"} | dict(zip(values, labels.names, strict=True))
    rows = [f"{value}\t{' '.join(name.split())}" for value, name in sorted(names.items())]
    write_text(folder / LABEL_TABLE, "\n".join(["index\tname", *rows, ""]))


@dataclass(frozen=True)
class LabelSize:
    """Voxels of a label or region in a mask, and their volume."""

    voxels: int
    volume_ml: float


@dataclass(frozen=True)
class CaseRow:
    """A predicted case, as the table lists it.

    Args:
        case_id: Which.
        seconds_prepare, seconds_network, seconds_export: Reading and preparing; windows and the way back to the
            image's grid; postprocessing and writing. They overlap between cases. None if not known.
        sizes: Of every label by name, in the dataset's order.
        mean_entropy, mean_disagreement: Mean of the maps of uncertainty over the voxels that the mask gives to any
            label, 0 (sure) to 1; None if the map was not made or there is no such voxel.
        warnings: What is odd about the image.
    """

    case_id: str
    seconds_prepare: float | None
    seconds_network: float | None
    seconds_export: float | None
    sizes: dict[str, LabelSize]
    warnings: tuple[str, ...]
    mean_entropy: float | None = None
    mean_disagreement: float | None = None

    def to_json(self) -> dict[str, object]:
        """The row for `--json`."""
        return asdict(self)


def label_sizes(mask_zyx: NDArray[np.integer[Any]], grid: Grid, labels: LabelSet) -> dict[str, LabelSize]:
    """Voxels and millilitres of every label and region in a mask of file values."""
    counts: Counter[int] = Counter()
    for slice_yx in mask_zyx:  # counting takes eight bytes a voxel
        counts.update(value_counts(slice_yx))
    voxel_ml = float(np.prod(grid.spacing_mm)) / _MM3_IN_ML
    voxels = {label.name: sum(counts[value] for value in label.values) for label in labels.labels}
    return {name: LabelSize(n, n * voxel_ml) for name, n in voxels.items()}


def mean_inside(shares_zyx: NDArray[np.uint8], mask_zyx: NDArray[np.integer[Any]], labels: LabelSet) -> float | None:
    """Mean, 0 to 1, of a map of uncertainty where a mask holds anything but background; None if it holds nothing."""
    total = n_inside = 0
    for shares_yx, mask_yx in zip(shares_zyx, mask_zyx, strict=True):  # slice by slice, in little memory
        inside = mask_yx != labels.background_value
        total += int(shares_yx.sum(where=inside, dtype=np.int64))
        n_inside += int(np.count_nonzero(inside))
    return total / n_inside / SHARE_STEPS if n_inside else None


def row_of_mask(folder: Path, case_id: str, labels: LabelSet) -> CaseRow:
    """The row of a mask that is there already, as far as the mask tells it."""
    values, grid = read_labels(mask_path(folder, case_id))
    maps = {name: path for name, path in uncertainty_paths(folder, case_id).items() if is_whole(path)}
    shares = {
        name: np.rint(read_voxels(read_header(path))[0] * SHARE_STEPS).astype(np.uint8) for name, path in maps.items()
    }
    means = {f"mean_{name}": mean_inside(share, values, labels) for name, share in shares.items()}
    return CaseRow(case_id, None, None, None, label_sizes(values, grid, labels), (UNKNOWN_WARNING,), **means)


class PredictionTable:
    """`predictions.csv`: one row for each mask of a folder, added as the masks are.

    A row is added by one write at the file's end, so that a run of many cases does not write them all again and
    again. A killed run leaves at most one incomplete row, which is dropped when the table is next opened.

    Args:
        folder: Where the masks are.
        labels: The structures; they give the columns.
    """

    def __init__(self, folder: Path, labels: LabelSet) -> None:
        self.path, self.names = folder / PREDICTIONS, labels.names
        self.rows: dict[str, CaseRow] = {}
        if self.path.is_file():
            *ended, _ = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
            parsed = (self._parse(csv_cells(cells)) for line in ended if (cells := _row_of(line)) is not None)
            self.rows = {row.case_id: row for row in parsed if row is not None}

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        seconds = [f"seconds_{part}" for part in ("prepare", "network", "export")]
        sizes = [f"{what}_{name}" for name in self.names for what in ("voxels", "volume_ml")]
        means = [f"mean_{name}" for name in UNCERTAINTY]
        return ["case_id", *seconds, *sizes, *means, "warnings"]

    def keep(self, case_ids: Sequence[str]) -> None:
        """Write the table again with the rows of these cases alone."""
        self.rows = {case_id: self.rows[case_id] for case_id in case_ids if case_id in self.rows}
        write_text(self.path, csv_text([self.columns, *map(self._cells, self.rows.values())]))

    def add(self, row: CaseRow) -> None:
        """Add a row to the table and its file.

        Raises:
            ResourceError, SetupError: If it cannot be written.
        """
        self.rows[row.case_id] = row
        append_synced(self.path, csv_text([self._cells(row)]).encode())

    def _cells(self, row: CaseRow) -> list[str]:
        seconds = (row.seconds_prepare, row.seconds_network, row.seconds_export)
        sizes = [text for name in self.names for text in _size_cells(row.sizes[name])]
        means = ("" if mean is None else f"{mean:.4f}" for mean in (row.mean_entropy, row.mean_disagreement))
        times = ("" if s is None else f"{s:.3f}" for s in seconds)
        return [row.case_id, *times, *sizes, *means, _SEPARATOR.join(row.warnings)]

    def _parse(self, cells: list[str]) -> CaseRow | None:
        if len(cells) != len(self.columns) or cells == self.columns:
            return None
        case_id, prepare, network, export, *sizes, entropy, disagreement, warnings = cells
        try:
            texts = (prepare, network, export, entropy, disagreement)
            prepare_s, network_s, export_s, entropy_mean, disagreement_mean = (float(t) if t else None for t in texts)
            pairs = zip(map(int, sizes[::2]), map(float, sizes[1::2]), strict=True)
            of_label = {name: LabelSize(*pair) for name, pair in zip(self.names, pairs, strict=True)}
        except ValueError:  # cut off by a kill, or edited by hand: made again from the mask
            return None
        known = tuple(warnings.split(_SEPARATOR)) if warnings else ()
        return CaseRow(case_id, prepare_s, network_s, export_s, of_label, known, entropy_mean, disagreement_mean)


def _row_of(line: str) -> list[str] | None:
    """Cells of a line; None if it is none. Each is read by itself, so that a quote left open costs one row."""
    try:
        return next(csv.reader([line]), None)
    except csv.Error:
        return None


def _size_cells(size: LabelSize) -> tuple[str, str]:
    return str(size.voxels), f"{size.volume_ml:.6g}"


MEMORY_EXIT = ResourceError.exit_code


@dataclass(frozen=True)
class CaseFault:
    """A case that could not be predicted: why, and the exit code that stands for it."""

    case_id: str
    text: str
    exit_code: int


@dataclass(frozen=True)
class PredictionResult:
    """Masks and failed cases of a prediction.

    Args:
        folder: Where the masks are.
        rows: Of the cases whose masks are there, in the order of the cases.
        faults: Of the others.
    """

    folder: Path
    rows: tuple[CaseRow, ...]
    faults: tuple[CaseFault, ...]

    @property
    def masks(self) -> list[Path]:
        """The masks, in the order of the cases."""
        return [mask_path(self.folder, row.case_id) for row in self.rows]

    @property
    def exit_code(self) -> int:
        """0 if there are all masks; else that of wrong data, or of memory if that was the only reason."""
        return self.exit_code_of(self.faults)

    @staticmethod
    def exit_code_of(faults: Collection[CaseFault | SegpipeError]) -> int:
        """Exit code of faults alone, which may be those that a dry run expects."""
        if not faults:
            return 0
        return MEMORY_EXIT if all(fault.exit_code == MEMORY_EXIT for fault in faults) else DataError.exit_code

    @property
    def summary(self) -> str:
        """The list of the cases that could not be predicted."""
        n_cases = len(self.rows) + len(self.faults)
        lines = [
            f"{len(self.faults)} of {count(n_cases, 'case')} could not be predicted:",
            *(f.text for f in self.faults),
        ]
        return "\n  ".join(lines)

    def require_all(self) -> list[Path]:
        """The masks of all cases.

        Raises:
            DataError: If some could not be predicted; it lists them.
            ResourceError: The same, if memory was the only reason.
        """
        if self.faults:
            raise (ResourceError if self.exit_code == MEMORY_EXIT else DataError)(self.summary)
        return self.masks
