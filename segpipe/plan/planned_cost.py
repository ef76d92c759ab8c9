"""Costs of a configuration as a record, and what its prepared cases take, from the fingerprint alone."""

from __future__ import annotations

import math

from segpipe.core.grid import ZYX
from segpipe.core.records import Record
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint
from segpipe.plan.geometry import resampled_shape
from segpipe.plan.schema import Configuration, Plan


class PlannedCost(Record):
    """The predicted cost of a configuration.

    Args:
        configuration: Its name.
        memory: `GPU` or `CPU`, whose memory is meant.
        training_gib: Predicted peak of training, GiB; on a CPU with the cases that are kept in memory.
        prediction_gib: Predicted peak of predicting one patch, GiB.
        tera_macs_per_step: Multiplications with addition of a training step, in 10¹².
        seconds_per_step: About how long a step takes on this machine; None if the plan is for another one.
        parameters: Of the network.
        prepared_gib: Disk space of the prepared cases, GiB, about.
    """

    configuration: str
    memory: str
    training_gib: float
    prediction_gib: float
    tera_macs_per_step: float
    seconds_per_step: float | None
    parameters: int
    prepared_gib: float


_IMAGE_BYTES, _INDEX_BYTES = 4, 2  # of a voxel: float32, int16
# Compressed size as a share, measured on the 220 hippocampus crops of a public set (1 mm MR) and on 60 cardiac volumes
# (ACDC). Images: 0.88 and 0.60, of which the larger is taken; label maps: 0.027 and 0.008.
_IMAGE_SHARE, _INDEX_SHARE = 0.88, 0.03
_LOCATION_BYTES = 12  # three int32 for each voxel on which a patch may be centred
MAX_LOCATIONS = 10_000  # voxels kept of each label in a case; enough places to centre a patch on
_CASE_BYTES = 1500  # how the case was prepared, and the heads of its files


def prepared_bytes(fingerprint: Fingerprint, plan: Plan, configuration: Configuration) -> int:
    """Estimate the size of the prepared cases of a configuration. Configurations with the same spacing share them.

    Returns:
        An upper estimate: resampled noise takes as much; an empty background, or few grey values, as little as half.
    """
    order = plan.axes_of(fingerprint.orientation)
    return sum(prepared_case_bytes(case, plan, configuration, order) for case in fingerprint.cases)


def kept_bytes(fingerprint: Fingerprint, plan: Plan, configuration: Configuration) -> int:
    """Estimate the memory of the prepared cases of a configuration, which training keeps if there is room for them."""
    order = plan.axes_of(fingerprint.orientation)
    return sum(kept_case_bytes(case, plan, configuration, order) for case in fingerprint.cases)


def kept_case_bytes(case: CaseFingerprint, plan: Plan, configuration: Configuration, order: ZYX) -> int:
    """Estimate the memory of a prepared case; `order` as for `prepared_shape`."""
    voxel_bytes = plan.n_inputs(configuration) * _IMAGE_BYTES + 1  # indices of fewer than 128 labels
    return math.prod(prepared_shape(case, configuration, order)) * voxel_bytes


def prepared_case_bytes(case: CaseFingerprint, plan: Plan, configuration: Configuration, order: ZYX) -> int:
    """Estimate the disk space of a prepared case; `order` as for `prepared_shape`."""
    n_voxels = math.prod(prepared_shape(case, configuration, order))
    growth = n_voxels / math.prod(case.cropped_shape_zyx)
    n_locations = sum(min(n * growth, MAX_LOCATIONS) for n in case.label_voxels.values())
    voxel_bytes = len(plan.channels) * _IMAGE_BYTES * _IMAGE_SHARE + _INDEX_BYTES * _INDEX_SHARE
    return round(n_voxels * voxel_bytes + n_locations * _LOCATION_BYTES) + _CASE_BYTES


def prepared_shape(case: CaseFingerprint, configuration: Configuration, order: ZYX) -> tuple[int, ...]:
    """Voxels of a case after cropping, turning (`order` from `Plan.axes_of`) and resampling, (Z, Y, X)."""
    shape = [case.cropped_shape_zyx[axis] for axis in order]
    spacing_mm = [case.spacing_mm[axis] for axis in order]
    target_mm = [own if t is None else t for own, t in zip(spacing_mm, configuration.spacing_mm, strict=True)]
    return resampled_shape(shape, spacing_mm, target_mm)
