"""Result of a prediction: masks, and cases that failed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import DataError, ResourceError, SegpipeError
from segpipe.predict.outputs import CaseRow, mask_path

MEMORY_EXIT = ResourceError.exit_code


@dataclass(frozen=True)
class CaseFault:
    """A case that could not be predicted: why, and the exit code that stands for it."""

    case_id: str
    text: str
    exit_code: int


@dataclass(frozen=True)
class PredictionResult:
    """Masks and failed cases of a prediction.

    Args:
        folder: Where the masks are.
        rows: Of the cases whose masks are there, in the order of the cases.
        faults: Of the others.
    """

    folder: Path
    rows: tuple[CaseRow, ...]
    faults: tuple[CaseFault, ...]

    @property
    def masks(self) -> list[Path]:
        """The masks, in the order of the cases."""
        return [mask_path(self.folder, row.case_id) for row in self.rows]

    @property
    def exit_code(self) -> int:
        """0 if there are all masks; else that of wrong data, or of memory if that was the only reason."""
        return self.exit_code_of(self.faults)

    @staticmethod
    def exit_code_of(faults: Collection[CaseFault | SegpipeError]) -> int:
        """Exit code of faults alone, which may be those that a dry run expects."""
        if not faults:
            return 0
        return MEMORY_EXIT if all(fault.exit_code == MEMORY_EXIT for fault in faults) else DataError.exit_code

    @property
    def summary(self) -> str:
        """The list of the cases that could not be predicted."""
        n_cases = len(self.rows) + len(self.faults)
        lines = [f"{len(self.faults)} of {n_cases} cases could not be predicted:", *(f.text for f in self.faults)]
        return "\n  ".join(lines)

    def require_all(self) -> list[Path]:
        """The masks of all cases.

        Raises:
            DataError: If some could not be predicted; it lists them.
            ResourceError: The same, if memory was the only reason.
        """
        if self.faults:
            raise (ResourceError if self.exit_code == MEMORY_EXIT else DataError)(self.summary)
        return self.masks
