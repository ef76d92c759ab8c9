"""How a training went: the columns of its `history.csv`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import DataError

MEAN_DICE = "mean_patch_dice"
DICE = "dice_"  # before a label's name: its Dice over the validation patches


@dataclass(frozen=True)
class History:
    """Columns of a fold's `history.csv`, one value for each finished epoch; NaN where the file has none."""

    columns: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float | int]]) -> History:
        """From the lines themselves, all with the columns of the first."""
        return cls({name: tuple(float(row[name]) for row in rows) for name in (rows[0] if rows else ("epoch",))})

    @classmethod
    def load(cls, path: Path) -> History:
        """Read a history.

        Raises:
            DataError: If a line holds something else than numbers, or there is no column `epoch`.
        """
        try:
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                lines, names = list(reader), list(reader.fieldnames or ())
        except (OSError, UnicodeDecodeError, csv.Error) as fault:
            raise DataError(f"{path}: cannot be read as a table ({fault}).") from None
        if "epoch" not in names:
            raise DataError(f"{path}: has no column `epoch`; expected the history of a training. Train the fold again.")
        try:
            return cls({name: tuple(float(line[name] or "nan") for line in lines) for name in names})
        except ValueError as fault:
            raise DataError(f"{path}: {fault}; expected numbers only. Delete the line.") from None
