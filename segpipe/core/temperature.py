"""The record of how well a configuration's probabilities are calibrated, and the temperature that corrects them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from segpipe.core.records import Record

Share = Annotated[float, Field(ge=0, le=1)]


class Reliability(Record):
    """Predicted probabilities of a label against how often the label is there. Every patient counts equally.

    Args:
        ece: Mean gap between probability and frequency over the bins. Chance alone makes it positive, the more so the
            fewer patients there are.
        ece_debiased: The same without what chance adds: 0 on average if the probabilities are right, and never above
            the true gap on average.
        low, high: 95 % interval of the true gap over patients; None if there is none.
        note: Why there is no interval; empty otherwise.
        share: Of the voxels, by bin.
        probability, frequency: Means by bin; None for a bin without voxels.
    """

    ece: Share
    ece_debiased: float
    low: Share | None
    high: Share | None
    note: str
    share: tuple[Share, ...]
    probability: tuple[Share | None, ...]
    frequency: tuple[Share | None, ...]


class LabelCalibration(Record):
    """Calibration of a label.

    Args:
        label: Name.
        n_patients: Patients with voxels to judge.
        before: Of the probabilities as the network gives them.
        after: With the temperature of each fold, fitted on the other folds; None with a single fold.
    """

    label: str
    n_patients: PositiveInt
    before: Reliability
    after: Reliability | None


class CalibrationReport(Record):
    """calibration.json: how well the out-of-fold probabilities of a configuration are calibrated.

    Args:
        temperature: Logits are divided by it. It is fitted on the validation cases of all folds: for new images.
        temperature_of_fold: For each fold, fitted on the validation cases of the other ones; empty with a single fold.
        n_cases, n_patients: What it was fitted on.
        weights: Digests of the folds' weights, by `<configuration>/<fold>`.
        labels: By label; those that no case has and no mask shows are left out.
    """

    temperature: PositiveFloat
    temperature_of_fold: dict[str, PositiveFloat]
    n_cases: NonNegativeInt
    n_patients: NonNegativeInt
    weights: dict[str, str]
    labels: tuple[LabelCalibration, ...]

    @property
    def makes_worse(self) -> bool:
        """True if the mean ECE of the labels is larger with the temperatures than without, on the folds left out."""
        gaps = [(one.before.ece, one.after.ece) for one in self.labels if one.after is not None]
        return sum(after - before for before, after in gaps) > 0
