"""What is known of cases beside their scores: their patients, and groups such as the site."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import DataError, UsageError
from segpipe.core.records import did_you_mean


@dataclass(frozen=True)
class CaseTable:
    """Patients and groups by case.

    Args:
        patients: Patient by case; None if the file does not tell.
        groups: For each grouping, e.g. `site`, the group of each case.
    """

    patients: Mapping[str, str] | None
    groups: Mapping[str, Mapping[str, str]]


def read_cases(path: Path, groupings: Sequence[str]) -> CaseTable:
    """Read a CSV file with columns `case_id`, where known `patient_id`, and those to group by.

    A manifest of a dataset is such a file.

    Raises:
        UsageError: If there is no such column to group by.
        DataError: If the file cannot be read, has no column `case_id`, or a case twice.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        rows = list(reader)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f"{path}: cannot be read as a table ({fault}).") from None
    columns = list(reader.fieldnames or [])
    if "case_id" not in columns or any(None in row or None in row.values() for row in rows):
        raise DataError(f"{path}: columns are {', '.join(columns)}; expected case_id, and as many cells in every row.")
    absent = [name for name in groupings if name not in columns]
    if absent:
        raise UsageError(f"{path}: has no column {absent[0]!r}.{did_you_mean(absent[0], columns)}")
    case_ids = [row["case_id"] for row in rows]
    twice = [case for case in dict.fromkeys(case_ids) if case_ids.count(case) > 1]
    if twice:
        raise DataError(f"{path}: {len(twice)} cases occur twice, e.g. {twice[0]}; expected each once. Remove one row.")
    patients = (
        {row["case_id"]: row["patient_id"] or row["case_id"] for row in rows} if "patient_id" in columns else None
    )
    return CaseTable(patients, {name: {row["case_id"]: row[name] for row in rows} for name in groupings})
