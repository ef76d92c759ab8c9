"""Show a training to a person: a bar or a sign of life within an epoch, one line at its end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from segpipe.core.figures import FoldCurves, learning_curves
from segpipe.core.files import whole_file
from segpipe.core.history import DICE, MEAN_DICE, History
from segpipe.core.progress import say
from segpipe.core.text import duration_text, printable
from segpipe.train.checkpoint import Row

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
        f"patch Dice {_dice_text(row)}",
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
