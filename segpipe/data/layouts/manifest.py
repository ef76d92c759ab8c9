"""CSV manifests: one line per case, `case_id, patient_id, image_<channel>…, label, site`."""

from __future__ import annotations

import csv
import difflib
import io
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.files import decode_text, read_text
from segpipe.core.text import count, nfc
from segpipe.data.dataset import CASE_NAME, is_case_name
from segpipe.data.faults import Fault, fault
from segpipe.data.layouts.scan import CaseFiles, DatasetFiles, list_folder, locate

_REQUIRED, _OPTIONAL = ("case_id",), ("patient_id", "label", "site")
_IMAGE = "image"


def read_manifest(path: Path) -> DatasetFiles | None:
    """Read a CSV manifest, or the only one in a folder; None if there is none. Paths in it are relative to its folder.

    Raises:
        DataError: If a CSV file lacks a needed column, or a folder holds several manifests.
    """
    file = manifest_in(path)
    if file is None:
        return None
    header, rows, row_shapes = _rows(file)
    image_columns = [name for name in header if _is_image_column(name)]
    missing = [name for name in _REQUIRED if name not in header] + ([] if image_columns else ["image_<channel>"])
    if missing:
        raise DataError(
            f"{file}: no column {', '.join(missing)}; found {', '.join(header) or 'nothing'}. "
            "Expected case_id, patient_id, image_<channel> for each channel, label, and site if known. Add the column."
        )
    channels = tuple(name.removeprefix(_IMAGE).lstrip("_") or _IMAGE for name in image_columns)
    faults = [*_column_faults(header, file), *row_shapes]
    cases: dict[str, CaseFiles] = {}
    for line, row in rows:
        case, row_faults = _case(row, line, file, image_columns)
        faults += row_faults
        if case.case_id in cases:
            faults.append(fault("case_twice", f"again in line {line}", case.case_id, file))
        elif is_case_name(case.case_id):
            cases[case.case_id] = case
    ordered = tuple(cases[case_id] for case_id in sorted(cases))
    patients_from = "from the column patient_id"
    return DatasetFiles(file.parent.name, file.parent, channels, None, ordered, tuple(faults), patients_from)


def manifest_in(folder: Path) -> Path | None:
    """The file itself if it is a CSV, else that in the folder whose first line has `case_id` and an image column.

    Raises:
        DataError: If there are several.
    """
    if folder.suffix.lower() == ".csv" and folder.is_file():
        return folder
    if not folder.is_dir():
        return None
    manifests = [path for path in list_folder(folder) if path.suffix.lower() == ".csv" and _is_manifest(path)]
    if len(manifests) > 1:
        raise DataError(
            f"{folder}: {len(manifests)} CSV manifests ({', '.join(m.name for m in manifests[:5])}), expected one. "
            "Give the file itself."
        )
    return manifests[0] if manifests else None


def _case(row: dict[str, str], line: int, file: Path, columns: list[str]) -> tuple[CaseFiles, list[Fault]]:
    case_id = row["case_id"]
    faults = []
    if not is_case_name(case_id):
        faults.append(fault("column", f"case_id {case_id!r}", f"line {line}", file, CASE_NAME))
    for column in columns:
        if not row[column]:
            faults.append(fault("missing_channel", f"line {line}: {column} is empty", case_id, file))
    if not row.get("label"):
        faults.append(fault("image_without_label", f"line {line}: no label", case_id, file))
    if "patient_id" in row and not row["patient_id"]:
        faults.append(fault("patient_unknown", f"line {line}: patient_id is empty", case_id, file))
    images = [locate(file.parent, row[column]) for column in columns if row[column]]
    images = list(dict.fromkeys(images))  # one 4D file may be in every column
    label = locate(file.parent, row["label"]) if row.get("label") else None
    faults += [fault("file_missing", "no such file", case_id, path) for path in images if not path.exists()]
    if label is not None and not label.exists():
        faults.append(fault("label_missing", "no such file", case_id, label))
    present = tuple(path for path in images if path.exists())
    found_label = label if label is not None and label.exists() else None
    return CaseFiles(case_id, present, found_label, row.get("patient_id") or None, row.get("site") or None), faults


def _column_faults(header: list[str], file: Path) -> list[Fault]:
    """Find unknown columns: fatal if a known name is near, since patients or sites would be lost silently."""
    known = [*_REQUIRED, *_OPTIONAL]
    faults = []
    for name in header:
        if name in known or _is_image_column(name):
            continue
        near = difflib.get_close_matches(name.lower().replace(" ", "_"), known, n=1, cutoff=0.75)
        if near:
            faults.append(fault("column", f"column {name!r}", None, file, f"{near[0]!r}, if that is what it is"))
        else:
            faults.append(fault("column_unused", f"column {name!r}", None, file))
    if len(set(header)) != len(header):
        faults.append(fault("column", "a column name occurs twice", None, file, "each name once"))
    return faults


def _rows(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]], list[Fault]]:
    """Read column names, numbered lines, and faults of lines with another number of cells, which are left out.

    The separator is comma, semicolon or tab, whichever the first line has most of.
    """
    try:
        text = read_text(file)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator_of(text.partition("\n")[0]), strict=True)
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, [nfc(cell.strip()) for cell in row]) for row in reader if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{file}: cannot be read as UTF-8 CSV ({problem}). Export it again.") from None
    faults = []
    place = header.index("case_id") if "case_id" in header else 0
    for line, row in rows:
        if len(row) != len(header):
            name = row[place] if place < len(row) and is_case_name(row[place]) else f"line {line}"
            expected = f"{count(len(header), 'cell')} like the first line; quote cells that contain the separator"
            faults.append(fault("row", f"line {line} has {count(len(row), 'cell')}", name, file, expected))
    return (
        header,
        [(line, dict(zip(header, row, strict=True))) for line, row in rows if len(row) == len(header)],
        faults,
    )


def _is_manifest(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            first = decode_text(stream.readline(), "replace")
    except OSError:
        return False
    header = [name.strip().strip('"') for name in first.split(separator_of(first))]
    return "case_id" in header and any(map(_is_image_column, header))


def separator_of(first: str) -> str:
    """The separator that the first line of a table has most of: comma, semicolon or tab."""
    return max(",;\t", key=first.count)


def _is_image_column(name: str) -> bool:
    return name == _IMAGE or name.startswith(f"{_IMAGE}_")
