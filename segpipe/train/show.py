"""What a person sees of a training: a bar or a sign of life within an epoch, one line at its end."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from segpipe.core.history import DICE, MEAN_DICE
from segpipe.core.progress import say
from segpipe.train.checkpoint import Row

_SECONDS_BETWEEN_SIGNS = 60.0
_MOST_LABELS = 8  # named one by one; of more the mean, the worst and the number of zeros
_N_WORST = 3


def epoch_title(row: Row, fold: str, n_epochs: int) -> str:
    """Which epoch of how many; a time budget may allow more of them than planned."""
    return f"fold {fold}  epoch {row['epoch']}/{max(n_epochs, int(row['epoch']))}"


def epoch_line(row: Row, fold: str, n_epochs: int) -> str:
    """What is known at an epoch's end, readable with a hundred labels too."""
    parts = [
        epoch_title(row, fold, n_epochs),
        f"loss {row['train_loss']:.3f} (validation {row['validation_loss']:.3f})",
        f"patch Dice {_dice_text(row)}",
        f"{row['iterations_per_second']:.2f} it/s",
        f"{row['wait_share']:.0%} waiting for data",
        f"{row['peak_memory_bytes'] / 2**30:.1f} GiB",
        f"{time_text(row['seconds_left'])} left",
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


def time_text(seconds: float) -> str:
    """Rounded to what matters.

    Example:
        >>> time_text(59.7), time_text(3599), time_text(7500), time_text(float("nan"))
        ('60 s', '60 min', '2 h 05 min', '?')
    """
    if seconds != seconds:
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process held so far: allocated by torch on a CUDA device, resident elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


class EpochBar:
    """How far an epoch is: a bar on a terminal, elsewhere a line now and then. Closed, it leaves nothing behind."""

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
            self._bar.update(self._bar.task_ids[0], completed=share, description=escape(text()))
        elif time.monotonic() - self._last > _SECONDS_BETWEEN_SIGNS:
            self._last = time.monotonic()
            say(f"{text()}  {share:.0%} of the epoch")

    def close(self) -> None:
        """Make room for lines; the next `show` opens it again."""
        self._last = time.monotonic()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
