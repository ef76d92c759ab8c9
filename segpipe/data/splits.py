"""Folds for cross-validation: by patient, balanced over labels and sites, equal for equal seeds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import model_validator

from segpipe.core.errors import DataError, UsageError
from segpipe.core.records import Record, did_you_mean, read_values
from segpipe.core.text import count, nfc
from segpipe.data.dataset import Dataset
from segpipe.data.stratify import stratify

_MIN_PATIENTS = 2
N_PARTS = 4  # of the training patients, for learning curves
_MIN_SITES = 2
_MAX_NAMED = 5  # labels in a sentence
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

    written_by: ClassVar[str] = "`segpipe plan DATA -o {folder}`"

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
        return list(range(self.k)) if folds is None else require_folds(folds, self.k)


def require_folds(folds: Sequence[int], k: int) -> list[int]:
    """The folds themselves.

    Raises:
        UsageError: If one is not among the `k` that there are.
    """
    if wrong := [fold for fold in folds if not 0 <= fold < k]:
        raise UsageError(f"-f {wrong[0]}: there are {count(k, 'fold')}, counted from 0. Use -f 0 to -f {k - 1}.")
    return list(folds)


def make_splits(dataset: Dataset, presence: Mapping[str, frozenset[str]], seed: int, k: int = 5) -> Splits:
    """Folds that share no patient; every case is validated in exactly one.

    Args:
        dataset: The cases with their patients and sites.
        presence: For each case the names of the labels that occur in it.
        seed: The same seed gives the same folds, whatever the order of the cases.
        k: Folds wanted, 2 or more; lowered, with a warning, to the number of patients.

    Returns:
        Folds of equally many patients (or one more), stratified by the labels and sites of the patients: see
        `stratify`. `warnings` name each fold that lacks a label.

    Raises:
        DataError: If there is only one patient.
        ValueError: If k is below 2, or `presence` leaves a case out.
    """
    if k < _MIN_PATIENTS:
        raise ValueError(f"k is {k}, expected 2 or more")
    left_out = sorted(case.case_id for case in dataset.cases if case.case_id not in presence)
    if left_out:
        raise ValueError(f"presence leaves out {left_out[:5]}")
    tags_of = _tags(dataset, presence)
    patients = sorted(tags_of)
    if len(patients) < _MIN_PATIENTS:
        raise DataError(
            f"{dataset.name}: {count(len(dataset.cases), 'case')} of {count(len(patients), 'patient')}; expected at "
            "least 2 patients, since the cases of a patient always stay together. Add patients, or correct which case "
            f"belongs to whom (patients: {dataset.patients_from})."
        )
    n_folds = min(k, len(patients))
    sites = sorted({case.site for case in dataset.cases if case.site})
    single = sorted({tag for tags in tags_of.values() for tag in tags})
    pairs = [(label, site) for label in single for site in single if site[0] == "site" and label[0] == "label"]
    tags = np.array([[tag in tags_of[p] for tag in single] for p in patients], bool).reshape(len(patients), -1)
    joint = np.array([[set(pair) <= tags_of[p] for pair in pairs] for p in patients], bool).reshape(len(patients), -1)
    n_cases = Counter(case.patient_id for case in dataset.cases)
    fold_of = dict(zip(patients, stratify(tags, joint, [n_cases[p] for p in patients], n_folds, seed), strict=True))
    ids = {case.case_id: fold_of[case.patient_id] for case in sorted(dataset.cases, key=lambda case: case.case_id)}
    folds = tuple(
        Fold(
            train=tuple(case_id for case_id, own in ids.items() if own != fold),
            validation=tuple(case_id for case_id, own in ids.items() if own == fold),
        )
        for fold in range(n_folds)
    )
    balanced = "labels and sites" if len(sites) > 1 else "labels"
    source = (
        f"{n_folds} folds of {len(patients)} patients, equal in number to within one, balanced over {balanced} by "
        f"iterative stratification"
    )
    fewer = () if n_folds == k else (f"only {count(n_folds, 'patient')}: {count(n_folds, 'fold')} instead of {k}",)
    return Splits(
        k=n_folds, seed=seed, source=source, folds=folds, warnings=(*fewer, *label_gaps(folds, dataset, presence))
    )


def with_fewer_patients(
    splits: Splits, dataset: Dataset, presence: Mapping[str, frozenset[str]], share: float, seed: int
) -> Splits:
    """The same folds with part of the patients to train on; those of a smaller share are among those of a larger one.

    Args:
        splits: All folds.
        dataset, presence: As in `make_splits`.
        share: A multiple of a quarter, above 0 and at most 1.
        seed: The same seed gives the same patients.

    Raises:
        DataError: If a fold has fewer than 4 patients to train on.
    """
    if share == 1:
        return splits
    folds = []
    for number, fold in enumerate(splits.folds):
        training_ids = set(fold.train)
        training = tuple(case for case in dataset.cases if case.case_id in training_ids)
        n_patients = len({case.patient_id for case in training})
        if n_patients < N_PARTS:
            raise DataError(
                f"fold {number}: {count(n_patients, 'patient')} to train on, expected {N_PARTS} or more to leave some "
                "out. Use fewer folds, or more patients."
            )
        parts = make_splits(dataset.model_copy(update={"cases": training}), presence, seed, N_PARTS).folds
        kept = {case_id for part in parts[: round(share * N_PARTS)] for case_id in part.validation}
        folds.append(Fold(train=tuple(case for case in fold.train if case in kept), validation=fold.validation))
    text = f"{splits.source}; {100 * share:.0f} % of the patients of each to train on"
    return splits.model_copy(update={"folds": tuple(folds), "source": text})


def split_by_site(dataset: Dataset) -> Splits:
    """Leave one site out: a fold validates the cases of one site and trains on all patients without a case there.

    A patient with cases at several sites is in no fold on both sides; `warnings` say how many there are.

    Raises:
        DataError: If a case has no site, or there are fewer than two sites, or nothing is left to train on.
    """
    sites = sorted({case.site for case in dataset.cases if case.site})
    without = sorted(case.case_id for case in dataset.cases if not case.site)
    found = count(len(sites), "site") + (f" ({sites[0]})" if len(sites) == 1 else "")
    if len(sites) < _MIN_SITES or without:
        if without and sites:
            found += f", and {count(len(without), 'case')} without one (e.g. {without[0]})"
        raise DataError(
            f"{dataset.name}: {found}. --folds-by site expects at least 2 sites and a site for every case: fill the "
            "column site of a CSV manifest (data_readme.md), or leave out --folds-by."
        )
    sites_of: dict[str, set[str]] = defaultdict(set)
    for case in dataset.cases:
        sites_of[case.patient_id].add(case.site or "")
    cases = sorted(dataset.cases, key=lambda case: case.case_id)
    folds = []
    for site in sites:
        train = tuple(case.case_id for case in cases if site not in sites_of[case.patient_id])
        if not train:
            raise DataError(
                f"{dataset.name}: every patient has a case at site {site}: nothing is left to train on when it is held "
                "out. Leave out --folds-by."
            )
        folds.append(Fold(train=train, validation=tuple(case.case_id for case in cases if case.site == site)))
    n_moving = sum(len(own) > 1 for own in sites_of.values())
    moving = count(n_moving, "patient has cases", "patients have cases")
    moved = f"{moving} at several sites: a fold that validates one of them trains on no case of that patient"
    warnings = (moved,) if n_moving else ()
    source = f"{len(sites)} folds, one for each site left out: {', '.join(sites)}"
    return Splits(k=len(sites), seed=None, source=source, folds=tuple(folds), warnings=warnings)


class FoldRow(Record):
    """The cases that one fold validates, at all sites or at one.

    Args:
        fold: Its number.
        site: The site; None for all of them.
        n_patients, n_cases: Validated.
        n_with_label: Validated patients with each label, by its name.
        n_trained_with_label: The same for the patients to train on.
    """

    fold: int
    site: str | None
    n_patients: int
    n_cases: int
    n_with_label: dict[str, int]
    n_trained_with_label: dict[str, int]


def fold_table(folds: Sequence[Fold], dataset: Dataset, presence: Mapping[str, frozenset[str]]) -> tuple[FoldRow, ...]:
    """Count patients by fold, label and site: a row for each fold, followed by one for each of its sites.

    Args:
        folds: In order.
        dataset: Their cases. There are no rows of sites if fewer than two are known.
        presence: Labels in each case.
    """
    sites = sorted({case.site for case in dataset.cases if case.site})
    by_id = dataset.by_id
    rows = []
    for number, fold in enumerate(folds):
        for site in (None, *(sites if len(sites) > 1 else ())):
            trained, validated = (
                [by_id[name] for name in side if site is None or by_id[name].site == site]
                for side in (fold.train, fold.validation)
            )
            with_label, trained_with_label = (
                {
                    label: len({case.patient_id for case in cases if label in presence[case.case_id]})
                    for label in dataset.labels.names
                }
                for cases in (validated, trained)
            )
            rows.append(
                FoldRow(
                    fold=number,
                    site=site,
                    n_patients=len({case.patient_id for case in validated}),
                    n_cases=len(validated),
                    n_with_label=with_label,
                    n_trained_with_label=trained_with_label,
                )
            )
    return tuple(rows)


def label_gaps(folds: Sequence[Fold], dataset: Dataset, presence: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """One sentence for each fold that trains or validates without a label; labels that no case has are passed over."""
    rows = [row for row in fold_table(folds, dataset, presence) if row.site is None]
    totals = {
        label: len({case.patient_id for case in dataset.cases if label in presence[case.case_id]})
        for label in dataset.labels.names
    }
    sentences = []
    for row in rows:
        for verb, counts in (("trains", row.n_trained_with_label), ("validates", row.n_with_label)):
            lacking = [label for label, n in counts.items() if n == 0 and totals[label]]
            if lacking:
                named = ", ".join(f"{label} (in {count(totals[label], 'patient')})" for label in lacking[:_MAX_NAMED])
                more = f" and {count(len(lacking) - _MAX_NAMED, 'more label')}" if lacking[_MAX_NAMED:] else ""
                sentences.append(f"fold {row.fold} {verb} without {named}{more}")
    return tuple(sentences)


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


def _tags(dataset: Dataset, presence: Mapping[str, frozenset[str]]) -> dict[str, set[tuple[str, str]]]:
    """Labels in any case of each patient, and its sites."""
    tags_of: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for case in dataset.cases:
        tags_of[case.patient_id] |= {("label", label) for label in presence[case.case_id]}
        tags_of[case.patient_id] |= {("site", case.site)} if case.site else set()
    return tags_of


def _read_list(path: Path) -> list[Any]:
    listed = read_values(path, DataError)
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
