"""What changed since a dataset was measured, and measuring that alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.labels import LabelSet
from segpipe.core.progress import map_threads, say
from segpipe.data.dataset import Case, Dataset, signature_of
from segpipe.fingerprint.measure import assemble, content_of, measure_cases, require_no_faults
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint
from segpipe.fingerprint.stored import Measured, MeasuredCase, load_measured, save_measured

_MAX_NAMED = 5  # of each kind of change


@dataclass(frozen=True)
class Changes:
    """How a dataset differs from what was measured; cases by their ids, in the order of the dataset.

    Args:
        channels: From and to; None if the list is the same.
        labels: Names that are new, gone, or stand for other values; empty if the list is the same.
        added, removed: Cases.
        image_changed, label_changed: Cases of which the bytes of the files differ; one may be in both.
    """

    channels: tuple[tuple[str, ...], tuple[str, ...]] | None
    labels: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    image_changed: tuple[str, ...]
    label_changed: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any(vars(self).values())

    def __str__(self) -> str:
        """One sentence for people; empty if nothing changed."""
        parts = []
        if self.channels:
            before, now = (", ".join(names) for names in self.channels)
            parts.append(f"the channels were {before} and are {now}")
        if self.labels:
            parts.append(f"the list of labels differs ({_named(self.labels)})")
        for what, cases in (
            ("added", self.added),
            ("removed", self.removed),
            ("with another image", self.image_changed),
            ("with another label map", self.label_changed),
        ):
            if cases:
                parts.append(f"{len(cases)} case{'s' * (len(cases) > 1)} {what} ({_named(cases)})")
        return "; ".join(parts)


def changes(known: Measured, dataset: Dataset, n_workers: int = 1) -> Changes:
    """Compare a dataset with what was measured; bytes are read only of cases whose files have another signature.

    Raises:
        DataError: If a file is gone or cannot be read.
    """
    before = {measured.case.case_id: measured.case for measured in known.cases}
    now = dataset.by_id
    suspect = [case for case_id, case in now.items() if case_id in before and _has_moved(before[case_id], case)]
    contents = map_threads(content_of, suspect, "comparing files", n_workers)
    pairs = [
        (case.case_id, before[case.case_id].content.split("-"), content.split("-"))
        for case, content in zip(suspect, contents, strict=True)
    ]
    return Changes(
        channels=None if known.channels == dataset.channels else (known.channels, dataset.channels),
        labels=_differing(known.labels, dataset.labels),
        added=tuple(case_id for case_id in now if case_id not in before),
        removed=tuple(case_id for case_id in before if case_id not in now),
        image_changed=tuple(case_id for case_id, old, new in pairs if old[0] != new[0]),
        label_changed=tuple(case_id for case_id, old, new in pairs if old[1] != new[1]),
    )


def remeasure(path: Path, dataset: Dataset, n_workers: int) -> Fingerprint:
    """Measure a dataset; what `path` keeps of it from the last time and is still true is not measured again.

    Args:
        path: Where measurements are kept, `.npz`; need not exist.
        dataset: What to measure.
        n_workers: Threads.

    Returns:
        The same as `measure(dataset, n_workers)`.

    Raises:
        DataError: As `measure`.
    """
    signatures = {case.case_id: signature_of(case) for case in dataset.cases}  # before the files are compared
    kept = _still_true(path, dataset, n_workers)
    missing = [case for case in dataset.cases if case.case_id not in kept]
    fresh, faults = measure_cases(missing, dataset, n_workers)
    known = kept | {measured.case.case_id: measured for measured in fresh}
    cases = tuple(
        _updated(known[case.case_id], case, signatures[case.case_id]) for case in dataset.cases if case.case_id in known
    )
    save_measured(path, Measured(dataset.channels, dataset.labels, cases))
    require_no_faults(dataset, faults)
    return assemble(dataset, cases)


def _still_true(path: Path, dataset: Dataset, n_workers: int) -> dict[str, MeasuredCase]:
    """Measurements that hold for cases of the dataset; says what changed."""
    if not path.is_file():
        return {}
    try:
        known = load_measured(path)
    except DataError as fault:
        say(f"{fault} All cases are measured.")
        return {}
    found = changes(known, dataset, n_workers)
    gone = {*found.removed, *found.image_changed, *found.label_changed}
    cases = () if found.channels or found.labels else known.cases
    kept = {measured.case.case_id: measured for measured in cases if measured.case.case_id not in gone}
    n_missing = len(dataset.cases) - len(kept)
    say(
        f"{dataset.root}: changed since it was measured: {found}. {n_missing} of {len(dataset.cases)} cases to measure."
        if found
        else f"{dataset.root}: the data are unchanged, measured before."
    )
    return kept


def _updated(measured: MeasuredCase, case: Case, signature: str) -> MeasuredCase:
    """What does not need a look into the files."""
    updated = measured.case.model_copy(update={"signature": signature, "site": case.site})
    return MeasuredCase(updated, measured.channels)


def _has_moved(before: CaseFingerprint, case: Case) -> bool:
    return before.signature != signature_of(case)


def _differing(before: LabelSet, now: LabelSet) -> tuple[str, ...]:
    """Names of labels that are new, gone, or have other values; also what else may differ."""
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


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
