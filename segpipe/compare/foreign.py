"""Scores that other programs wrote, as a `ScoreTable`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

from segpipe.core.errors import DataError
from segpipe.core.files import read_text
from segpipe.core.header import stem_of
from segpipe.core.progress import say
from segpipe.core.records import read_mapping
from segpipe.core.text import count
from segpipe.data.faults import refuse
from segpipe.data.layouts.manifest import separator_of
from segpipe.data.load import assign_patients
from segpipe.evaluate.metrics import METRICS, Status
from segpipe.evaluate.scores import Score, ScoreTable, number_hint

_NNUNET_METRICS = {"Dice": "dice", "IoU": "iou"}  # the others of summary.json are counts
_DESCRIPTION, _LEVELS = "dataset.json", 3  # from fold_0/validation/summary.json up to the model's folder
_OTHER_NAMES = {"method": "run", "case": "case_id", "patient": "patient_id"}  # of columns
_COUNTS = ("n_reference_vox", "n_prediction_vox")
_N_NAMED = 5
_NO_SCORE = {
    "",
    "-",
    "--",
    "–",
    "—",
    "?",
    ".",
    "na",
    "n/a",
    "#n/a",
    "<na>",
    "nil",
    "none",
    "null",
    "missing",
    "#div/0!",
}


def nnunet_table(path: Path, fold: int | None) -> ScoreTable:
    """Scores in a `summary.json` of nnU-Net v2.

    Cases are called as their prediction files, and each is its own patient. Labels are named by the `dataset.json` that
    nnU-Net lays into the folder of a trained model; where there is none, they are called by their values.

    Args:
        path: The file.
        fold: Whose validation it is; None if unknown.

    Raises:
        DataError: If it is no such file.
    """
    cases = read_mapping(path, DataError).get("metric_per_case")
    if not isinstance(cases, list) or not cases:
        raise DataError(
            f"{path}: has no list metric_per_case, expected nnU-Net v2's summary. Evaluate the masks again."
        )
    names = _label_names(path)
    rows: list[tuple[Any, ...]] = []
    try:
        for case in cases:
            case_id = stem_of(Path(case["prediction_file"]))
            for key, values in case["metrics"].items():
                counts = (int(values["n_ref"]), int(values["n_pred"]))
                place = (case_id, case_id, fold, None, names.get(key, key))
                rows += [
                    ("", *place, ours, float(values[theirs]), "1", _status(*counts), *counts)
                    for theirs, ours in _NNUNET_METRICS.items()
                ]
    except (KeyError, TypeError, AttributeError, ValueError) as fault:
        raise DataError(f"{path}: is no summary of nnU-Net v2 ({fault!r}). Evaluate the masks again.") from None
    scores: list[Score] = []
    for row in rows:
        try:
            scores.append(Score(*row))
        except ValueError as fault:
            raise DataError(f"{path}: case {row[1]}, label {row[5]}: {fault}. Evaluate the masks again.") from None
    try:
        return ScoreTable(tuple(scores))
    except ValueError as fault:
        raise DataError(f"{path}: {fault}, expected one. Delete one of them.") from None


def _label_names(summary: Path) -> dict[str, str]:
    """Names of labels by what nnU-Net calls them in a summary: `1`, or `(1, 2)` for a region."""
    beside = (folder / _DESCRIPTION for folder in list(summary.absolute().parents)[:_LEVELS])
    description = next((path for path in beside if path.is_file()), None)
    labels = read_mapping(description, DataError).get("labels") if description else None
    if not isinstance(labels, Mapping):
        return {}
    return {str(tuple(value) if isinstance(value, list) else value): name for name, value in labels.items()}


def long_table(path: Path, *, allow_missing: bool = False) -> ScoreTable:
    """Scores in a CSV file with a row for each method, case and label.

    Columns: `case_id` and `label`; a column for each metric (named as in scores.csv), or `metric` and `value`; where
    known `method` (or `run`), `fold`, `seed`, `patient_id`, `status`, `n_reference_vox`, `n_prediction_vox`. Others are
    not read.

    Args:
        path: The file.
        allow_missing: Leave out a case whose score is blank, NA or NaN, as if it were missing, and say so.

    Returns:
        Without `patient_id` each case is its own patient. Only the numbers of voxels or `status` say that a mask is
        empty: a blank or NaN alone could as well be a crash.

    Raises:
        DataError: If a column is missing, a value is none, or a row occurs twice.
    """
    header, lines = _lines(path)
    in_cells = [name for name in header if name in METRICS]
    missing = [name for name in ("case_id", "label") if name not in header]
    if missing or not (in_cells or {"metric", "value"} <= set(header)):
        raise DataError(
            f"{path}, line 1: columns are {', '.join(header)}; expected case_id, label and a column for each metric "
            f"({', '.join(list(METRICS)[:3])} …), or metric and value. Rename the columns."
        )
    rows: list[Score] = []
    unscored: dict[Any, str] = {}  # cases and metrics without a score
    first_line: dict[Any, int] = {}
    for line, cells in lines:
        for name in in_cells or [cells["metric"].strip().lower()]:
            try:
                row = _parse_row(cells, name, cells[name if in_cells else "value"])
            except _UnknownScore as fault:
                if not allow_missing:
                    raise DataError(f"{path}, line {line}: {fault}") from None
                unscored[_case_and_metric(cells, name)] = f"{cells['case_id']} (line {line}, {name})"
                continue
            except ValueError as fault:
                raise DataError(f"{path}, line {line}: {fault}. Correct the line.") from None
            key = (*row.case_key, row.label, row.metric)
            if first_line.setdefault(key, line) != line:
                raise DataError(
                    f"{path}, line {line}: the same method, case, fold, label and metric ({row.case_id}, {row.label}, "
                    f"{name}) as line {first_line[key]}, expected once. Delete one, or tell them apart by seed."
                )
            rows.append(row)
    if unscored:
        named = ", ".join(list(unscored.values())[:_N_NAMED]) + ", …" * (len(unscored) > _N_NAMED)
        say(f"{path}: {count(len(unscored), 'case')} without a score, left out: {named}")
    kept = [row for row in rows if (row.run, row.case_id, row.fold, row.seed, row.metric) not in unscored]
    return ScoreTable(tuple(kept))


class _UnknownScore(ValueError):
    """A cell that says neither a score nor why there is none."""


def _case_and_metric(cells: Mapping[str, str], metric: str) -> tuple[str, str, int | None, int | None, str]:
    fold, seed = (int(cells[name]) if cells.get(name) else None for name in ("fold", "seed"))
    return (cells.get("run", ""), cells["case_id"], fold, seed, metric)


def _lines(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns by the names of scores.csv, and number and cells of each line."""
    try:
        text = read_text(path)
        separator = separator_of(text.partition("\n")[0])
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f"{path}: cannot be read as a table ({fault}).") from None
    names = [name.strip().lower() for name in lines[0][1]] if lines else []
    header = [_OTHER_NAMES.get(name, name) for name in names]
    if len(set(header)) < len(header) or len(lines) < 2:
        wrong = "has no rows" if len(lines) < 2 else f"a column twice in {', '.join(header)}"
        raise DataError(f"{path}: {wrong}, expected a row of column names and scores below it.")
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise DataError(f"{path}, line {line}: {len(cells)} cells, expected {len(header)}. Correct the line.")
    return header, [(line, dict(zip(header, cells, strict=True))) for line, cells in lines[1:]]


def _parse_row(cells: Mapping[str, str], metric: str, text: str) -> Score:
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is unknown, expected one of {', '.join(METRICS)}")
    is_blank = text.strip().lower() in _NO_SCORE
    try:
        value = nan if is_blank else float(text)
    except ValueError:
        raise ValueError(f"{metric} is {text!r}, expected a number{number_hint(text)}") from None
    run, case_id, fold, seed, _ = _case_and_metric(cells, metric)
    given = [cells.get(name, "").strip() for name in _COUNTS]
    counts = [int(number) for number in given] if all(given) else [0, 0]
    status: Any = cells.get("status", "").strip()
    if not status and all(given):
        status = _status(*counts)
    is_unknown = status == "ok" or not status
    if not isfinite(value) and is_unknown:
        shown = "is blank" if not text.strip() else f"is {text.strip()!r}" if is_blank else f"is {value}"
        raise _UnknownScore(
            f"{metric} of case {case_id} {shown}, expected a number. If masks are empty, say so in the columns "
            f"{' and '.join(_COUNTS)}, or in status; if the case failed, score it again or pass --allow-missing."
        )
    return Score(
        run, case_id, cells.get("patient_id") or case_id, fold, seed,
        cells["label"], metric, value, METRICS[metric].unit, status or "ok", counts[0], counts[1],
    )  # fmt: skip


def _status(n_reference_vox: int, n_prediction_vox: int) -> Status:
    if n_reference_vox and n_prediction_vox:
        return "ok"
    if n_reference_vox:
        return "missed"
    return "spurious" if n_prediction_vox else "both_empty"


def with_patients(table: ScoreTable, folder: Path) -> ScoreTable:
    """The table with patients as a `patients.json` in the folder tells, else as the cases' names tell in words.

    Returns:
        The table itself if it knows of patients.

    Raises:
        DataError: If `patients.json` is no such file or leaves out a case.
    """
    if any(row.patient_id != row.case_id for row in table.rows):
        return table
    patients, _, faults = assign_patients(list(table.case_ids), folder)
    refuse(faults, folder)
    return ScoreTable(tuple(replace(row, patient_id=patients[row.case_id]) for row in table.rows))
