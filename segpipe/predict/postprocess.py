"""Postprocessing of label maps as values in a file: largest part, least volume, holes; each label by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat
from scipy import ndimage

from segpipe.core.errors import PlanError
from segpipe.core.grid import nonzero_box
from segpipe.core.labels import Label, LabelSet, Mask
from segpipe.core.records import Record, did_you_mean

POSTPROCESSING_FILE = "postprocessing.yaml"
_ALL_NEIGHBOURS = np.ones((3, 3, 3), bool)
_SLACK = 1e-9  # relative; a volume that equals the limit on paper is not below it

Values = NDArray[np.integer[Any]]


class Steps(Record):
    """Steps for one label, in this order.

    Args:
        min_volume_mm3: Smallest part that stays.
        keep_largest: Only the largest part stays; of equal ones the first.
        fill_holes: Background that the label encloses becomes the label; other structures inside it stay.
    """

    min_volume_mm3: NonNegativeFloat = 0.0
    keep_largest: bool = False
    fill_holes: bool = False

    @property
    def is_nothing(self) -> bool:
        """True if no step changes anything."""
        return self == Steps()


class Postprocessing(Record):
    """Steps for masks.

    Args:
        labels: Steps by label name; a label that is not named stays as it is.
        weights: Digests of the weights that the steps were chosen on, by `<configuration>/<fold>`; empty if a person
            chose them.
    """

    labels: dict[str, Steps] = Field(default_factory=dict)
    weights: dict[str, str] = Field(default_factory=dict)

    def require_known(self, labels: LabelSet, where: str | Path) -> None:
        """Refuse steps for a label that does not exist.

        Raises:
            PlanError: If there is one.
        """
        unknown = [name for name in self.labels if name not in labels.names]
        if unknown:
            raise PlanError(f"{where}: label {unknown[0]!r} is unknown.{did_you_mean(unknown[0], list(labels.names))}")


NO_POSTPROCESSING = Postprocessing()


def postprocess(values_zyx: Values, voxel_mm3: float, labels: LabelSet, wanted: Postprocessing) -> Values:
    """A label map after its steps, one label after the other in the order of the set.

    Args:
        values_zyx: (Z, Y, X) of file values; values that no label has stay.
        voxel_mm3: Volume of a voxel.
        labels: What the values mean. A voxel that a region loses becomes what the regions around it say, and regions
            inside it go with it; a hole is filled where it is background or lies in a region around this one.
        wanted: The steps.

    Returns:
        Same shape and type. Parts are connected by faces, edges and corners, holes by faces alone; what reaches the
        border of the image is no hole, except along an axis of one voxel.
    """
    result = values_zyx.copy()
    for label in labels.labels:
        steps = wanted.labels.get(label.name, Steps())
        before = np.isin(result, label.values)
        if steps.is_nothing or not before.any():
            continue
        box = nonzero_box(before[None]).slices
        flat = tuple(axis for axis, n_vox in enumerate(values_zyx.shape) if n_vox == 1)
        after = _apply_steps(before[box], voxel_mm3, steps, flat)
        part = result[box]
        for change, table in (
            (before[box] & ~after, _without(label, labels)),
            (after & ~before[box], _with(label, labels)),
        ):
            _replace(part, change, table)
    return result


def _apply_steps(mask_zyx: Mask, voxel_mm3: float, steps: Steps, flat: tuple[int, ...]) -> Mask:
    """One mask after its steps; along the axes `flat` the image has one voxel, and a hole has no neighbours."""
    result = mask_zyx
    if steps.min_volume_mm3 or steps.keep_largest:
        result = _large_parts(mask_zyx, voxel_mm3, steps)
    if not steps.fill_holes:
        return result
    return ndimage.binary_fill_holes(result.squeeze(flat)).reshape(result.shape)


def _large_parts(mask_zyx: Mask, voxel_mm3: float, steps: Steps) -> Mask:
    parts, n_parts = ndimage.label(mask_zyx, _ALL_NEIGHBOURS)
    volumes_mm3 = np.bincount(parts.ravel(), minlength=n_parts + 1) * voxel_mm3
    volumes_mm3[0] = 0  # background
    stays = volumes_mm3 >= max(steps.min_volume_mm3 * (1 - _SLACK), voxel_mm3 / 2)
    if steps.keep_largest:
        stays &= np.arange(n_parts + 1) == volumes_mm3.argmax()
    return stays[parts]


def _replace(values: Values, is_changed: Mask, table: Mapping[int, int]) -> None:
    """Write the new value of what is changed into `values`; what the table does not name stays."""
    old = values[is_changed]
    new = old.copy()
    for value, other in table.items():
        new[old == value] = other
    values[is_changed] = new


def _without(label: Label, labels: LabelSet) -> dict[int, int]:
    """New value of each value of the label when the label, and every region inside it, is removed."""
    rest = [(o, paint) for o, paint in _painting_order(labels) if not set(o.values) <= set(label.values)]
    return {value: _top([p for o, p in rest if value in o.values], labels) for value in label.values}


def _with(label: Label, labels: LabelSet) -> dict[int, int]:
    """New value of each value inside a filled hole: background, and what is only in regions around the label."""
    painted, own = _painting_order(labels), set(label.values)
    around = [paint for o, paint in painted if own <= set(o.values)]
    free = {
        value
        for value in (labels.background_value, *labels.values)
        if value not in own and all(own <= set(o.values) for o, _ in painted if value in o.values)
    }
    return dict.fromkeys(sorted(free), _top(around, labels))


def _painting_order(labels: LabelSet) -> list[tuple[Label, int]]:
    """Labels in the order in which they are painted, later ones over earlier ones, each with its file value."""
    values = labels.paint_values if labels.has_regions else labels.values
    return list(zip(labels.labels, values, strict=True))


def _top(painted: list[int], labels: LabelSet) -> int:
    """The value that was painted last."""
    return painted[-1] if painted else labels.background_value
