"""Write a training for TensorBoard: all of its history, and pictures of a few validated patches."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segpipe.core.errors import SetupError
from segpipe.core.figures import COLOUR_NAMES, SCAN_COLOURS, WINDOW_PERCENTILES
from segpipe.core.files import disk_fault
from segpipe.core.history import DICE, MEAN_DICE, SPIKES
from segpipe.core.labels import LabelSet, Mask
from segpipe.plan.schema import Configuration, Plan
from segpipe.train.checkpoint import Row
from segpipe.train.fold import FoldTraining
from segpipe.train.sampling import Batch
from segpipe.train.schedule import Schedule

_GROUPS = {"train_loss": "loss", "validation_loss": "loss", MEAN_DICE: "dice"}  # of charts; the rest is in `training`
_GROUPS_OF_MANY = {DICE: "dice of labels", SPIKES: "clipped gradients"}  # by what their columns begin with
_STEP = "iteration"
_NO_CHART = {_STEP, "stopped_early", "interrupted"}
_N_PATCHES = 4  # which are shown
_MOST_EPOCHS = 100  # with pictures: more would take gigabytes and a page that does not open
_MOST_NAMED = 40  # labels whose colours are told


def wants_tensorboard(asked: bool | None) -> bool:
    """Return whether to write for TensorBoard: as asked, or else if it is installed.

    Raises:
        SetupError: If it was asked for and is not installed.
    """
    is_there = find_spec("tensorboard") is not None
    if asked and not is_there:
        raise SetupError(
            "--tensorboard: the package tensorboard is not installed. Install it (pip install 'segpipe[track]'), or "
            "omit the option: history.csv has the same numbers."
        )
    return is_there if asked is None else asked


def _group(column: str) -> str:
    many = (group for start, group in _GROUPS_OF_MANY.items() if column.startswith(start))
    return next(many, _GROUPS.get(column, "training"))


class SeenPatches:
    """Planes of a few validated patches, the same ones every time; a hook of `FoldTraining`."""

    def __init__(self, plan: Plan, configuration: Configuration) -> None:
        self.labels, self.spacing_mm = plan.labels, configuration.spacing_mm
        self.epochs_between = math.ceil(Schedule(plan.training).n_epochs / _MOST_EPOCHS)
        self.planes: dict[str, list[Plane]] = {}  # by case

    def see(self, batch: Batch, output_BCZYX: Tensor, n_epochs_before: int) -> None:
        """Keep planes of the last patch of a batch, which is centred on a label if any is, of cases not yet seen."""
        case_id = batch.case_ids[-1]
        is_shown = (n_epochs_before + 1) % self.epochs_between == 0
        if is_shown and len(self.planes) < _N_PATCHES and case_id not in self.planes:
            self.planes[case_id] = planes_of(
                batch.images.each[-1], batch.indices.each[-1], output_BCZYX[-1], self.labels, self.spacing_mm
            )


class TensorBoard:
    """Writes event files: scalars of every epoch, pictures of validated patches, the same ones every time.

    Steps are iterations. A training that goes on hides what it is going to do again, and adds what was not written.

    Args:
        fold: In training.
        folder: For event files; of a new training it is emptied.
        patches: What the fold has validated.

    Raises:
        ResourceError, SetupError: If they cannot be written, then and later.
    """

    def __init__(self, fold: FoldTraining, folder: Path, patches: SeenPatches) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if not fold.at.iteration:
            shutil.rmtree(folder, ignore_errors=True)
        is_first = not any(folder.glob("events.*"))
        self.folder, self.patches = folder, patches
        ended = int(fold.at.history[-1][_STEP]) if fold.at.history else 0
        with self._disk_faults():  # what older files hold of epochs that are done again is hidden
            self.writer = SummaryWriter(str(folder), purge_step=None if is_first else ended + 1)
            if is_first:
                self.writer.add_text("patches", _legend(fold.plan.labels.names), 0)
                for row in fold.at.history:
                    self._add_scalars(row)

    def __call__(self, history: Sequence[Row]) -> None:
        """Write an epoch that has ended, the last line of the history."""
        with self._disk_faults():
            self._add_scalars(history[-1])
            for number, (case_id, planes) in enumerate(self.patches.planes.items(), 1):
                tag, step = f"patches/{number} {case_id}", int(history[-1][_STEP])
                self.writer.add_image(tag, draw_planes(planes), step, dataformats="HWC")
            self.patches.planes.clear()
            self.writer.flush()

    def close(self) -> None:
        """Nothing comes any more."""
        with self._disk_faults():
            self.writer.close()

    def _add_scalars(self, row: Row) -> None:
        """Write every known number of an epoch; an unknown one leaves a gap."""
        for column, value in row.items():
            if column not in _NO_CHART and math.isfinite(value):
                group = _group(column)
                self.writer.add_scalar(f"{group}/{column}", value, int(row[_STEP]))

    @contextmanager
    def _disk_faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise disk_fault(fault, self.folder) from fault


def _legend(names: Sequence[str]) -> str:
    """Explain the pictures, in Markdown."""
    colours = itertools.cycle(COLOUR_NAMES.values())
    lines = [f"- {name}: {colour}" for name, colour in zip(names[:_MOST_NAMED], colours, strict=False)]
    if len(names) > _MOST_NAMED:
        lines.append(f"- and {len(names) - _MOST_NAMED} more, in the same colours again")
    return "\n".join(["Planes with the most labelled voxels. Reference solid, prediction dashed:\n", *lines])


_LONGEST_PX = 320  # edge of the largest plane
_GAP_PX = 4  # between planes
_DASH_PX = 6
_RGB = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in SCAN_COLOURS], np.uint8)


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane of a patch.

    Args:
        image: (rows, columns) float32, the first channel.
        reference: Masks (rows, columns) bool of the labels that are there, by the label's place in the label set.
        prediction: The same.
        edges_mm: Of a voxel, along rows and columns.
    """

    image: NDArray[np.float32]
    reference: dict[int, Mask]
    prediction: dict[int, Mask]
    edges_mm: tuple[float, float]


def planes_of(
    image_CZYX: Tensor, indices_ZYX: Tensor, output_CZYX: Tensor, labels: LabelSet, spacing_mm: Sequence[float | None]
) -> list[Plane]:
    """The three planes of a patch with most labelled voxels across Z, Y and X; the middle ones if there are none.

    Planes a voxel thin are left out: a 2D patch has one.

    Args:
        image_CZYX: Of which the first channel is shown.
        indices_ZYX: Of the labels.
        output_CZYX: What the network says, before softmax or sigmoid, on any device.
        labels: What its channels are.
        spacing_mm: Voxel edges along Z, Y, X; Z may be None in a 2D patch.
    """
    indices = indices_ZYX.cpu().numpy()
    planes = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        if min(indices.shape[a] for a in others) == 1:
            continue
        counts = (indices > 0).sum(axis=tuple(others))
        place = int(counts.argmax()) if counts.any() else indices.shape[axis] // 2
        output = output_CZYX.select(axis + 1, place)
        chosen = (output > 0 if labels.has_regions else output.argmax(0)).cpu().numpy()
        planes.append(
            Plane(
                image_CZYX[0].select(axis, place).float().cpu().numpy(),
                _inside(indices.take(place, axis), labels),
                _outputs(chosen, labels),
                (spacing_mm[others[0]] or 1.0, spacing_mm[others[1]] or 1.0),
            )
        )
    return planes


def _inside(indices: NDArray[Any], labels: LabelSet) -> dict[int, Mask]:
    masks = (np.isin(indices, labels.indices_of(label)) for label in labels.labels)
    return {number: mask for number, mask in enumerate(masks) if mask.any()}


def _outputs(chosen: NDArray[Any], labels: LabelSet) -> dict[int, Mask]:
    if labels.has_regions:
        return {number: mask for number, mask in enumerate(chosen) if mask.any()}
    return {int(index) - 1: chosen == index for index in np.unique(chosen) if index > 0}


def draw_planes(planes: Sequence[Plane]) -> NDArray[np.uint8]:
    """The planes side by side, (height, width, 3): reference solid, prediction dashed, one colour for each label.

    A reference is framed from outside and a prediction from inside, so that where they agree both lines are seen.
    Millimetres are equal in all directions; the longest edge has always as many pixels.
    """
    longest_mm = max(n * mm for plane in planes for n, mm in zip(plane.image.shape, plane.edges_mm, strict=True))
    pictures = [_drawn_plane(plane, _LONGEST_PX / longest_mm) for plane in planes]
    height = max(len(picture) for picture in pictures)
    parts = [np.pad(p, ((0, height - len(p)), (0, _GAP_PX), (0, 0))) for p in pictures]
    return np.concatenate(parts, axis=1)[:, :-_GAP_PX]


def _drawn_plane(plane: Plane, pixels_per_mm: float) -> NDArray[np.uint8]:
    sizes = [max(1, round(n * mm * pixels_per_mm)) for n, mm in zip(plane.image.shape, plane.edges_mm, strict=True)]
    place = np.ix_(*((np.arange(size) * n // size) for size, n in zip(sizes, plane.image.shape, strict=True)))
    low, high = np.percentile(plane.image, WINDOW_PERCENTILES)
    grey = np.clip((plane.image - low) / max(high - low, 1e-6), 0, 1)[place]
    picture = np.repeat((255 * grey).astype(np.uint8)[..., None], 3, axis=2)
    for number, mask in plane.reference.items():
        large = mask[place]
        picture[_grow(_grow(large)) & ~large] = _RGB[number % len(_RGB)]
    is_dash = np.add.outer(np.arange(sizes[0]), np.arange(sizes[1])) // _DASH_PX % 2 == 0
    for number, mask in plane.prediction.items():
        large = mask[place]
        picture[large & _grow(_grow(~large)) & is_dash] = _RGB[number % len(_RGB)]
    return picture


def _grow(mask: Mask) -> Mask:
    """Add the pixels above, below, left and right of a mask."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
