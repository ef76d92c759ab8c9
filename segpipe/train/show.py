"""Show a training to a person: a bar, one line for each epoch, and warnings of trouble."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from segpipe.core.figures import FoldCurves, learning_curves
from segpipe.core.files import whole_file
from segpipe.core.history import DICE, MEAN_DICE, History
from segpipe.core.progress import say
from segpipe.core.text import count, duration_text, printable
from segpipe.plan.schema import Configuration, Plan
from segpipe.prepare.store import PatchCase
from segpipe.train.checkpoint import Row
from segpipe.train.fold import FoldData

_FEW_CASES = 0.1  # share of training cases; a label in fewer is seldom drawn
_SMALL_VOX = 27  # a structure of 3 × 3 × 3 voxels hardly survives one downsampling
_SMALL_SHARE = 1e-4  # of a patch; a background that is always right outweighs a smaller structure
_WAS_FOUND = 0.1  # patch Dice from which on a label had been learnt


def mean_dice(dice: Sequence[float]) -> float:
    """Mean of what is known; NaN if nothing is."""
    known = [value for value in dice if value == value]
    return sum(known) / len(known) if known else float("nan")


def has_plateaued(history: Sequence[Row], n_epochs: int | None) -> bool:
    """Return whether the mean patch Dice has not risen for the last `n_epochs` epochs; never if that is None."""
    values = [(row[MEAN_DICE], -place) for place, row in enumerate(history) if row[MEAN_DICE] == row[MEAN_DICE]]
    return bool(values and n_epochs) and len(history) - 1 + max(values)[1] >= (n_epochs or 0)


def plateau_text(history: Sequence[Row]) -> str:
    """Say that training stopped early, and what this means for the fold's scores."""
    best = max((row for row in history if row[MEAN_DICE] == row[MEAN_DICE]), key=lambda row: row[MEAN_DICE])
    return (
        f"stopped early after epoch {history[-1]['epoch']}: the mean patch Dice has not risen since epoch "
        f"{best['epoch']} ({best[MEAN_DICE]:.3f}). Patches of the validation cases decided when to stop, so this "
        "fold's validation scores are optimistic."
    )


def find_collapsed(history: Sequence[Row], n_epochs: int) -> tuple[str, ...]:
    """Return the labels whose patch Dice is 0 for exactly the last `n_epochs` epochs, for the first time."""
    found = []
    for column in history[-1] if history else ():
        if column.startswith(DICE):
            zeros = "".join("0" if row[column] == 0 else "1" for row in history)
            if zeros.endswith("0" * n_epochs) and "0" * n_epochs not in zeros[:-1]:
                found.append(column.removeprefix(DICE))
    return tuple(found)


class CollapseAlarm:
    """Warns once of each label that is not found for `training.collapse_epochs` epochs, and names likely causes."""

    def __init__(self, plan: Plan, configuration: Configuration, data: FoldData, tell: Callable[[str], None]) -> None:
        self.plan, self.configuration, self.data, self.tell = plan, configuration, data, tell

    def __call__(self, history: Sequence[Row]) -> None:
        """Look at an epoch that has ended, the last line of the history."""
        for name in find_collapsed(history, self.plan.training.collapse_epochs):
            self.tell(f"warning: {self.text(name, history)}")

    def text(self, name: str, history: Sequence[Row]) -> str:
        """Explain a label that is not found: likely causes with numbers, and what to do."""
        n_epochs = self.plan.training.collapse_epochs
        where = f"label {name!r}: its Dice on validation patches has been 0 for {n_epochs} epochs"
        causes = self._causes(name, max(row[f"{DICE}{name}"] for row in history))
        numbers = "; ".join(causes) if causes else f"no usual cause fits ({self._numbers(name)}); look at its masks"
        return f"{where} (epoch {history[-1]['epoch']}). Likely: {numbers}."

    def _causes(self, name: str, best: float) -> list[str]:
        training, n_cases = self.plan.training, len(self.data.train)
        sizes = self._sizes_vox(name, self.data.train)
        if not sizes:
            return [f"no training case contains it ({count(n_cases, 'case')}); check the split, or leave the label out"]
        causes, patch_vox, size_vox = [], int(np.prod(self.configuration.patch_zyx)), float(np.median(sizes))
        if len(sizes) <= _FEW_CASES * n_cases:
            causes.append(f"few cases contain it ({len(sizes)} of {n_cases}); add cases that do")
        if not self._sizes_vox(name, self.data.validation):
            causes.append(
                f"no validation case contains it ({count(len(self.data.validation), 'case')}), so every hit is spurious"
            )
        if training.foreground_fraction == 0:
            causes.append(
                "no patch is centred on a label, as foreground_fraction is 0; raise it (--set "
                "training.foreground_fraction=0.33)"
            )
        if size_vox < _SMALL_VOX:
            causes.append(
                f"it is too small for this spacing: {size_vox:g} voxels in the median case; use a smaller spacing_mm"
            )
        elif size_vox < _SMALL_SHARE * patch_vox:
            causes.append(
                f"it is small for the patch: {size_vox:g} of {patch_vox} voxels in the median case; use a smaller "
                "patch_zyx, or a loss that gives small structures more weight"
            )
        if best > _WAS_FOUND:
            rate = training.learning_rate
            causes.append(
                f"it was found earlier (Dice {best:.2f}), so the learning rate may be too high; lower it (now "
                f"{rate:g}, e.g. --set training.learning_rate={rate / 3:.2g})"
            )
        return causes

    def _numbers(self, name: str) -> str:
        sizes = self._sizes_vox(name, self.data.train)
        return (
            f"in {len(sizes)} of {len(self.data.train)} training cases, {float(np.median(sizes)):g} voxels in "
            f"the median case, learning rate {self.plan.training.learning_rate:g}"
        )

    def _sizes_vox(self, name: str, cases: Sequence[PatchCase]) -> list[int]:
        """Voxels of a label in the cases which hold it."""
        label = self.plan.labels.names.index(name)
        return [case.places[label].n_voxels for case in cases if label in case.places]


_SECONDS_BETWEEN_SIGNS = 60.0
_DRAWING_SHARE = 0.01  # of the time, for pictures of the learning curves
_FIRST_DRAWING_SECONDS = 0.5  # expected; no picture of a training shorter than a minute
_MOST_LABELS = 8  # named one by one; of more the mean, the worst and the number of zeros
_N_WORST = 3


def epoch_title(row: Row, fold: str, n_epochs: int) -> str:
    """Name the epoch and how many there are; a time budget may allow more of them than planned."""
    return f"fold {fold}  epoch {row['epoch']}/{max(n_epochs, int(row['epoch']))}"


def epoch_line(row: Row, fold: str, n_epochs: int) -> str:
    """Summarise an epoch in a line, readable with a hundred labels too."""
    parts = [
        epoch_title(row, fold, n_epochs),
        f"loss {row['train_loss']:.3f} (validation {row['validation_loss']:.3f})",
        *([f"patch Dice {_dice_text(row)}"] if row[MEAN_DICE] == row[MEAN_DICE] else []),
        f"{row['iterations_per_second']:.2f} it/s",
        f"{row['wait_share']:.0%} waiting for data",
        "memory ?" if math.isnan(row["peak_memory_bytes"]) else f"{row['peak_memory_bytes'] / 2**30:.1f} GiB",
        f"{duration_text(row['seconds_left'])} left",
    ]
    return "  ".join(parts)


def _dice_text(row: Row) -> str:
    dice = {name.removeprefix(DICE): value for name, value in row.items() if name.startswith(DICE)}
    mean = f"mean {row[MEAN_DICE]:.3f}"
    if len(dice) <= _MOST_LABELS:
        each = " ".join(f"{name} {value:.3f}" for name, value in dice.items())
        return each if len(dice) == 1 else f"{mean}: {each}"
    known = {name: value for name, value in dice.items() if value == value}
    worst = " ".join(f"{name} {known[name]:.3f}" for name in sorted(known, key=lambda name: known[name])[:_N_WORST])
    n_zeros = sum(value == 0 for value in known.values())
    unknown = f", {len(dice) - len(known)} not in the patches" if len(known) < len(dice) else ""
    return f"{mean} of {len(known)} labels: {n_zeros} at 0{unknown}, worst {worst}"


def peak_memory_bytes(device: torch.device) -> float:
    """The most that this process held so far: allocated by torch on a CUDA device, resident elsewhere.

    NaN where the system does not say, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return math.nan
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


class EpochBar:
    """Shows how far an epoch is: a bar on a terminal, elsewhere a line now and then. Closed, it leaves no trace."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._last = time.monotonic()

    def show(self, share: float, text: Callable[[], str]) -> None:
        """Show a share of the epoch, 0 to 1, and what there is to say about it, asked for when it is shown."""
        if sys.stderr.isatty():
            if self._bar is None:
                columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
                self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
                self._bar.add_task("", total=1.0)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=share, description=escape(printable(text())))
        elif time.monotonic() - self._last > _SECONDS_BETWEEN_SIGNS:
            self._last = time.monotonic()
            say(f"{text()}  {share:.0%} of the epoch")

    def close(self) -> None:
        """Make room for lines; the next `show` opens it again."""
        self._last = time.monotonic()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class CurvesFile:
    """Keeps a picture of the learning curves beside the history; drawing it takes a small share of the time.

    Args:
        path: Of the picture; what a training before this one left there is deleted.
        name: Of the fold.
        history: Of the epochs so far, none if training is new.
    """

    def __init__(self, path: Path, name: str, history: Sequence[Row]) -> None:
        self._path, self._name, self._history, self._is_drawn = path, name, history, True
        self._last, self._seconds = time.monotonic(), _FIRST_DRAWING_SECONDS
        if not history:
            path.unlink(missing_ok=True)

    def __call__(self, history: Sequence[Row]) -> None:
        """An epoch has ended; draw, if the last picture is old enough."""
        self._history, self._is_drawn = history, False
        if self._seconds < _DRAWING_SHARE * (time.monotonic() - self._last):
            self._draw()

    def close(self) -> None:
        """Draw the last epochs too, unless the whole training was so short that nothing was drawn."""
        if not self._is_drawn and self._path.exists():
            self._draw()

    def _draw(self) -> None:
        begun, history = time.monotonic(), History.of(self._history)
        picture = learning_curves([FoldCurves(self._name, history, in_training=history.is_unfinished)], "png")
        with whole_file(self._path) as temporary:
            temporary.write_bytes(picture)
        self._is_drawn, self._last = True, time.monotonic()
        self._seconds = self._last - begun
