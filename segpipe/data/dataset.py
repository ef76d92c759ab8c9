"""Datasets: cases, channels and labels, independent of the layout they were read from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

from pydantic import field_validator, model_validator

from segpipe.core.errors import DataError
from segpipe.core.labels import LabelSet
from segpipe.core.records import Record

_MAX_NAME_BYTES = 200  # files of 255 bytes can be named on most disks; endings and temporary names are longer
CASE_NAME = f"a name without slash that does not begin with a dot, of {_MAX_NAME_BYTES} bytes at most"


def is_case_name(text: str) -> bool:
    """True if files and folders may have this name; false for one that leads elsewhere, such as `..` or `a/b`.

    Example:
        >>> [is_case_name(name) for name in ("a.b", "..", "a/b", "ü" * 100, "ü" * 101)]
        [True, False, False, True, False]
    """
    is_short = len(text.encode("utf-8", "replace")) <= _MAX_NAME_BYTES
    return bool(text) and is_short and not text.startswith(".") and not set(text) & set("/\\\0")


class Case(Record):
    """One image and its label map.

    Args:
        case_id: Name, unique in the dataset; output files are named by it.
        patient_id: The patient; a split never separates the cases of one patient.
        images: Files, one for each channel, or one 4D file with all channels.
        label: File of the label map; None if there is none (prediction).
        site: Where it was acquired; None if unknown.
    """

    case_id: str
    patient_id: str
    images: tuple[str, ...]
    label: str | None = None
    site: str | None = None

    @property
    def image_paths(self) -> list[Path]:
        """The image files."""
        return [Path(image) for image in self.images]

    @field_validator("case_id")
    @classmethod
    def _is_file_name(cls, case_id: str) -> str:
        if not is_case_name(case_id):
            raise ValueError(f"expected {CASE_NAME}")
        return case_id

    @field_validator("images")
    @classmethod
    def _some(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        if not images:
            raise ValueError("expected at least one image")
        return images


class Dataset(Record):
    """Cases, channels and labels.

    Args:
        name: For people.
        layout: How the folder was understood: a key of `LAYOUTS`.
        root: The folder or file it was read from.
        channels: Channel names in order, e.g. ("T1", "FLAIR"); the planner normalises by them ("CT").
        labels: The structures.
        cases: Sorted by case id.
        patients_from: Where patient ids come from, one sentence for people.
    """

    written_by: ClassVar[str] = "`segpipe plan DATA -o {folder}`"

    name: str
    layout: str
    root: str
    channels: tuple[str, ...]
    labels: LabelSet
    cases: tuple[Case, ...]
    patients_from: str

    @model_validator(mode="after")
    def _unique(self) -> Dataset:
        ids = [case.case_id for case in self.cases]
        if len(set(ids)) != len(ids):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(f"case ids occur twice: {twice[:5]}")
        return self

    @property
    def by_id(self) -> dict[str, Case]:
        """Cases by their id."""
        return {case.case_id: case for case in self.cases}


def signature_of(case: Case) -> str:
    """Digest, in twelve hexadecimal digits, the names, sizes and times of a case's files.

    Raises:
        DataError: If a file is gone.
    """
    digest = hashlib.sha256()
    for file in map(Path, (*case.images, *([case.label] if case.label else []))):
        try:
            for part in sorted(file.iterdir()) if file.is_dir() else [file]:  # a DICOM series is a folder
                stat = part.stat()
                digest.update(f"{part.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        except OSError as fault:
            raise DataError(
                f"{case.case_id}: {file} cannot be read ({fault.strerror}). Restore it, or check the dataset again."
            ) from None
    return digest.hexdigest()[:12]
