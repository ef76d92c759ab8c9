"""Images to predict: files, folders, datasets in any layout, and DICOM series, each in a folder of its own."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.header import IMAGE_ENDINGS, PICTURE_ADVICE, PICTURE_ENDINGS, checked_ending, ending_of, stem_of
from segpipe.core.itk import is_dicom_file
from segpipe.core.records import read_mapping
from segpipe.core.text import count, nfc
from segpipe.core.volume import read_header
from segpipe.data.dataset import Case
from segpipe.data.faults import refuse
from segpipe.data.layouts.dataset_json import DESCRIPTION_FILE, channels_of
from segpipe.data.layouts.folders import IMAGE_FOLDERS, subfolder
from segpipe.data.layouts.scan import NUMBERED, CaseFiles, collect_by_name, image_files, list_folder, split_number
from segpipe.data.load import assign_patients, find_layout, patients_of, to_case

_ONLY_FOR_TRAINING = {"image_without_label", "label_without_image", "label_missing", "patient_unknown"}
Faulty = dict[str, str]
"""Cases that cannot be predicted, each with a sentence that says why."""
_NO_NAME = re.compile(r"(image|channel|modality)?_?\d*", re.IGNORECASE)  # says no more than the place


def list_inputs(
    path: Path, channels: tuple[str, ...], on_fault: Callable[[str, str], None] | None = None
) -> list[Case]:
    """List the images to predict.

    Args:
        path: One file, a folder of images (`case_0000.nii.gz`, … for several channels, or 4D files, or one file per
            case), a folder with a DICOM series or with folders of them, or any layout that `load_dataset` reads;
            labels are not needed.
        channels: The model's channels in order. Where a manifest, a `dataset.json` in the folder or above it, or BIDS
            names the channels of the images, they are matched by name.
        on_fault: Receives each case that cannot be predicted, with a sentence that says why, if others can: a file or
            channel is missing or too many. None: such a case is an error.

    Returns:
        Cases sorted by id; each has one file (or DICOM folder) for each channel, or one 4D file.

    Raises:
        DataError: If there is no image, no case that can be predicted, or the names of channels contradict the model's.
    """
    path, faulty = path.absolute(), Faulty()
    is_image = path.is_file() and bool(ending_of(path))
    files = find_layout(path) if path.exists() and not is_image else None
    if files is not None and (files.cases or not path.is_dir()):
        fatal = [one for one in files.faults if one.severity == "fatal" and one.kind not in _ONLY_FOR_TRAINING]
        refuse((one for one in fatal if one.case_id is None), path)
        faulty.update((one.case_id, one.text) for one in reversed(fatal) if one.case_id is not None)
        whole = [case for case in files.cases if case.case_id not in faulty]
        cases = _in_order(whole, files.channels, channels, path)
        patients, _, _ = patients_of(files)
    else:
        cases = [case for case in _loose_inputs(path, channels, faulty) if case.case_id not in faulty]
        if not _are_places(channels) and (named := _names_beside(path)) is not None:
            cases = _in_order(cases, named[1], channels, named[0])
        patients, _, _ = assign_patients([case.case_id for case in cases], path if path.is_dir() else path.parent)
    if faulty and (on_fault is None or not cases):
        lines = list(faulty.values())
        raise DataError(
            lines[0] if len(lines) == 1 else "\n  ".join([f"{path}: {count(len(lines), 'fault')}.", *lines])
        )
    if not cases:
        raise DataError(f"{path}: no case to predict. Check the folder.")
    for case_id, text in faulty.items():
        if on_fault is not None:
            on_fault(case_id, text)
    return [to_case(case, patients[case.case_id]) for case in sorted(cases, key=lambda case: case.case_id)]


def _names_beside(path: Path) -> tuple[Path, tuple[str, ...]] | None:
    """Find the `dataset.json` in the folder of loose images or in the one above, and the channels that it names."""
    folder = path if path.is_dir() else path.parent
    for file in (folder / DESCRIPTION_FILE, folder.parent / DESCRIPTION_FILE):
        if file.is_file():
            values = read_mapping(file, DataError)
            listed = values.get("channel_names", values.get("modality"))
            return None if listed is None else (file, channels_of(listed, file))
    return None


def _in_order(
    cases: Sequence[CaseFiles], names: tuple[str, ...], wanted: tuple[str, ...], where: Path
) -> list[CaseFiles]:
    """Put the files of each case in the model's order of channels, by name.

    Raises:
        DataError: If the names contradict the model's, or a 4D file holds the channels in another order.
    """
    if len(names) != len(wanted):
        raise DataError(
            f"{where}: {count(len(names), 'channel')} ({', '.join(names)}), the model needs {len(wanted)} "
            f"({', '.join(wanted)}). Give it the channels it was trained with."
        )
    order = _order_by_name(names, wanted)
    if order is None:
        raise DataError(
            f"{where}: channels {', '.join(names)}, the model was trained with {', '.join(wanted)}. Give it the same "
            "channels. If only the names differ, correct them, or list the images in a CSV manifest with the columns "
            f"{', '.join(f'image_{name}' for name in wanted)}."
        )
    if order == list(range(len(names))):
        return list(cases)
    joined = [case for case in cases if len(case.images) != len(names)]
    if joined:
        raise DataError(
            f"{where}: {joined[0].case_id} holds the channels {', '.join(names)} in one file, the model needs "
            f"{', '.join(wanted)}. Write its volumes in that order, or one file for each channel."
        )
    return [replace(case, images=tuple(case.images[place] for place in order)) for case in cases]


def _order_by_name(names: tuple[str, ...], wanted: tuple[str, ...]) -> list[int] | None:
    """Find the place in `names` of each wanted channel; None if the names contradict each other.

    Upper case, punctuation and the w of BIDS (T1w) do not matter. Numbered channels (`image`, `channel_0`) have no name
    and keep their order.

    Example:
        >>> _order_by_name(("T2w", "t1"), ("T1", "T2")), _order_by_name(("CT", "PET"), ("channel_0", "channel_1"))
        ([1, 0], [0, 1])
        >>> _order_by_name(("T1", "FLAIR"), ("T1", "T2")) is None
        True
    """
    in_place = list(range(len(names)))
    if names == wanted or _are_places(names) or _are_places(wanted):
        return in_place
    for key in (str, _name_key):
        found, asked = [key(name) for name in names], [key(name) for name in wanted]
        if len(set(found)) == len(found) and sorted(found) == sorted(asked):
            return [found.index(name) for name in asked]
    return None


def _are_places(names: tuple[str, ...]) -> bool:
    return all(map(_NO_NAME.fullmatch, names))


def _name_key(name: str) -> str:
    return re.sub(r"^(t[12]|pd)w$", r"\1", re.sub(r"[\W_]+", "", name.casefold()))


def _loose_inputs(path: Path, channels: tuple[str, ...], faulty: Faulty) -> list[CaseFiles]:
    """List the cases of a file, or of the top level of a folder without layout; those with a fault go to `faulty`."""
    if path.is_dir():
        files = image_files(path)
        inner = subfolder(path, ("imagests", *IMAGE_FOLDERS))
        files = files or (image_files(inner) if inner else [])
        if not files and ((series := find_series(path, channels, faulty)) or faulty):
            return series
    elif is_dicom_file(path):
        if read_header(path).grid.shape_zyx[0] == 1:
            raise DataError(f"{path}: one file of a DICOM series, expected all of them. Give its folder.")
        files = [path]  # enhanced DICOM: all frames in one file
    else:
        files = _with_siblings(path, len(channels)) if path.exists() else []
    if path.is_file() and not is_dicom_file(path):
        checked_ending(path)
    if not files:
        what = "no such file or folder" if not path.exists() else "no image"
        below = [p.name for p in list_folder(path) if p.is_dir() and image_files(p)] if path.is_dir() else []
        where = f"Its folders {', '.join(below[:5])} hold images: choose one of them" if below else "Check the path"
        pictures = [p for p in list_folder(path) if p.suffix.lower() in PICTURE_ENDINGS] if path.is_dir() else []
        if pictures:
            raise DataError(
                f"{path}: {count(len(pictures), 'picture')} ({pictures[0].name}, …), which segpipe does not read. "
                f"{PICTURE_ADVICE}"
            )
        raise DataError(f"{path}: {what}; expected files {', '.join(IMAGE_ENDINGS)} or DICOM. {where}.")
    if len(channels) == 1:
        return _one_channel(files, faulty)
    return _several_channels(files, channels, faulty)


def _with_siblings(file: Path, n_channels: int) -> list[Path]:
    """List a file and, if it is a numbered channel of several, the other channels beside it."""
    number = split_number(file)
    if number is None or n_channels == 1:
        return [file]
    return [p for p in image_files(file.parent) if (other := split_number(p)) is not None and other[0] == number[0]]


def _one_channel(files: list[Path], faulty: Faulty) -> list[CaseFiles]:
    numbers = [split_number(file) for file in files]
    is_numbered = all(number is not None and number[1] == 0 for number in numbers)
    names = [
        number[0] if is_numbered and number else stem_of(file) for number, file in zip(numbers, files, strict=True)
    ]
    by_name, twins = collect_by_name(zip(names, files, strict=True))
    faulty.update((one.case_id or "", one.text) for one in twins)
    of_case = {case: [n[1] for n in group if n] for case, group in _by_case(numbers)}
    surplus = {case: channels for case, channels in of_case.items() if channels[0] == 0 and len(channels) > 1}
    if len(surplus) > 1 and len(surplus) == len(of_case) and all(numbers):  # a single name is a numbered series
        case, channels = next(iter(surplus.items()))
        raise DataError(
            f"{files[0].parent}: case {case} has channels {', '.join(f'{i:04d}' for i in channels)}, the model needs "
            "one. Give it the folder of the channel it was trained with."
        )
    return [CaseFiles(name, (file,)) for name, file in by_name.items()]


def _by_case(numbers: list[tuple[str, int] | None]) -> list[tuple[str, list[tuple[str, int]]]]:
    ordered = sorted(number for number in numbers if number is not None)
    return [(case, list(group)) for case, group in itertools.groupby(ordered, key=lambda number: number[0])]


def _several_channels(files: list[Path], channels: tuple[str, ...], faulty: Faulty) -> list[CaseFiles]:
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault((split_number(file) or (stem_of(file), 0))[0], []).append(file)
    cases = []
    for case_id, group in groups.items():
        indices = [number[1] for file in group if (number := split_number(file)) is not None]
        if len(indices) == len(group) and sorted(indices) == list(range(len(channels))):
            cases.append(CaseFiles(case_id, tuple(sorted(group, key=lambda file: split_number(file) or ("", 0)))))
            continue
        try:
            counts = {file: read_header(file).n_channels for file in group}
        except DataError:  # concerns this case alone: it is reported when the case is read
            cases.append(CaseFiles(case_id, tuple(group)))
            continue
        names, twins = collect_by_name((stem_of(file), file) for file in group)
        if not twins and all(n == len(channels) for n in counts.values()):
            cases += [CaseFiles(name, (file,)) for name, file in names.items()]
            continue
        missing = [f"{i:04d} ({name})" for i, name in enumerate(channels) if i not in indices]
        what = f"channel {', '.join(missing)} is missing" if missing else "more files than channels"
        faulty[case_id] = (
            f"{files[0].parent}: case {case_id}: {what}; found {_with_channels(counts)}; expected "
            f"{len(channels)} files (case_0000 to case_{len(channels) - 1:04d}) or one 4D file. Add what is "
            "missing, or move the case away."
        )
    return cases


def _with_channels(n_channels: dict[Path, int]) -> str:
    return ", ".join(f"{file.name} ({count(n, 'channel')})" for file, n in n_channels.items())


def find_series(path: Path, channels: tuple[str, ...], faulty: Faulty) -> list[CaseFiles]:
    """List the cases of a folder that holds a DICOM series, or of all folders below that do; empty if none does.

    A case is named after its folders below `path`, joined by `_`. Of several channels each has a folder, which ends in
    `_0000`, `_0001`, …; a case with missing channels, or too many, goes to `faulty`.

    Raises:
        DataError: If folders give the same name.
    """
    groups: dict[str, dict[int, Path]] = {}
    for folder in series_folders(path):
        name = nfc("_".join(folder.relative_to(path).parts) or path.name)
        match = NUMBERED.fullmatch(name)
        case_id, channel = (match["case"], int(match["channel"])) if match and len(channels) > 1 else (name, 0)
        if channel in groups.setdefault(case_id, {}):
            raise DataError(f"{folder}: gives case {case_id}, and so does {groups[case_id][channel]}. Rename one.")
        groups[case_id][channel] = folder
    expected = list(range(len(channels)))
    for case_id, group in groups.items():
        if sorted(group) != expected:
            faulty[case_id] = (
                f"{path}: case {case_id}: found {', '.join(folder.name for folder in group.values())}; expected "
                f"{len(channels)} DICOM folders, one for each channel ({', '.join(channels)}), ending in _0000 to "
                f"_{len(channels) - 1:04d}. Add or rename them."
            )
    return [
        CaseFiles(case_id, tuple(group[c] for c in sorted(group)))
        for case_id, group in groups.items()
        if case_id not in faulty
    ]


def series_folders(path: Path) -> list[Path]:
    """List the folders at or below `path` that hold DICOM files themselves."""
    holders = []
    for place, inner, names in os.walk(path):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        folder = Path(place)
        if any(is_dicom_file(folder / name) for name in sorted(names) if not name.startswith(".")):
            holders.append(folder)
    return holders
