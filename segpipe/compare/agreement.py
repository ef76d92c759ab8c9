"""Volumes of prediction and reference beside each other (Bland and Altman)."""

from __future__ import annotations

import numpy as np

from segpipe.core.records import Record
from segpipe.evaluate.scores import ScoreTable

_Z = 1.96  # of a normal distribution 95 % lie so many SDs from the mean
_METRIC = "volume_difference"


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
