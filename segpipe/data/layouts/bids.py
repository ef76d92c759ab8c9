"""BIDS: images in `sub-…/[ses-…/]anat/`, label maps below `derivatives/<name>/`."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.files import read_text
from segpipe.core.header import NIFTI_ENDINGS, beside, ending_of, stem_of
from segpipe.core.labels import LabelSet
from segpipe.core.text import command_text
from segpipe.data.faults import Fault, fault
from segpipe.data.label_lists import parse_labels
from segpipe.data.layouts.scan import CaseFiles, DatasetFiles, collect_by_name, list_folder

_MOST_DIGITS = 11  # of a label value of 32 bits, with its sign
_CASE_ENTITIES = ("sub", "ses", "run")  # they distinguish the scans of a patient
_LABEL_SUFFIXES = ("dseg", "mask")  # the first that occurs counts: a dseg holds all structures, a mask one
_NO_IMAGE = ("seg", "mask")  # ends of suffixes: dseg, probseg, defacemask


@dataclass(frozen=True)
class _Name:
    """The parts of a BIDS file name such as `sub-01_ses-2_acq-ax_T2w.nii.gz`.

    Args:
        case_id: `sub-01_ses-2`, with the run if there is one.
        rest: The other parts before the suffix: `acq-ax`; empty if there are none.
        suffix: `T2w`.
    """

    case_id: str
    rest: str
    suffix: str

    @property
    def kind(self) -> str:
        """All parts that do not name the case: `acq-ax_T2w`."""
        return "_".join(filter(None, (self.rest, self.suffix)))


def read_bids(path: Path) -> DatasetFiles | None:
    """Read a BIDS dataset, or one folder of its derivatives; None if it has no `sub-…` folder.

    A case is a scan: subject, session and run. The other parts of an image's name are its channel: `T1w`,
    `acq-ax_T2w`. Label maps are the `dseg` of one derivative, or its `mask` if there is none.

    Args:
        path: The dataset, images in `sub-…` or `rawdata/sub-…`; or `derivatives/<name>` of it, where several hold
            label maps.

    Returns:
        All scans, also those without a label map: a derivative usually covers some of them.

    Raises:
        DataError: If folders or tables cannot be read, or several sets of label maps could be meant.
    """
    if not path.is_dir():
        return None
    root, chosen = (path.parent.parent, path) if path.parent.name == "derivatives" else (path, None)
    if path.name == "rawdata" and not (path / "derivatives").is_dir():
        root = path.parent
    raw = next((place for place in (root, root / "rawdata") if place.is_dir() and _subjects(place)), None)
    if raw is None:
        return None
    images = [path for subject in _subjects(raw) for path in _nifti(subject, ("anat/*", "ses-*/anat/*"))]
    channel_of = {path: name.kind for path in images if not (name := _name(path)).suffix.endswith(_NO_IMAGE)}
    channels = tuple(sorted(set(channel_of.values())))
    if not channels:
        return None
    groups: dict[str, dict[str, Path]] = defaultdict(dict)
    faults: list[Fault] = []
    for path, channel in channel_of.items():
        case_id = _name(path).case_id
        if channel in groups[case_id]:
            faults.append(fault("case_twice", f"also {groups[case_id][channel].name}", case_id, path))
        groups[case_id].setdefault(channel, path)
    label_of, labels, label_faults = _label_maps(root, chosen)
    faults += label_faults
    for case_id in sorted(set(label_of) - set(groups)):
        faults.append(fault("label_without_image", "a label map, no image", case_id, label_of[case_id]))
    for case_id, group in groups.items():
        faults += _case_faults(case_id, group, channels, label_of)
    cases = tuple(
        CaseFiles(case_id, tuple(group[c] for c in channels if c in group), label_of.get(case_id), _subject(case_id))
        for case_id, group in sorted(groups.items())
    )
    first = next((case.label for case in cases if case.label), None)
    return DatasetFiles(
        root.name,
        root,
        channels,
        labels,
        cases,
        tuple(faults),
        patients_from="from the subjects (sub-…)",
        notes={"label maps": f"{first.relative_to(root)}, …"} if first else {},  # which derivative was taken
    )


def _case_faults(
    case_id: str, group: dict[str, Path], channels: tuple[str, ...], label_of: dict[str, Path]
) -> list[Fault]:
    missing = [channel for channel in channels if channel not in group]
    faults = []
    if missing:
        text = f"{', '.join(missing)} missing, found {', '.join(sorted(group))}"
        faults.append(fault("missing_channel", text, case_id, expected=", ".join(channels)))
    if case_id not in label_of:
        kind = "unlabelled" if label_of else "image_without_label"
        faults.append(fault(kind, "an image, no label map", case_id, next(iter(group.values()))))
    return faults


def _label_maps(root: Path, chosen: Path | None) -> tuple[dict[str, Path], LabelSet | None, list[Fault]]:
    """Find the label map of each case, the names of the values if a table gives them, and duplicates."""
    home = root / "derivatives"
    folders = [chosen] if chosen else [path for path in list_folder(home) if path.is_dir()] if home.is_dir() else []
    files = {folder: [p for s in _subjects(folder) for p in _nifti(s, ("**/*",))] for folder in folders}
    for suffix in _LABEL_SUFFIXES:
        matching = {folder: [p for p in paths if _name(p).suffix == suffix] for folder, paths in files.items()}
        holders = [folder for folder, paths in matching.items() if paths]
        if len(holders) > 1:
            raise DataError(
                f"{home}: {', '.join(folder.name for folder in holders)} hold label maps, expected only one. "
                f"Give the one to use, e.g. `{command_text('segpipe', 'check', str(holders[0]))}`."
            )
        if holders:
            return _one_kind(holders[0], matching[holders[0]])
    return {}, None, []


def _one_kind(folder: Path, paths: list[Path]) -> tuple[dict[str, Path], LabelSet | None, list[Fault]]:
    kinds = sorted({_name(path).kind for path in paths})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: holds several kinds of label maps ({', '.join(kinds[:5])}), expected one. List the files of "
            "one kind in a CSV manifest (data_readme.md), or move the others away."
        )
    label_of, faults = collect_by_name((_name(path).case_id, path) for path in paths)
    return label_of, _table_of(folder, paths[0]), faults


def _table_of(folder: Path, label: Path) -> LabelSet | None:
    """Read the labels from the table whose name shares most with the label maps' (`dseg.tsv`, `desc-x_dseg.tsv`).

    It is in the derivative, or beside the first label map. A mask needs none: it is one label.
    """
    name = _name(label)
    if name.suffix == "mask":
        entities = dict(part.partition("-")[::2] for part in name.rest.split("_"))
        only = entities.get("label") or entities.get("desc") or "mask"
        return parse_labels({"background": 0, only: 1}, None, str(label))
    parts = set(name.rest.split("_"))
    tables = [p for p in list_folder(folder) if p.name.endswith("dseg.tsv") and set(p.stem.split("_")[:-1]) <= parts]
    tables += [p for p in (beside(label, ".tsv"),) if p.is_file()]
    return _read_table(max(tables, key=lambda p: p.name.count("_"))) if tables else None


def _read_table(table: Path) -> LabelSet:
    """Read the labels of a table with the columns index and name; 0 is background, with any name.

    Raises:
        DataError: If it is not such a table, or an index or a name occurs twice.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(table), newline=""), delimiter="\t", strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{table}: cannot be read as a table ({problem}). Export it again.") from None
    listed_labels: dict[str, object] = {"background": 0}
    for line, row in enumerate(rows, 2):
        index, name = (row.get("index") or "").strip(), (row.get("name") or "").strip()
        if (
            not index.removeprefix("-").isdecimal()
            or len(index) > _MOST_DIGITS
            or not name
            or (name in listed_labels and int(index) != 0)
        ):
            raise DataError(
                f"{table}: line {line}: index {index!r}, name {name!r}; expected the columns index (an integer) and "
                "name (each name once), separated by tabs. Correct it."
            )
        if int(index) != 0:
            listed_labels[name] = int(index)
    return parse_labels(listed_labels, None, str(table))


def _subjects(folder: Path) -> list[Path]:
    return [path for path in list_folder(folder) if path.name.startswith("sub-") and path.is_dir()]


def _nifti(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Find NIfTI files below a subject's folder that are named after it."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if ending_of(path) in NIFTI_ENDINGS}
    return sorted(path for path in files if path.name.startswith(f"{folder.name}_"))


def _name(path: Path) -> _Name:
    *parts, suffix = stem_of(path).split("_")
    is_case = [part.partition("-")[0] in _CASE_ENTITIES for part in parts]
    case = [part for part, of_case in zip(parts, is_case, strict=True) if of_case]
    rest = [part for part, of_case in zip(parts, is_case, strict=True) if not of_case]
    return _Name("_".join(case), "_".join(rest), suffix)


def _subject(case_id: str) -> str:
    return case_id.partition("_")[0]
