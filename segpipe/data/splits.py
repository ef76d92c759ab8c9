"""Folds for cross-validation: by patient, balanced over labels and sites, equal for equal seeds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import model_validator

from segpipe.core.errors import DataError, UsageError
from segpipe.core.files import read_text
from segpipe.core.records import Record, did_you_mean
from segpipe.core.text import count, nfc
from segpipe.data.dataset import Dataset

_MIN_PATIENTS = 2
_LEAK = (
    "The network is tested on patients it was trained on. The scores will be too good and must not be published as "
    "cross-validation. Without the imported file, segpipe splits by patient."
)


class Fold(Record):
    """Case ids to train on and case ids to validate with, each sorted as given."""

    train: tuple[str, ...]
    validation: tuple[str, ...]

    @model_validator(mode="after")
    def _apart(self) -> Fold:
        both = sorted(set(self.train) & set(self.validation))
        if both:
            raise ValueError(f"cases on both sides: {', '.join(both[:5])}")
        for side in (self.train, self.validation):
            twice = sorted({case for case in side if side.count(case) > 1}) if len(set(side)) < len(side) else []
            if twice:
                raise ValueError(f"cases twice on one side: {', '.join(twice[:5])}")
        if not self.train or not self.validation:
            raise ValueError("expected at least one case to train on and one to validate with")
        return self


class Splits(Record):
    """All folds of a dataset.

    Args:
        k: Number of folds.
        seed: Seed of the random split; None if it was imported.
        source: Origin, one sentence for people.
        folds: In order; `-f 0` is the first.
        warnings: Warnings for people, one sentence each.
    """

    k: int
    seed: int | None
    source: str
    folds: tuple[Fold, ...]
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _count(self) -> Splits:
        if self.k != len(self.folds):
            raise ValueError(f"k is {self.k}, but there are {len(self.folds)} folds")
        return self

    def select(self, folds: Sequence[int] | None) -> list[int]:
        """Numbers of the requested folds; all for None.

        Raises:
            UsageError: If there is no such fold.
        """
        chosen = list(range(self.k)) if folds is None else list(folds)
        if wrong := [fold for fold in chosen if not 0 <= fold < self.k]:
            raise UsageError(
                f"-f {wrong[0]}: there are {count(self.k, 'fold')}, counted from 0. Use -f 0 to -f {self.k - 1}."
            )
        return chosen


def make_splits(dataset: Dataset, presence: Mapping[str, frozenset[str]], seed: int, k: int = 5) -> Splits:
    """Make folds that share no patient; every case is validated in exactly one.

    Args:
        dataset: The cases with their patients and sites.
        presence: For each case the names of the labels that occur in it.
        seed: The same seed gives the same folds, whatever the order of the cases.
        k: Folds wanted, 2 or more; lowered, with a warning, to the number of patients.

    Returns:
        Folds stratified by the labels and the site of the patients.

    Raises:
        DataError: If there is only one patient.
        ValueError: If k is below 2, or `presence` leaves a case out.

    Source:
        scikit-learn's StratifiedGroupKFold. It stratifies over one class for each case: here the labels and site
        of the whole patient; classes of fewer than k patients are joined into one.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if k < _MIN_PATIENTS:
        raise ValueError(f"k is {k}, expected 2 or more")
    cases = sorted(dataset.cases, key=lambda case: case.case_id)
    left_out = [case.case_id for case in cases if case.case_id not in presence]
    if left_out:
        raise ValueError(f"presence leaves out {left_out[:5]}")
    patients = [case.patient_id for case in cases]
    n_patients = len(set(patients))
    if n_patients < _MIN_PATIENTS:
        raise DataError(
            f"{dataset.name}: {count(len(cases), 'case')} of {count(n_patients, 'patient')}; expected at least 2 "
            "patients, because a split never separates the cases of one. Add patients, or correct those of the "
            f"cases ({dataset.patients_from})."
        )
    n_folds = min(k, n_patients)
    strata = _strata(dataset, presence, n_folds)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed % 2**32)
    parts = splitter.split(np.zeros(len(cases)), [strata[patient] for patient in patients], patients)
    ids = [case.case_id for case in cases]
    folds = tuple(
        Fold(train=tuple(ids[i] for i in train), validation=tuple(ids[i] for i in validation))
        for train, validation in parts
    )
    source = f"{n_folds} folds of {n_patients} patients, stratified by labels present" + (
        " and site" if any(case.site for case in cases) else ""
    )
    warnings = _warnings(dataset, presence, k, n_folds)
    return Splits(k=n_folds, seed=seed, source=source, folds=folds, warnings=warnings)


def read_nnunet_splits(path: Path, dataset: Dataset) -> Splits:
    """Read the folds of nnU-Net's `splits_final.json`, unchanged.

    Args:
        path: A list of `{"train": [...], "val": [...]}`.
        dataset: Its dataset.

    Returns:
        The folds; `warnings` name patients on both sides, and cases validated never or more than once.

    Raises:
        DataError: If the file is not such a list, names unknown cases, or has a case on both sides of a fold.
    """
    listed = _read_list(path)
    known = dataset.by_id
    folds = []
    for number, entry in enumerate(listed):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(side), list) for side in ("train", "val")):
            raise DataError(f'{path}: fold {number}: expected {{"train": [...], "val": [...]}}. Correct it.')
        sides = {
            side: [nfc(case) if isinstance(case, str) else case for case in entry[side]] for side in ("train", "val")
        }
        cases = [case for side in sides.values() for case in side]
        unknown = [case for case in cases if not isinstance(case, str) or case not in known]
        if unknown:
            raise DataError(
                f"{path}: fold {number}: {count(len(unknown), 'case is', 'cases are')} not in the dataset, "
                f"e.g. {unknown[0]!r}.{_near(str(unknown[0]), list(known))} Use the splits of this dataset."
            )
        folds.append(
            Fold.parse({"train": sides["train"], "validation": sides["val"]}, f"{path}: fold {number}", DataError)
        )
    warnings = (*leaks(folds, dataset), *_coverage(folds, dataset))
    return Splits(
        k=len(folds), seed=None, source=f"imported from {path.absolute()}", folds=tuple(folds), warnings=warnings
    )


def _strata(dataset: Dataset, presence: Mapping[str, frozenset[str]], n_folds: int) -> dict[str, int]:
    """Group patients by labels in any of its cases, and sites. Strata of fewer than `n_folds` are joined."""
    labels: dict[str, frozenset[str]] = {}
    sites: dict[str, frozenset[str]] = {}
    for case in dataset.cases:
        labels[case.patient_id] = labels.get(case.patient_id, frozenset()) | presence[case.case_id]
        sites[case.patient_id] = sites.get(case.patient_id, frozenset()) | ({case.site} if case.site else frozenset())
    kind = {p: (tuple(sorted(labels[p])), tuple(sorted(sites[p]))) for p in labels}
    n_of = Counter(kind.values())
    large = sorted(s for s, n in n_of.items() if n >= n_folds)
    n_rare = sum(n for n in n_of.values() if n < n_folds)
    index = {stratum: i for i, stratum in enumerate(large)}
    # Joined strata that are still too rare go to the smallest large one, where they do least harm.
    smallest = min(large, key=lambda s: (n_of[s], s), default=None)
    joined = len(large) if n_rare >= n_folds or smallest is None else index[smallest]
    return {patient: index.get(stratum, joined) for patient, stratum in kind.items()}


def _warnings(dataset: Dataset, presence: Mapping[str, frozenset[str]], k: int, n_folds: int) -> tuple[str, ...]:
    warnings = []
    if n_folds < k:
        warnings.append(f"only {count(n_folds, 'patient')}: {count(n_folds, 'fold')} instead of {k}")
    for name in dataset.labels.names:
        n_patients = len({case.patient_id for case in dataset.cases if name in presence[case.case_id]})
        if n_patients < n_folds:
            warnings.append(
                f"label {name} occurs in {count(n_patients, 'patient')}, fewer than the {count(n_folds, 'fold')}: "
                "some folds validate without it"
            )
    return tuple(warnings)


def _read_list(path: Path) -> list[Any]:
    try:
        listed = json.loads(read_text(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise DataError(f"{path}: cannot be read as JSON ({problem}). Export the splits again.") from None
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{path}: found {str(listed)[:60]!r}, expected a list of folds. Use a splits_final.json.")
    return listed


def _near(word: str, known: list[str]) -> str:
    """Suggest a name; nothing where hundreds would be listed instead."""
    hint = did_you_mean(word, known)
    return hint if hint.startswith(" Did") or len(known) <= 10 else ""


def leaks(folds: Sequence[Fold], dataset: Dataset) -> tuple[str, ...]:
    """Describe patients on both sides of a fold: one sentence on what that means, and one for each fold; else none.

    Args:
        folds: In order. Cases that the dataset does not have are ignored.
        dataset: Gives the patients of the cases.
    """
    patient_of = {case.case_id: case.patient_id for case in dataset.cases}
    sentences = []
    for number, fold in enumerate(folds):
        trained, validated = (
            {patient_of[c] for c in side if c in patient_of} for side in (fold.train, fold.validation)
        )
        both = sorted(trained & validated)
        if both:
            named = ", ".join(both[:5]) + (", …" if len(both) > 5 else "")
            sentences.append(f"fold {number}: {count(len(both), 'patient')} on both sides ({named})")
    if not sentences:
        return ()
    return (f"PATIENTS ON BOTH SIDES OF {len(sentences)} OF {len(folds)} FOLDS. {_LEAK}", *sentences)


def _coverage(folds: list[Fold], dataset: Dataset) -> list[str]:
    """Warn of cases that are not validated exactly once."""
    n_validated = Counter(case for fold in folds for case in fold.validation)
    groups = {
        "never validated": [case.case_id for case in dataset.cases if n_validated[case.case_id] == 0],
        "validated more than once": [case.case_id for case in dataset.cases if n_validated[case.case_id] > 1],
    }
    return [
        f"{count(len(ids), 'case')} {how} ({', '.join(ids[:5])}{', …' if len(ids) > 5 else ''})"
        for how, ids in groups.items()
        if ids
    ]
