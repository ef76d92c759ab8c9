"""How the folds of a configuration were trained: their learning curves, and the same in words."""

from __future__ import annotations

from math import isfinite

from segpipe.core.history import History
from segpipe.core.learning_curves import FoldCurves, learning_curves
from segpipe.core.progress import time_text
from segpipe.report.html import Picture
from segpipe.report.inputs import Run

_CAPTION = (
    "A row for each fold. Patch Dice is measured during training on patches of the validation cases and only shows "
    "whether training works; pale lines are what was measured, strong ones their running mean."
)


def learning_picture(run: Run) -> Picture | None:
    """Curves of all folds that have finished an epoch; None if there are none."""
    folds = [
        FoldCurves(f"fold {fold.name}", history, in_training=history.is_unfinished and not fold.folder.scores.is_file())
        for fold in run.folds
        if (history := fold.history) is not None and history.n_epochs
    ]
    if not folds:
        return None
    words = " ".join(_in_words(fold) for fold in folds)
    alt = f"Loss, patch Dice and learning rate over epochs of training. {words}"
    unfinished = [f"{fold.name} is in training ({_left(fold.history)})" for fold in folds if fold.in_training]
    caption = f"{_CAPTION} {'; '.join(unfinished).capitalize()}." if unfinished else _CAPTION
    return Picture("svg", learning_curves(folds, "svg"), alt, caption)


def _left(history: History) -> str:
    return f"about {time_text(history.seconds_left)} left"


def _in_words(fold: FoldCurves) -> str:
    """A sentence for those who cannot see the picture."""
    history = fold.history
    parts = [f"{fold.name}: {history.n_epochs} epochs"]
    if isfinite(history.seconds[-1]):
        parts[0] += f" in {time_text(history.seconds[-1])}"
    for column, name in (("train_loss", "training loss"), ("validation_loss", "validation loss")):
        if isfinite(history.column(column)[-1]):
            parts.append(f"{name} ends at {history.column(column)[-1]:.3f}")
    if isfinite(history.mean_dice[-1]):
        parts.append(f"mean patch Dice at {history.mean_dice[-1]:.3f}")
    ends = {name: values[-1] for name, values in history.dice_of_labels.items() if isfinite(values[-1])}
    if len(ends) > 1:
        worst = min(ends, key=lambda name: ends[name])
        parts.append(f"{worst} is the lowest with {ends[worst]:.3f}")
    if history.interruptions:
        parts.append(f"interrupted in epochs {', '.join(f'{epoch:g}' for epoch in history.interruptions)}")
    if history.stopped_early:
        parts.append("stopped early")
    return f"{', '.join(parts)}{f', still in training, {_left(history)}' if fold.in_training else ''}."
