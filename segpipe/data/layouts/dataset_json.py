"""Folders with a `dataset.json`: nnU-Net v2 (and v1) and the Medical Segmentation Decathlon."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segpipe.core.errors import DataError
from segpipe.core.header import IMAGE_ENDINGS, PICTURE_ADVICE, PICTURE_ENDINGS, beside, ending_of, stem_of
from segpipe.core.records import read_mapping
from segpipe.core.text import count, nfc
from segpipe.data.dataset import CASE_NAME, is_case_name
from segpipe.data.faults import Fault, fault
from segpipe.data.label_lists import parse_labels
from segpipe.data.layouts.scan import CaseFiles, DatasetFiles, collect_by_name, image_files, locate, pair_files

DESCRIPTION_FILE = "dataset.json"


def read_nnunet(path: Path) -> DatasetFiles | None:
    """Read a folder by nnU-Net's `dataset.json`; None if there is no such file, or one of the Decathlon.

    Raises:
        DataError: If the file is not valid, or neither of the two layouts.
    """
    folder, values = _description(path)
    if values is None or _is_msd(values):
        return None
    file = folder / DESCRIPTION_FILE
    if "channel_names" not in values:
        raise DataError(
            f"{file}: neither 'channel_names' (nnU-Net v2) nor 'modality' and 'training' (MSD), found the keys "
            f"{', '.join(values) or 'none'}. Add what is missing; data_readme.md shows both."
        )
    channels = channels_of(values["channel_names"], file)
    ending = str(values.get("file_ending", ".nii.gz"))
    if f".{ending.strip().lower().lstrip('.')}" not in IMAGE_ENDINGS:  # images are found by their own names
        is_picture = f".{ending.strip().lower().lstrip('.')}" in PICTURE_ENDINGS
        advice = PICTURE_ADVICE if is_picture else "Convert the images."
        raise DataError(f"{file}: file_ending {ending!r}, expected one of {', '.join(IMAGE_ENDINGS)}. {advice}")
    if "dataset" in values:
        cases, faults = _mapped_cases(values["dataset"], folder, len(channels))
    else:
        images, label_files = (  # a missing folder counts as an empty one: the partner of every file is missing
            image_files(folder / name) if (folder / name).is_dir() else [] for name in ("imagesTr", "labelsTr")
        )
        cases, _, faults = pair_files(images, label_files, len(channels))
    return _dataset_files(folder, values, channels, cases, faults)


def read_msd(path: Path) -> DatasetFiles | None:
    """Read a folder by the Decathlon's `dataset.json`, which lists the cases; None if there is no such file.

    Raises:
        DataError: If the file is not valid.
    """
    folder, values = _description(path)
    if values is None or not _is_msd(values):
        return None
    channels = channels_of(values.get("modality"), folder / DESCRIPTION_FILE)
    cases, faults = _msd_cases(values["training"], folder, len(channels))
    return _dataset_files(folder, values, channels, cases, faults)


def _description(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """Read the `dataset.json` at or in a path: its folder, and its values or None."""
    folder = path.parent if path.name == DESCRIPTION_FILE and path.is_file() else path
    file = folder / DESCRIPTION_FILE
    return folder, read_mapping(file, DataError) if file.is_file() else None


def _is_msd(values: Mapping[str, Any]) -> bool:
    return "training" in values and "channel_names" not in values


def _dataset_files(
    folder: Path, values: Mapping[str, Any], channels: tuple[str, ...], cases: list[CaseFiles], faults: list[Fault]
) -> DatasetFiles:
    listed = values.get("labels")
    file = str(folder / DESCRIPTION_FILE)
    return DatasetFiles(
        name=str(values.get("name") or folder.name),
        root=folder,
        channels=channels,
        labels=None if listed is None else parse_labels(listed, values.get("regions_class_order"), file),
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        faults=tuple(faults),
    )


def channels_of(listed: Any, file: Path) -> tuple[str, ...]:
    """Read the channel names of a `dataset.json`: `{"0": "CT", …}`.

    Raises:
        DataError: If it has another form.
    """
    names = listed.values() if isinstance(listed, Mapping) else listed
    keys = sorted(listed, key=lambda k: (len(str(k)), str(k))) if isinstance(listed, Mapping) else []
    if isinstance(listed, Mapping) and keys == [str(i) for i in range(len(keys))]:
        names = [listed[key] for key in keys]
    elif isinstance(listed, Mapping) or not isinstance(listed, list):
        names = []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f'{file}: channels: found {listed!r}; expected {{"0": "CT", "1": …}}. Correct it.')
    return tuple(names)


def _msd_cases(training: Any, folder: Path, n_channels: int) -> tuple[list[CaseFiles], list[Fault]]:
    """Read the cases of the list `training`; `"image"` is a file (4D if it has channels) or a list of files."""
    file = folder / DESCRIPTION_FILE
    if not isinstance(training, list):
        raise DataError(
            f"{file}: training: found a {type(training).__name__}; expected a list of entries with image and label. "
            "Correct it."
        )
    entries = []
    for number, entry in enumerate(training):
        if not isinstance(entry, Mapping) or "image" not in entry:
            raise DataError(
                f"{file}: training.{number}: found {str(entry)[:80]!r}; expected "
                '{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}. Correct it.'
            )
        images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        if not images or not all(isinstance(image, str) and image for image in images):
            raise DataError(
                f"{file}: training.{number}.image: found {entry['image']!r}; expected a file or a list of files. "
                "Correct it."
            )
        entries.append((_case_id(images), images, entry.get("label")))
    return _listed_cases(entries, folder, n_channels)


def _mapped_cases(mapping: Any, folder: Path, n_channels: int) -> tuple[list[CaseFiles], list[Fault]]:
    """Read the cases of nnU-Net's key `dataset`, which gives the paths of each."""
    file = folder / DESCRIPTION_FILE
    if not isinstance(mapping, Mapping):
        raise DataError(f"{file}: dataset: found a {type(mapping).__name__}; expected cases as keys. Correct it.")
    for case_id, entry in mapping.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("images"), list):
            raise DataError(
                f"{file}: dataset.{case_id}: found {str(entry)[:80]!r}; expected "
                '{"images": ["a.nii.gz"], "label": "b.nii.gz"}. Correct it.'
            )
    entries = [(nfc(str(case_id)), entry["images"], entry.get("label")) for case_id, entry in mapping.items()]
    return _listed_cases(entries, folder, n_channels)


def _listed_cases(
    entries: list[tuple[str, list[Any], Any]], folder: Path, n_channels: int
) -> tuple[list[CaseFiles], list[Fault]]:
    cases = []
    _, faults = collect_by_name((case_id, folder / str(images[0] if images else "")) for case_id, images, _ in entries)
    seen: set[str] = set()
    for case_id, images, label in entries:
        if not is_case_name(case_id):
            raise DataError(f"{folder / DESCRIPTION_FILE}: case {case_id!r}; expected {CASE_NAME}. Rename it.")
        if case_id in seen:
            continue
        seen.add(case_id)
        files = [locate(folder, str(image)) for image in images]
        if len(files) == 1 and not files[0].exists():
            files = _split_channels(files[0], n_channels) or files
        if len(files) not in (1, n_channels):
            text = count(len(files), "image file")
            faults.append(fault("missing_channel", text, case_id, expected=f"{n_channels}, or one 4D file"))
        label_file = locate(folder, str(label)) if label else None
        if label_file is None:
            faults.append(fault("image_without_label", "no label is listed", case_id))
        faults += [fault("file_missing", "no such file", case_id, path) for path in files if not path.exists()]
        if label_file is not None and not label_file.exists():
            faults.append(fault("label_missing", "no such file", case_id, label_file))
        present = tuple(path for path in files if path.exists())
        cases.append(CaseFiles(case_id, present, label_file if label_file and label_file.exists() else None))
    return cases, faults


def _split_channels(image: Path, n_channels: int) -> list[Path]:
    """Find `a_0000.nii.gz`, … in place of `a.nii.gz`, which nnU-Net v1 lists instead; empty if there are none."""
    ending = ending_of(image)
    files = [beside(image, f"_{channel:04d}{ending}") for channel in range(n_channels)]
    return files if files[0].exists() else []


def _case_id(images: list[Any]) -> str:
    stem = stem_of(Path(str(images[0]).replace("\\", "/")))
    return stem.removesuffix("_0000") if len(images) > 1 else stem
