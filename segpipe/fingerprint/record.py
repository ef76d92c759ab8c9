"""The fingerprint of a dataset: all that planning needs to know.

Edges, shapes and extents are along Z, Y, X of the dataset's most frequent orientation.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from segpipe.core.records import Record

Shape = tuple[PositiveInt, PositiveInt, PositiveInt]
Share = Annotated[float, Field(ge=0, le=1)]


class Histogram(Record):
    """A distribution for pictures: bins of equal width between two percentiles, and the shares outside.

    Args:
        low, high: Ends of the bins: percentiles 0.5 and 99.5. Equal if the values are.
        shares: Of each bin, 0 to 1.
        share_below, share_above: Of the values outside; with `shares` they add up to 1.
    """

    low: float
    high: float
    shares: tuple[Share, ...]
    share_below: Share
    share_above: Share


class Intensities(Record):
    """One channel inside the labelled structures, every case with the same weight.

    Args:
        least_range: Smallest range from percentile 0.5 to 99.5 of any case; None if unknown.
        histogram: None if unknown: nnU-Net's file has neither.
    """

    mean: float
    std: float
    min: float
    median: float
    max: float
    percentile_00_5: float
    percentile_99_5: float
    least_range: NonNegativeFloat | None = None
    histogram: Histogram | None = None


class LabelMeasure(Record):
    """One label or region in one case; all values are 0 where it does not occur.

    Args:
        voxels: Their number.
        volume_mm3: Their volume.
        n_components: Connected parts; voxels that share a corner are connected.
        extent_mm: Edges along Z, Y, X of the box around the label.
    """

    voxels: NonNegativeInt
    volume_mm3: NonNegativeFloat
    n_components: NonNegativeInt
    extent_mm: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]


class CaseFingerprint(Record):
    """One case.

    Args:
        case_id: Which.
        site: Where it was acquired; None if unknown.
        orientation: As stored, e.g. `LPS`.
        spacing_mm: Voxel edge.
        shape_zyx: Voxels; None if unknown: nnU-Net's file holds only the next one.
        cropped_shape_zyx: Voxels of the box around everything that is not 0.
        labels: Every label and region of the dataset by name; empty if unknown.
        content: Digest of the bytes of the image files, `-`, digest of those of the label file; empty if unknown.
        signature: Digest of names, sizes and times of the files: while it is the same, the content is not compared.
    """

    case_id: str
    site: str | None
    orientation: str
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    shape_zyx: Shape | None
    cropped_shape_zyx: Shape
    labels: dict[str, LabelMeasure]
    content: str
    signature: str

    @property
    def label_voxels(self) -> dict[str, int]:
        """Voxels of each label by name."""
        return {name: measure.voxels for name, measure in self.labels.items()}

    @property
    def present(self) -> frozenset[str]:
        """Labels with at least one voxel."""
        return frozenset(name for name, measure in self.labels.items() if measure.voxels)


class Fingerprint(Record):
    """A dataset, measured.

    Args:
        segpipe_fingerprint: Version of this format.
        orientation: The most frequent one.
        channels: Channel names.
        cases: In the order of the dataset.
        intensities: One for each channel; empty if unknown, only in a fingerprint from elsewhere.
        median_relative_size_after_cropping: Median over cases of the share of voxels that cropping keeps, above 0
            (nothing is kept) to 1.
        declared_cases: Number of cases that the dataset claims to have, for rules that use it (nnU-Net's
            `numTraining`); None to count them.
    """

    written_by: ClassVar[str] = "`segpipe plan DATA -o {folder}`"

    segpipe_fingerprint: Literal[2] = 2
    orientation: str
    channels: tuple[str, ...]
    cases: tuple[CaseFingerprint, ...] = Field(min_length=1)
    intensities: tuple[Intensities, ...]
    median_relative_size_after_cropping: Annotated[float, Field(gt=0, le=1)]
    declared_cases: PositiveInt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Fingerprint:
        if self.intensities and len(self.intensities) != len(self.channels):
            raise ValueError(f"{len(self.intensities)} intensities for {len(self.channels)} channels")
        twice = sorted(case_id for case_id, n in Counter(c.case_id for c in self.cases).items() if n > 1)
        if twice:
            raise ValueError(f"case ids occur twice: {twice[:5]}")
        return self

    def content_digest(self) -> str:
        """Twelve hexadecimal digits that do not depend on where the data are, nor on the times of the files."""
        cases = tuple(case.model_copy(update={"signature": ""}) for case in self.cases)
        return self.model_copy(update={"cases": cases}).digest()

    @property
    def prevalence(self) -> dict[str, float]:
        """Share of the cases in which each label occurs, 0 to 1; empty if labels are unknown."""
        return {
            name: sum(name in case.present for case in self.cases) / len(self.cases) for name in self.cases[0].labels
        }

    @property
    def sites(self) -> dict[str, int]:
        """Cases of each site; cases of unknown sites are left out."""
        return dict(sorted(Counter(case.site for case in self.cases if case.site is not None).items()))

    @property
    def orientations(self) -> dict[str, int]:
        """Cases of each orientation, the most frequent first."""
        counts = Counter(case.orientation for case in self.cases)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
