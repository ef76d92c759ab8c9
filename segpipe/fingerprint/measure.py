"""Measure a dataset in one pass over its cases; what was measured of each is kept in one file.

A case is measured along the axes of its files; edges are brought into the dataset's most frequent orientation when
all cases are known.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from segpipe.core.errors import DataError
from segpipe.core.files import whole_file
from segpipe.core.grid import nonzero_box, turn_between
from segpipe.core.labels import LabelSet
from segpipe.core.progress import map_threads
from segpipe.core.records import Record, parse_json
from segpipe.core.text import count
from segpipe.core.volume import Volume, read_image_channels, read_labels, require_same_grid
from segpipe.data.dataset import Case, Dataset, signature_of
from segpipe.fingerprint.labels import Foreground, count_voxels, measure_labels, pool
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint


@dataclass(frozen=True, eq=False)
class MeasuredCase:
    """A case, and the share of its foreground in the dataset's intensities.

    Args:
        case: Its edges are along the axes of its files.
        channels: One for each channel; empty if no voxel is labelled.
    """

    case: CaseFingerprint
    channels: tuple[Foreground, ...]


@dataclass(frozen=True, eq=False)
class Measured:
    """Measured cases, and the channels and labels they were measured with."""

    channels: tuple[str, ...]
    labels: LabelSet
    cases: tuple[MeasuredCase, ...]


class _Facts(Record):
    """All but the arrays; `n_rows` is the number of channels counted for each case."""

    segpipe_measured: Literal[1] = 1
    channels: tuple[str, ...]
    labels: LabelSet
    cases: tuple[CaseFingerprint, ...]
    n_rows: tuple[int, ...]


def save_measured(path: Path, measured: Measured) -> None:
    """Write a `.npz`, whole or not at all.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the place is not writable.
    """
    facts = _Facts(
        channels=measured.channels,
        labels=measured.labels,
        cases=tuple(m.case for m in measured.cases),
        n_rows=tuple(len(m.channels) for m in measured.cases),
    )
    rows = [row for m in measured.cases for row in m.channels]
    with whole_file(path) as temporary:
        np.savez(
            temporary,
            allow_pickle=False,
            facts=np.frombuffer(facts.to_json().encode(), np.uint8),
            keys=np.concatenate([np.zeros(0, np.int32), *(row.keys for row in rows)]),
            counts=np.concatenate([np.zeros(0, np.uint32), *(row.counts for row in rows)]),
            n_bins=np.array([row.keys.size for row in rows], np.int64),
            moments=np.array([(row.mean, row.variance, row.low, row.high) for row in rows]).reshape(-1, 4),
        )


def load_measured(path: Path) -> Measured:
    """Read a file that `save_measured` wrote.

    Raises:
        DataError: If the file is missing, damaged, or of another version.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("facts", "keys", "counts", "n_bins", "moments")}
        facts = _Facts.parse(parse_json(arrays["facts"].tobytes().decode()), str(path), DataError)
        ends = np.cumsum(arrays["n_bins"])[:-1]
        parts = zip(np.split(arrays["keys"], ends), np.split(arrays["counts"], ends), arrays["moments"], strict=True)
        rows = iter([Foreground(keys, counts, *moments.tolist()) for keys, counts, moments in parts])
        cases = [
            MeasuredCase(case, tuple(next(rows) for _ in range(n)))
            for case, n in zip(facts.cases, facts.n_rows, strict=True)
        ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, RuntimeError) as fault:
        raise DataError(f"{path}: cannot be read ({fault}). Delete it: its content is measured again.") from None
    return Measured(facts.channels, facts.labels, tuple(cases))


_MAX_NAMED = 10  # faulty cases in a message


def measure(dataset: Dataset, n_workers: int) -> Fingerprint:
    """Measure a dataset in one pass over its cases.

    Raises:
        DataError: With all cases that cannot be read or do not fit the dataset; or if a label occurs nowhere.
    """
    measured, faults = measure_cases(dataset.cases, dataset, n_workers)
    require_no_faults(dataset, faults)
    return assemble(dataset, measured)


def measure_cases(cases: Sequence[Case], dataset: Dataset, n_workers: int) -> tuple[list[MeasuredCase], list[str]]:
    """Measure some cases of a dataset, in order; and the faults of those that cannot be, each with its case."""
    if not cases:
        return [], []
    results = map_threads(lambda case: _measure_or_fault(case, dataset), cases, "measuring", n_workers)
    measured = [result for result in results if isinstance(result, MeasuredCase)]
    return measured, [result for result in results if isinstance(result, str)]


def require_no_faults(dataset: Dataset, faults: Sequence[str]) -> None:
    """Refuse cases that could not be measured.

    Raises:
        DataError: With all faults, the first ten in full.
    """
    if not faults:
        return
    if len(faults) == 1:
        raise DataError(faults[0])
    head = (
        f"{dataset.root}: {len(faults)} of {len(dataset.cases)} cases cannot be measured. Correct them, or remove "
        "them from the dataset."
    )
    more = [f"… and {len(faults) - _MAX_NAMED} more."] if len(faults) > _MAX_NAMED else []
    raise DataError("\n  ".join([head, *faults[:_MAX_NAMED], *more]))


def assemble(dataset: Dataset, measured: Sequence[MeasuredCase]) -> Fingerprint:
    """Make the fingerprint of a dataset whose cases are measured.

    Raises:
        DataError: If a label occurs in no case.
    """
    _require_every_label(dataset, measured)
    counts = Counter(m.case.orientation for m in measured)
    orientation = min(counts, key=lambda code: (-counts[code], code))
    labelled = [m.channels for m in measured if m.channels]
    cases = tuple(_turn(m.case, orientation) for m in measured)
    kept = [np.prod(case.cropped_shape_zyx) / np.prod(case.shape_zyx or case.cropped_shape_zyx) for case in cases]
    return Fingerprint(
        orientation=orientation,
        channels=dataset.channels,
        cases=cases,
        intensities=tuple(pool(channel) for channel in zip(*labelled, strict=True)),
        median_relative_size_after_cropping=float(np.median(kept)),
    )


def _require_every_label(dataset: Dataset, measured: Sequence[MeasuredCase]) -> None:
    present = frozenset[str]().union(*(m.case.present for m in measured))
    absent = [name for name in dataset.labels.names if name not in present]
    if not present:
        raise DataError(
            f"{dataset.root}: no labelled voxel in {count(len(measured), 'case')}, so there is nothing to learn. "
            "Check the label files."
        )
    if absent:
        named = ", ".join(absent[:_MAX_NAMED]) + (", …" if len(absent) > _MAX_NAMED else "")
        raise DataError(
            f"{dataset.root}: {count(len(absent), 'label occurs', 'labels occur')} in none of the "
            f"{count(len(measured), 'case')} ({named}), and so cannot be learned; expected every label in some case. "
            "Remove them from the list of labels, or add cases that have them."
        )


def _turn(case: CaseFingerprint, target: str) -> CaseFingerprint:
    """Bring the edges of a case from the axes of its files into the target orientation."""
    if case.orientation == target:
        return case
    turn = turn_between(case.orientation, target)
    labels = {
        name: label.model_copy(update={"extent_mm": turn.permute(label.extent_mm)})
        for name, label in case.labels.items()
    }
    return case.model_copy(
        update={
            "spacing_mm": turn.permute(case.spacing_mm),
            "shape_zyx": case.shape_zyx and turn.permute(case.shape_zyx),
            "cropped_shape_zyx": turn.permute(case.cropped_shape_zyx),
            "labels": labels,
        }
    )


def _measure_or_fault(case: Case, dataset: Dataset) -> MeasuredCase | str:
    """Measure a case, or describe what is wrong with it."""
    try:
        return _measure_case(case, dataset)
    except DataError as fault:
        text = str(fault)
        return text if text.startswith(f"{case.case_id}:") else f"{case.case_id}: {text}"


def _measure_case(case: Case, dataset: Dataset) -> MeasuredCase:
    if case.label is None:
        raise DataError(f"{case.case_id}: no label map, expected one. Add it, or remove the image.")
    signature, content = signature_of(case), content_of(case)  # before reading, so that a later change is noticed
    values, grid = read_labels(
        Path(case.label)
    )  # before the image, so that it is small by the time the image is in memory
    indices = dataset.labels.encode(values, case.label)
    del values
    volume = _read_image(case, dataset.channels)
    require_same_grid(volume.grid, grid, f"{case.case_id}: label against image")
    box = nonzero_box(volume.voxels_czyx)
    foreground = indices[box.slices] > 0  # never the ignore label (nnU-Net counts it, its issue #3055)
    fingerprint = CaseFingerprint(
        case_id=case.case_id,
        site=case.site,
        orientation=volume.grid.orientation,
        spacing_mm=volume.grid.spacing_mm,
        shape_zyx=volume.grid.shape_zyx,
        cropped_shape_zyx=box.shape_zyx,
        labels=measure_labels(indices, dataset.labels, volume.grid.spacing_mm),
        content=content,
        signature=signature,
    )
    cropped = volume.voxels_czyx[box.slices]
    channels = tuple(count_voxels(channel[foreground]) for channel in cropped) if foreground.any() else ()
    return MeasuredCase(fingerprint, channels)


def _read_image(case: Case, channels: Sequence[str]) -> Volume:
    volume = read_image_channels(case.image_paths)
    voxels, edges = volume.voxels_czyx, volume.grid.spacing_mm
    if len(voxels) != len(channels):
        raise DataError(
            f"{case.case_id}: {count(len(voxels), 'channel')}, expected {len(channels)} ({', '.join(channels)}). "
            "Give every case the same channels."
        )
    if not (np.isfinite(voxels.min()) and np.isfinite(voxels.max())):
        n_wrong = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
        wrong = count(n_wrong, "voxel is", "voxels are")
        raise DataError(
            f"{case.case_id}: {wrong} NaN or infinite, expected finite numbers. Replace them; `segpipe check` lists "
            "the files."
        )
    if min(edges) <= 0:
        found = " × ".join(f"{mm:g}" for mm in edges)
        raise DataError(f"{case.case_id}: voxels of {found} mm (z, y, x), expected above 0. Repair the header.")
    return volume


def content_of(case: Case) -> str:
    """Digest the bytes of a case's image files, `-`, digest of those of its label file.

    Raises:
        DataError: If a file cannot be read.
    """
    return f"{_digest(case, case.images)}-{_digest(case, [case.label] if case.label else [])}"


def _digest(case: Case, files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            for part in sorted(Path(file).iterdir()) if Path(file).is_dir() else [Path(file)]:  # a DICOM series
                with part.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as fault:
            raise DataError(f"{case.case_id}: {file} cannot be read ({fault.strerror}). Put it back.") from None
    return digest.hexdigest()[:12]
