"""Align the scores of several methods on the same cases, or say why they cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.paired import mean_of_numbers
from segpipe.compare.results import Method
from segpipe.core.errors import DataError, UsageError
from segpipe.core.progress import say
from segpipe.core.records import did_you_mean
from segpipe.core.text import count
from segpipe.evaluate.metrics import METRICS, Metric
from segpipe.evaluate.scores import IMAGE_LABEL, Score, ScoreTable
from segpipe.evaluate.summary import counted_values

_N_NAMED = 10
_ROUNDING = {"1": 6e-4, "mm": 6e-3, "mm3": 0.6}  # three decimals of an overlap, two of a distance: seeds differ by more
_MIN_ROUNDED = 10  # scores; so many of two seeds are never that near in all of them
TrainingKey = tuple[int, int]  # seed and fold; fold is -1 if every case was scored once for each seed


@dataclass(frozen=True)
class Aligned:
    """One metric of several methods on the same cases.

    Args:
        metric: Which; values of a `difference` are its size, since 0 is best.
        methods: Names.
        labels: Structures.
        case_ids: (n_cases,) names.
        patient_ids: (n_cases,) name of each case's patient.
        values: For each method (n_trainings, n_cases, n_labels); NaN where the policy leaves a score out. A training is
            a seed, or a seed and fold if the models of all folds scored the same cases.
        folds: (1, n_cases) fold of each case if every seed has the same folds, (n_seeds, n_cases) if each seed has its
            own; None if there are none or the methods' folds differ.
        n_seeds: Seeds of the method that has fewest.
        notes: What a reader must know, a sentence each.
    """

    metric: Metric
    methods: tuple[str, ...]
    labels: tuple[str, ...]
    case_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    values: tuple[NDArray[np.float64], ...]
    folds: NDArray[np.intp] | None
    n_seeds: int
    notes: tuple[str, ...]

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.metric.kind == "overlap" else -1

    @cached_property
    def patients(self) -> NDArray[np.intp]:
        """(n_cases,) number of each case's patient, from 0."""
        return np.unique(self.patient_ids, return_inverse=True)[1]

    @property
    def n_patients(self) -> int:
        """Independent units."""
        return len(set(self.patient_ids))

    @cached_property
    def model_values(self) -> NDArray[np.float64]:
        """Means over trainings, (n_methods, n_cases, n_labels); NaN if no training counts."""
        return np.array([mean_of_numbers(values, 0) for values in self.values])

    def only(self, is_in: NDArray[np.bool_]) -> Aligned:
        """Some of the cases, (n_cases,) bool."""
        return replace(
            self,
            case_ids=tuple(np.array(self.case_ids)[is_in].tolist()),
            patient_ids=tuple(np.array(self.patient_ids)[is_in].tolist()),
            values=tuple(values[:, is_in] for values in self.values),
            folds=None if self.folds is None else self.folds[:, is_in],
        )


def align(
    methods: Sequence[Method],
    metric: str,
    policy: str,
    *,
    labels: Sequence[str] = (),
    patients: Mapping[str, str] | None = None,
    allow_missing: bool = False,
) -> Aligned:
    """Bring scores onto the same cases.

    Args:
        methods: Two or more.
        metric: A name in `METRICS`.
        policy: What empty masks count, as in `summarise`; applied before anything is paired.
        labels: Structures to use; all if empty.
        patients: Patient by case, instead of what the tables say.
        allow_missing: Use the cases that all have, though some method lacks others.

    Raises:
        UsageError: If a metric or label is unknown to a table.
        DataError: If methods have other cases or labels, other references or other patients; all of it at once.
    """
    methods, copy_notes = distinct_trainings(methods)
    tables = {method.name: _rows_to_compare(method, metric, tuple(labels)) for method in methods}
    by_place = {name: _by_place(table) for name, table in tables.items()}
    case_ids, notes = _common_cases(by_place, allow_missing)
    _refuse_other_references(tables, set(case_ids))
    names = _label_names(by_place, case_ids)
    owners = _owners(tables, case_ids, patients)
    values = []
    for method in methods:
        counted = counted_values(method.table, metric, policy)
        size = abs if METRICS[metric].kind == "difference" else float
        values.append(
            np.array([
                [[size(counted[r.case_key, label]) if (r := of.get((case, label))) else np.nan for label in names]
                 for case in case_ids]
                for of in by_place[method.name].values()
            ])
        )  # fmt: skip
    folds, fold_notes = _folds(by_place, case_ids)
    n_seeds = min(len({seed for seed, _ in of}) for of in by_place.values())
    patient_ids = tuple(owners[case] for case in case_ids)
    return Aligned(
        METRICS[metric],
        tuple(tables),
        names,
        case_ids,
        patient_ids,
        tuple(values),
        folds,
        n_seeds,
        (*notes, *fold_notes, *copy_notes),
    )


def _rows_to_compare(method: Method, metric: str, labels: tuple[str, ...]) -> list[Score]:
    """The rows to compare."""
    table = method.table
    for wanted, found, what in (((metric,), table.metrics, "metric"), (labels, table.labels, "label")):
        absent = [name for name in wanted if name not in found]
        if absent:
            raise UsageError(f"method {method.name}: no {what} {absent[0]!r}.{did_you_mean(absent[0], list(found))}")
    wanted_labels = set(labels or table.labels)
    return [row for row in table.rows if row.metric == metric and row.label in wanted_labels]


Place = tuple[str, str]  # case and label


def _by_place(rows: Sequence[Score]) -> dict[TrainingKey, dict[Place, Score]]:
    """Scores of each training, in ascending order of seed and fold."""
    training_of = _training_of(rows)
    result: dict[TrainingKey, dict[Place, Score]] = {}
    for row in rows:
        result.setdefault(training_of(row), {})[row.case_id, row.label] = row
    return dict(sorted(result.items()))


def distinct_trainings(methods: Sequence[Method]) -> tuple[list[Method], list[str]]:
    """The methods with one of the trainings whose scores are equal in all cases and metrics, and a sentence for each.

    A tool that ignores its seed, or a folder that was copied, gives such trainings. They would say that trainings do
    not vary. Copies may be rounded, or lack cases.
    """
    kept, notes = [], []
    seen: list[tuple[str, _Content]] = []  # of the methods before
    for method in methods:
        training_of = _training_of(method.table.rows)
        contents: dict[TrainingKey, _Content] = {}
        for row in method.table.rows:
            if row.label != IMAGE_LABEL:
                contents.setdefault(training_of(row), {})[row.case_id, row.label, row.metric] = (row.value, row.unit)
        distinct: dict[TrainingKey, _Content] = {}
        for training, content in sorted(contents.items(), key=lambda item: (-len(item[1]), item[0])):
            if not any(_are_copies(content, other) for other in distinct.values()):
                distinct[training] = content
        counted = set(distinct)
        rows = tuple(row for row in method.table.rows if training_of(row) in counted)
        kept.append(method if len(counted) == len(contents) else replace(method, table=ScoreTable(rows)))
        if len(counted) < len(contents):
            notes.append(
                f"{method.name}: {count(len(contents), 'training')} given, {len(counted)} counted: the scores of the "
                "others are equal in every case, so they are copies and not other seeds."
            )
        same = [name for content in distinct.values() for name, other in seen if _are_copies(content, other)]
        if same:
            notes.append(f"{same[0]} and {method.name} have equal scores in every case: are they one result?")
        seen += [(method.name, content) for content in distinct.values()]
    return kept, notes


_Content = dict[tuple[str, str, str], tuple[float, str]]  # value and unit by case, label and metric


def _are_copies(first: _Content, second: _Content) -> bool:
    """True if two trainings agree wherever both have a score: exactly, or if these are many, but for rounding."""
    shared = first.keys() & second.keys()
    if 2 * len(shared) < max(len(first), len(second)):
        return False
    is_rounded = len(shared) >= _MIN_ROUNDED
    return (is_rounded or first.keys() == second.keys()) and all(
        _is_copy(first[place][0], *second[place], is_rounded=is_rounded) for place in shared
    )


def _is_copy(first: float, second: float, unit: str, *, is_rounded: bool) -> bool:
    if isfinite(first) and isfinite(second):
        return abs(first - second) <= (_ROUNDING.get(unit, 0.0) if is_rounded else 0.0)
    return repr(first) == repr(second)


def _training_of(rows: Sequence[Score]) -> Callable[[Score], TrainingKey]:
    """The training of a row: its seed, or seed and fold if a case was scored by the models of several folds."""
    folds: dict[tuple[str, int | None], set[int | None]] = {}
    for row in rows:
        folds.setdefault((row.case_id, row.seed), set()).add(row.fold)
    is_fold_a_training = any(len(of) > 1 for of in folds.values())
    return lambda row: (row.seed or 0, (row.fold or 0) if is_fold_a_training else -1)


def _common_cases(
    by_place: Mapping[str, Mapping[TrainingKey, Mapping[Place, Score]]], allow_missing: bool
) -> tuple[tuple[str, ...], list[str]]:
    """Cases that every training of every method has, in order of appearance."""
    cases = {
        (name, training): dict.fromkeys(case for case, _ in of)
        for name, trainings in by_place.items()
        for training, of in trainings.items()
    }
    every = dict.fromkeys(case for of in cases.values() for case in of)
    common = tuple(case for case in every if all(case in of for of in cases.values()))
    if not common:
        first = "; ".join(f"{name}: {_few(of)}" for (name, _), of in list(cases.items())[:3])
        raise DataError(f"no case was scored by all methods ({first}). Cases must have the same names in all tables.")
    if len(common) == len(every):
        return common, []
    lacking = [
        f"{name}{_training_text(training)} lacks {len(every) - len(of)} of {count(len(every), 'case')}: "
        f"{_few([case for case in every if case not in of])}"
        for (name, training), of in cases.items()
        if len(of) < len(every)
    ]
    if not allow_missing:
        raise DataError(
            "\n".join(lacking)
            + "\nExpected the same cases in all. Cases are never dropped silently: score the missing ones, or "
            f"compare the {count(len(common), 'common case')} with --allow-missing."
        )
    for line in lacking:
        say(line)
    return common, [
        f"{len(every) - len(common)} of {count(len(every), 'case')} not scored by all methods and left out."
    ]


def _training_text(training: TrainingKey) -> str:
    seed, fold = training
    return (f", seed {seed}" if seed else "") + (f", fold {fold}" if fold >= 0 else "")


def _refuse_other_references(tables: Mapping[str, Sequence[Score]], case_ids: Collection[str]) -> None:
    """Two scores of one case and label must be of the same reference; its size in voxels tells."""
    first: dict[Place, tuple[str, int]] = {}
    other: dict[Place, str] = {}
    for name, rows in tables.items():
        for row in rows:
            is_known = row.status != "ok" or row.n_reference_vox > 0  # else the table had no numbers of voxels
            if row.case_id not in case_ids or not is_known:
                continue
            place = (row.case_id, row.label)
            first_name, n_vox = first.setdefault(place, (name, row.n_reference_vox))
            if n_vox != row.n_reference_vox:
                sizes = f"{n_vox} voxels for {first_name}, {row.n_reference_vox} for {name}"
                other.setdefault(place, f"case {row.case_id}, label {row.label}: the reference has {sizes}")
    _refuse(other.values(), "Expected scores against the same references: score the masks again with one of them.")


def _label_names(
    by_place: Mapping[str, Mapping[TrainingKey, Mapping[Place, Score]]], case_ids: Sequence[str]
) -> tuple[str, ...]:
    """Labels in order of appearance; each case must have the same in every training."""
    every = [of for trainings in by_place.values() for of in trainings.values()]
    names = tuple(dict.fromkeys(label for of in every for _, label in of))
    owners = [(name, training) for name, trainings in by_place.items() for training in trainings]
    used = {(case, label) for case in case_ids for label in names if any((case, label) in of for of in every)}
    faults = []
    for (name, training), of in zip(owners, every, strict=True):
        for label in names:
            absent = [case for case in case_ids if (case, label) in used and (case, label) not in of]
            if absent:
                place = f"{name}{_training_text(training)}"
                faults.append(f"{place}: no label {label} in {count(len(absent), 'case')}: {_few(absent)}")
    _refuse(faults, "Expected the same labels in all. Compare the labels that all have with -l, or score them again.")
    return names


def _owners(
    tables: Mapping[str, Sequence[Score]], case_ids: Sequence[str], patients: Mapping[str, str] | None
) -> dict[str, str]:
    """Patient by case; a table that knows of no patients (each case its own) leaves it to the others."""
    if patients is not None:
        absent = [case for case in case_ids if case not in patients]
        _refuse(
            [f"no patient for {count(len(absent), 'case')}: {_few(absent)}"] if absent else [],
            "Expected one for each case.",
        )
        return {case: patients[case] for case in case_ids}
    result: dict[str, str] = {}
    faults: dict[str, str] = {}
    for rows in tables.values():
        for row in rows:
            known = result.setdefault(row.case_id, row.patient_id)
            if known == row.case_id:
                result[row.case_id] = row.patient_id
            elif row.patient_id not in (known, row.case_id) and row.case_id in case_ids:
                faults[row.case_id] = f"case {row.case_id}: belongs to patient {known} and to patient {row.patient_id}"
    _refuse(faults.values(), "Expected one patient for each case. Name the patients in a table with --cases.")
    return result


def _folds(
    by_place: Mapping[str, Mapping[TrainingKey, Mapping[Place, Score]]], case_ids: Sequence[str]
) -> tuple[NDArray[np.intp] | None, list[str]]:
    """Fold of each case, by seed if they differ from seed to seed; None if there is nothing to go by."""
    of_method = []
    for trainings in by_place.values():
        by_seed = [{case: row.fold for (case, _), row in of.items()} for of in trainings.values()]
        of_method.append([tuple(of[case] for case in case_ids) for of in by_seed])
    if any(fold >= 0 for trainings in by_place.values() for _, fold in trainings):
        return None, ["The models of all folds scored the same cases; each model counts as one training."]
    if any(fold is None for method in of_method for seed in method for fold in seed):
        return None, []
    distinct = {seed for method in of_method for seed in method}
    seeds = {tuple(seed for seed, _ in trainings) for trainings in by_place.values()}
    if len(distinct) == 1:
        folds = np.array(list(distinct))
    elif len(seeds) == 1 and all(method == of_method[0] for method in of_method):
        folds = np.array(of_method[0])
    else:
        return None, ["The methods were validated in different folds, so their training cases differ too."]
    return (folds, []) if all(len(set(row)) > 1 for row in folds.tolist()) else (None, [])


def _refuse(faults: Iterable[str], hint: str) -> None:
    lines = list(faults)
    if lines:
        more = [f"… and {len(lines) - _N_NAMED} more"] if len(lines) > _N_NAMED else []
        raise DataError("\n".join([*lines[:_N_NAMED], *more, hint]))


def _few(names: Iterable[str], n_shown: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:n_shown]) + (", …" if len(listed) > n_shown else "")
