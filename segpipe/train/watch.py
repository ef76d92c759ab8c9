"""Look for trouble in a history when an epoch ends: a plateau, and labels that are never found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from segpipe.core.history import DICE, MEAN_DICE
from segpipe.core.text import count
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
