"""Datasets from disk: which layout a folder has, and its cases, channels, labels and patients."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segpipe.core.errors import DataError
from segpipe.core.labels import LabelSet
from segpipe.core.machine import default_workers
from segpipe.core.records import read_mapping
from segpipe.core.text import nfc
from segpipe.data.dataset import CASE_NAME, Case, Dataset, is_case_name
from segpipe.data.faults import Fault, fault, refuse
from segpipe.data.label_lists import labels_in_files
from segpipe.data.layouts import LAYOUTS, Layout
from segpipe.data.layouts.scan import CaseFiles, DatasetFiles, list_folder

PATIENTS_FILE = "patients.json"
_EDGE = r"(?=$|[_\-.\s])"
_BIDS = re.compile(r"(?P<patient>sub-[A-Za-z0-9]+)" + _EDGE)
# A word that counts images of one patient, then its number. Three digits only where a sequence can be that long;
# `scan_001` counts cases rather than one patient's scans.
_COUNTED = r"(?:(?:frame|time|phase)[_\-]?\d{1,3}|(?:tp|timepoint|visit|ses|session|scan)[_\-]?\d{1,2})"
_STATE = r"(?:(?:pre|post|baseline|bl|follow[_\-]?up|fu)[_\-]?\d{0,2})"
_WORDED = re.compile(
    rf"(?P<patient>.*\d.*?)[_\-.\s](?:(?i:{_COUNTED}|{_STATE})|E[DS]){_EDGE}",
)
_NOT_A_PATIENT = re.compile(r"(?i)(site|cent(er|re)|hospital|task|dataset|batch|fold|cohort|scanner|group)[_\-]?\d+")


def assign_patients(case_ids: list[str], folder: Path) -> tuple[dict[str, str], str, list[Fault]]:
    """Find the patient of each case.

    Args:
        case_ids: All cases.
        folder: Folder of an optional `patients.json`: `{"case": "patient"}`, or keys that are patients and begin the
            names of their cases.

    Returns:
        Patient by case, where they come from in one sentence, and a fault for each case that the file leaves out.

    Raises:
        DataError: If `patients.json` exists but is not such a mapping.
    """
    file = folder / PATIENTS_FILE
    if file.is_file():
        return _from_file(case_ids, file)
    patients = {case_id: patient_by_name(case_id) for case_id in case_ids}
    n_patients, n_cases = len(set(patients.values())), len(case_ids)
    largest = max(Counter(patients.values()).values(), default=0)
    if n_patients == n_cases:
        return {c: c for c in case_ids}, "every case is its own patient (no patient in the names)", []
    if n_patients == 1 and largest > 2:  # the name of a dataset before a counter looks the same
        shared = next(iter(patients.values()))
        note = f"every case is its own patient (by their names all would be {shared!r}, which is unlikely)"
        return {c: c for c in case_ids}, note, []
    example = next(c for c in case_ids if patients[c] != c)
    return patients, f"from the names, e.g. {example} belongs to patient {patients[example]}", []


def patient_by_name(case_id: str) -> str:
    """The patient named in words by a case's name; the case itself if there is none.

    Example:
        >>> [patient_by_name(name) for name in ("patient008_frame01", "sub-07_ses-2_T1w", "hippocampus_001")]
        ['patient008', 'sub-07', 'hippocampus_001']
    """
    if bids := _BIDS.match(case_id):
        return bids["patient"]
    worded = _WORDED.match(case_id)
    if worded is None or _NOT_A_PATIENT.fullmatch(worded["patient"]):
        return case_id
    return worded["patient"]


def _from_file(case_ids: list[str], file: Path) -> tuple[dict[str, str], str, list[Fault]]:
    values = {nfc(key): value for key, value in read_mapping(file, DataError).items()}
    own = {c: values[c] for c in case_ids if values.get(c) is not None and not isinstance(values[c], dict)}
    if own:
        patients = {c: _patient_name(value, c, file) for c, value in own.items()}
        how = f"from {file.name} (case to patient)"
    else:
        patients = {c: owner for c in case_ids if (owner := _owner(c, list(values))) is not None}
        how = f"from {file.name} (its keys begin the names of the cases)"
    if not patients:
        raise DataError(
            f"{file}: no key of {len(values)} is a case or begins the name of one (e.g. {case_ids[:1]}); expected "
            '{"case": "patient"} or patients as keys. Correct or remove the file.'
        )
    left_out = [c for c in case_ids if c not in patients]
    faults = [fault("patient_unknown", f"not in {file.name}", c, file) for c in left_out]
    return patients | {c: c for c in left_out}, how, faults


def _patient_name(value: Any, case_id: str, file: Path) -> str:
    """Read a patient: a text or a whole number, which tables may have turned into 7.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"{file}: {case_id}: found {value!r}; expected its patient, a text or a whole number. Correct it."
        )
    return str(value)


def _owner(case_id: str, patients: list[str]) -> str | None:
    """Find the longest patient name that begins the case's name and ends at its end or at a separator."""
    begins = [p for p in patients if p and re.match(re.escape(p) + _EDGE, case_id)]
    return max(begins, key=len, default=None)


def load_dataset(path: Path, n_workers: int | None = None) -> Dataset:
    """Read a dataset: cases, channels, labels, patients. Voxels are read only if no labels are listed.

    Args:
        path: Folder in one of the layouts of data_readme.md, or a CSV manifest, or a `dataset.json`.
        n_workers: Label files read in parallel where labels are not listed; None for all processors.

    Returns:
        The dataset, cases sorted, paths absolute.

    Raises:
        DataError: If no layout fits, or with every missing or unpaired file.
    """
    files = find_layout(path)
    if files is None:
        raise DataError(unknown_layout(path))
    files = for_training(files)
    refuse(files.faults, path)
    if not files.cases:
        raise DataError(f"{path}: {LAYOUTS[files.layout].title}, but no case in it. Check its folders.")
    patients, patients_from, faults = patients_of(files)
    refuse(faults, path)
    labels = files.labels
    if labels is None:
        labels = labels_in_files([case.label for case in files.cases if case.label], n_workers or default_workers())
    return to_dataset(files, labels, patients, patients_from)


def find_layout(path: Path, layouts: Mapping[str, Layout] = LAYOUTS) -> DatasetFiles | None:
    """Read a folder or file by the first layout that recognises it; None if none does.

    Raises:
        DataError: If it is clearly meant as one of them but its description is wrong.
    """
    path = path.absolute()
    for name, layout in layouts.items():
        files = layout.read(path)
        if files is not None:
            return replace(files, layout=name)
    return None


def for_training(files: DatasetFiles) -> DatasetFiles:
    """Leave out the cases that the layout allows to be unlabelled, such as scans that a BIDS derivative skips."""
    left_out = {one.case_id for one in files.faults if one.kind == "unlabelled"}
    return replace(files, cases=tuple(case for case in files.cases if case.case_id not in left_out))


def unknown_layout(path: Path, layouts: Mapping[str, Layout] = LAYOUTS) -> str:
    """Message for a path in which no layout was recognised."""
    if not path.exists():
        return f"{path}: no such file or folder. Check the path."
    holds = (
        ", ".join(p.name + ("/" if p.is_dir() else "") for p in list_folder(path)[:8]) if path.is_dir() else "a file"
    )
    *others, last = (layout.remedy for layout in layouts.values())
    return (
        f"{path}: no dataset was recognised (found {holds or 'nothing'}); expected {', '.join(others)} or {last}. "
        "See data_readme.md."
    )


def patients_of(files: DatasetFiles) -> tuple[dict[str, str], str, list[Fault]]:
    """Find the patient of each case, in the layout, in `patients.json` or in the names; and how that was known.

    Raises:
        DataError: If there is a `patients.json` that cannot be used.
    """
    if any(case.patient_id for case in files.cases):
        return {case.case_id: case.patient_id or case.case_id for case in files.cases}, files.patients_from, []
    return assign_patients([case.case_id for case in files.cases], files.root)


def to_dataset(files: DatasetFiles, labels: LabelSet, patients: Mapping[str, str], patients_from: str) -> Dataset:
    """The record of a dataset without fatal faults."""
    return Dataset(
        name=files.name,
        layout=files.layout,
        root=str(files.root),
        channels=files.channels,
        labels=labels,
        cases=tuple(to_case(case, patients[case.case_id]) for case in files.cases),
        patients_from=patients_from,
    )


def to_case(case: CaseFiles, patient_id: str) -> Case:
    """The record of a case.

    Raises:
        DataError: If its name cannot be the name of a file.
    """
    if not is_case_name(case.case_id):
        raise DataError(f"{case.images[0]}: case {case.case_id!r}; expected {CASE_NAME}. Rename the file.")
    return Case(
        case_id=case.case_id,
        patient_id=patient_id,
        images=tuple(map(str, case.images)),
        label=None if case.label is None else str(case.label),
        site=case.site,
    )
