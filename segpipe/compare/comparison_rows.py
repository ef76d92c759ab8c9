"""The rows of a comparison: for each pair of methods and each label all tests, then the corrections, then verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.align import Aligned
from segpipe.compare.comparison_records import ComparisonRow, FoldTest
from segpipe.compare.paired import Estimate, Paired, effect_of, model_estimate, wilcoxon_p_values
from segpipe.compare.permutation import benjamini_hochberg, holm, sign_flip_p_values
from segpipe.compare.training_variance import (
    MethodEstimate,
    fold_differences,
    method_estimate,
    nadeau_bengio,
    posterior,
)
from segpipe.compare.verdict_sentences import Evidence, verdict
from segpipe.core.records import finite_or_none
from segpipe.core.seeds import generator_for
from segpipe.evaluate.intervals import means_with_intervals
from segpipe.evaluate.summary import MEAN_LABEL

ONE_SEED = "one seed: the variation between trainings is unknown"
ONLY_ALL = "not tested for groups"


@dataclass(frozen=True)
class Draft:
    """A row before its p-values are corrected.

    Args:
        values: Fields of `ComparisonRow`.
        models, methods: What its verdicts rest on.
    """

    values: dict[str, Any]
    models: Evidence
    methods: Evidence | None


def draft_rows(
    aligned: Aligned,
    margin: float,
    declared: Sequence[str],
    seed: int,
    n_permutations: int,
    *,
    against_first: bool = False,
    grouping: str = "",
    group: str = "",
) -> list[Draft]:
    """Every test of every pair of methods and every endpoint: the labels and their mean, or a single label.

    Args:
        aligned: Scores.
        margin: Largest difference that counts as none.
        declared: Labels that were declared; empty: the mean over labels. Of a group none is.
        seed: Of bootstrap and permutation.
        n_permutations: For each test.
        against_first: Whether only the pairs with the first method were declared.
        grouping, group: Which cases these are.
    """
    values = aligned.model_values
    pairs = list(combinations(range(len(aligned.methods)), 2))
    compared = [Paired(values[second] - values[first], aligned.patients) for first, second in pairs]
    random = generator_for(seed, len(aligned.case_ids))
    by_patient = np.hstack([paired.by_patient for paired in compared])
    p_values = np.split(sign_flip_p_values(by_patient, random, n_permutations), len(pairs))
    names = (*aligned.labels, MEAN_LABEL) if len(aligned.labels) > 1 else aligned.labels
    own = {"grouping": grouping, "group": group}
    declared = () if grouping else declared or names[-1:]
    drafts: list[Draft] = []
    for (first, second), paired, permuted in zip(pairs, compared, p_values, strict=True):
        tests = _tests(aligned, first, second, paired, permuted, seed)
        own_declared = declared if first == 0 or not against_first else ()
        drafts += [_draft(tests, index, name, margin, name in own_declared, own) for index, name in enumerate(names)]
    return drafts


def correct_drafts(drafts: Sequence[Draft]) -> list[ComparisonRow]:
    """Rows with p-values corrected: Holm for the declared, Benjamini-Hochberg for the others; models, methods apart."""
    models = _correct_p_values([draft.models for draft in drafts], drafts)
    has_methods = [draft for draft in drafts if draft.methods is not None]
    found = _correct_p_values([draft.methods for draft in has_methods if draft.methods is not None], has_methods)
    methods = dict(zip(map(id, has_methods), found, strict=True))
    return [
        ComparisonRow(
            **draft.values,
            models=verdict(about_models),
            methods=verdict(methods[id(draft)]) if id(draft) in methods else None,
        )
        for draft, about_models in zip(drafts, models, strict=True)
    ]


def _correct_p_values(evidence: Sequence[Evidence], drafts: Sequence[Draft]) -> list[Evidence]:
    is_declared = np.array([draft.values["is_declared"] for draft in drafts], bool)
    p_values = np.array([(found.p_value, found.p_equivalence) for found in evidence]).reshape(-1, 2)
    families: tuple[tuple[NDArray[np.bool_], Callable[[NDArray[np.float64]], NDArray[np.float64]]], ...] = (
        (is_declared, holm),
        (~is_declared, benjamini_hochberg),
    )
    for family, correct in families:
        for test in range(2):
            p_values[family, test] = correct(p_values[family, test])
    return [
        replace(found, p_adjusted=float(p[0]), p_equivalence_adjusted=float(p[1]))
        for found, p in zip(evidence, p_values, strict=True)
    ]


@dataclass(frozen=True)
class _Tests:
    """Results for one pair of methods; arrays (n_endpoints,)."""

    aligned: Aligned
    names: tuple[str, str]
    paired: Paired
    alone: tuple[Paired, Paired]  # each method's scores of the pairs
    intervals: Sequence[Any]
    permuted: NDArray[np.float64]
    wilcoxon: NDArray[np.float64]
    models: Estimate
    methods: MethodEstimate | None
    folds: Estimate | None


def _tests(
    aligned: Aligned, first: int, second: int, paired: Paired, permuted: NDArray[np.float64], seed: int
) -> _Tests:
    counted = ~np.isnan(paired.differences)
    alone = [Paired(np.where(counted, aligned.model_values[m], np.nan), aligned.patients) for m in (first, second)]
    values, folds = (aligned.values[first], aligned.values[second]), aligned.folds
    return _Tests(
        aligned=aligned,
        names=(aligned.methods[first], aligned.methods[second]),
        paired=paired,
        alone=(alone[0], alone[1]),
        intervals=means_with_intervals(paired.differences, aligned.patients, seed),
        permuted=permuted,
        wilcoxon=wilcoxon_p_values(paired),
        models=model_estimate(paired),
        methods=method_estimate(paired, values, folds) if aligned.n_seeds > 1 else None,
        folds=None if folds is None else nadeau_bengio(fold_differences(paired, values, folds)),
    )


def _draft(tests: _Tests, index: int, label: str, margin: float, is_declared: bool, own: dict[str, str]) -> Draft:
    aligned, paired, interval = tests.aligned, tests.paired, tests.intervals[index]
    effect = effect_of(tests.alone[0].patient_means[:, index], tests.alone[1].patient_means[:, index], aligned.sign)
    values = {
        **own,
        "metric": aligned.metric.name,
        "unit": aligned.metric.unit,
        "baseline": tests.names[0],
        "method": tests.names[1],
        "label": label,
        "is_declared": is_declared,
        "margin": margin,
        "n_cases": int(paired.n_cases[index]),
        "n_patients": int((~np.isnan(paired.patient_means[:, index])).sum()),
        "n_left_out": len(aligned.case_ids) - int(paired.n_cases[index]),
        "mean_baseline": finite_or_none(tests.alone[0].estimates[index]),
        "mean_method": finite_or_none(tests.alone[1].estimates[index]),
        "difference": finite_or_none(paired.estimates[index]),
        **(asdict(effect) if effect else dict.fromkeys(("standardised", "probability_of_improvement", "cliffs_delta"))),
        "p_wilcoxon": finite_or_none(tests.wilcoxon[index]),
        "methods_basis": tests.methods.basis if tests.methods else ONLY_ALL if own["grouping"] else ONE_SEED,
        "folds": None if own["grouping"] else _fold_test(tests.folds, index, margin, aligned.sign),
        "note": interval.note,
    }
    common = Evidence(*tests.names, label, aligned.metric, margin, "models", *[float("nan")] * 8)
    models = _evidence(common, tests.models, index)
    low, high = (float("nan") if limit is None else limit for limit in (interval.low, interval.high))
    models = replace(
        models, low=low, high=high, p_value=float(tests.permuted[index]) if paired.n_cases[index] else float("nan")
    )
    methods = None
    if tests.methods is not None and not own["grouping"]:
        methods = _evidence(replace(common, about="methods"), tests.methods.estimate, index)
    return Draft(values, models, methods)


def _evidence(common: Evidence, estimate: Estimate, index: int) -> Evidence:
    value, half = float(estimate.value[index]), float(estimate.half_widths[index])
    return replace(
        common,
        difference=value,
        low=value - half,
        high=value + half,
        p_value=float(estimate.p_values[index]),
        p_equivalence=float(estimate.equivalence_p_values(common.margin)[index]),
        detectable=float(estimate.detectable[index]),
    )


def _fold_test(estimate: Estimate | None, index: int, margin: float, sign: int) -> FoldTest | None:
    if estimate is None or not estimate.variance[index] > 0:
        return None
    worse, equivalent, better = posterior(estimate, margin, sign)[:, index].tolist()
    value, half = float(estimate.value[index]), float(estimate.half_widths[index])
    p_value = float(estimate.p_values[index])
    return FoldTest(
        p_value=p_value, low=value - half, high=value + half, worse=worse, equivalent=equivalent, better=better
    )
