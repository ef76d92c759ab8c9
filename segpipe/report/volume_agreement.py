"""Agreement of predicted and reference volumes: bias and limits of agreement, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from segpipe.core.records import Record
from segpipe.evaluate.scores import Score, ScoreTable

CaseKey = tuple[str, str, int | None, int | None]  # run, case, fold, seed
_METRIC = "volume_difference"
_LEVELS = (0.025, 0.975)
_Z = 1.96  # of a normal distribution 95 % lie so many SDs from the mean


class Agreement(Record):
    """Differences of volumes, prediction minus reference, in mm³.

    Args:
        run: What made the predictions.
        label: Structure.
        n_cases: Scores, over all seeds.
        bias_mm3: Mean difference.
        low_mm3, high_mm3: Limits between which 95 % of differences lie if they are normal; None for one score.
    """

    run: str
    label: str
    n_cases: int
    bias_mm3: float
    low_mm3: float | None
    high_mm3: float | None


def agreements(table: ScoreTable) -> tuple[Agreement, ...]:
    """Bias and limits of agreement for each run and label; empty if the table has no `volume_difference`.

    Source:
        Bland and Altman 1986, Lancet 327(8476): mean ± 1.96 SD.
    """
    differences: dict[tuple[str, str], list[float]] = {}
    for row in table.rows:
        if row.metric == _METRIC:
            differences.setdefault((row.run, row.label), []).append(row.value)
    result = []
    for (run, label), values in differences.items():
        bias = float(np.mean(values))
        half = _Z * float(np.std(values, ddof=1)) if len(values) > 1 else None
        low, high = (None, None) if half is None else (bias - half, bias + half)
        result.append(Agreement(run=run, label=label, n_cases=len(values), bias_mm3=bias, low_mm3=low, high_mm3=high))
    return tuple(result)


@dataclass(frozen=True)
class VolumeEstimate:
    """A number and its 95 % interval (None: there is none), in mm³."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class VolumeAgreement:
    """Volumes of one label; differences are prediction minus reference.

    Args:
        label: Structure.
        means_mm3: Mean of both volumes of each score that can be drawn.
        differences_mm3: In the same order.
        n_scores: Scores that count: those with the structure in either mask.
        n_patients: Whose they are.
        n_both_empty: Scores without it in both, which would only narrow the limits.
        n_unplaced: Scores that count but cannot be drawn, since the size of a voxel is not known: prediction and
            reference have as many voxels in every label of the case. Their difference is 0.
        bias: Mean difference.
        lower, upper: Limits of agreement; None for a single score.
    """

    label: str
    means_mm3: tuple[float, ...]
    differences_mm3: tuple[float, ...]
    n_scores: int
    n_patients: int
    n_both_empty: int
    n_unplaced: int
    bias: VolumeEstimate
    lower: VolumeEstimate | None
    upper: VolumeEstimate | None


def volume_agreements(table: ScoreTable) -> tuple[VolumeAgreement, ...]:
    """Bias and limits of agreement of each label that any mask of the table has.

    Args:
        table: Scores of one run.

    Returns:
        In order of appearance; empty if the table has no `volume_difference`.

    Source:
        Bland and Altman 1986, Lancet 327(8476). Intervals are exact for normal differences: t for the bias, noncentral
        t for the limits (Carkeet 2015, Optom. Vis. Sci. 92(3)). Cases of a patient are not independent, so that here
        patients are counted in place of scores: with several cases of a patient the intervals are too wide rather
        than too narrow.
    """
    rows = [row for row in table.rows if row.metric == _METRIC]
    counted = [row for row in rows if row.status != "both_empty"]
    voxel_mm3 = {
        row.case_key: row.value / (row.n_prediction_vox - row.n_reference_vox)
        for row in counted
        if row.n_prediction_vox != row.n_reference_vox
    }
    result = []
    for found in agreements(ScoreTable(tuple(counted))):
        own = [row for row in counted if row.label == found.label]
        n_both_empty = sum(row.label == found.label for row in rows) - len(own)
        result.append(_of_label(found, own, n_both_empty, voxel_mm3))
    return tuple(result)


def _of_label(
    found: Agreement, rows: Sequence[Score], n_both_empty: int, voxel_mm3: Mapping[CaseKey, float]
) -> VolumeAgreement:
    placed = [row for row in rows if row.case_key in voxel_mm3]
    sums = [(row.n_reference_vox + row.n_prediction_vox) * voxel_mm3[row.case_key] for row in placed]
    n_patients = len({row.patient_id for row in rows})
    bias, lower, upper = _intervals(found, n_patients)
    return VolumeAgreement(
        label=found.label,
        means_mm3=tuple(both / 2 for both in sums),
        differences_mm3=tuple(row.value for row in placed),
        n_scores=len(rows),
        n_patients=n_patients,
        n_both_empty=n_both_empty,
        n_unplaced=len(rows) - len(placed),
        bias=bias,
        lower=lower,
        upper=upper,
    )


def _intervals(
    found: Agreement, n_patients: int
) -> tuple[VolumeEstimate, VolumeEstimate | None, VolumeEstimate | None]:
    """Intervals of the bias and both limits; none from one patient."""
    bias = found.bias_mm3
    if found.low_mm3 is None or found.high_mm3 is None:
        return VolumeEstimate(bias, None, None), None, None
    if n_patients < 2:
        lower, upper = VolumeEstimate(found.low_mm3, None, None), VolumeEstimate(found.high_mm3, None, None)
        return VolumeEstimate(bias, None, None), lower, upper
    sd, root, df = (found.high_mm3 - found.low_mm3) / (2 * _Z), np.sqrt(n_patients), n_patients - 1
    half = float(stats.t.ppf(_LEVELS[1], df)) * sd / root
    near, far = (float(k) * sd / root for k in stats.nct.ppf(_LEVELS, df, _Z * root))
    return (
        VolumeEstimate(bias, bias - half, bias + half),
        VolumeEstimate(found.low_mm3, bias - far, bias - near),
        VolumeEstimate(found.high_mm3, bias + near, bias + far),
    )
