"""Memory that preparing a case takes, from its shape alone, and how many cases fit side by side."""

from __future__ import annotations

import math

from segpipe.fingerprint.record import CaseFingerprint
from segpipe.plan.schema import Configuration, Plan
from segpipe.plan.spacing import resampled_shape

_IMAGE_BYTES, _INDEX_BYTES = 4, 2  # of a voxel: float32, int16
_READ_BYTES = 8  # of a voxel as a library hands it over, at worst: scaled to float64
_LABEL_READ_BYTES = 12  # of a voxel of a label map: at worst float64, and int32
_STORE_SHARE = 2.2  # of the prepared arrays while they are written: themselves, compressed chunks, the file's bytes
_CASE_BYTES = 30 << 20  # matrices, headers, what Python keeps


def case_bytes(case: CaseFingerprint, plan: Plan, configuration: Configuration) -> int:
    """The most memory that preparing a case takes at any moment, beyond that of the program.

    Args:
        case: Its shapes; a shape that is not known counts as the cropped one.
        plan: Gives the order of the axes and the number of channels.
        configuration: Gives the voxel edges.

    Returns:
        Bytes, rather too many than too few: measured peaks are in `benchmarks/results/prepare.md`.
    """
    n_channels = len(plan.channels)
    cropped = [case.cropped_shape_zyx[axis] for axis in plan.axis_order]
    spacing_mm = [case.spacing_mm[axis] for axis in plan.axis_order]
    target_mm = [own if t is None else t for own, t in zip(spacing_mm, configuration.spacing_mm, strict=True)]
    n_file = math.prod(case.shape_zyx or case.cropped_shape_zyx)
    n_cropped = math.prod(cropped)
    n_prepared = math.prod(resampled_shape(cropped, spacing_mm, target_mm))
    n_between = max(n_cropped, n_prepared)  # after one axis or two, as the axis that shrinks most goes first
    image = n_prepared * n_channels * _IMAGE_BYTES
    moments = {
        "reading": n_file * (n_channels * 2 * _IMAGE_BYTES + _READ_BYTES - _IMAGE_BYTES),
        "normalising": (n_file + n_cropped) * n_channels * _IMAGE_BYTES + 2 * n_cropped,
        "resampling": n_cropped * n_channels * _IMAGE_BYTES + image + 2 * n_between * _IMAGE_BYTES,
        "labels": image + n_file * _LABEL_READ_BYTES,
        "labels resampled": image + n_file * _INDEX_BYTES + 3 * (n_cropped + n_between) * _INDEX_BYTES,
        "storing": round((image + n_prepared * _INDEX_BYTES) * _STORE_SHARE),
    }
    return max(moments.values()) + _CASE_BYTES


def affordable_workers(n_wanted: int, largest_bytes: int, free_bytes: int) -> int:
    """Cases that may be prepared side by side: `n_wanted`, or as many of the largest as fit; at least 1.

    A number of 0 is unknown: then all that are wanted.

    Example:
        >>> affordable_workers(8, 3_000, 10_000), affordable_workers(2, 3_000, 1_000), affordable_workers(2, 3_000, 0)
        (3, 1, 2)
    """
    return max(1, min(n_wanted, free_bytes // largest_bytes)) if free_bytes and largest_bytes else n_wanted
