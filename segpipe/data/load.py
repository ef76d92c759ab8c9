"""Datasets from disk: which layout a folder has, and its cases, channels, labels and patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.labels import LabelSet
from segpipe.core.machine import cpu_count
from segpipe.data.dataset import CASE_NAME, Case, Dataset, is_case_name
from segpipe.data.faults import Fault, refuse
from segpipe.data.label_lists import labels_in_files
from segpipe.data.layouts import LAYOUTS, Layout
from segpipe.data.layouts.scan import CaseFiles, DatasetFiles, list_folder
from segpipe.data.patients import assign_patients


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
        labels = labels_in_files([case.label for case in files.cases if case.label], n_workers or cpu_count())
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
