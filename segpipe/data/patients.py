"""Patients of cases, from a file or from words in the names; never guessed from numbers alone."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.records import read_mapping
from segpipe.core.text import nfc
from segpipe.data.faults import Fault, fault

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
    if any(case_id in values and isinstance(values[case_id], str | int) for case_id in case_ids):
        patients = {c: str(values[c]) for c in case_ids if isinstance(values.get(c), str | int)}
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


def _owner(case_id: str, patients: list[str]) -> str | None:
    """Find the longest patient name that begins the case's name and ends at its end or at a separator."""
    begins = [p for p in patients if p and re.match(re.escape(p) + _EDGE, case_id)]
    return max(begins, key=len, default=None)
