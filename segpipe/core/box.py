"""Boxes of voxels, to cut out of an array and to put back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.grid import ZYX
from segpipe.core.records import Record


class Box(Record):
    """Voxels from `start_zyx` (inside) to `stop_zyx` (outside)."""

    start_zyx: ZYX
    stop_zyx: ZYX

    @classmethod
    def whole(cls, shape_zyx: ZYX) -> Box:
        """Make the box of a whole array."""
        return cls(start_zyx=(0, 0, 0), stop_zyx=shape_zyx)

    @property
    def shape_zyx(self) -> ZYX:
        """Voxels along each axis."""
        z, y, x = (b - a for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))
        return (z, y, x)

    @property
    def slices(self) -> tuple[Any, ...]:
        """Index of the last three axes of an array."""
        return (..., *(slice(a, b) for a, b in zip(self.start_zyx, self.stop_zyx, strict=True)))


def nonzero_box(voxels_czyx: NDArray[Any]) -> Box:
    """Find the smallest box around the voxels at which any channel is not 0; the whole array if there are none.

    Example:
        >>> image = np.zeros((1, 4, 5, 6)); image[0, 1:3, 2, 3:5] = 7
        >>> nonzero_box(image)
        Box(start_zyx=(1, 2, 3), stop_zyx=(3, 3, 5))
    """
    occupied = (voxels_czyx != 0).any(axis=0)
    ends = []
    for axis in range(3):
        line = np.flatnonzero(occupied.any(axis=tuple(a for a in range(3) if a != axis)))
        ends.append((int(line[0]), int(line[-1]) + 1) if line.size else (0, occupied.shape[axis]))
    (z0, z1), (y0, y1), (x0, x1) = ends
    return Box(start_zyx=(z0, y0, x0), stop_zyx=(z1, y1, x1))
