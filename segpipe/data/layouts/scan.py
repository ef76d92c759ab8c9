"""The files of a dataset as they are on disk, before they are judged, and the helpers that all readers share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.header import ending_of, stem_of
from segpipe.core.labels import LabelSet
from segpipe.core.text import nfc
from segpipe.data.faults import Fault, fault

NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_LABEL_SUFFIX = re.compile(r"[._-](seg|segmentation|label|labels|mask|gt)$", re.IGNORECASE)


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case, as far as they exist.

    Args:
        case_id: Its name.
        images: Files in the order of the channels, or one 4D file; missing ones are left out (and are a fault).
        label: Its label map; None if there is none.
        patient_id: Its patient, where the layout names it; None otherwise.
        site: Where it was acquired, where the layout names it; None otherwise.
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path | None = None
    patient_id: str | None = None
    site: str | None = None


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset, as a reader of its layout understands them.

    Args:
        name: Of the dataset, for people.
        root: The folder that paths are relative to.
        channels: Channel names in order.
        labels: The structures; None if the layout does not list them.
        cases: Sorted by case id.
        faults: What is wrong with the names and the pairing of the files.
        patients_from: Where the patients of the cases come from; empty if the layout names none.
        notes: More lines for `check`, by heading.
        layout: Key of `LAYOUTS`; `find_layout` fills it in.
    """

    name: str
    root: Path
    channels: tuple[str, ...]
    labels: LabelSet | None
    cases: tuple[CaseFiles, ...]
    faults: tuple[Fault, ...] = ()
    patients_from: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    layout: str = ""


def image_files(folder: Path) -> list[Path]:
    """Image files of a folder by name, without hidden ones (macOS leaves `._x` beside `x`).

    Raises:
        DataError: If the folder cannot be listed.
    """
    return [path for path in list_folder(folder) if ending_of(path) and not path.is_dir()]


def list_folder(folder: Path) -> list[Path]:
    """List a folder by name, without hidden entries.

    Raises:
        DataError: If the folder cannot be listed.
    """
    try:
        next(folder.iterdir(), folder).is_dir()  # fails without the right to enter the folder
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as problem:
        raise DataError(
            f"{folder}: cannot be listed ({problem.strerror}), expected a folder of images. Check the path "
            "and its permissions."
        ) from None


def locate(folder: Path, listed: str) -> Path:
    """Find a file that a list names, relative to the folder of the list.

    Where no file has the literal name, a backslash is a separator, as Windows writes it, and letters may be coded in
    another form (see `nfc`).

    Raises:
        DataError: If no file can have such a name.
    """
    path = folder / listed
    try:
        if path.exists() or path.is_symlink():
            return path
    except OSError as problem:
        raise DataError(
            f"{folder}: a list names {listed[:80]!r} ({len(listed)} characters), which cannot be a file "
            f"({problem.strerror}). Correct the list."
        ) from None
    path = folder / listed.replace("\\", "/")
    found = folder
    for part in path.relative_to(folder).parts if path.is_relative_to(folder) else ():
        if part in ("..", ".") or (found / part).exists() or not found.is_dir():
            found /= part
        else:
            found /= next((entry.name for entry in found.iterdir() if nfc(entry.name) == nfc(part)), part)
    return found if found != folder and found.exists() else path


def split_number(path: Path) -> tuple[str, int] | None:
    """Split a name into case and channel, such as `case_0001.nii.gz`; None if it does not end in four digits."""
    match = NUMBERED.fullmatch(stem_of(path))
    return (match["case"], int(match["channel"])) if match else None


def collect_by_name(files: Iterable[tuple[str, Path]]) -> tuple[dict[str, Path], list[Fault]]:
    """Collect files by name; a second file of the same name (`a.nii` beside `a.nii.gz`) is a fault."""
    by_name: dict[str, Path] = {}
    faults = []
    for name, path in files:
        if name in by_name:
            faults.append(fault("case_twice", f"also {by_name[name].name}", name, path))
        else:
            by_name[name] = path
    return by_name, faults


def pair_files(
    images: list[Path], labels: list[Path], n_channels: int | None
) -> tuple[list[CaseFiles], int, list[Fault]]:
    """Pair images with label maps by name: `case.nii.gz` or `case_0000.nii.gz` with `case.nii.gz`.

    The label maps decide whether four digits at the end are a channel or part of the case's name.

    Args:
        images: Image files.
        labels: Label files.
        n_channels: Number of channels if it is known; None to count the numbered files.

    Returns:
        Cases, the number of channels by the files' names, and every file that does not fit.
    """
    stems = {stem_of(path) for path in images}
    known = stems | {number[0] for path in images if (number := split_number(path)) is not None}
    label_of, faults = collect_by_name((label_name(stem_of(path), known), path) for path in labels)
    n_exact = sum(stem in label_of for stem in stems)
    n_numbered = sum((number := split_number(path)) is not None and number[0] in label_of for path in images)
    has_numbers = n_numbered > n_exact or (n_numbered == n_exact and n_channels is not None)
    groups, twins = _group_channels(images, has_numbers)
    faults += twins
    found_channels = 1 + max((channel for group in groups.values() for channel in group), default=0)
    n_expected = n_channels or found_channels
    for case_id, group in groups.items():
        faults += _channel_faults(case_id, group, n_expected)
        if case_id not in label_of:
            faults.append(fault("image_without_label", "an image, no label map", case_id, next(iter(group.values()))))
    for case_id in sorted(set(label_of) - set(groups)):
        faults.append(fault("label_without_image", "a label map, no image", case_id, label_of[case_id]))
    cases = [
        CaseFiles(case_id, tuple(group[c] for c in sorted(group)), label_of.get(case_id))
        for case_id, group in sorted(groups.items())
    ]
    return cases, n_expected, faults


def label_name(stem: str, known: set[str]) -> str:
    """Name the case of a label file: its stem, or its name without `_seg` and the like if only that is an image's."""
    bare = _LABEL_SUFFIX.sub("", stem)
    return bare if stem not in known and bare in known else stem


def _group_channels(images: list[Path], has_numbers: bool) -> tuple[dict[str, dict[int, Path]], list[Fault]]:
    """Group the files of each case by channel; a file without number is channel 0."""
    groups: dict[str, dict[int, Path]] = {}
    faults = []
    for path in images:
        case_id, channel = (split_number(path) if has_numbers else None) or (stem_of(path), 0)
        group = groups.setdefault(case_id, {})
        if channel in group:
            faults.append(fault("case_twice", f"also {group[channel].name}", case_id, path))
        else:
            group[channel] = path
    return groups, faults


def _channel_faults(case_id: str, group: dict[int, Path], n_channels: int) -> list[Fault]:
    if len(group) == 1 and 0 in group and split_number(group[0]) is None:
        return []  # one file with all channels on its fourth axis: its header is judged when it is read
    have = ", ".join(f"{c:04d}" for c in sorted(group))
    missing = [c for c in range(n_channels) if c not in group]
    extra = [c for c in sorted(group) if c >= n_channels]
    expected = f"channels 0000 to {n_channels - 1:04d}"
    faults = []
    if missing:
        text = f"channel {', '.join(f'{c:04d}' for c in missing)} is missing, found {have}"
        faults.append(fault("missing_channel", text, case_id, expected=expected))
    faults += [fault("extra_channel", f"channel {c:04d}", case_id, group[c], expected) for c in extra]
    return faults
