"""Prepare the missing cases of a dataset, in parallel as memory allows, and tell which are still those of the files."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from segpipe.core.errors import DataError, ResourceError
from segpipe.core.files import remove_leftovers
from segpipe.core.foreseen import free_disk_bytes
from segpipe.core.grid import ZYX
from segpipe.core.labels import LabelSet
from segpipe.core.machine import free_bytes
from segpipe.core.progress import map_threads, say
from segpipe.core.records import Record
from segpipe.core.text import command_text, count
from segpipe.core.work import Work
from segpipe.data.dataset import Case, Dataset, signature_of
from segpipe.fingerprint.measure import content_of
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint
from segpipe.plan.geometry import resampled_shape
from segpipe.plan.planned_cost import prepared_case_bytes, prepared_shape
from segpipe.plan.schema import Configuration, Normalisation, Plan
from segpipe.prepare.case import prepare_case
from segpipe.prepare.resample import IMAGE_ORDER, orders_for
from segpipe.prepare.store import StoredCase, store_case

# A file is in doubt if its name, size or time are not those noted, or if it was touched after they were noted: the
# system's time of the last change of a file cannot be set back, unlike the one that is shown.

_MAX_CHANGED = 5  # changed cases in a message


@dataclass(frozen=True)
class CaseState:
    """A case, how its files were when it was planned, and how they are.

    Args:
        case: The case.
        content: Digest of the bytes of its files, the same now as when it was planned.
        signature: Of its files now; None if they are gone.
        stored: What is noted beside the prepared case; None if it is not prepared.
        was_in_doubt: Whether its bytes were read to know that they are the same.
    """

    case: Case
    content: str
    signature: str | None
    stored: StoredCase | None
    was_in_doubt: bool

    @property
    def is_current(self) -> bool:
        """True if what is prepared may be used; where the images were moved away it is all there is."""
        return self.stored is not None and (self.signature is None or self.stored.content == self.content)


def states_of(
    work: Work, dataset: Dataset, folder: Path, n_workers: int, fingerprint: Fingerprint | None = None
) -> list[CaseState]:
    """List the cases of a dataset and whether they are prepared in `folder`.

    Args:
        work: The work folder.
        dataset: The cases.
        folder: Folder of the prepared cases.
        n_workers: Threads.
        fingerprint: What was just measured, if it is not in the work folder yet; None for that of the work folder.

    Raises:
        DataError: If cases are not those that were planned for: a file was changed, or the case is new. Files that are
            gone are not judged.
    """
    measured_ns = time.time_ns() if fingerprint else _change_time_ns(work.fingerprint)
    planned = {case.case_id: case for case in (fingerprint or Fingerprint.load(work.fingerprint)).cases}
    stored = {case.case_id: _read_stored(folder / case.case_id) for case in dataset.cases}
    signatures = {case.case_id: signature_of(case) for case in dataset.cases if _has_files(case)}
    noted: dict[str, list[tuple[str, int]]] = {}  # signatures of the planned bytes, and when they were noted
    for case_id in signatures:
        before, beside = planned.get(case_id), stored[case_id]
        noted[case_id] = [(before.signature, measured_ns)] if before else []
        if before and beside and beside.content == before.content:
            noted[case_id].append((beside.signature, _change_time_ns(folder / case_id / "case.json")))
    doubtful = [case for case in dataset.cases if case.case_id in signatures and not _is_noted(case, noted, signatures)]
    contents = map_threads(content_of, doubtful, "comparing files", n_workers) if doubtful else []
    compared = {case.case_id: content for case, content in zip(doubtful, contents, strict=True)}
    changed = [
        case_id
        for case_id, content in compared.items()
        if case_id not in planned or planned[case_id].content != content
    ]
    if changed:
        raise _changed_fault(work, dataset, changed)
    return [
        CaseState(
            case=case,
            content=planned[case.case_id].content if case.case_id in planned else "",
            signature=signatures.get(case.case_id),
            stored=stored[case.case_id],
            was_in_doubt=case.case_id in compared,
        )
        for case in dataset.cases
    ]


def _changed_fault(work: Work, dataset: Dataset, changed: list[str]) -> DataError:
    names = ", ".join(changed[:_MAX_CHANGED]) + (" …" if len(changed) > _MAX_CHANGED else "")
    return DataError(
        f"{dataset.root}: {count(len(changed), 'case')} changed since planning ({names}). "
        f"Plan again: `{command_text('segpipe', 'plan', dataset.root, '-o', str(work.path))}`."
    )


def _is_noted(case: Case, noted: dict[str, list[tuple[str, int]]], signatures: dict[str, str]) -> bool:
    newest = max(_change_time_ns(Path(file)) for file in _files(case))
    # a change in the same tick of the system's clock as the note may have come after it
    return any(signature == signatures[case.case_id] and newest < at for signature, at in noted[case.case_id])


def _change_time_ns(path: Path) -> int:
    """Time of the last change of a file or its attributes, by the system's clock."""
    return path.stat().st_ctime_ns


def _files(case: Case) -> tuple[str, ...]:
    return (*case.images, *([case.label] if case.label else []))


def _has_files(case: Case) -> bool:
    return all(Path(file).exists() for file in _files(case))


def _read_stored(folder: Path) -> StoredCase | None:
    return StoredCase.load(folder / "case.json") if (folder / "case.json").is_file() else None


_IMAGE_BYTES, _INDEX_BYTES = 4, 2  # of a voxel: float32, int16
_READ_BYTES = 8  # of a voxel as a library hands it over, at worst: scaled to float64
_LABEL_READ_BYTES = 12  # of a voxel of a label map: at worst float64, and int32
_STORE_SHARE = 2.2  # of the prepared arrays while they are written: themselves, compressed chunks, the file's bytes
_CASE_BYTES = 30 << 20  # matrices, headers, what Python keeps

_MAX_NAMED = 10  # faulty cases in a message


class _HowPrepared(Record):
    """The part of a plan that decides what prepared cases look like; its digest names their folder.

    `method` goes up whenever the code prepares differently.
    """

    method: int = 4
    orientation: str
    axis_order: tuple[int, int, int]
    normalisation: tuple[Normalisation, ...]
    labels: LabelSet
    spacing_mm: tuple[float | None, float, float]


def prepared_folder(
    work: Work, plan: Plan, configuration: Configuration, fingerprint: Fingerprint | None = None
) -> Path:
    """Folder of the prepared cases of a plan; another way of preparing is another folder.

    Args:
        work: The work folder.
        plan, configuration: How cases are prepared.
        fingerprint: What was measured, if it is not in the work folder yet; None for that of the work folder.
    """
    configuration = prepared_as(work, plan, configuration, fingerprint)
    how = _HowPrepared(
        orientation=plan.orientation,
        axis_order=plan.axis_order,
        normalisation=plan.normalisation,
        labels=plan.labels,
        spacing_mm=configuration.spacing_mm,
    )
    return work.prepared_cases(how.digest())


def prepared_as(
    work: Work, plan: Plan, configuration: Configuration, fingerprint: Fingerprint | None = None
) -> Configuration:
    """The configuration whose prepared cases another one takes: its own, or those of equal ones in 3D for slices.

    Slices keep the distance that they have in each case. Where a 3D configuration of the same edges in the plane
    leaves every case its slices, it prepares the same arrays.
    """
    slice_mm, *plane_mm = configuration.spacing_mm
    if slice_mm is not None or (fingerprint is None and not work.fingerprint.is_file()):
        return configuration
    measured = fingerprint or Fingerprint.load(work.fingerprint)
    order = plan.axes_of(measured.orientation)
    for other in plan.configurations.values():
        distance_mm, *edges_mm = other.spacing_mm
        if distance_mm is None or edges_mm != plane_mm:
            continue
        if all(_keeps_slices(case, order, (distance_mm, *other.spacing_mm[1:])) for case in measured.cases):
            return other
    return configuration


def _keeps_slices(case: CaseFingerprint, order: ZYX, target_mm: tuple[float, float, float]) -> bool:
    shape = [case.cropped_shape_zyx[axis] for axis in order]
    spacing_mm = [case.spacing_mm[axis] for axis in order]
    own_mm = [spacing_mm[0], *target_mm[1:]]
    return resampled_shape(shape, spacing_mm, target_mm) == resampled_shape(shape, spacing_mm, own_mm) and (
        orders_for(spacing_mm, target_mm, IMAGE_ORDER) == orders_for(spacing_mm, own_mm, IMAGE_ORDER)
    )


class Needs(Record):
    """Memory and disk space that preparing cases takes.

    Args:
        n_cases: Cases that are not prepared yet.
        disk_bytes, free_disk_bytes: About what they will take, and what there is.
        memory_bytes, free_memory_bytes: What the largest case takes at its worst moment, and what there is; 0 if the
            system does not say.
        n_workers: Cases prepared in parallel.
    """

    n_cases: int
    disk_bytes: int
    free_disk_bytes: int
    memory_bytes: int
    free_memory_bytes: int
    n_workers: int

    def __str__(self) -> str:
        """One line for people."""
        disk, free_disk, memory, free_memory = (
            f"{n / 2**30:.2g} GiB" if n >= 2**30 else f"{max(1, round(n / 2**20))} MiB"
            for n in (self.disk_bytes, self.free_disk_bytes, self.memory_bytes, self.free_memory_bytes)
        )
        found = f" of {free_memory} free" if self.free_memory_bytes else ""
        return (
            f"to prepare: {self.n_cases} cases, about {disk} on disk ({free_disk} free); {self.n_workers} in parallel, "
            f"each with up to {memory} of memory{found}"
        )


def prepare_dataset(work: Work, dataset: Dataset, plan: Plan, configuration_name: str, n_workers: int) -> Path:
    """Prepare every case that is not there yet or whose files have changed since.

    Args:
        work: Holds the fingerprint, and takes what is prepared.
        dataset: The cases.
        plan: How.
        configuration_name: One of the plan's.
        n_workers: Cases prepared in parallel; fewer where memory is short.

    Returns:
        The folder of the prepared cases.

    Raises:
        DataError: If cases cannot be prepared, all of them together, and the others are prepared; or the data are not
            those that were planned for.
        ResourceError: If memory or disk runs out.
        SetupError: If they cannot be written.
    """
    configuration = prepared_as(work, plan, plan.configurations[configuration_name])
    folder = prepared_folder(work, plan, configuration)
    remove_leftovers(folder)
    states = states_of(work, dataset, folder, n_workers)
    for state in states:
        if state.is_current and state.was_in_doubt and state.stored:  # that they are the same is not asked again
            noted = state.stored.model_copy(update={"signature": state.signature})
            noted.save(folder / state.case.case_id / "case.json")
    missing = [state for state in states if not state.is_current]
    if missing:
        needs = needs_of(work, missing, plan, configuration, n_workers)
        say(str(needs))
        with threadpool_limits(1, "blas"):  # cases run in parallel; products of small matrices on many threads wait
            results = map_threads(
                lambda state: _fault_of(folder, state, plan, configuration),
                missing,
                f"preparing {configuration_name}",
                needs.n_workers,
            )
        _require_no_faults(dataset.root, [fault for fault in results if fault], len(missing))
    return folder


def prepare_unplanned(
    folder: Path, cases: Sequence[Case], plan: Plan, configuration: Configuration, n_workers: int
) -> None:
    """Prepare cases that no fingerprint knows, with or without a label, unless they are there already.

    Args:
        folder: Takes what is prepared.
        cases: Which.
        plan, configuration: How.
        n_workers: Cases prepared in parallel.

    Raises:
        DataError: If cases cannot be prepared, all of them together, and the others are prepared.
        ResourceError, SetupError: If memory or disk runs out, or the folder cannot be written.
    """
    remove_leftovers(folder)
    missing = [
        CaseState(case, content_of(case), signature_of(case), None, was_in_doubt=True)
        for case in cases_to_prepare(folder, cases)
    ]
    with threadpool_limits(1, "blas"):  # as above
        results = map_threads(
            lambda state: _fault_of(folder, state, plan, configuration), missing, "preparing images", n_workers
        )
    _require_no_faults(Path(cases[0].images[0]).parent, [fault for fault in results if fault], len(missing))


def cases_to_prepare(folder: Path, cases: Sequence[Case]) -> list[Case]:
    """List the cases that `prepare_unplanned` would prepare: not there yet, or of other content than before."""
    found = []
    for case in cases:
        stored = _read_stored(folder / case.case_id)
        if stored is None or (stored.signature != signature_of(case) and stored.content != content_of(case)):
            found.append(case)
    return found


def needs_of(
    work: Work,
    missing: Sequence[CaseState],
    plan: Plan,
    configuration: Configuration,
    n_workers: int,
    fingerprint: Fingerprint | None = None,
) -> Needs:
    """The memory and disk that preparing some cases of a planned dataset will take."""
    ids = {state.case.case_id for state in missing}
    fingerprint = fingerprint or Fingerprint.load(work.fingerprint)
    cases = [case for case in fingerprint.cases if case.case_id in ids]
    order = plan.axes_of(fingerprint.orientation)
    return _needs(work.path, [(case, order) for case in cases], plan, configuration, n_workers)


def needs_of_unplanned(
    folder: Path, images: Sequence[CaseFingerprint], plan: Plan, configuration: Configuration, n_workers: int
) -> Needs:
    """The memory and disk that preparing some cases which no fingerprint knows will take.

    Args:
        folder: Takes what is prepared.
        images: Those that are not there yet, by their headers, each along its own axes.
        plan, configuration, n_workers: As for `prepare_unplanned`.
    """
    turned = [(image, plan.axes_of(image.orientation)) for image in images]
    return _needs(folder, turned, plan, configuration, n_workers)


def _needs(
    folder: Path,
    cases: Sequence[tuple[CaseFingerprint, ZYX]],
    plan: Plan,
    configuration: Configuration,
    n_workers: int,
) -> Needs:
    """The needs of cases, each with the order of the plan's axes among its own."""
    largest = max((preparing_bytes(case, plan, configuration, order) for case, order in cases), default=0)
    free = free_bytes()
    return Needs(
        n_cases=len(cases),
        disk_bytes=sum(prepared_case_bytes(case, plan, configuration, order) for case, order in cases),
        free_disk_bytes=free_disk_bytes(folder),
        memory_bytes=largest,
        free_memory_bytes=free,
        n_workers=affordable_workers(min(n_workers, len(cases)), largest, free),
    )


def _fault_of(folder: Path, state: CaseState, plan: Plan, configuration: Configuration) -> str:
    """Prepare and store a case; what is wrong with it, or nothing."""
    case_id = state.case.case_id
    beside = folder / case_id / "case.json"
    if beside.is_file() and StoredCase.load(beside).content == state.content:  # another process was faster
        return ""
    try:
        prepared = prepare_case(state.case, plan, configuration)
    except DataError as fault:
        text = str(fault)
        return text if text.startswith(f"{case_id}:") else f"{case_id}: {text}"
    except MemoryError:
        raise ResourceError(
            f"{case_id}: not enough memory to prepare it. "
            "Prepare fewer cases in parallel (-j 1), or end other programs; then rerun the same command to resume."
        ) from None
    if prepared.indices_zyx is None:  # an image to pre-train on: all background
        nothing = np.zeros(prepared.image_czyx.shape[1:], dtype=np.int16)
        prepared = replace(prepared, indices_zyx=nothing)
    stored = StoredCase(case_id=case_id, signature=state.signature or "", content=state.content, trace=prepared.trace)
    store_case(folder / case_id, prepared, stored, plan.labels, configuration.patch_zyx)
    return ""


def _require_no_faults(root: Path | str, faults: Sequence[str], n_tried: int) -> None:
    """Refuse to go on where cases could not be prepared.

    Raises:
        DataError: With all faults, the first ten in full.
    """
    if not faults:
        return
    head = (
        f"{root}: {len(faults)} of {n_tried} cases cannot be prepared; the others are. Correct them and run "
        "the same command again, or take them out of the dataset and plan again."
    )
    more = [f"… and {len(faults) - _MAX_NAMED} more."] if len(faults) > _MAX_NAMED else []
    raise DataError("\n  ".join([head, *faults[:_MAX_NAMED], *more]))


def preparing_bytes(case: CaseFingerprint, plan: Plan, configuration: Configuration, order: ZYX) -> int:
    """The most memory that preparing a case takes at any moment, beyond that of the program.

    Args:
        case: Its shapes; a shape that is not known counts as the cropped one.
        plan: Gives the number of channels.
        configuration: Gives the voxel edges.
        order: Of the plan's axes among those of the fingerprint: `Plan.axes_of`.

    Returns:
        Bytes, rather too many than too few: measured peaks are in `benchmarks/results/prepare.md`.
    """
    n_channels = len(plan.channels)
    n_file = math.prod(case.shape_zyx or case.cropped_shape_zyx)
    n_cropped = math.prod(case.cropped_shape_zyx)
    n_prepared = math.prod(prepared_shape(case, configuration, order))
    n_between = max(n_cropped, n_prepared)  # after one axis or two, as the axis that shrinks most goes first
    image = n_prepared * n_channels * _IMAGE_BYTES
    moments = {
        "reading": n_file * (n_channels * 2 * _IMAGE_BYTES + _READ_BYTES - _IMAGE_BYTES),
        "normalising": (n_file + n_cropped) * n_channels * _IMAGE_BYTES + 2 * n_cropped,
        "resampling": n_cropped * n_channels * _IMAGE_BYTES + image + 2 * n_between * _IMAGE_BYTES,
        "labels": image + n_file * _LABEL_READ_BYTES,
        "labels resampled": image + n_file * _INDEX_BYTES + 3 * (n_cropped + n_between) * _INDEX_BYTES,
        "storing": round((image + n_prepared * _INDEX_BYTES) * _STORE_SHARE),
    }
    return max(moments.values()) + _CASE_BYTES


def affordable_workers(n_wanted: int, largest_bytes: int, free_bytes: int) -> int:
    """Cases that may be prepared in parallel: `n_wanted`, or as many of the largest as fit; at least 1.

    A number of 0 is unknown: then all that are wanted.

    Example:
        >>> affordable_workers(8, 3_000, 10_000), affordable_workers(2, 3_000, 1_000), affordable_workers(2, 3_000, 0)
        (3, 1, 2)
    """
    return max(1, min(n_wanted, free_bytes // largest_bytes)) if free_bytes and largest_bytes else n_wanted
