"""`compare`: every pair of methods, every metric, label and group, corrected for how much was asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf, nan

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata

from segpipe.compare.align import Aligned, align, distinct_trainings
from segpipe.compare.comparison_records import Comparison, Description, MetricComparison, Ranking, Suitability
from segpipe.compare.comparison_rows import Draft, correct_drafts, draft_rows
from segpipe.compare.paired import Paired
from segpipe.compare.permutation import N_PERMUTATIONS
from segpipe.compare.results import Method
from segpipe.core.errors import UsageError
from segpipe.core.records import did_you_mean
from segpipe.evaluate.groups import UNKNOWN, CaseTable
from segpipe.evaluate.intervals import patient_weights, sums_by_patient
from segpipe.evaluate.metrics import METRICS
from segpipe.evaluate.scores import DIAGONAL, ScoreTable
from segpipe.evaluate.summary import DEFAULT_POLICY, summarise

_LEVELS = (0.025, 0.975)


def rank_methods(
    values: NDArray[np.float64], patients: NDArray[np.intp], methods: tuple[str, ...], sign: int, seed: int
) -> tuple[Ranking, ...]:
    """Ranks of methods by their mean over labels, in two ways, with their stability over resampled patients.

    Args:
        values: (n_methods, n_cases, n_labels); a case and label that is NaN for any method counts for none.
        patients: (n_cases,) number of each case's patient.
        methods: Names.
        sign: 1 if more is better, else -1.
        seed: Of the bootstrap.

    Returns:
        `means first` ranks the mean scores, `ranks first` averages the ranks within each case and label. Methods
        that are equal share the mean of their ranks. Nothing if no case counts for all methods.

    Source:
        Wiesenfarth et al. 2021, Sci. Rep. 11, 2369 (challengeR): both orders, bootstrap of cases; here of patients, and
        Kendall's tau is of type b.
    """
    goodness = sign * np.where(np.isnan(values).any(axis=0), np.nan, values)
    if np.isnan(goodness).all():
        return ()
    of_cases = np.full(goodness.shape, np.nan)
    counted = ~np.isnan(goodness[0])
    of_cases[:, counted] = -rankdata(-goodness[:, counted], axis=0)
    return (
        _ranking("means first", goodness, patients, methods, seed),
        _ranking("ranks first", of_cases, patients, methods, seed),
    )


def _ranking(
    order: str, goodness: NDArray[np.float64], patients: NDArray[np.intp], methods: tuple[str, ...], seed: int
) -> Ranking:
    n_methods, n_cases, n_labels = goodness.shape
    columns = goodness.transpose(1, 0, 2).reshape(n_cases, -1)
    sums, sizes = sums_by_patient(columns, patients)
    everyone = sizes.any(axis=1)
    sums, sizes = sums[everyone], sizes[everyone, :n_labels]  # numbers are the same for every method
    full = _ranks(sums.sum(axis=0)[None], sizes.sum(axis=0)[None], n_methods)[0]
    drawn = np.concatenate([_ranks(w @ sums, w @ sizes, n_methods) for w in patient_weights(len(sums), seed)])
    patterns, n_drawn = np.unique(drawn, axis=0, return_counts=True)
    taus = np.nan_to_num([kendalltau(full, pattern).statistic for pattern in patterns])
    low, high = np.quantile(drawn, _LEVELS, axis=0)
    return Ranking(
        order=order,
        methods=methods,
        ranks=tuple(full.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        first_fraction=tuple((drawn == drawn.min(axis=1, keepdims=True)).mean(axis=0).tolist()),
        kendall_tau=float(np.average(taus, weights=n_drawn)),
    )


def _ranks(sums: NDArray[np.float64], sizes: NDArray[np.float64], n_methods: int) -> NDArray[np.float64]:
    """Ranks of methods, 1 is best, for each row of sums (n, n_methods * n_labels) and numbers (n, n_labels)."""
    has_cases = sizes > 0
    sums = sums.reshape(len(sums), n_methods, -1)
    means = np.where(has_cases[:, None], sums / np.where(has_cases, sizes, 1)[:, None], 0.0)
    goodness = means.sum(axis=2) / np.maximum(has_cases.sum(axis=1), 1)[:, None]
    return rankdata(-np.round(goodness, 12), axis=1)  # rounded: equal on paper is equal


def suitability(values: NDArray[np.float64], folds: NDArray[np.intp]) -> Suitability | None:
    """Signal and noise of a cross-validation of several methods.

    Args:
        values: (n_methods, n_cases, n_labels) means over seeds; a case and label that is NaN for any method counts for
            none.
        folds: (n_cases,) fold of each case.

    Returns:
        None for fewer than two methods or folds, or if a fold has no case. `ratio` is None if there is no noise,
        `generalisability` if methods do not differ.

    Source:
        Ratio: Isensee et al. 2024, arXiv 2404.09556: SD between methods of their means over folds, by the SD within a
        method over folds, averaged over methods. Folds that are hard for all methods count there as noise although a
        paired comparison cancels them; the coefficient, of a two-way layout without the folds' main effect, is
        1 - MS(method × fold) / MS(method), 0 if there is no more signal than noise.
    """
    common = np.where(np.isnan(values).any(axis=0), np.nan, values)
    names = np.unique(folds)
    if len(values) < 2 or len(names) < 2:
        return None
    no_patients = np.zeros(len(folds), np.intp)
    means = np.array([
        [Paired(of[folds == fold], no_patients[folds == fold]).estimates[-1] for fold in names] for of in common
    ])  # fmt: skip
    if np.isnan(means).any():
        return None
    n_methods, n_folds = means.shape
    between = float(means.mean(axis=1).std(ddof=1))
    within = float(means.std(axis=1, ddof=1).mean())
    rest = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    of_methods = n_folds * between**2
    of_rest = float((rest**2).sum()) / ((n_methods - 1) * (n_folds - 1))
    return Suitability(
        n_methods=n_methods,
        n_folds=n_folds,
        between_methods=between,
        within_method=within,
        ratio=between / within if within > 0 else None,
        generalisability=max(0.0, 1 - of_rest / of_methods) if of_methods > 0 else None,
    )


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
            yield grouping, group or UNKNOWN, aligned.only(np.array([own == group for own in of_cases]))


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
