"""Which prepared cases are still those of the files: by the bytes of the files, read only where there is doubt.

A file is in doubt if its name, size or time are not those that were noted, or if it was touched after they were noted:
the system's time of the last change of a file cannot be set back, unlike the one that is shown.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.progress import map_threads
from segpipe.core.work import Work
from segpipe.data.dataset import Case, Dataset, signature_of
from segpipe.fingerprint.measure import content_of
from segpipe.fingerprint.record import Fingerprint
from segpipe.prepare.store import StoredCase

_MAX_NAMED = 5


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
    names = ", ".join(changed[:_MAX_NAMED]) + (" …" if len(changed) > _MAX_NAMED else "")
    return DataError(
        f"{dataset.root}: {len(changed)} cases changed since they were planned for ({names}). "
        f"Plan again: `segpipe plan {dataset.root} -o {work.path}`."
    )


def _is_noted(case: Case, noted: dict[str, list[tuple[str, int]]], signatures: dict[str, str]) -> bool:
    newest = max(_change_time_ns(Path(file)) for file in _files(case))
    return any(signature == signatures[case.case_id] and newest <= at for signature, at in noted[case.case_id])


def _change_time_ns(path: Path) -> int:
    """Time of the last change of a file or its attributes, by the system's clock."""
    return path.stat().st_ctime_ns


def _files(case: Case) -> tuple[str, ...]:
    return (*case.images, *([case.label] if case.label else []))


def _has_files(case: Case) -> bool:
    return all(Path(file).exists() for file in _files(case))


def _read_stored(folder: Path) -> StoredCase | None:
    return StoredCase.load(folder / "case.json") if (folder / "case.json").is_file() else None
