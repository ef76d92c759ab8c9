"""The training data of a fold, in a few numbers that stay beside its weights: what new images are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import NonNegativeFloat, PositiveInt

from segpipe.core.grid import turn_between
from segpipe.core.records import Record
from segpipe.fingerprint.record import Fingerprint
from segpipe.plan.schema import Plan


class Span(Record):
    """Smallest and largest value among the training cases."""

    low: NonNegativeFloat
    high: NonNegativeFloat

    def join(self, other: Span) -> Span:
        """The least span that holds both."""
        return Span(low=min(self.low, other.low), high=max(self.high, other.high))


class ChannelRange(Record):
    """Intensities of a channel inside the labelled structures: percentiles 0.5 and 99.5, and the smallest.

    Args:
        low, high, min: Of all cases together.
        least_range: From one percentile to the other in the case with the least contrast; None if not known.
    """

    low: float
    high: float
    min: float
    least_range: NonNegativeFloat | None = None


Spans = tuple[Span, Span, Span]


class TrainingStats(Record):
    """The training cases of a fold. Axes are those of the plan: turned to its orientation, then in its order.

    Args:
        n_cases: Their number.
        orientations: As the files are stored, sorted; empty if not known.
        spacing_mm: Voxel edges.
        extent_mm: Edges of the box around everything that is not 0.
        intensities: One for each channel, of all cases of the dataset; empty if not known.
    """

    n_cases: PositiveInt
    orientations: tuple[str, ...]
    spacing_mm: Spans
    extent_mm: Spans
    intensities: tuple[ChannelRange, ...]

    @classmethod
    def of(cls, fingerprint: Fingerprint, plan: Plan, case_ids: Sequence[str]) -> TrainingStats | None:
        """Summarise the measurements of some cases; None if none of them was measured."""
        cases = [case for case in fingerprint.cases if case.case_id in set(case_ids)]
        if not cases:
            return None
        turn = turn_between(fingerprint.orientation, plan.orientation)
        spacings = [turn.permute(case.spacing_mm) for case in cases]
        shapes = [turn.permute(case.cropped_shape_zyx) for case in cases]
        extents = [tuple(n * mm for n, mm in zip(*pair, strict=True)) for pair in zip(shapes, spacings, strict=True)]
        return cls(
            n_cases=len(cases),
            orientations=tuple(sorted({case.orientation for case in cases})),
            spacing_mm=_spans(spacings, plan),
            extent_mm=_spans(extents, plan),
            intensities=tuple(
                ChannelRange(
                    low=found.percentile_00_5,
                    high=found.percentile_99_5,
                    min=found.min,
                    least_range=found.least_range,
                )
                for found in fingerprint.intensities
            ),
        )

    def join(self, other: TrainingStats) -> TrainingStats:
        """Combine two folds that predict together; they may share cases, so the larger number of cases counts."""
        (z, y, x), (depth, height, width) = (
            [mine.join(its) for mine, its in zip(*pair, strict=True)]
            for pair in ((self.spacing_mm, other.spacing_mm), (self.extent_mm, other.extent_mm))
        )
        return TrainingStats(
            n_cases=max(self.n_cases, other.n_cases),
            orientations=tuple(sorted({*self.orientations, *other.orientations})),
            spacing_mm=(z, y, x),
            extent_mm=(depth, height, width),
            intensities=self.intensities or other.intensities,
        )


def _spans(values: Sequence[tuple[float, ...]], plan: Plan) -> Spans:
    first, second, third = (
        Span(low=min(v[axis] for v in values), high=max(v[axis] for v in values)) for axis in plan.axis_order
    )
    return (first, second, third)
