"""Every fault of every case of a dataset, found before anything is computed from it, and how it was understood."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import MappingProxyType

from pydantic import Field

from segpipe.core.errors import DataError
from segpipe.core.grid import Grid
from segpipe.core.header import FOREIGN_ENDINGS, PICTURE_ENDINGS, ending_of
from segpipe.core.itk import has_dicom_mark, is_dicom_file
from segpipe.core.labels import LabelSet
from segpipe.core.progress import map_threads
from segpipe.core.records import Record
from segpipe.core.text import count
from segpipe.data.dataset import Dataset
from segpipe.data.faults import Fault, fault, refuse
from segpipe.data.inputs import series_folders
from segpipe.data.inspect import SAME, AlikePair, CaseFacts, alike_pairs, inspect_case, inspect_headers
from segpipe.data.label_lists import are_scaled_differently, labels_from_values
from segpipe.data.layouts import LAYOUTS
from segpipe.data.layouts.scan import CaseFiles, DatasetFiles
from segpipe.data.load import PATIENTS_FILE, find_layout, for_training, patients_of, to_dataset, unknown_layout

_LOOSE = "files"  # the layout of a folder without one: every image is a case
_LOOSE_TITLE = "no layout: image files one by one"
_MAX_SUGGESTED = 6  # lines of a patients.json on the screen
_MAX_LABELS = 12  # named on the screen
_MIN_PATIENTS = 2
_GOOD_PATIENTS = 5  # one for each of the usual folds
_TWO_EDGES_VOX, _ONE_EDGE_VOX = 8, 12  # of the smallest images that a U-Net can be planned for
_INCOMPLETE = {"missing_channel", "extra_channel", "file_missing"}


class CheckReport(Record):
    """The result of `check`.

    Args:
        path: What was checked.
        understood: How it was understood, line by line: heading and text.
        dataset: The dataset; None if cases are incomplete or it could not be understood.
        presence: The labels that occur in each case whose label map could be read.
        faults: All of them, fatal ones first, then by kind and case.
        suggested_patients: Patient of every case if images that look like one patient's are joined: the content of a
            `patients.json`. Empty if there are none.
    """

    path: str
    understood: dict[str, str]
    dataset: Dataset | None
    presence: dict[str, tuple[str, ...]]
    faults: tuple[Fault, ...]
    suggested_patients: dict[str, str] = Field(default_factory=dict)

    @property
    def is_for_prediction(self) -> bool:
        """True for images without any label map."""
        return any(one.kind == "no_labels" for one in self.faults)

    @property
    def is_fatal(self) -> bool:
        """True if training must not start; of images without label maps, prediction."""
        return any(one.severity == "fatal" for one in self.faults)


def check_dataset(path: Path, n_workers: int) -> CheckReport:
    """Read every file of a dataset once and collect all faults; none hides another.

    Args:
        path: A dataset in a layout of data_readme.md, or any folder of images, or one image.
        n_workers: Cases read in parallel; each holds one image in memory.

    Returns:
        How the dataset was understood, and every fault. Images without any label map are for prediction.

    Raises:
        DataError: If there is nothing at `path`.
    """
    if not path.exists():
        raise DataError(unknown_layout(path))
    files, faults = _read_layout(path.absolute())
    faults += files.faults
    if not files.cases:
        faults += [fault("empty", _emptiness(path, files)), *_foreign_files(path, faults)]
        return _report(path, {"layout": _title(files)}, None, {}, faults)
    if _is_unlabelled(files, faults):
        faults = [one for one in faults if one.kind not in ("image_without_label", "no_labels")]
        faults.append(fault("no_labels", f"{count(len(files.cases), 'case')}, none with a label map"))
        files = replace(files, faults=tuple(one for one in files.faults if one.kind != "image_without_label"))
    is_loose = files.layout == _LOOSE
    facts = _facts(files, None if is_loose else len(files.channels), path.name, n_workers)
    for case, one in zip(files.cases, facts, strict=True):
        faults += _named_channels(case, one.faults, files.channels)
    if is_loose:
        faults += _duplicates(files.cases, facts, {case.case_id: "" for case in files.cases})
        return _report(path, _understanding(files, facts), None, {}, faults)
    patients, patients_from, patient_faults = _patients(files)
    if _is_unlabelled(files, faults):
        faults += _duplicates(files.cases, facts, dict.fromkeys(patients, ""))
        return _report(path, _understanding(files, facts), None, {}, faults)
    labels, label_faults = _labels(files, facts)
    alike = _find_alike(facts, patients)
    faults += [*patient_faults, *_duplicates(files.cases, facts, patients), *_alike_faults(alike, facts, patients)]
    faults += label_faults
    faults += [*_patient_count(patients), *_orientations(facts), *_small_images(facts)]
    presence = {} if labels is None else _presence(facts, labels)
    is_whole = not any(one.severity == "fatal" for one in (*files.faults, *patient_faults))
    dataset = to_dataset(files, labels, patients, patients_from) if labels is not None and is_whole else None
    lines = _understanding(files, facts, labels, presence, f"{len(set(patients.values()))}, {patients_from}")
    suggested = _join_patients(alike, facts, patients) if alike else {}
    if suggested:
        lines["one patient?"] = _suggestion_line(suggested, patients, files.patients_from)
    return _report(path, lines, dataset, presence, faults, suggested)


def _named_channels(case: CaseFiles, faults: Sequence[Fault], channels: Sequence[str]) -> list[Fault]:
    """Name constant channels; those beside a channel with contrast may be filled up, and are a warning."""
    constant = [one for one in faults if one.kind == "constant"]
    if len(channels) < 2 or not 0 < len(constant) < len(channels) or len(case.images) not in (1, len(channels)):
        return list(faults)
    named = []
    for one in faults:
        if one.kind == "constant" and one.file is not None:
            volume = re.search(r"in volume (\d+) of", one.found)
            place = int(volume[1]) if volume else case.images.index(Path(one.file))
            one = fault("constant_channel", f"{channels[place]}: {one.found}", case.case_id, Path(one.file))
        named.append(one)
    return named


def _is_unlabelled(files: DatasetFiles, faults: Sequence[Fault]) -> bool:
    """True for images to predict: no label map anywhere, and none listed or left over."""
    is_meant = any(
        one.kind in ("label_without_image", "file_missing", "label_missing", "description") for one in faults
    )
    return files.labels is None and not is_meant and all(case.label is None for case in files.cases)


def refuse_bad_headers(dataset: Dataset, n_workers: int) -> None:
    """Read every header of a dataset, which takes seconds, before the voxels, which may take hours.

    Args:
        dataset: Its files may be missing.
        n_workers: Cases read in parallel.

    Raises:
        DataError: With the fatal faults of all cases.
    """
    cases = [
        CaseFiles(case.case_id, tuple(case.image_paths), None if case.label is None else Path(case.label))
        for case in dataset.cases
    ]
    n_channels = len(dataset.channels)
    per_case = map_threads(lambda case: inspect_headers(case, n_channels)[2], cases, "reading headers", n_workers)
    refuse((one for faults in per_case for one in faults), Path(dataset.root))


def _facts(files: DatasetFiles, n_channels: int | None, name: str, n_workers: int) -> list[CaseFacts]:
    """Read every case. Where a file is known to be missing, the remaining one is not taken for a 4D file."""
    incomplete = {one.case_id for one in files.faults if one.kind in _INCOMPLETE}
    return map_threads(
        lambda case: inspect_case(case, None if case.case_id in incomplete else n_channels),
        files.cases,
        f"checking {name}",
        n_workers,
    )


def _emptiness(path: Path, files: DatasetFiles) -> str:
    if files.layout == _LOOSE:
        return f"{path.name} holds no image file that segpipe reads"
    return f"the layout was recognised ({_title(files)}), but there is no case in it"


def _title(files: DatasetFiles) -> str:
    return _LOOSE_TITLE if files.layout == _LOOSE else LAYOUTS[files.layout].title


def _report(
    path: Path,
    lines: dict[str, str],
    dataset: Dataset | None,
    presence: dict[str, tuple[str, ...]],
    faults: list[Fault],
    suggested: Mapping[str, str] = MappingProxyType({}),
) -> CheckReport:
    ordered = sorted(faults, key=lambda one: (one.severity, one.kind, one.case_id or "", one.file or ""))
    return CheckReport(
        path=str(path),
        understood=lines,
        dataset=dataset,
        presence=presence,
        faults=tuple(ordered),
        suggested_patients=dict(suggested),
    )


def _read_layout(path: Path) -> tuple[DatasetFiles, list[Fault]]:
    """Read the layout; if its description is wrong, what can be checked without it."""
    try:
        files = find_layout(path)
    except DataError as problem:
        faults = [fault("description", str(problem), None, None)]
        fallback = find_layout(path, {"folders": LAYOUTS["folders"]})
        return fallback or _loose(path if path.is_dir() else path.parent), faults
    if files is not None:
        return for_training(files), []
    loose = _loose(path)
    faults = _foreign_files(path, [])
    return loose, faults


def _foreign_files(path: Path, known: Sequence[Fault]) -> list[Fault]:
    """Name images in formats that segpipe does not read, unless that was done."""
    if any(one.kind in ("other_format", "pictures") for one in known):
        return []
    faults = []
    for file in walk(path):
        ending = file.suffix.lower()
        kind = "pictures" if ending in PICTURE_ENDINGS else "other_format" if ending in FOREIGN_ENDINGS else ""
        if kind and not is_dicom_file(file) and not has_dicom_mark(file):  # a report beside a series is left out
            faults.append(fault(kind, ending, str(file.relative_to(path)), file))
    return faults


def _loose(path: Path) -> DatasetFiles:
    """List all images below a folder, DICOM folders too, each as a case of its own; or one image."""
    files = [path] if path.is_file() else [*(p for p in walk(path) if ending_of(p)), *series_folders(path)]
    root = path.parent if path.is_file() else path
    cases = tuple(CaseFiles(path.name if file == root else str(file.relative_to(root)), (file,)) for file in files)
    return DatasetFiles(path.name, root, (), None, cases, layout=_LOOSE)


def walk(path: Path) -> Iterator[Path]:
    """Yield the files below a folder in order, without hidden ones; a folder that links reach twice is walked once."""
    seen = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))
        seen.add(real)


def _patients(files: DatasetFiles) -> tuple[dict[str, str], str, list[Fault]]:
    try:
        return patients_of(files)
    except DataError as problem:
        alone = {case.case_id: case.case_id for case in files.cases}
        return alone, "unknown", [fault("description", str(problem), None, None)]


def _duplicates(cases: Sequence[CaseFiles], facts: list[CaseFacts], patients: dict[str, str]) -> list[Fault]:
    """Find images whose voxels are those of an earlier one."""
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


def _find_alike(facts: Sequence[CaseFacts], patients: Mapping[str, str]) -> list[AlikePair]:
    """Find cases of different patients that look like one scan or one patient."""
    return alike_pairs([one.thumbnail for one in facts], [patients[one.case_id] for one in facts])


def _alike_faults(alike: list[AlikePair], facts: Sequence[CaseFacts], patients: Mapping[str, str]) -> list[Fault]:
    """Name for each case the earlier one that it is most like, but for equal images, which are duplicates already."""
    faults = []
    for pair in alike:
        first, second = facts[pair.first], facts[pair.second]
        if not set(first.hashes.values()) & set(second.hashes.values()):
            kind = "same_scan_patients" if pair.correlation > SAME else "alike_patients"
            text = f"like case {first.case_id} (patient {patients[first.case_id]}), r = {pair.correlation:.3f}"
            faults.append(fault(kind, text, second.case_id))
    return faults


def _join_patients(alike: list[AlikePair], facts: Sequence[CaseFacts], patients: Mapping[str, str]) -> dict[str, str]:
    """Give alike cases, and all that are joined through them, the name of the first of their patients."""
    joined = {patient: patient for patient in patients.values()}

    def name_of(patient: str) -> str:
        while joined[patient] != patient:
            patient = joined[patient]
        return patient

    for pair in alike:
        one, other = sorted(name_of(patients[facts[place].case_id]) for place in (pair.first, pair.second))
        joined[other] = one
    return {case_id: name_of(patient) for case_id, patient in sorted(patients.items())}


def _suggestion_line(suggested: Mapping[str, str], patients: Mapping[str, str], patients_from: str) -> str:
    """Show how to say that the cases are of one patient: the lines that change."""
    changed = {case_id: patient for case_id, patient in suggested.items() if patient != patients[case_id]}
    lines = ", ".join(f'"{case_id}": "{patient}"' for case_id, patient in list(changed.items())[:_MAX_SUGGESTED])
    where = f"correct the patients ({patients_from})" if patients_from else f"write {PATIENTS_FILE} with every case"
    more = ", …" if len(changed) > _MAX_SUGGESTED else ""
    return f"if so, {where}: {lines}{more}. `--json` has all cases as suggested_patients."


def _labels(files: DatasetFiles, facts: list[CaseFacts]) -> tuple[LabelSet | None, list[Fault]]:
    """Find the labels, listed or in the label maps, and the values that contradict them."""
    counts = {one.case_id: one.n_label_vox for one in facts if one.n_label_vox is not None}
    values = {value for per_case in counts.values() for value in per_case}
    labels = files.labels
    special = {0} if labels is None else {labels.background_value, labels.ignore_value}
    if counts and values <= special and len(counts) == sum(case.label is not None for case in files.cases):
        return labels, [fault("nothing_labelled", count(len(counts), "label map"))]
    if labels is None and not counts:  # why no label map could be read has been said
        return None, []
    if labels is None:
        try:
            are_mixed = are_scaled_differently(list(counts.values()))
            labels = labels_from_values({0, 1} if are_mixed else values, files.root)
        except DataError as problem:
            return None, [fault("description", str(problem), None, None)]
    label_maps = {case.case_id: case.label for case in files.cases}
    faults = []
    nothing = {labels.background_value, labels.ignore_value}
    for case_id, per_case in counts.items():
        unknown = [v for v in per_case if v not in labels.known_values]
        if len(unknown) == 1 and len(labels.labels) == 1 and set(per_case) == {0, *unknown} and 0 in nothing:
            text = f"0 and {unknown[0]} are its only values"
            expected = f"0 and {labels.values[0]}"
            faults.append(fault("label_scaled", text, case_id, label_maps[case_id], expected))
        elif unknown:
            named = ", ".join(f"{v} ({count(per_case[v], 'voxel')})" for v in unknown[:5])
            named += ", …" if unknown[5:] else ""
            expected = f"values of the list: {_some(sorted(labels.known_values))}"
            faults.append(fault("label_unknown", named, case_id, label_maps[case_id], expected))
        elif set(per_case) <= nothing:
            faults.append(fault("label_empty", "background only", case_id, label_maps[case_id]))
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
    text = f"{count(n_cases, 'case')} of {count(n_patients, 'patient')}"
    if n_patients < _MIN_PATIENTS:
        return [fault("one_patient", text)]
    return [fault("few_patients", text)] if n_patients < _GOOD_PATIENTS else []


def _small_images(facts: list[CaseFacts]) -> list[Fault]:
    """Find that the median image, as it is stored, has fewer voxels than any plan needs."""
    edges = [sorted(one.grid.shape_zyx) for one in facts if one.grid is not None]
    if not edges:
        return []
    shortest, middle, longest = (median(own) for own in zip(*edges, strict=True))
    if middle >= _TWO_EDGES_VOX or longest >= _ONE_EDGE_VOX:
        return []
    return [fault("too_small", f"a median of {shortest:g} × {middle:g} × {longest:g} voxels")]


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


def _understanding(
    files: DatasetFiles,
    facts: Sequence[CaseFacts],
    labels: LabelSet | None = None,
    presence: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    patients: str = "",
) -> dict[str, str]:
    """Describe a dataset in a few lines, heading and text, that a person can compare with what they know of it.

    Args:
        files: The layout.
        facts: What was read, one for each case.
        labels: Its labels; None if there are none.
        presence: Labels in each case.
        patients: Their number and how it is known; empty if it does not matter.
    """
    grids = [one.grid for one in facts if one.grid is not None]
    lines = {"layout": _title(files), "cases": str(len(files.cases))}
    if patients:
        lines["patients"] = patients
    if files.channels:
        lines["channels"] = ", ".join(files.channels)
    lines |= files.notes
    if labels is not None:
        lines["labels"] = _label_line(labels, presence)
    sites = Counter(case.site for case in files.cases if case.site)
    if sites:
        lines["sites"] = ", ".join(f"{site} ({n})" for site, n in sorted(sites.items()))
    return lines | (_grid_lines(grids) if grids else {})


def _label_line(labels: LabelSet, presence: Mapping[str, tuple[str, ...]]) -> str:
    n_cases = Counter(name for names in presence.values() for name in names)
    named = [
        f"{label.name} = {'+'.join(map(str, label.values))} (in {n_cases[label.name]})"
        for label in labels.labels[:_MAX_LABELS]
    ]
    if len(labels.labels) > _MAX_LABELS:
        named.append(f"… {len(labels.labels)} in all")
    extra = [] if labels.ignore_value is None else [f"ignore = {labels.ignore_value}"]
    return ", ".join([f"background = {labels.background_value}", *named, *extra])


def _grid_lines(grids: Sequence[Grid]) -> dict[str, str]:
    shapes = [grid.shape_zyx[::-1] for grid in grids]
    spacings = [grid.spacing_mm[::-1] for grid in grids]
    orientations = Counter(grid.orientation for grid in grids)
    return {
        "shape": f"{_ranges(shapes)} voxels (x, y, z)",
        "spacing": f"{_ranges(spacings)} mm (x, y, z)",
        "orientation": ", ".join(f"{name} ({n})" for name, n in orientations.most_common()),
    }


def _ranges(triples: Sequence[tuple[float, ...]]) -> str:
    """Write the range of values along each axis."""
    ends = [(min(axis), max(axis)) for axis in zip(*triples, strict=True)]
    return " × ".join(f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g}–{high:.4g}" for low, high in ends)
