"""What the pictures of a comparison hold: the difference of every case, and what was concluded of their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.align import Aligned, align
from segpipe.compare.records import Row
from segpipe.compare.results import Method
from segpipe.compare.run import Question
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.summary import MEAN_LABEL


@dataclass(frozen=True)
class Difference:
    """One row of a picture, in the metric's unit; differences are second method minus first.

    Args:
        name: Of the pair or the label.
        values: Of every pair of scores; for the mean over labels of every case.
        mean: As compared; None without a pair.
        models: 95 % interval of trained models; None if there is none.
        methods: The same of methods.
        answer: The verdict on trained models.
    """

    name: str
    values: tuple[float, ...]
    mean: float | None
    models: tuple[float, float] | None
    methods: tuple[float, float] | None
    answer: str


def aligned_scores(methods: Sequence[Method], metric: str, question: Question) -> Aligned:
    """The scores that were compared; what was said of missing cases is not said again."""
    cases: dict[tuple[str, int | None], set[str]] = {}
    for method in methods:
        for row in method.table.rows:
            if row.metric == metric:
                cases.setdefault((method.name, row.seed), set()).add(row.case_id)
    common = set.intersection(*cases.values())
    kept = [
        replace(method, table=ScoreTable(tuple(row for row in method.table.rows if row.case_id in common)))
        for method in methods
    ]
    return align(
        kept, metric, question.policy,
        labels=question.labels, patients=question.cases.patients, allow_missing=question.allow_missing,
    )  # fmt: skip


def difference_of(row: Row, aligned: Aligned, name: str) -> Difference:
    """A row of a comparison with its cases.

    Args:
        row: Of all cases, not of a group.
        aligned: What was compared.
        name: For the picture.
    """
    first, second = (aligned.methods.index(method) for method in (row.baseline, row.method))
    of_cases = aligned.model_values[second] - aligned.model_values[first]
    values = case_means(of_cases) if row.label == MEAN_LABEL else of_cases[:, aligned.labels.index(row.label)]
    verdicts = (row.models, row.methods)
    models, methods = (
        None if found is None or found.low is None or found.high is None else (found.low, found.high)
        for found in verdicts
    )
    return Difference(
        name, tuple(values[~np.isnan(values)].tolist()), row.difference, models, methods, row.models.answer
    )


def case_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_cases,) mean over labels of (n_cases, n_labels), of those that count; NaN if none does."""
    has_value = ~np.isnan(values)
    n_values = has_value.sum(axis=1)
    total = np.where(has_value, values, 0).sum(axis=1)
    return np.divide(total, n_values, out=np.full(len(values), np.nan), where=n_values > 0)
