"""Scores by group of cases, e.g. by site: means with intervals, and how sure the largest gap between groups is."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, UsageError
from segpipe.core.files import read_text
from segpipe.core.records import Record, did_you_mean
from segpipe.core.seeds import generator_for
from segpipe.core.text import count
from segpipe.data.layouts.manifest import separator_of
from segpipe.evaluate.intervals import FEWEST_PATIENTS, means_of, sums_by_patient
from segpipe.evaluate.metrics import METRICS, number_text
from segpipe.evaluate.scores import DIAGONAL, IMAGE_LABEL, ScoreTable
from segpipe.evaluate.summary import MEAN_LABEL, SummaryRow, counted_values, summarise

UNKNOWN = "(unknown)"  # group of cases without a value
SITE = "site"
N_PERMUTATIONS = 9999
_CHUNK = 4_000_000  # indicators turned into floats at a time


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
        text = read_text(path)
        separator = separator_of(text.partition("\n")[0])
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [{name: cell.strip() if isinstance(cell, str) else cell for name, cell in row.items()} for row in reader]
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
    twice = [case for case, n in Counter(case_ids).items() if n > 1]
    if twice:
        raise DataError(
            f"{path}: {count(len(twice), 'case occurs', 'cases occur')} twice, e.g. {twice[0]}; expected each once. "
            "Remove one row."
        )
    patients = (
        {row["case_id"]: row["patient_id"] or row["case_id"] for row in rows} if "patient_id" in columns else None
    )
    return CaseTable(patients, {name: {row["case_id"]: row[name] for row in rows} for name in groupings})


def refuse_bad_groups(cases: CaseTable, case_ids: Collection[str]) -> None:
    """Refuse columns that do not divide these cases, before any is scored.

    Raises:
        UsageError: If a column has one value or none, or as many values as there are cases.
    """
    for name, group_of in cases.groups.items():
        values = {group_of.get(case, "") for case in case_ids} - {""}
        cases_text = count(len(case_ids), "case")
        if len(values) < 2:
            found = f"the one value {next(iter(values))!r}" if values else "no value"
            raise UsageError(
                f"--by {name}: the column has {found} for {cases_text}, expected two groups or more. "
                "Choose another column."
            )
        if len(values) == len(case_ids):
            raise UsageError(
                f"--by {name}: each of {cases_text} has a value of its own, expected groups of several patients. "
                "Make a column of classes, e.g. young and old."
            )


class GroupRow(SummaryRow):
    """One metric of one label over the cases of a group.

    Args:
        grouping: Column of the table of cases, e.g. `site`.
        group: Value in it; `(unknown)` where there is none.
    """

    grouping: str
    group: str


class GroupGap(Record):
    """The largest difference between groups.

    Args:
        grouping, metric, label, unit: Where it is; `(mean)` is the mean over labels.
        gap: Highest minus lowest mean of a group; None if fewer than two groups can be compared.
        lowest, highest: These groups; empty without a gap.
        p_value: Of "groups do not matter" for the largest of all gaps of the metric, its labels and their mean; None if
            it cannot be tested.
        n_groups, n_patients: Compared, that is in groups of 5 patients or more.
        note: Why there is no p-value, or who is left out; empty otherwise.
    """

    grouping: str
    metric: str
    label: str
    unit: str
    gap: float | None
    lowest: str
    highest: str
    p_value: float | None
    n_groups: int
    n_patients: int
    note: str


def gap_text(gap: GroupGap) -> str:
    """A gap in words, e.g. `Dice of tumour: 0.120 from A to B, p 0.0312`."""
    where = METRICS[gap.metric].heading + ("" if gap.label == MEAN_LABEL else f" of {gap.label}")
    if gap.gap is None:
        return f"{where}: none"
    p_text = "no p-value" if gap.p_value is None else f"p {gap.p_value:.4f}"
    return f"{where}: {number_text(gap.gap, gap.unit)} from {gap.lowest} to {gap.highest}, {p_text}"


def compare_groups(
    table: ScoreTable, cases: CaseTable, policy: str, seed: int = 0
) -> tuple[tuple[GroupRow, ...], tuple[GroupGap, ...]]:
    """Means of each group of each grouping, and the largest gaps between groups.

    Args:
        table: Scores of one run.
        cases: Groups by case; patients are those of the table.
        policy: What empty masks count, as in `summarise`.
        seed: Of bootstrap and permutation.

    Raises:
        DataError: As `summarise`.
    """
    rows, gaps = list[GroupRow](), list[GroupGap]()
    for grouping, group_of in cases.groups.items():
        groups = {case: group_of.get(case) or UNKNOWN for case in table.case_ids}
        for group in sorted(set(groups.values()), key=lambda name: (name == UNKNOWN, name)):
            own = ScoreTable(tuple(row for row in table.rows if groups[row.case_id] == group))
            rows += [
                GroupRow(grouping=grouping, group=group, **row.model_dump()) for row in summarise(own, policy, seed)
            ]
        for metric in table.metrics:
            gaps += _gaps(table, metric, policy, grouping, groups, seed)
    return tuple(rows), tuple(gaps)


def _gaps(
    table: ScoreTable, metric: str, policy: str, grouping: str, groups: Mapping[str, str], seed: int
) -> Iterator[GroupGap]:
    """The gaps of one metric: of each label, and of their mean if there are several."""
    own = [row for row in table.rows if row.metric == metric and row.label != IMAGE_LABEL]
    labels = list(dict.fromkeys(row.label for row in own))
    keys = {row.case_key: (row.patient_id, groups[row.case_id]) for row in own}
    diagonals = tuple(row for row in table.rows if row.metric == DIAGONAL)
    values = counted_values(ScoreTable((*own, *diagonals)), metric, policy)
    matrix = np.array([[values.get((key, label), np.nan) for label in labels] for key in keys])
    patients, index = np.unique([patient for patient, _ in keys.values()], return_inverse=True)
    sums, sizes = sums_by_patient(matrix, index)
    of_patient: dict[str, set[str]] = {name: set() for name in patients.tolist()}
    for patient, group in keys.values():
        of_patient[patient].add(group)
    n_mixed = sum(len(of) > 1 for of in of_patient.values())
    sole = [next(iter(of)) if len(of) == 1 else UNKNOWN for of in of_patient.values()]
    large = sorted(group for group in set(sole) - {UNKNOWN} if sole.count(group) >= FEWEST_PATIENTS)
    if n_mixed or len(large) < 2:
        yield _untested_gap(metric, grouping, n_mixed, len(large))
        return
    number = np.array([large.index(group) if group in large else -1 for group in sole])
    kept = (number >= 0) & (sizes > 0).any(axis=1)
    n_left = int((~kept).sum())
    note = (
        f"{count(n_left, 'patient')} without a group or in a group below {FEWEST_PATIENTS} left out" if n_left else ""
    )
    found = gap_test(sums[kept], sizes[kept], number[kept], generator_for(seed, len(keys)))
    for place, label in enumerate((*labels, MEAN_LABEL) if len(labels) > 1 else labels):
        means = found.means[:, place]
        if np.isnan(means).any():
            continue
        p_value = float(found.p_values[place])
        yield GroupGap(
            grouping=grouping, metric=metric, label=label, unit=METRICS[metric].unit, gap=float(np.ptp(means)),
            lowest=large[int(means.argmin())], highest=large[int(means.argmax())],
            p_value=None if np.isnan(p_value) else p_value, n_groups=len(large), n_patients=int(kept.sum()), note=note,
        )  # fmt: skip


def _untested_gap(metric: str, grouping: str, n_mixed: int, n_groups: int) -> GroupGap:
    note = (
        f"{count(n_mixed, 'patient has', 'patients have')} cases in several groups, so patients cannot be exchanged"
        if n_mixed
        else f"{count(n_groups, 'group has', 'groups have')} {FEWEST_PATIENTS} patients or more, expected two"
    )
    return GroupGap(
        grouping=grouping, metric=metric, label=MEAN_LABEL, unit=METRICS[metric].unit, gap=None, lowest="", highest="",
        p_value=None, n_groups=n_groups, n_patients=0, note=note,
    )  # fmt: skip


@dataclass(frozen=True)
class GapTest:
    """Means of groups, (n_groups, n_labels + 1), the last their mean over labels, and (n_labels + 1,) p-values."""

    means: NDArray[np.float64]
    p_values: NDArray[np.float64]


def gap_test(
    sums: NDArray[np.float64],
    sizes: NDArray[np.float64],
    groups: NDArray[np.intp],
    random: np.random.Generator,
    n_permutations: int = N_PERMUTATIONS,
) -> GapTest:
    """Permute the groups of patients; p-values allow for the number of labels and of pairs of groups (max-T).

    Args:
        sums, sizes: (n_patients, n_labels) sum and number of the values of each patient.
        groups: (n_patients,) number of the group of each patient, from 0, none empty.
        random: Draws the permutations.
        n_permutations: How many.

    Returns:
        p is NaN where a group has no value for a label or all patients agree.

    Source:
        Westfall and Young 1993, Resampling-Based Multiple Testing, single-step max-T. T is the largest minus the
        smallest mean of a group over the SD of patients; each label's p is the share of permutations in which the
        largest T of all labels reaches its own.
    """
    n_groups = int(groups.max()) + 1
    means = _means_of_groups(groups[None], n_groups, sums, sizes)[0]
    own = np.divide(sums, sizes, out=np.full_like(sums, np.nan), where=sizes > 0)
    of_patients = np.column_stack([own, [np.mean(row[~np.isnan(row)]) for row in own]])
    scale = np.array([np.std(column[~np.isnan(column)]) for column in of_patients.T])
    usable = (scale > 1e-12 * np.maximum(1, np.abs(means).max(axis=0))) & ~np.isnan(means).any(axis=0)
    p_values = np.full(len(scale), np.nan)
    if not usable.any():
        return GapTest(means, p_values)
    observed = np.ptp(means[:, usable], axis=0) / scale[usable]
    n_rows = max(1, _CHUNK // (n_groups * len(groups)))
    n_reached = np.zeros(len(observed))
    for start in range(0, n_permutations, n_rows):
        drawn = random.permuted(np.tile(groups, (min(n_rows, n_permutations - start), 1)), axis=1)
        shuffled = _means_of_groups(drawn, n_groups, sums, sizes)[..., usable]
        gaps = (np.nanmax(shuffled, axis=1) - np.nanmin(shuffled, axis=1)) / scale[usable]
        n_reached += (gaps.max(axis=1)[:, None] >= observed * (1 - 1e-9)).sum(axis=0)
    p_values[usable] = (n_reached + 1) / (n_permutations + 1)
    return GapTest(means, p_values)


def _means_of_groups(
    groups: NDArray[np.intp], n_groups: int, sums: NDArray[np.float64], sizes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Means (n, n_groups, n_labels + 1) for n assignments of patients to groups, (n, n_patients)."""
    members = (groups[:, None] == np.arange(n_groups)[:, None]).astype(float).reshape(-1, groups.shape[1])
    return means_of(members @ sums, members @ sizes).reshape(len(groups), n_groups, -1)
