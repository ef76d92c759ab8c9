"""DICOM series to predict: each in a folder of its own, named by it."""

from __future__ import annotations

import os
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.itk import is_dicom_file
from segpipe.data.found import NUMBERED, FoundCase


def find_series(path: Path, channels: tuple[str, ...]) -> list[FoundCase]:
    """Cases of a folder that holds a DICOM series, or of all folders below that do; empty if there are none.

    A case is called after its folders below `path`, joined by `_`. With several channels each has a folder, which ends
    in `_0000`, `_0001`, …

    Raises:
        DataError: If channels are missing or too many, or folders give the same name.
    """
    groups: dict[str, dict[int, Path]] = {}
    for folder in series_folders(path):
        name = "_".join(folder.relative_to(path).parts) or path.name
        match = NUMBERED.fullmatch(name)
        case_id, channel = (match["case"], int(match["channel"])) if match and len(channels) > 1 else (name, 0)
        if channel in groups.setdefault(case_id, {}):
            raise DataError(f"{folder}: gives case {case_id}, as {groups[case_id][channel]} does. Rename one of them.")
        groups[case_id][channel] = folder
    faults = [
        f"case {case_id}: found {', '.join(folder.name for folder in group.values())}"
        for case_id, group in groups.items()
        if sorted(group) != list(range(len(channels)))
    ]
    if faults:
        raise DataError(
            f"{path}: expected {len(channels)} folders of DICOM for each case, one a channel ({', '.join(channels)}), "
            f"ending in _0000 to _{len(channels) - 1:04d}. Add or rename them.\n  " + "\n  ".join(faults)
        )
    return [FoundCase(case_id, tuple(group[c] for c in sorted(group))) for case_id, group in groups.items()]


def series_folders(path: Path) -> list[Path]:
    """Folders at or below `path` that hold DICOM files themselves."""
    found = []
    for place, inner, names in os.walk(path):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        folder = Path(place)
        if any(is_dicom_file(folder / name) for name in sorted(names) if not name.startswith(".")):
            found.append(folder)
    return found
