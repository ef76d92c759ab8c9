"""Faults for people: those of one kind together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.header import stem_of
from segpipe.data.faults import KINDS, Fault, Severity

_FIRST = 3  # places that are named


@dataclass(frozen=True)
class FaultGroup:
    """Every fault of one kind.

    Args:
        severity: Of all of them.
        title: The kind.
        n_faults: How many.
        details: The first cases or files, then what was found and expected in the first of them.
        remedy: What to do.
    """

    severity: Severity
    title: str
    n_faults: int
    details: tuple[str, ...]
    remedy: str


def fault_groups(faults: Sequence[Fault]) -> list[FaultGroup]:
    """Faults by kind, fatal kinds first, in the order of the table of kinds."""
    by_kind = {kind: [one for one in faults if one.kind == kind] for kind in KINDS}
    groups = [
        FaultGroup(own[0].severity, KINDS[kind].title, len(own), tuple(_details(own)), own[0].remedy)
        for kind, own in by_kind.items()
        if own
    ]
    return sorted(groups, key=lambda group: group.severity)


def _details(own: list[Fault]) -> list[str]:
    first = own[0]
    if first.kind == "description":
        return [one.found for one in own]
    places = list(dict.fromkeys(_place(one) for one in own if _place(one)))
    if not places:  # of no case: what was found differs
        return [_first([one.found for one in own]), f"expected {first.expected}"]
    return [_first(places), f"{first.found}; expected {first.expected}"]


def _first(texts: list[str]) -> str:
    return ", ".join(texts[:_FIRST]) + (f", … ({len(texts)})" if len(texts) > _FIRST else "")


def _place(one: Fault) -> str:
    name = Path(one.file).name if one.file else ""
    if one.case_id is None:
        return name
    is_told = not name or name.startswith(one.case_id) or stem_of(Path(name)) in one.case_id
    return one.case_id if is_told else f"{one.case_id} ({name})"
