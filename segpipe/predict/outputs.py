"""Files of a prediction: masks, probabilities, the list of labels, one row for each case."""

from __future__ import annotations

import csv
import io
import math
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.files import disk_fault, write_text
from segpipe.core.grid import Grid
from segpipe.core.labels import LabelSet
from segpipe.core.progress import say
from segpipe.core.volume import SHARE_STEPS, read_header, read_labels, read_voxels
from segpipe.data.label_lists import value_counts
from segpipe.predict.options import PredictOptions

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
    return CaseRow(case_id, None, None, None, label_sizes(values, grid, labels), (UNKNOWN_WARNING,))


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
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            ended = [line for line in lines if line.endswith("\n")]
            whole = [cells for cells in csv.reader(ended) if len(cells) == len(self.columns) and cells != self.columns]
            self.rows = {cells[0]: row for cells in whole if (row := self._parse(cells)) is not None}

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
        write_text(self.path, _csv_text([self.columns, *map(self._cells, self.rows.values())]))

    def add(self, row: CaseRow) -> None:
        """Add a row to the table and its file.

        Raises:
            ResourceError, SetupError: If it cannot be written.
        """
        self.rows[row.case_id] = row
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(_csv_text([self._cells(row)]).encode())
                os.fsync(file.fileno())
        except OSError as fault:
            raise disk_fault(fault, self.path) from fault

    def _cells(self, row: CaseRow) -> list[str]:
        seconds = (row.seconds_prepare, row.seconds_network, row.seconds_export)
        sizes = [text for name in self.names for text in _size_cells(row.sizes[name])]
        means = ("" if mean is None else f"{mean:.4f}" for mean in (row.mean_entropy, row.mean_disagreement))
        times = ("" if s is None else f"{s:.3f}" for s in seconds)
        return [row.case_id, *times, *sizes, *means, _SEPARATOR.join(row.warnings)]

    def _parse(self, cells: list[str]) -> CaseRow | None:
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


def _size_cells(size: LabelSize) -> tuple[str, str]:
    return str(size.voxels), f"{size.volume_ml:.6g}"


def _csv_text(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
