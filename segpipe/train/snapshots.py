"""Weights kept along a training, for `segpipe analyse trajectory`."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from segpipe.core.files import make_folder
from segpipe.core.work import FoldFolder
from segpipe.train.checkpoint import save_weights
from segpipe.train.schedule import Progress, Schedule
from segpipe.train.weights_header import about_weights

_SUFFIX = ".safetensors"
_ROUNDING = 1e-9  # of a product that should be a whole number


def snapshot_paths(folder: FoldFolder) -> dict[int, Path]:
    """Find the snapshots of a fold: the file for each iteration, in order."""
    found = folder.snapshots.glob(f"[0-9]*{_SUFFIX}") if folder.snapshots.is_dir() else ()
    return dict(sorted((int(path.stem), path) for path in found if path.stem.isdecimal()))


class Snapshots:
    """Keeps `training.snapshots` copies of the trained weights: the first before training, the others at equal steps.

    They are the weights that the optimizer moves, not their average. With a time budget the steps are equal in time.

    Args:
        folder: Of the fold.
        schedule: Of the training.
    """

    def __init__(self, folder: FoldFolder, schedule: Schedule) -> None:
        self._folder, self._schedule = folder, schedule
        self._n = schedule.training.snapshots
        self._last = -1  # place of the newest one, 0 to n - 1

    def clear(self) -> None:
        """Delete what another training left."""
        shutil.rmtree(self._folder.snapshots, ignore_errors=True)

    def rewind(self, at: Progress) -> None:
        """Delete those of steps that will be repeated."""
        for iteration, path in snapshot_paths(self._folder).items():
            if iteration > at.iteration:
                path.unlink()
            else:
                seconds = float(about_weights(path).get("seconds", 0.0))
                self._last = self._place(Progress(iteration=iteration, seconds=seconds))

    def take(self, network: nn.Module, at: Progress, *, is_end: bool = False) -> None:
        """Keep the weights if one is due.

        Args:
            network: In training.
            at: How far training is.
            is_end: The training ends here, as long as planned: a time budget may end just before its last snapshot.
        """
        if not self._n:
            return
        place = self._n - 1 if is_end else self._place(at)
        if place > self._last:
            make_folder(self._folder.snapshots)
            about = {"iteration": str(at.iteration), "seconds": str(at.seconds)}
            save_weights(self._folder.snapshots / f"{at.iteration:08d}{_SUFFIX}", network, about)
            self._last = place

    def _place(self, at: Progress) -> int:
        return min(self._n - 1, int(self._schedule.progress(at) * (self._n - 1) + _ROUNDING))
