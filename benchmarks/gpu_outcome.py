"""Where a check of gpu_accept.py runs, and what it says; without torch, which takes seconds to start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

Verdict = Literal["PASS", "FAIL", "SKIP", "INFO"]
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Setting:
    """Where a check runs.

    Args:
        work: Folder for its files.
        data: Dataset in nnU-Net's layout; None: made-up volumes only.
        quick: Whether everything is tiny, on a stand-in for CUDA.
        ends: When the check must have ended, seconds since 1970.
    """

    work: Path
    data: Path | None
    quick: bool
    ends: float

    def pick(self, full: _Value, quick: _Value) -> _Value:
        """Choose a size."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Args:
        verdict: PASS or FAIL by its threshold, INFO if it has none, SKIP if nothing was measured.
        found: One line.
        table: Rows of cells, the first of which names the columns; none if one line says it all.
    """

    verdict: Verdict
    found: str
    table: tuple[tuple[str, ...], ...] = ()


def judged(ok: bool, found: str, table: Sequence[Sequence[str]] = ()) -> Outcome:
    """Return PASS or FAIL with what was found."""
    return Outcome("PASS" if ok else "FAIL", found, tuple(map(tuple, table)))


def unmeasured(setting: Setting, reason: str, outcome: Outcome) -> Outcome:
    """Return what was found, as SKIP where a stand-in ran the code but cannot give the number."""
    return replace(outcome, verdict="SKIP", found=f"{reason}; ran: {outcome.found}") if setting.quick else outcome
