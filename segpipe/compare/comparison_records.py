"""Records of comparison.json: the result of a comparison. Undefined is null; numbers carry the metric's unit."""

from __future__ import annotations

from typing import Literal

from segpipe.core.records import Record
from segpipe.evaluate.summary import SummaryRow

Answer = Literal["better", "worse", "no difference", "cannot tell"]


class Verdict(Record):
    """One verdict.

    Args:
        answer: Of the second method: `better`, `worse`, `no difference` larger than the margin, or that the data
            `cannot tell`.
        sentence: The same in words, with the numbers.
        p_value: Of "no difference", as tested; None if it cannot be tested. Below 5 % where the interval excludes 0.
        p_adjusted: Corrected for the family.
        p_equivalence: Of "the difference is the margin or more" (two one-sided tests).
        p_equivalence_adjusted: Corrected for the family.
        low, high: 95 % interval of the difference, not corrected.
        equivalence_low, equivalence_high: Its 90 % interval, within the margin where `p_equivalence` is below 5 %.
        unseen_rate: Rate up to which n patients without a failure cannot exclude one.
        detectable: Smallest true difference that four of five such datasets would show.
    """

    answer: Answer
    sentence: str
    p_value: float | None
    p_adjusted: float | None
    p_equivalence: float | None
    p_equivalence_adjusted: float | None
    low: float | None
    high: float | None
    equivalence_low: float | None
    equivalence_high: float | None
    unseen_rate: float | None
    detectable: float | None


class FoldTest(Record):
    """Nadeau and Bengio's corrected t-test and its Bayesian reading.

    Args:
        p_value: Two-sided.
        low, high: 95 % interval of the mean over folds of the difference.
        worse, equivalent, better: Probabilities with the margin as region of practical equivalence.
    """

    p_value: float
    low: float
    high: float
    worse: float
    equivalent: float
    better: float


class ComparisonRow(Record):
    """Two methods, one metric, one label or `(mean)` over labels, all cases or a group of them.

    Args:
        metric: Name as in scores.csv.
        unit: Of differences, intervals and the margin.
        baseline, method: The first and the second; differences are second minus first.
        label: Structure, or `(mean)`.
        grouping, group: As in `Description`; empty for all cases.
        is_declared: Whether it belongs to the family that Holm's correction is for; else it is exploratory and
            corrected by Benjamini and Hochberg.
        margin: Largest difference that counts as none.
        n_cases, n_patients: Pairs and whose they are.
        n_left_out: Cases whose pair the policy leaves out.
        mean_baseline, mean_method, difference: Over the pairs.
        standardised, probability_of_improvement, cliffs_delta: Effect sizes, see `Effect`; positive, above 0.5: better.
        p_wilcoxon: Signed-rank test by patient, not corrected; a statement on these trained models.
        models: About these trained models: patients vary, trainings do not. The p-value is the sign-flip permutation's.
        methods: About the methods: trainings vary too. None without a second seed.
        methods_basis: What it rests on: `folds and seeds`, `seeds`, `repeated cross-validation`, or why there is none.
        folds: None without folds.
        fold_differences: Mean difference in each fold; empty without folds, None for a fold without a pair.
        rests_on_folds: Folds, counted from 0, without which the verdict on the models would be another.
        note: About the interval.
    """

    metric: str
    unit: str
    baseline: str
    method: str
    label: str
    grouping: str
    group: str
    is_declared: bool
    margin: float
    n_cases: int
    n_patients: int
    n_left_out: int
    mean_baseline: float | None
    mean_method: float | None
    difference: float | None
    standardised: float | None
    probability_of_improvement: float | None
    cliffs_delta: float | None
    p_wilcoxon: float | None
    models: Verdict
    methods: Verdict | None
    methods_basis: str
    folds: FoldTest | None
    fold_differences: tuple[float | None, ...]
    rests_on_folds: tuple[int, ...]
    note: str


class Description(SummaryRow):
    """One method alone, over all seeds: its row of `summarise`, of all cases or of a group of them.

    Args:
        method: Name.
        grouping: Column of the table of cases, e.g. `site`; empty for all cases.
        group: Value in it.
    """

    method: str
    grouping: str
    group: str


class Ranking(Record):
    """Ranks of methods, 1 is best.

    Args:
        order: `means first` or `ranks first`, see `rank_methods`.
        methods: Names; the other fields are in their order.
        ranks: By all patients.
        low, high: 95 % of resamples of patients lie between.
        first_fraction: Share of resamples in which the method is first, alone or not.
        kendall_tau: Mean agreement of resamples with `ranks`; 1 is perfect, 0 none.
    """

    order: str
    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    first_fraction: tuple[float, ...]
    kendall_tau: float


class Suitability(Record):
    """Spread between methods and noise over folds, see `suitability`; SDs in the metric's unit."""

    n_methods: int
    n_folds: int
    between_methods: float
    within_method: float
    ratio: float | None
    generalisability: float | None


class MetricComparison(Record):
    """Everything about one metric.

    Args:
        metric: Name.
        n_cases, n_patients, n_folds, n_seeds: What was compared; 0 folds if there are none, or none in common.
        notes: What a reader must know.
        rankings: Empty if no case counts for all methods.
        suitability: None without folds.
    """

    metric: str
    n_cases: int
    n_patients: int
    n_folds: int
    n_seeds: int
    notes: tuple[str, ...]
    descriptions: tuple[Description, ...]
    rows: tuple[ComparisonRow, ...]
    rankings: tuple[Ranking, ...]
    suitability: Suitability | None


class Comparison(Record):
    """All of it.

    Args:
        methods: Names, the baseline first.
        policy: What empty masks count.
        seed: Of bootstrap and permutation.
        n_permutations: Drawn for each test of more than a few patients.
        metrics: One entry for each.
        is_declared: Whether everything was declared before the first training.
        notes: Sentences on the whole: declared or explored, how often the cases were scored, which arms failed.
    """

    methods: tuple[str, ...]
    policy: str
    seed: int
    n_permutations: int
    metrics: tuple[MetricComparison, ...]
    is_declared: bool = False
    notes: tuple[str, ...] = ()
