"""The history of a training: the columns of its `history.csv`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path

from segpipe.core.errors import DataError

MEAN_DICE = "mean_patch_dice"
DICE = "dice_"  # before a label's name: its Dice over the validation patches
SPIKES = "spikes_"  # before a layer's name: share of the numbers of its gradients that were clipped as spikes


@dataclass(frozen=True)
class History:
    """Columns of a fold's `history.csv`, one value for each finished epoch; NaN where the file has none."""

    columns: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float | int]]) -> History:
        """Make a history of lines that all have the columns of the first."""
        return cls({name: tuple(float(row[name]) for row in rows) for name in (rows[0] if rows else ("epoch",))})

    @classmethod
    def load(cls, path: Path) -> History:
        """Read a history.

        Raises:
            DataError: If a line holds anything but numbers, or an epoch has no number.
        """
        try:
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file, strict=True)  # else an open quote swallows the lines after it
                lines, names = list(reader), list(reader.fieldnames or ())
        except (OSError, UnicodeDecodeError, csv.Error) as fault:
            raise DataError(f"{path}: cannot be read as a table ({fault}).") from None
        if "epoch" not in names:
            raise DataError(f"{path}: no column `epoch`, expected the history of a training. Train the fold again.")
        try:
            columns = {name: tuple(float(line[name] or "nan") for line in lines) for name in names}
        except ValueError as fault:
            raise DataError(f"{path}: {fault}; expected numbers only. Delete the line.") from None
        if not all(map(isfinite, columns["epoch"])):
            raise DataError(f"{path}: a line has no epoch; expected its number. Delete the line.")
        return cls(columns)

    @property
    def n_epochs(self) -> int:
        """Number of finished epochs."""
        return len(self.columns["epoch"])

    @property
    def seconds(self) -> tuple[float, ...]:
        """Training time at the end of each epoch, interruptions left out."""
        return self.column("seconds")

    @property
    def dice_of_labels(self) -> dict[str, tuple[float, ...]]:
        """Dice over the validation patches; NaN where they do not hold the label."""
        return {name.removeprefix(DICE): values for name, values in self.columns.items() if name.startswith(DICE)}

    @property
    def spikes_of_layers(self) -> dict[str, tuple[float, ...]]:
        """Share of the numbers of each layer's gradients that optimizer spam clipped; empty with another optimizer."""
        return {name.removeprefix(SPIKES): values for name, values in self.columns.items() if name.startswith(SPIKES)}

    @property
    def mean_dice(self) -> tuple[float, ...]:
        """Mean over the labels that the patches hold; NaN if they hold none."""
        return self.column(MEAN_DICE)

    @property
    def interruptions(self) -> tuple[float, ...]:
        """Epochs in which training was resumed."""
        epochs = self.columns["epoch"]
        return tuple(e for e, is_one in zip(epochs, self.column("interrupted"), strict=True) if is_one == 1)

    @property
    def stopped_early(self) -> bool:
        """True if training ended early because nothing improved."""
        return self.column("stopped_early")[-1:] == (1,)

    @property
    def is_unfinished(self) -> bool:
        """True if training time was left when the last epoch ended, and it did not stop early."""
        return self.seconds_left > 1 and not self.stopped_early

    @property
    def seconds_left(self) -> float:
        """Remaining training time, estimated when the last epoch ended; NaN if unknown."""
        return self.column("seconds_left")[-1] if self.n_epochs else nan

    def column(self, name: str) -> tuple[float, ...]:
        """A column by name; NaN if the file has none."""
        return self.columns.get(name, (nan,) * self.n_epochs)
