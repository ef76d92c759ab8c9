"""The table of scores: one row for each case, label and metric, in a CSV file that any tool reads."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from math import inf, isfinite
from pathlib import Path
from typing import Any

from segpipe.core.errors import DataError
from segpipe.core.files import write_text
from segpipe.core.text import csv_cells, csv_text
from segpipe.evaluate.metrics import METRICS, STATUSES, Overlap, Status

IMAGE_LABEL = "(image)"  # label of rows that describe the image; no structure is called so
DIAGONAL = "image_diagonal"  # metric of such a row: the worst distance that policy `mr` gives to a missed structure
_ROUNDING = 1e-6  # by which single precision and printed digits may leave a range
_OWN_STATUS = ("lesions", "calibration")  # groups whose status is not that of the label's voxels


@dataclass(frozen=True)
class Origin:
    """The case of a score, and the run that made the mask.

    Args:
        case_id: The case.
        patient_id: Whose case it is; means are resampled by patient.
        run: What made the prediction, e.g. a configuration; empty if unknown.
        fold: Fold that the case was validated in; None outside cross-validation.
        seed: Seed of the training; None if unknown.
    """

    case_id: str
    patient_id: str
    run: str = ""
    fold: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Score:
    """A row of scores.csv; its fields are the columns, in this order.

    Args:
        run, case_id, patient_id, fold, seed: As in `Origin`.
        label: Name of the structure, or `(image)`.
        metric: A name of `METRICS`, or `image_diagonal`.
        value: The raw value: NaN where nothing can be measured, inf for a distance to an empty mask.
        unit: `1`, `mm` or `mm3`.
        status: `ok`, `both_empty`, `missed` (prediction empty) or `spurious` (reference empty).
        n_reference_vox: Voxels of the structure in the reference; for `(image)` all that count.
        n_prediction_vox: The same in the prediction.

    Raises:
        ValueError: If a name is empty, the status is unknown or contradicts the numbers of voxels, an `ok` value is not
            finite, or a value is outside the range of its metric.
    """

    run: str
    case_id: str
    patient_id: str
    fold: int | None
    seed: int | None
    label: str
    metric: str
    value: float
    unit: str
    status: Status
    n_reference_vox: int
    n_prediction_vox: int

    def __post_init__(self) -> None:
        for name in ("case_id", "patient_id", "label", "metric", "unit"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}, expected one of {', '.join(STATUSES)}")
        if self.status == "ok" and not isfinite(self.value):
            raise ValueError(f"value is {self.value} with status ok, expected a finite number")
        if self.n_reference_vox < 0 or self.n_prediction_vox < 0:
            raise ValueError("a number of voxels is negative")
        self._check_status()
        check_range(self.metric, self.value)

    def _check_status(self) -> None:
        """Refuse a status that voxels or value deny: `both_empty` counts as a perfect score."""
        metric = METRICS.get(self.metric)
        if metric is None or metric.group in _OWN_STATUS:
            return
        found = Overlap(self.n_reference_vox, self.n_prediction_vox, 0).status
        if found not in ("both_empty", self.status):  # no voxels: their numbers are not known
            sizes = f"{self.n_reference_vox} reference and {self.n_prediction_vox} prediction voxels"
            raise ValueError(f"status is {self.status} with {sizes}, expected {found}")
        if self.status == "both_empty" and metric.kind == "overlap" and 0 < self.value < 1:
            raise ValueError(f"{self.metric} is {self.value:g} with status both_empty, expected nan")

    @property
    def case_key(self) -> tuple[str, str, int | None, int | None]:
        """The key of one prediction of one case."""
        return (self.run, self.case_id, self.fold, self.seed)


def check_range(metric: str, value: float) -> None:
    """Refuse a value that its metric cannot have, and say the likely cause. Not a number passes.

    Raises:
        ValueError: If an overlap is outside 0 to 1, or a distance or the diagonal of an image is negative.

    Example:
        >>> check_range("dice", 84.0)
        Traceback (most recent call last):
        ValueError: dice is 84, expected 0 to 1. Is it in percent? Divide by 100
    """
    known = METRICS.get(metric)
    if known is None and metric != DIAGONAL:
        return
    lowest, highest = known.limits if known is not None else (0.0, inf)
    if not (value < lowest - _ROUNDING or value > highest + _ROUNDING):
        return
    limits = "0 to 1" if highest < inf else f"{lowest:g} or more"
    percent = " Is it in percent? Divide by 100" if highest < value <= 100 and highest < inf else ""
    raise ValueError(f"{metric} is {value:g}, expected {limits}" + (f".{percent}" if percent else ""))


COLUMNS = tuple(field.name for field in fields(Score))


@dataclass(frozen=True)
class ScoreTable:
    """Rows of scores, in the order in which they were made.

    Raises:
        ValueError: If two rows are of the same case, label and metric.
    """

    rows: tuple[Score, ...]

    def __post_init__(self) -> None:
        seen: set[Any] = set()
        for row in self.rows:
            key = (*row.case_key, row.label, row.metric)
            if key in seen:
                fold = "" if row.fold is None else f", fold {row.fold}"
                raise ValueError(f"two rows for case {row.case_id}, label {row.label}, metric {row.metric}{fold}")
            seen.add(key)

    @classmethod
    def join(cls, tables: Iterable[ScoreTable], where: str | Path) -> ScoreTable:
        """The rows of several tables, e.g. of all folds.

        Args:
            tables: The tables.
            where: Their folder, for the message.

        Raises:
            DataError: If two of them hold a score of the same case, e.g. since the folder of a fold was copied.
        """
        rows = tuple(row for table in tables for row in table.rows)
        try:
            return cls(rows)
        except ValueError as fault:
            raise DataError(
                f"{where}: {fault} in its tables of scores, expected one. Was the folder of a fold copied? Remove the "
                "copy, or score it again."
            ) from None

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs, in order of appearance."""
        return tuple(dict.fromkeys(row.run for row in self.rows))

    @property
    def labels(self) -> tuple[str, ...]:
        """Structures, in order of appearance."""
        return tuple(dict.fromkeys(row.label for row in self.rows if row.label != IMAGE_LABEL))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of structures, in order of appearance."""
        return tuple(dict.fromkeys(row.metric for row in self.rows if row.label != IMAGE_LABEL))

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Cases, in order of appearance."""
        return tuple(dict.fromkeys(row.case_id for row in self.rows))

    def of_run(self, run: str) -> ScoreTable:
        """The rows of one run."""
        return ScoreTable(tuple(row for row in self.rows if row.run == run))

    def save(self, path: Path) -> None:
        """Write the table as CSV, whole or not at all; equal tables give equal bytes.

        Raises:
            ResourceError: If the disk is full.
            SetupError: If the place is not writable.
        """
        write_text(path, self._text())

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change when any value does."""
        return hashlib.sha256(self._text().encode()).hexdigest()[:12]

    def _text(self) -> str:
        return csv_text([COLUMNS, *map(astuple, self.rows)])

    @classmethod
    def load(cls, path: Path) -> ScoreTable:
        """Read a table, strictly.

        Raises:
            DataError: If the file is missing, has other columns, a value that is none, or a row twice.
        """
        rows: list[Score] = []
        first_line: dict[Any, int] = {}
        for line, cells in _lines(path):
            try:
                row = _parse_row(cells)
            except ValueError as fault:
                raise DataError(f"{path}, line {line}: {fault}. Correct the line or write the table again.") from None
            key = (*row.case_key, row.label, row.metric)
            if key in first_line:
                raise DataError(
                    f"{path}, line {line}: the same case, label and metric ({row.case_id}, {row.label}, {row.metric}) "
                    f"as line {first_line[key]}, expected once. Delete one of them or give them different runs."
                )
            first_line[key] = line
            rows.append(row)
        return cls(tuple(rows))


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and cells of every row after the header."""
    try:
        text = path.read_text(encoding="utf-8")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, csv_cells(cells)) for cells in reader]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f"{path}: cannot be read as a table ({fault}).") from None
    header = tuple(lines[0][1]) if lines else ()
    if header != COLUMNS:
        unknown, missing = sorted(set(header) - set(COLUMNS)), sorted(set(COLUMNS) - set(header))
        found = f"unknown {unknown}, missing {missing}" if unknown or missing else "another order or one twice"
        raise DataError(f"{path}, line 1: columns are wrong ({found}), expected {','.join(COLUMNS)}.")
    return lines[1:]


def _parse_row(cells: list[str]) -> Score:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} cells, expected {len(COLUMNS)}")
    given = dict(zip(COLUMNS, cells, strict=True))
    values: dict[str, Any] = dict(given)
    for name in ("fold", "seed"):
        values[name] = _number(name, given[name], int) if given[name] else None
    for name in ("n_reference_vox", "n_prediction_vox"):
        values[name] = _number(name, given[name], int)
    values["value"] = _number("value", given["value"], float)
    return Score(**values)


def _number(name: str, text: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(text)
    except ValueError:
        hint = number_hint(text) if kind is float else ""
        raise ValueError(f"{name} is {text!r}, expected {'a whole' if kind is int else 'a'} number{hint}") from None


def number_hint(text: str) -> str:
    """Likely cause why a cell is no number, as a further sentence; empty if none is known."""
    digits = text.strip().removesuffix("%").strip()
    if text.strip().endswith("%") and _is_number(digits):
        return ". It is in percent: divide by 100 and remove the sign"
    if text.count(",") == 1 and _is_number(text.replace(",", ".")):
        return ". It has a decimal comma: write a point"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
