"""Each method alone: means, medians, worst cases and failures, of all cases or of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import isfinite
from typing import Any

from segpipe.compare.align import Aligned
from segpipe.compare.records import Description
from segpipe.compare.results import Method
from segpipe.evaluate.scores import DIAGONAL, ScoreTable
from segpipe.evaluate.summary import summarise


def describe(
    methods: Sequence[Method], aligned: Aligned, policy: str, seed: int, grouping: str = "", group: str = ""
) -> list[Description]:
    """Summaries of the aligned cases, for each method the labels and then their mean.

    Raises:
        DataError: As `summarise`.
    """
    patient_of = dict(zip(aligned.case_ids, aligned.patient_ids, strict=True))
    labels = set(aligned.labels)
    result: list[Description] = []
    for method in methods:
        rows = tuple(
            row if row.patient_id == patient_of[row.case_id] else replace(row, patient_id=patient_of[row.case_id])
            for row in method.table.rows
            if row.case_id in patient_of
            and ((row.metric == aligned.metric.name and row.label in labels) or row.metric == DIAGONAL)
        )
        for row in summarise(ScoreTable(rows), policy, seed):
            numbers: dict[str, Any] = {
                name: None if isinstance(value, float) and not isfinite(value) else value
                for name, value in asdict(row).items()
            }
            if row.label in labels or len(labels) > 1:
                result.append(Description(method=method.name, grouping=grouping, group=group, **numbers))
    return result
