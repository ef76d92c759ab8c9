"""Changes of a dataset since it was measured, and measuring only those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.labels import LabelSet
from segpipe.core.progress import map_threads, say
from segpipe.core.text import count
from segpipe.data.dataset import Case, Dataset, signature_of
from segpipe.fingerprint.measure import (
    Measured,
    MeasuredCase,
    assemble,
    content_of,
    load_measured,
    measure_cases,
    require_no_faults,
    save_measured,
)
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint

_MAX_NAMED = 5  # of each kind of change


@dataclass(frozen=True)
class Changes:
    """Differences between a dataset and its measurements; cases by their ids, in the order of the dataset.

    Args:
        channels: From and to; None if the list is the same.
        labels: Names that are new, gone, or have other values; empty if the list is the same.
        added, removed: Cases.
        image_changed, label_changed: Cases whose files differ in their bytes; one may be in both.
    """

    channels: tuple[tuple[str, ...], tuple[str, ...]] | None
    labels: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    image_changed: tuple[str, ...]
    label_changed: tuple[str, ...]

    def __bool__(self) -> bool:
        """True if there are any."""
        return any(vars(self).values())

    def __str__(self) -> str:
        """Describe them in one sentence for people; empty if nothing changed."""
        parts = []
        if self.channels:
            before, now = (", ".join(names) for names in self.channels)
            parts.append(f"the channels were {before} and are {now}")
        if self.labels:
            parts.append(f"the list of labels differs ({_name_some(self.labels)})")
        for what, cases in (
            ("added", self.added),
            ("removed", self.removed),
            ("with a new image", self.image_changed),
            ("with a new label map", self.label_changed),
        ):
            if cases:
                parts.append(f"{count(len(cases), 'case')} {what} ({_name_some(cases)})")
        return "; ".join(parts)


def find_changes(known: Measured, dataset: Dataset, n_workers: int = 1) -> Changes:
    """Compare a dataset with its measurements; bytes are read only where the signature of the files differs.

    Raises:
        DataError: If a file is gone or cannot be read.
    """
    before = {measured.case.case_id: measured.case for measured in known.cases}
    now = dataset.by_id
    suspect = [case for case_id, case in now.items() if case_id in before and _has_new_signature(before[case_id], case)]
    contents = map_threads(content_of, suspect, "comparing files", n_workers)
    pairs = [
        (case.case_id, before[case.case_id].content.split("-"), content.split("-"))
        for case, content in zip(suspect, contents, strict=True)
    ]
    return Changes(
        channels=None if known.channels == dataset.channels else (known.channels, dataset.channels),
        labels=_differing_labels(known.labels, dataset.labels),
        added=tuple(case_id for case_id in now if case_id not in before),
        removed=tuple(case_id for case_id in before if case_id not in now),
        image_changed=tuple(case_id for case_id, old, new in pairs if old[0] != new[0]),
        label_changed=tuple(case_id for case_id, old, new in pairs if old[1] != new[1]),
    )


def remeasure(path: Path, dataset: Dataset, n_workers: int) -> Fingerprint:
    """Measure a dataset; what `path` keeps from the last time is not measured again if it is still true.

    Args:
        path: File of the measurements, `.npz`; need not exist.
        dataset: The dataset to measure.
        n_workers: Threads.

    Returns:
        The same as `measure(dataset, n_workers)`.

    Raises:
        DataError: If `measure` would raise it.
    """
    signatures = {case.case_id: signature_of(case) for case in dataset.cases}  # before the files are compared
    kept = _kept_measurements(path, dataset, n_workers)
    missing = [case for case in dataset.cases if case.case_id not in kept]
    fresh, faults = measure_cases(missing, dataset, n_workers)
    known = kept | {measured.case.case_id: measured for measured in fresh}
    cases = tuple(
        _update(known[case.case_id], case, signatures[case.case_id]) for case in dataset.cases if case.case_id in known
    )
    save_measured(path, Measured(dataset.channels, dataset.labels, cases))
    require_no_faults(dataset, faults)
    return assemble(dataset, cases)


def _kept_measurements(path: Path, dataset: Dataset, n_workers: int) -> dict[str, MeasuredCase]:
    """Find the measurements that still hold, and print what changed."""
    if not path.is_file():
        return {}
    try:
        known = load_measured(path)
    except DataError as fault:
        say(f"{fault} All cases are measured again.")
        return {}
    changes = find_changes(known, dataset, n_workers)
    gone = {*changes.removed, *changes.image_changed, *changes.label_changed}
    cases = () if changes.channels or changes.labels else known.cases
    kept = {measured.case.case_id: measured for measured in cases if measured.case.case_id not in gone}
    n_missing = len(dataset.cases) - len(kept)
    say(
        f"{dataset.root}: changed since it was measured: {changes}. "
        f"Measuring {n_missing} of {count(len(dataset.cases), 'case')}."
        if changes
        else f"{dataset.root}: unchanged since it was measured."
    )
    return kept


def _update(measured: MeasuredCase, case: Case, signature: str) -> MeasuredCase:
    """Update what is known without reading the files."""
    updated = measured.case.model_copy(update={"signature": signature, "site": case.site})
    return MeasuredCase(updated, measured.channels)


def _has_new_signature(before: CaseFingerprint, case: Case) -> bool:
    return before.signature != signature_of(case)


def _differing_labels(before: LabelSet, now: LabelSet) -> tuple[str, ...]:
    """Find the names of labels that are new, gone, or have other values; also what else may differ."""
    if before == now:
        return ()
    old, new = (
        {
            "(background)": (labels.background_value,),
            "(ignore)": (labels.ignore_value,),
            "(painting)": labels.paint_values,
            **{label.name: label.values for label in labels.labels},
        }
        for labels in (before, now)
    )
    names = dict.fromkeys([*old, *new])
    return tuple(name for name in names if old.get(name) != new.get(name)) or ("(order)",)


def _name_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
