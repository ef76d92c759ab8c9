"""`compare`: every pair of methods, every metric, label and group, corrected for how much was asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf, nan

import numpy as np

from segpipe.compare.align import Aligned, align, distinct_trainings
from segpipe.compare.comparison_records import Comparison, Description, MetricComparison
from segpipe.compare.comparison_rows import Draft, correct_drafts, draft_rows
from segpipe.compare.permutation import N_PERMUTATIONS
from segpipe.compare.ranking import rank_methods, suitability
from segpipe.compare.results import CaseTable, Method
from segpipe.core.errors import UsageError
from segpipe.core.records import did_you_mean
from segpipe.evaluate.metrics import METRICS
from segpipe.evaluate.scores import DIAGONAL, ScoreTable
from segpipe.evaluate.summary import DEFAULT_POLICY, summarise

DEFAULT_MARGIN = 0.005  # half a Dice point; of distances none is usual


@dataclass(frozen=True)
class Question:
    """Options of a comparison, fixed before the scores are seen.

    Args:
        margins: Metrics in order, each with the largest difference that counts as none, in its unit.
        declared: Labels of the family that is corrected by Holm; empty: the mean over labels.
        against_first: Whether that family is the comparisons with the first method; if not, of every pair.
        labels: Labels to compare; empty: all.
        worst_losses: By metric, what a failure may cost in its unit; where there is none 1 for overlaps, and for
            distances in mm the largest diagonal of an image.
        policy: What empty masks count, as in `summarise`.
        allow_missing: Compare the cases that all have.
        cases: Patients and groups; empty: as the tables say.
        seed: Of bootstrap and permutation.
        n_permutations: For each test with more than a few patients.
    """

    margins: dict[str, float]
    declared: tuple[str, ...] = ()
    worst_losses: dict[str, float] = field(default_factory=dict)
    against_first: bool = False
    labels: tuple[str, ...] = ()
    policy: str = DEFAULT_POLICY
    allow_missing: bool = False
    cases: CaseTable = field(default_factory=lambda: CaseTable(None, {}))
    seed: int = 0
    n_permutations: int = N_PERMUTATIONS


def parse_margins(texts: Sequence[str]) -> dict[str, float]:
    """Margins by metric from `dice`, `dice=0.01`, `hd95=1`.

    Raises:
        UsageError: If a metric is unknown, a margin is no positive number, or a metric without usual margin has none.
    """
    margins: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in METRICS:
            raise UsageError(f"metric {name!r} is unknown.{did_you_mean(name, list(METRICS))}")
        if not equals and METRICS[name].kind != "overlap":
            unit = METRICS[name].unit
            raise UsageError(f"{name}: the largest difference that counts as none is needed, in {unit}, e.g. {name}=1.")
        try:
            margins[name] = float(value) if equals else DEFAULT_MARGIN
        except ValueError:
            margins[name] = float("nan")
        if not 0 < margins[name] < float("inf"):
            raise UsageError(f"{text!r}: {value!r} is no margin, expected a positive number, e.g. {name}=0.01.")
    return margins


def parse_losses(texts: Sequence[str]) -> dict[str, float]:
    """Read the cost of a failure by metric from `dice=0.3`, `hd95=50`.

    Raises:
        UsageError: If a metric is unknown or a loss no positive number.
    """
    losses: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in METRICS:
            raise UsageError(f"--worst-loss: metric {name!r} is unknown.{did_you_mean(name, list(METRICS))}")
        try:
            losses[name] = float(value)
        except ValueError:
            losses[name] = nan
        if not 0 < losses[name] < inf:
            raise UsageError(f"--worst-loss {text}: expected a positive number, e.g. {name}=0.3.")
    return losses


def compare(methods: Sequence[Method], question: Question) -> Comparison:
    """Answer the question for every pair of methods; earlier ones are baselines of later ones.

    Raises:
        UsageError: If a metric or label is unknown to a table.
        DataError: If the tables cannot be compared.
    """
    parts = [_of_metric(methods, metric, margin, question) for metric, margin in question.margins.items()]
    rows = correct_drafts([draft for _, drafts in parts for draft in drafts])
    metrics, start = [], 0
    for part, drafts in parts:
        metrics.append(part.model_copy(update={"rows": tuple(rows[start : start + len(drafts)])}))
        start += len(drafts)
    names = tuple(method.name for method in methods)
    return Comparison(
        methods=names,
        policy=question.policy,
        seed=question.seed,
        n_permutations=question.n_permutations,
        metrics=tuple(metrics),
    )


def _of_metric(
    methods: Sequence[Method], metric: str, margin: float, question: Question
) -> tuple[MetricComparison, list[Draft]]:
    patients = question.cases.patients
    aligned = align(
        methods, metric, question.policy,
        labels=question.labels, patients=patients, allow_missing=question.allow_missing,
    )  # fmt: skip
    unknown = [label for label in question.declared if label not in aligned.labels]
    if unknown:
        raise UsageError(
            f"declared label {unknown[0]!r} is not compared.{did_you_mean(unknown[0], list(aligned.labels))}"
        )
    methods, _ = distinct_trainings(methods)  # align says which were left out
    loss = _worst_loss(methods, metric, question)
    drafts = draft_rows(
        aligned, margin, question.declared, question.seed, question.n_permutations,
        worst_loss=loss, against_first=question.against_first,
    )  # fmt: skip
    descriptions = describe(methods, aligned, question.policy, question.seed, "", "")
    for grouping, group, part in _groups(aligned, question.cases):
        own = draft_rows(
            part, margin, (), question.seed, question.n_permutations,
            worst_loss=loss, grouping=grouping, group=group,
        )  # fmt: skip
        drafts += own
        descriptions += describe(methods, part, question.policy, question.seed, grouping, group)
    folds, values = aligned.folds, aligned.model_values
    one_split = folds[0] if folds is not None and len(folds) == 1 else None
    found = MetricComparison(
        metric=metric,
        n_cases=len(aligned.case_ids),
        n_patients=aligned.n_patients,
        n_folds=0 if folds is None else len(np.unique(folds)),
        n_seeds=aligned.n_seeds,
        notes=aligned.notes,
        descriptions=tuple(descriptions),
        rows=(),
        rankings=rank_methods(values, aligned.patients, aligned.methods, aligned.sign, question.seed),
        suitability=None if one_split is None else suitability(values, one_split),
    )
    return found, drafts


def _worst_loss(methods: Sequence[Method], metric: str, question: Question) -> float:
    """Cost of a failure, in the unit of the metric; inf if nothing says so."""
    if metric in question.worst_losses:
        return question.worst_losses[metric]
    if METRICS[metric].kind == "overlap":
        return 1.0
    diagonals = [row.value for method in methods for row in method.table.rows if row.metric == DIAGONAL]
    return max(diagonals, default=inf) if METRICS[metric].unit == "mm" else inf


def _groups(aligned: Aligned, cases: CaseTable) -> Iterator[tuple[str, str, Aligned]]:
    """The cases of each group of each grouping."""
    for grouping, group_of in cases.groups.items():
        of_cases = [group_of.get(case, "") for case in aligned.case_ids]
        for group in sorted(set(of_cases)):
            yield grouping, group or "(unknown)", aligned.only(np.array([own == group for own in of_cases]))


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
            if row.label in labels or len(labels) > 1:
                result.append(Description(method=method.name, grouping=grouping, group=group, **row.model_dump()))
    return result
