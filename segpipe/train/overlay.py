"""Pictures of a patch while it is learnt: what the network says drawn over what is there.

Drawn with numpy alone: it happens at the ends of epochs, where nobody wants to wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segpipe.core.figures import SCAN_COLOURS, WINDOW_PERCENTILES
from segpipe.core.labels import LabelSet

Mask = NDArray[np.bool_]
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


def drawn(planes: Sequence[Plane]) -> NDArray[np.uint8]:
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
        picture[_grown(_grown(large)) & ~large] = _RGB[number % len(_RGB)]
    is_dash = np.add.outer(np.arange(sizes[0]), np.arange(sizes[1])) // _DASH_PX % 2 == 0
    for number, mask in plane.prediction.items():
        large = mask[place]
        picture[large & _grown(_grown(~large)) & is_dash] = _RGB[number % len(_RGB)]
    return picture


def _grown(mask: Mask) -> Mask:
    """With the pixels above, below, left and right of it."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
