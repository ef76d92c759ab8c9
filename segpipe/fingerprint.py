"""What a dataset is like: measured once, in one pass over the cases, and all that planning needs.

Arrays are turned into the dataset's most frequent orientation before anything is measured.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.core.box import nonzero_box
from segpipe.core.errors import DataError
from segpipe.core.grid import reorientation
from segpipe.core.labels import IGNORE_INDEX, LabelSet
from segpipe.core.progress import map_threads
from segpipe.core.records import Record
from segpipe.core.seeds import generator_for
from segpipe.core.volume import read_header, read_image_channels, read_labels, require_same_grid
from segpipe.data.dataset import Case, Dataset, signature_of

_SAMPLES_PER_CASE = 20_000  # quantiles of 20 cases are then within 0.1 % of rank
_SAMPLING_SEED = 1234


class Intensities(Record):
    """One channel inside the labelled structures, every case with the same weight."""

    mean: float
    std: float
    min: float
    median: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


class CaseFingerprint(Record):
    """One case, in the dataset's orientation.

    Args:
        case_id: Which.
        orientation: As stored, e.g. `LPS`.
        spacing_mm: Voxel edge along Z, Y, X.
        shape_zyx: Voxels.
        cropped_shape_zyx: Voxels of the box around everything that is not 0.
        label_voxels: Voxels of each label by name.
        signature: Changes when a file of the case is replaced (name, size, time).
    """

    case_id: str
    orientation: str
    spacing_mm: tuple[float, float, float]
    shape_zyx: tuple[int, int, int]
    cropped_shape_zyx: tuple[int, int, int]
    label_voxels: dict[str, int]
    signature: str

    @property
    def present(self) -> frozenset[str]:
        """Labels with at least one voxel."""
        return frozenset(name for name, n in self.label_voxels.items() if n)


class Fingerprint(Record):
    """A dataset, measured.

    Args:
        orientation: The most frequent one.
        channels: Channel names.
        cases: In the order of the dataset.
        intensities: One for each channel.
    """

    orientation: str
    channels: tuple[str, ...]
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[Intensities, ...]

    @property
    def median_relative_size_after_cropping(self) -> float:
        """Median over cases of the share of voxels that cropping keeps, 0 to 1."""
        return float(np.median([np.prod(c.cropped_shape_zyx) / np.prod(c.shape_zyx) for c in self.cases]))


def measure(dataset: Dataset, n_workers: int) -> Fingerprint:
    """Measure a dataset in one pass over its cases.

    Raises:
        DataError: If a case has no label, or a file cannot be read or does not fit the dataset.
    """
    headers = [read_header(case.image_paths[0]) for case in dataset.cases]
    counts = Counter(header.grid.orientation for header in headers)
    orientation = min(counts, key=lambda code: (-counts[code], code))
    measured = map_threads(
        lambda case: _measure_case(case, dataset, orientation), dataset.cases, "measuring", n_workers
    )
    samples = [sample for _, sample in measured if sample is not None]
    if not samples:
        raise DataError(f"{dataset.root}: no case has a labelled voxel; there is nothing to learn. Check the labels.")
    return Fingerprint(
        orientation=orientation,
        channels=dataset.channels,
        cases=tuple(case for case, _ in measured),
        intensities=tuple(_intensities([s[c] for s in samples]) for c in range(len(dataset.channels))),
    )


class _ChannelSample:
    """Foreground of one channel of one case: exact moments and a sample for the quantiles."""

    def __init__(self, values: NDArray[np.float32], generator: np.random.Generator) -> None:
        self.mean = float(values.mean(dtype=np.float64))
        self.mean_square = float(np.square(values, dtype=np.float64).mean())
        self.low, self.high = float(values.min()), float(values.max())
        self.sample = generator.choice(values, _SAMPLES_PER_CASE)


def _measure_case(
    case: Case, dataset: Dataset, orientation: str
) -> tuple[CaseFingerprint, list[_ChannelSample] | None]:
    if case.label is None:
        raise DataError(f"{case.case_id}: has no label map. Add it, or take the image out of the dataset.")
    volume = read_image_channels(case.image_paths)
    n_channels = volume.voxels_czyx.shape[0]
    if n_channels != len(dataset.channels):
        raise DataError(
            f"{case.case_id}: {n_channels} channels, expected {len(dataset.channels)} ({', '.join(dataset.channels)})."
        )
    values, grid = read_labels(Path(case.label))
    require_same_grid(volume.grid, grid, f"{case.case_id}: label against image")
    indices = dataset.labels.encode(values, case.label)
    if not np.isfinite(volume.voxels_czyx).all():
        raise DataError(f"{case.case_id}: holds NaN or infinite voxels. `segpipe check` lists the files.")
    turn = reorientation(volume.grid, orientation)
    box = nonzero_box(volume.voxels_czyx)
    fingerprint = CaseFingerprint(
        case_id=case.case_id,
        orientation=volume.grid.orientation,
        spacing_mm=turn.permute(volume.grid.spacing_mm),
        shape_zyx=turn.permute(volume.grid.shape_zyx),
        cropped_shape_zyx=turn.permute(box.shape_zyx),
        label_voxels=count_labels(indices, dataset.labels),
        signature=signature_of(case),
    )
    foreground = indices > 0  # never the ignore label (nnU-Net counts it, its issue #3055)
    if not foreground.any():
        return fingerprint, None
    place = int(hashlib.sha256(case.case_id.encode()).hexdigest()[:8], 16)
    generator = generator_for(_SAMPLING_SEED, place)  # by name, so that other cases do not change the sample
    return fingerprint, [_ChannelSample(channel[foreground], generator) for channel in volume.voxels_czyx]


def count_labels(indices: NDArray[np.int16], labels: LabelSet) -> dict[str, int]:
    """Voxels of each label in a map of inside indices."""
    counts = np.bincount(indices[indices != IGNORE_INDEX].reshape(-1), minlength=len(labels.values) + 1)
    return {label.name: int(sum(counts[i] for i in labels.indices_of(label))) for label in labels.labels}


def _intensities(cases: Sequence[_ChannelSample]) -> Intensities:
    pooled = np.concatenate([case.sample for case in cases])
    low, middle, high = np.percentile(pooled, (0.5, 50, 99.5))
    mean = float(np.mean([case.mean for case in cases]))
    variance = float(np.mean([case.mean_square for case in cases])) - mean**2
    return Intensities(
        mean=mean,
        std=max(variance, 0.0) ** 0.5,
        min=min(case.low for case in cases),
        median=float(middle),
        max=max(case.high for case in cases),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
    )
