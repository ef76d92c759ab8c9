"""A repaired copy of a dataset: contradictory headers and labels stored as floats. The input is never touched."""

from __future__ import annotations

import csv
import io
import shutil
from functools import partial
from pathlib import Path

from segpipe.core.errors import DataError, UsageError
from segpipe.core.files import whole_folder, write_text
from segpipe.core.header import NIFTI_ENDINGS, Header, ending_of
from segpipe.core.header_repair import repair_edges
from segpipe.core.progress import map_threads
from segpipe.core.records import Record
from segpipe.core.volume import read_header, read_label_values, write_mask
from segpipe.data.check import walk
from segpipe.data.found import Found
from segpipe.data.layouts import find_layout

FIXES_FILE = "fixes.csv"


class Fix(Record):
    """What was done to one file.

    Args:
        file: Path below the copy.
        kind: The kind of fault.
        done: What was done, or why nothing could be.
        is_repaired: False if the file is as it was.
    """

    file: str
    kind: str
    done: str
    is_repaired: bool


def fix_dataset(path: Path, out: Path, n_workers: int) -> tuple[Fix, ...]:
    """Write a copy of a dataset in its own layout, repaired where that needs no judgement, and `fixes.csv` in it.

    Where sform and pixdim disagree, see `core.header_repair.repair_edges`; label maps stored as floats near
    integers are stored as integers. All else is copied as it is, unreadable files too.

    Args:
        path: A dataset's folder, a CSV manifest (it and the files it names are copied), or one image.
        out: The copy's folder; it must not exist or be empty.
        n_workers: Files worked on side by side.

    Returns:
        One entry for each file that had such a fault.

    Raises:
        UsageError: If `out` is in the dataset or around it, or holds something.
        DataError: If the dataset names files outside its folder, which a copy could not name the same way.
    """
    path, out = path.absolute(), out.absolute()
    _check_places(path, out)
    try:
        found = find_layout(path)
    except DataError:
        found = None  # the headers can be repaired all the same
    root, files = _files(path, found)
    labels = {case.label for case in found.cases} if found else set()
    with whole_folder(out) as copy:
        results = map_threads(
            partial(_copy_one, root=root, copy=copy, labels=frozenset(labels)), files, "copying", n_workers
        )
        fixes = tuple(fix for per_file in results for fix in per_file)
        write_text(copy / FIXES_FILE, _table(fixes))
    return fixes


def _check_places(path: Path, out: Path) -> None:
    source, target = path.resolve(), out.resolve()
    if path.is_dir() and (target == source or source in target.parents or target in source.parents):
        raise UsageError(f"{out}: lies in the dataset {path} or around it; expected a place of its own. Choose one.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not empty, expected a new folder. Choose another name.")


def _files(path: Path, found: Found | None) -> tuple[Path, list[Path]]:
    """The folder that is copied and the files in it."""
    named = [file for case in found.cases for file in (*case.images, case.label) if file] if found else []
    root = path if path.is_dir() else path.parent
    outside = [file for file in named if not file.resolve().is_relative_to(root.resolve()) and ".." in file.parts]
    outside += [file for file in named if not file.is_relative_to(root)]
    if outside:
        raise DataError(
            f"{path}: names {len(outside)} file(s) outside its folder, e.g. {outside[0]}; a copy could not name them "
            "the same way. Repair those files themselves (`segpipe check FILE --fix OUT`)."
        )
    if path.is_dir():
        return root, list(walk(path))
    if path.suffix.lower() == ".csv":
        return root, sorted({path, *named})
    return (root, list(walk(root))) if found else (root, [path])


def _copy_one(file: Path, root: Path, copy: Path, labels: frozenset[Path | None]) -> list[Fix]:
    target = copy / file.relative_to(root)
    target.parent.mkdir(parents=True, exist_ok=True)
    name = str(file.relative_to(root))
    header = _header(file)
    if header is None:
        if file.exists():
            shutil.copy2(file, target)
        return []
    fixes = []
    if header.contradiction:
        fixes.append(Fix(file=name, kind="header_contradiction", done=repair_edges(header, target), is_repaired=True))
    else:
        shutil.copy2(file, target)
    if file in labels and header.dtype.kind == "f":
        fixes.append(_as_integers(name, target))
    return fixes


def _as_integers(name: str, target: Path) -> Fix:
    """Store the copy of a label map as integers of the smallest type."""
    import numpy as np

    header = read_header(target)
    try:
        values = read_label_values(header)
    except DataError as problem:
        return Fix(file=name, kind="label_float", done=f"copied as it was ({problem})", is_repaired=False)
    low, high = int(values.min()), int(values.max())
    kinds = (np.uint8, np.int16, np.int32)
    kind = next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    write_mask(target, values.astype(kind), like=target)
    return Fix(file=name, kind="label_float", done=f"{header.dtype} stored as {np.dtype(kind).name}", is_repaired=True)


def _header(file: Path) -> Header | None:
    """Header of a NIfTI file; None for other files and those that cannot be read, which `check` reports."""
    if ending_of(file) not in NIFTI_ENDINGS:
        return None
    try:
        return read_header(file)
    except DataError:
        return None


def _table(fixes: tuple[Fix, ...]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(Fix.model_fields)
    writer.writerows([fix.file, fix.kind, fix.done, str(fix.is_repaired).lower()] for fix in fixes)
    return stream.getvalue()
