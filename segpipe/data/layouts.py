"""Any folder of scans that segpipe understands to a Dataset, or to a list of images to predict."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.header import IMAGE_ENDINGS, checked_ending, ending_of, stem_of
from segpipe.core.itk import is_dicom_file
from segpipe.core.labels import LabelSet
from segpipe.core.machine import cpu_count
from segpipe.core.volume import read_header
from segpipe.data.bids import read_bids
from segpipe.data.dataset import CASE_NAME, Case, Dataset, is_case_name
from segpipe.data.described import DESCRIPTION_FILE, read_described
from segpipe.data.dicom_inputs import find_series
from segpipe.data.faults import Fault, refuse
from segpipe.data.folders import IMAGE_FOLDERS, read_folders, subfolder
from segpipe.data.found import Found, FoundCase, image_files, listed, numbered, without_twins
from segpipe.data.label_lists import labels_in_files
from segpipe.data.manifest import manifests_in, read_manifest
from segpipe.data.patients import assign_patients

_ONLY_FOR_TRAINING = {"image_without_label", "label_without_image", "patient_unknown"}


def load_dataset(path: Path, n_workers: int | None = None) -> Dataset:
    """Read what a dataset is: cases, channels, labels, patients. Voxels are read only if no labels are listed.

    Args:
        path: Folder in one of the layouts of data_readme.md, or a CSV manifest, or a `dataset.json`.
        n_workers: Label files read side by side where labels are not listed; None for all processors.

    Returns:
        The dataset, cases sorted, paths absolute.

    Raises:
        DataError: If no layout fits, or with every missing or unpaired file.
    """
    found = find_layout(path)
    if found is None:
        raise DataError(unknown_layout(path))
    found = for_training(found)
    refuse(found.faults, path)
    if not found.cases:
        raise DataError(f"{path}: a {found.layout} layout without a case, expected images. Check its folders.")
    patients, how, faults = patients_of(found)
    refuse(faults, path)
    labels = found.labels
    if labels is None:
        labels = labels_in_files([case.label for case in found.cases if case.label], n_workers or cpu_count())
    return to_dataset(found, labels, patients, how)


def find_layout(path: Path) -> Found | None:
    """Understand a folder or file by its layout; None if it is none of those known.

    Raises:
        DataError: If it is clearly meant as one of them but its description is wrong.
    """
    path = path.absolute()
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return read_manifest(path)
        return read_described(path.parent) if path.name == DESCRIPTION_FILE else None
    if (path / DESCRIPTION_FILE).is_file():
        return read_described(path)
    manifests = manifests_in(path)
    if len(manifests) > 1:
        raise DataError(
            f"{path}: {len(manifests)} CSV manifests ({', '.join(m.name for m in manifests[:5])}), expected one. "
            "Name the file itself."
        )
    return read_manifest(manifests[0]) if manifests else read_folders(path) or read_bids(path)


def for_training(found: Found) -> Found:
    """The cases to train on: of BIDS those that the derivative covers, of other layouts all, as they should be."""
    if found.layout != "bids" or all(case.label is None for case in found.cases):
        return found
    return replace(found, cases=tuple(case for case in found.cases if case.label is not None))


def unknown_layout(path: Path) -> str:
    """Message for a path in which no layout was found."""
    if not path.exists():
        return f"{path}: no such file or folder. Check the path."
    holds = ", ".join(p.name + ("/" if p.is_dir() else "") for p in listed(path)[:8]) if path.is_dir() else "a file"
    return (
        f"{path}: no dataset was recognised (found {holds or 'nothing'}); expected dataset.json (nnU-Net v2 or MSD), "
        "a CSV manifest with case_id and image_<channel>, the folders images/ and labels/, or BIDS (sub-…/anat and "
        "derivatives/). See data_readme.md."
    )


def patients_of(found: Found) -> tuple[dict[str, str], str, list[Fault]]:
    """Patient of each case: as the layout says, as `patients.json` says, or by name; and how that was known.

    Raises:
        DataError: If there is a `patients.json` that cannot be used.
    """
    if any(case.patient_id for case in found.cases):
        patients = {case.case_id: case.patient_id or case.case_id for case in found.cases}
        return patients, "the subjects (sub-…)" if found.layout == "bids" else "from the column patient_id", []
    return assign_patients([case.case_id for case in found.cases], found.root)


def to_dataset(found: Found, labels: LabelSet, patients: dict[str, str], patients_from: str) -> Dataset:
    """The record of a layout without fatal faults."""
    return Dataset(
        name=found.name,
        layout=found.layout,
        root=str(found.root),
        channels=found.channels,
        labels=labels,
        cases=tuple(_case(case, patients[case.case_id]) for case in found.cases),
        patients_from=patients_from,
    )


def list_inputs(path: Path, channels: tuple[str, ...]) -> list[Case]:
    """Images to predict.

    Args:
        path: One file, a folder of images (`case_0000.nii.gz`, … for several channels, or 4D files, or one file a
            case), a folder of a DICOM series or of folders of them, or any layout that `load_dataset` reads; labels
            are not needed.
        channels: The model's channels in order. Where a manifest names its channels the same, its order may differ.

    Returns:
        Cases sorted by id; each has one file (or DICOM folder) for each channel, or one 4D file.

    Raises:
        DataError: If there is no image, a channel is missing or too many, or two files give one case.
    """
    path = path.absolute()
    found = None if path.is_file() and ending_of(path) else find_layout(path) if path.exists() else None
    if found is not None:
        refuse((f for f in found.faults if f.kind not in _ONLY_FOR_TRAINING), path)
        cases = [_in_order(case, found.channels, channels, path) for case in found.cases]
        patients, _, _ = patients_of(found)
    else:
        cases = _loose_inputs(path, channels)
        patients, _, _ = assign_patients([case.case_id for case in cases], path if path.is_dir() else path.parent)
    if not cases:
        raise DataError(f"{path}: no case to predict was found. Check the folder.")
    return [_case(case, patients[case.case_id]) for case in sorted(cases, key=lambda case: case.case_id)]


def _case(case: FoundCase, patient_id: str) -> Case:
    if not is_case_name(case.case_id):
        raise DataError(f"{case.images[0]}: case {case.case_id!r}; expected {CASE_NAME}. Rename the file.")
    return Case(
        case_id=case.case_id,
        patient_id=patient_id,
        images=tuple(map(str, case.images)),
        label=None if case.label is None else str(case.label),
        site=case.site,
    )


def _in_order(case: FoundCase, found: tuple[str, ...], wanted: tuple[str, ...], where: Path) -> FoundCase:
    """The case with its files in the model's order of channels."""
    if len(found) != len(wanted):
        raise DataError(
            f"{where}: {len(found)} channels ({', '.join(found)}), the model needs {len(wanted)} "
            f"({', '.join(wanted)}). Give it the images it was trained with."
        )
    is_permuted = found != wanted and sorted(found) == sorted(wanted) and len(set(found)) == len(found)
    if not is_permuted or len(case.images) != len(found):
        return case
    return FoundCase(case.case_id, tuple(case.images[found.index(name)] for name in wanted), case.label)


def _loose_inputs(path: Path, channels: tuple[str, ...]) -> list[FoundCase]:
    """Cases of a file or of the top level of a folder without layout."""
    if path.is_dir():
        files = image_files(path)
        inner = subfolder(path, ("imagests", *IMAGE_FOLDERS))
        files = files or (image_files(inner) if inner else [])
        if not files and (series := find_series(path, channels)):
            return series
    elif is_dicom_file(path):
        raise DataError(f"{path}: one file of a DICOM series, expected all of them. Give the folder it lies in.")
    else:
        files = _with_siblings(path, len(channels)) if path.exists() else []
    if path.is_file():
        checked_ending(path)
    if not files:
        what = "no such file or folder" if not path.exists() else "no image"
        below = [p.name for p in listed(path) if p.is_dir() and image_files(p)] if path.is_dir() else []
        where = f"Its folders {', '.join(below[:5])} hold images: give one of them" if below else "Check the path"
        raise DataError(f"{path}: {what}; expected files {', '.join(IMAGE_ENDINGS)} or DICOM. {where}.")
    if len(channels) == 1:
        return _one_channel(files)
    return _several_channels(files, channels)


def _with_siblings(file: Path, n_channels: int) -> list[Path]:
    """The file, and where it is one numbered channel of several, the other channels beside it."""
    number = numbered(file)
    if number is None or n_channels == 1:
        return [file]
    return [p for p in image_files(file.parent) if (other := numbered(p)) is not None and other[0] == number[0]]


def _one_channel(files: list[Path]) -> list[FoundCase]:
    numbers = [numbered(file) for file in files]
    is_numbered = all(number is not None and number[1] == 0 for number in numbers)
    names = [
        number[0] if is_numbered and number else stem_of(file) for number, file in zip(numbers, files, strict=True)
    ]
    by_name, twins = without_twins(zip(names, files, strict=True))
    refuse(twins, files[0].parent)
    of_case = {case: [n[1] for n in group if n] for case, group in _by_case(numbers)}
    surplus = {case: found for case, found in of_case.items() if found[0] == 0 and len(found) > 1}
    if len(surplus) > 1 and len(surplus) == len(of_case) and all(numbers):  # a single name is a numbered series
        case, found = next(iter(surplus.items()))
        raise DataError(
            f"{files[0].parent}: case {case} has channels {', '.join(f'{i:04d}' for i in found)}, the model needs one. "
            "Give it the folder of the channel it was trained with."
        )
    return [FoundCase(name, (file,)) for name, file in by_name.items()]


def _by_case(numbers: list[tuple[str, int] | None]) -> list[tuple[str, list[tuple[str, int]]]]:
    ordered = sorted(number for number in numbers if number is not None)
    return [(case, list(group)) for case, group in itertools.groupby(ordered, key=lambda number: number[0])]


def _several_channels(files: list[Path], channels: tuple[str, ...]) -> list[FoundCase]:
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault((numbered(file) or (stem_of(file), 0))[0], []).append(file)
    cases, problems = [], []
    for case_id, group in groups.items():
        indices = [number[1] for file in group if (number := numbered(file)) is not None]
        if len(indices) == len(group) and sorted(indices) == list(range(len(channels))):
            cases.append(FoundCase(case_id, tuple(sorted(group, key=lambda file: numbered(file) or ("", 0)))))
            continue
        try:
            counts = {file: read_header(file).n_channels for file in group}
        except DataError:  # of this case alone: it is named when the case is read
            cases.append(FoundCase(case_id, tuple(group)))
            continue
        names, twins = without_twins((stem_of(file), file) for file in group)
        if not twins and all(count == len(channels) for count in counts.values()):
            cases += [FoundCase(name, (file,)) for name, file in names.items()]
            continue
        missing = [f"{i:04d} ({name})" for i, name in enumerate(channels) if i not in indices]
        what = f"channel {', '.join(missing)} is missing" if missing else "more files than channels"
        problems.append(f"case {case_id}: {what}; found {', '.join(f'{f.name} ({counts[f]} channel)' for f in group)}.")
    if problems:
        raise DataError(
            f"{files[0].parent}: expected {len(channels)} files (case_0000 to case_{len(channels) - 1:04d}) or one 4D "
            "file for each case. Add the files or move the cases away.\n  " + "\n  ".join(problems)
        )
    return cases
