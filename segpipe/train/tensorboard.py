"""What a training shows in TensorBoard: everything of its history, and how a few patches are learnt."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from segpipe.core.errors import SetupError
from segpipe.core.figures import COLOUR_NAMES
from segpipe.core.files import disk_fault
from segpipe.core.history import DICE, MEAN_DICE
from segpipe.train.checkpoint import Row
from segpipe.train.fold import FoldTraining
from segpipe.train.overlay import Plane, drawn, planes_of
from segpipe.train.sampling import Batch
from segpipe.train.schedule import Schedule

_GROUPS = {"train_loss": "loss", "validation_loss": "loss", MEAN_DICE: "dice"}  # of charts; the rest is in `training`
_STEP = "iteration"
_NO_CHART = {_STEP, "stopped_early", "interrupted"}
_N_PATCHES = 4  # which are shown
_MOST_EPOCHS = 100  # with pictures: more would take gigabytes and a page that does not open
_MOST_NAMED = 40  # labels whose colours are told


def wants_tensorboard(asked: bool | None) -> bool:
    """Whether to write for TensorBoard: as asked, and without a wish if it is installed.

    Raises:
        SetupError: If it was asked for and is not installed.
    """
    is_there = find_spec("tensorboard") is not None
    if asked and not is_there:
        raise SetupError(
            "--tensorboard: the package tensorboard is not installed. Install it (pip install 'segpipe[track]') or "
            "leave the option out: history.csv has the same numbers."
        )
    return is_there if asked is None else asked


class TensorBoard:
    """Writes event files: scalars of every epoch, pictures of validated patches, the same ones every time.

    Steps are iterations. A training that goes on hides what it is going to do again, and adds what was not written.

    Args:
        fold: In training; tells what it validates.
        folder: For event files; of a new training it is emptied.

    Raises:
        ResourceError, SetupError: If they cannot be written, then and later.
    """

    def __init__(self, fold: FoldTraining, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if not fold.at.iteration:
            shutil.rmtree(folder, ignore_errors=True)
        is_first = not any(folder.glob("events.*"))
        self.fold, self.folder = fold, folder
        self.epochs_between = math.ceil(Schedule(fold.plan.training).n_epochs / _MOST_EPOCHS)
        self.seen: list[tuple[str, list[Plane]]] = []
        ended = int(fold.at.history[-1][_STEP]) if fold.at.history else 0
        with self._disk_faults():  # what older files hold of epochs that are done again is hidden
            self.writer = SummaryWriter(str(folder), purge_step=None if is_first else ended + 1)
            if is_first:
                self.writer.add_text("patches", _legend(fold.plan.labels.names), 0)
                for row in fold.at.history:
                    self._add_scalars(row)
        fold.seen = self._see

    def __call__(self, history: Sequence[Row]) -> None:
        """Write an epoch that has ended, the last line of the history."""
        with self._disk_faults():
            self._add_scalars(history[-1])
            for number, (case_id, planes) in enumerate(self.seen, 1):
                tag, step = f"patches/{number} {case_id}", int(history[-1][_STEP])
                self.writer.add_image(tag, drawn(planes), step, dataformats="HWC")
            self.seen.clear()
            self.writer.flush()

    def close(self) -> None:
        """Nothing comes any more."""
        self.fold.seen = lambda *_: None
        with self._disk_faults():
            self.writer.close()

    def _see(self, batch: Batch, output_BCZYX: Tensor) -> None:
        """Keep planes of the last patch of a batch, which is centred on a label if any is, of cases not yet seen."""
        fold, is_seen = self.fold, batch.case_ids[-1] in dict(self.seen)
        if len(self.seen) < _N_PATCHES and not is_seen and (fold.at.epoch + 1) % self.epochs_between == 0:
            planes = planes_of(
                batch.images[-1], batch.indices[-1], output_BCZYX[-1], fold.plan.labels, fold.configuration.spacing_mm
            )
            self.seen.append((batch.case_ids[-1], planes))

    def _add_scalars(self, row: Row) -> None:
        """All that is known; what is not leaves a gap."""
        for column, value in row.items():
            if column not in _NO_CHART and math.isfinite(value):
                group = "dice of labels" if column.startswith(DICE) else _GROUPS.get(column, "training")
                self.writer.add_scalar(f"{group}/{column}", value, int(row[_STEP]))

    @contextmanager
    def _disk_faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise disk_fault(fault, self.folder) from fault


def _legend(names: Sequence[str]) -> str:
    """What the pictures show, in Markdown."""
    colours = itertools.cycle(COLOUR_NAMES.values())
    lines = [f"- {name}: {colour}" for name, colour in zip(names[:_MOST_NAMED], colours, strict=False)]
    if len(names) > _MOST_NAMED:
        lines.append(f"- and {len(names) - _MOST_NAMED} more, in the same colours again")
    return "\n".join(["Planes with most labelled voxels. Reference solid, prediction dashed:\n", *lines])
