"""Every case of a dataset, prepared: side by side, only what is missing."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.files import remove_leftovers
from segpipe.core.labels import LabelSet
from segpipe.core.progress import map_threads
from segpipe.core.records import Record
from segpipe.core.work import Work
from segpipe.data.dataset import Case, Dataset, signature_of
from segpipe.fingerprint.record import Fingerprint
from segpipe.plan.schema import Configuration, Normalisation, Plan
from segpipe.prepare.case import prepare_case
from segpipe.prepare.store import StoredCase, store_case


class _HowPrepared(Record):
    """The part of a plan that decides what prepared cases look like; its digest names their folder.

    `method` goes up whenever the code prepares differently.
    """

    method: int = 3
    orientation: str
    axis_order: tuple[int, int, int]
    normalisation: tuple[Normalisation, ...]
    labels: LabelSet
    spacing_mm: tuple[float | None, float, float]


def prepared_folder(work: Work, plan: Plan, configuration: Configuration) -> Path:
    """Where the prepared cases of a plan lie; another way of preparing is another folder."""
    how = _HowPrepared(
        orientation=plan.orientation,
        axis_order=plan.axis_order,
        normalisation=plan.normalisation,
        labels=plan.labels,
        spacing_mm=configuration.spacing_mm,
    )
    return work.prepared(how.digest())


def prepare_dataset(work: Work, dataset: Dataset, plan: Plan, configuration_name: str, n_workers: int) -> Path:
    """Prepare every case that is not there yet or whose files have changed since.

    Returns:
        The folder of the prepared cases.

    Raises:
        DataError: If a case cannot be prepared, or the data are not those that were planned for.
        ResourceError, SetupError: If they cannot be written.
    """
    configuration = plan.configurations[configuration_name]
    require_planned_data(work, dataset)
    folder = prepared_folder(work, plan, configuration)
    remove_leftovers(folder)
    missing = [case for case in dataset.cases if not _is_current(folder / case.case_id, case)]
    if missing:
        map_threads(
            lambda case: _prepare_and_store(folder / case.case_id, case, plan, configuration),
            missing,
            f"preparing {configuration_name}",
            n_workers,
        )
    return folder


def require_planned_data(work: Work, dataset: Dataset) -> None:
    """Refuse data of which a file was changed since planning; files that are gone are not judged.

    Raises:
        DataError: Naming the cases.
    """
    planned = {case.case_id: case.signature for case in Fingerprint.load(work.fingerprint).cases}
    changed = [
        case.case_id
        for case in dataset.cases
        if all(Path(f).exists() for f in (*case.images, case.label or ""))
        and planned.get(case.case_id) != signature_of(case)
    ]
    if changed:
        names = ", ".join(changed[:5]) + (" …" if len(changed) > 5 else "")
        raise DataError(
            f"{dataset.root}: {len(changed)} cases changed since they were planned for ({names}). "
            f"Plan again: `segpipe plan {dataset.root} -o {work.path}`."
        )


def _is_current(folder: Path, case: Case) -> bool:
    if not (folder / "case.json").is_file():
        return False
    if not all(Path(f).exists() for f in (*case.images, case.label or "")):
        return True  # the images were moved away; what was prepared is all there is
    return StoredCase.load(folder / "case.json").signature == signature_of(case)


def _prepare_and_store(folder: Path, case: Case, plan: Plan, configuration: Configuration) -> None:
    if _is_current(folder, case):  # another process was faster
        return
    signature = signature_of(case)  # before the files are read
    prepared = prepare_case(case, plan, configuration)
    stored = StoredCase(case_id=case.case_id, signature=signature, trace=prepared.trace)
    store_case(folder, prepared, stored, plan.labels, configuration.patch_zyx)
