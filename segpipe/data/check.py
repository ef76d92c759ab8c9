"""Every fault of every case of a dataset, found before anything is computed from it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.header import ending_of
from segpipe.core.itk import is_dicom_file
from segpipe.core.labels import LabelSet
from segpipe.core.progress import map_threads
from segpipe.core.records import Record
from segpipe.data.dataset import Dataset
from segpipe.data.dicom_inputs import series_folders
from segpipe.data.faults import Fault, fault, refuse
from segpipe.data.folders import read_folders
from segpipe.data.found import Found, FoundCase
from segpipe.data.inspect import CaseFacts, inspect_case, inspect_headers
from segpipe.data.label_lists import checked_found
from segpipe.data.layouts import find_layout, for_training, patients_of, to_dataset, unknown_layout
from segpipe.data.understood import understood

_MIN_PATIENTS = 2
_GOOD_PATIENTS = 5  # one for each of the usual folds
_INCOMPLETE = {"missing_channel", "extra_channel", "file_missing"}
_FOREIGN_ENDINGS = (".mgz", ".mgh", ".hdr", ".img", ".dcm", ".ima", ".mnc", ".nhdr", ".par", ".tif", ".tiff")


class CheckReport(Record):
    """What `check` found.

    Args:
        path: What was checked.
        understood: How it was read, line by line: heading and text.
        dataset: The dataset; None if cases are incomplete or it could not be understood.
        presence: For each case whose label map could be read, the labels that occur in it.
        faults: All of them, fatal ones first, then by kind and case.
    """

    path: str
    understood: dict[str, str]
    dataset: Dataset | None
    presence: dict[str, tuple[str, ...]]
    faults: tuple[Fault, ...]

    @property
    def is_fatal(self) -> bool:
        """Whether training must not start."""
        return any(one.severity == "fatal" for one in self.faults)


def check_dataset(path: Path, n_workers: int) -> CheckReport:
    """Read every file of a dataset once and collect all faults; none hides another.

    Args:
        path: A dataset in a layout of data_readme.md, or any folder of images, or one image.
        n_workers: Cases read side by side; each holds one image in memory.

    Returns:
        What was understood and every fault. Images without labels are checked one by one, with the fatal fault
        that they cannot be trained on.

    Raises:
        DataError: If there is nothing at `path`.
    """
    if not path.exists():
        raise DataError(unknown_layout(path))
    found, faults = _found(path.absolute())
    is_loose = found.layout == "files"
    faults += found.faults
    if not found.cases:
        faults.append(fault("empty", _emptiness(path, found)))
        return _report(path, {"layout": found.layout}, None, {}, faults)
    facts = _facts(found, None if is_loose else len(found.channels), path.name, n_workers)
    for one in facts:
        faults += one.faults
    patients, how, patient_faults = _patients(found) if not is_loose else ({c.case_id: "" for c in found.cases}, "", [])
    faults += [*patient_faults, *_duplicates(found.cases, facts, patients)]
    labels = None
    if not is_loose:
        labels, label_faults = _labels(found, facts)
        faults += [*label_faults, *_patient_count(patients), *_orientations(facts)]
    presence = {} if labels is None else _presence(facts, labels)
    is_whole = not any(one.severity == "fatal" for one in (*found.faults, *patient_faults))
    dataset = to_dataset(found, labels, patients, how) if labels is not None and is_whole else None
    lines = understood(found, facts, labels, presence, None if is_loose else f"{len(set(patients.values()))}, {how}")
    return _report(path, lines, dataset, presence, faults)


def refuse_bad_headers(dataset: Dataset, n_workers: int) -> None:
    """Read every header of a dataset, which takes seconds, before its voxels are, which may take hours.

    Args:
        dataset: All its files are named.
        n_workers: Cases read side by side.

    Raises:
        DataError: With the fatal faults of all cases.
    """
    cases = [
        FoundCase(case.case_id, tuple(case.image_paths), None if case.label is None else Path(case.label))
        for case in dataset.cases
    ]
    n_channels = len(dataset.channels)
    per_case = map_threads(lambda case: inspect_headers(case, n_channels)[2], cases, "reading headers", n_workers)
    refuse((one for faults in per_case for one in faults), Path(dataset.root))


def _facts(found: Found, n_channels: int | None, name: str, n_workers: int) -> list[CaseFacts]:
    """Every case, read. Where a file is known to be missing, one that is left is not taken for a 4D file."""
    incomplete = {one.case_id for one in found.faults if one.kind in _INCOMPLETE}
    return map_threads(
        lambda case: inspect_case(case, None if case.case_id in incomplete else n_channels),
        found.cases,
        f"checking {name}",
        n_workers,
    )


def _emptiness(path: Path, found: Found) -> str:
    if found.layout == "files":
        return f"{path.name} holds no image file that segpipe reads"
    return f"the layout was understood ({found.layout}), but there is no case in it"


def _report(
    path: Path,
    lines: dict[str, str],
    dataset: Dataset | None,
    presence: dict[str, tuple[str, ...]],
    faults: list[Fault],
) -> CheckReport:
    ordered = sorted(faults, key=lambda one: (one.severity, one.kind, one.case_id or "", one.file or ""))
    return CheckReport(path=str(path), understood=lines, dataset=dataset, presence=presence, faults=tuple(ordered))


def _found(path: Path) -> tuple[Found, list[Fault]]:
    """The layout; if its description is wrong, whatever can be checked without it."""
    try:
        found = find_layout(path)
    except DataError as problem:
        faults = [fault("description", str(problem), None, None)]
        fallback = read_folders(path) if path.is_dir() else None
        return fallback or _loose(path if path.is_dir() else path.parent), faults
    if found is not None:
        return for_training(found), []
    loose = _loose(path)
    foreign = [p for p in walk(path) if p.name.lower().endswith(_FOREIGN_ENDINGS) and not is_dicom_file(p)]
    faults = [fault("other_format", p.suffix, str(p.relative_to(path)), p) for p in foreign]
    if loose.cases:
        faults.append(fault("no_labels", f"{len(loose.cases)} image(s), none with a label map"))
    return loose, faults


def _loose(path: Path) -> Found:
    """All images below a folder, each a case of its own, a folder of DICOM too; or one image."""
    files = [path] if path.is_file() else [*(p for p in walk(path) if ending_of(p)), *series_folders(path)]
    root = path.parent if path.is_file() else path
    cases = tuple(FoundCase(path.name if file == root else str(file.relative_to(root)), (file,)) for file in files)
    return Found(path.name, "files", root, (), None, cases, ())


def walk(path: Path) -> Iterator[Path]:
    """Files below a folder in order, without hidden ones; a folder reached twice by links is walked once."""
    seen = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))
        seen.add(real)


def _patients(found: Found) -> tuple[dict[str, str], str, list[Fault]]:
    try:
        return patients_of(found)
    except DataError as problem:
        alone = {case.case_id: case.case_id for case in found.cases}
        return alone, "unknown", [fault("description", str(problem), None, None)]


def _duplicates(cases: Sequence[FoundCase], facts: list[CaseFacts], patients: dict[str, str]) -> list[Fault]:
    """Images whose voxels are those of an earlier one."""
    seen: dict[str, tuple[str, Path]] = {}
    faults = []
    for case, one in zip(cases, facts, strict=True):
        for path, digest in one.hashes.items():
            if digest not in seen:
                seen[digest] = (case.case_id, path)
                continue
            other, first = seen[digest]
            is_apart = patients[other] != patients[case.case_id]
            text = f"the voxels of {first.name} (case {other}" + (f", patient {patients[other]})" if is_apart else ")")
            faults.append(fault("duplicate_patients" if is_apart else "duplicate", text, case.case_id, path))
    return faults


def _labels(found: Found, facts: list[CaseFacts]) -> tuple[LabelSet | None, list[Fault]]:
    """The labels, listed or found, and faults of the values against them."""
    counts = {one.case_id: one.n_label_vox for one in facts if one.n_label_vox is not None}
    values = {value for per_case in counts.values() for value in per_case}
    labels = found.labels
    if labels is None:
        try:
            labels = checked_found(values, found.root)
        except DataError as problem:
            return None, [fault("description", str(problem), None, None)]
    files = {case.case_id: case.label for case in found.cases}
    faults = []
    nothing = {labels.background_value, labels.ignore_value}
    for case_id, per_case in counts.items():
        unknown = [v for v in per_case if v not in labels.known_values]
        if unknown:
            named = ", ".join(f"{v} ({per_case[v]} voxels)" for v in unknown[:5]) + (", …" if unknown[5:] else "")
            expected = f"values of the list: {_some(sorted(labels.known_values))}"
            faults.append(fault("label_unknown", named, case_id, files[case_id], expected))
        elif set(per_case) <= nothing:
            faults.append(fault("label_empty", "background only", case_id, files[case_id]))
    for label in labels.labels if counts else ():
        if not set(label.values) & values:
            faults.append(fault("label_unused", f"{label.name} ({', '.join(map(str, label.values))})"))
    return labels, faults


def _presence(facts: list[CaseFacts], labels: LabelSet) -> dict[str, tuple[str, ...]]:
    return {
        one.case_id: tuple(label.name for label in labels.labels if set(label.values) & set(one.n_label_vox))
        for one in facts
        if one.n_label_vox is not None
    }


def _patient_count(patients: dict[str, str]) -> list[Fault]:
    n_patients, n_cases = len(set(patients.values())), len(patients)
    text = f"{n_cases} case{'s' * (n_cases > 1)} of {n_patients} patient{'s' * (n_patients > 1)}"
    if n_patients < _MIN_PATIENTS:
        return [fault("one_patient", text)]
    return [fault("few_patients", text)] if n_patients < _GOOD_PATIENTS else []


def _orientations(facts: list[CaseFacts]) -> list[Fault]:
    of_case = {one.case_id: one.grid.orientation for one in facts if one.grid is not None}
    if len(set(of_case.values())) < 2:
        return []
    groups = defaultdict(list)
    for case_id, orientation in of_case.items():
        groups[orientation].append(case_id)
    usual = min(groups, key=lambda o: (-len(groups[o]), o))
    return [
        fault("orientation_differs", orientation, case_id, None, f"{usual}, the most frequent")
        for case_id, orientation in of_case.items()
        if orientation != usual
    ]


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:10])) + (", …" if len(values) > 10 else "")
