"""The rows of a comparison: for each pair of methods and each label all tests, then the corrections, then verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import inf, isfinite, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.align import Aligned
from segpipe.compare.comparison_records import ComparisonRow, FoldTest
from segpipe.compare.paired import Estimate, Paired, effect_of, model_estimate, wilcoxon_p_values
from segpipe.compare.permutation import benjamini_hochberg, holm, sign_flip_p_values, sign_flip_tests
from segpipe.compare.training_variance import (
    MethodEstimate,
    fold_differences,
    method_estimate,
    nadeau_bengio,
    posterior,
)
from segpipe.compare.verdict_sentences import Evidence, Unseen, answer_of, unseen_failures, verdict
from segpipe.core.records import finite_or_none
from segpipe.core.seeds import generator_for
from segpipe.core.text import count
from segpipe.evaluate.intervals import FEWEST_PATIENTS
from segpipe.evaluate.summary import MEAN_LABEL

ONE_SEED = "one seed: the variation between trainings is unknown"
ONLY_ALL = "not tested for groups"


@dataclass(frozen=True)
class Draft:
    """A row before its p-values are corrected.

    Args:
        values: Fields of `ComparisonRow`.
        models, methods: What its verdicts rest on.
        without_fold: By fold, the evidence on the models without it: difference and p-values before correction.
    """

    values: dict[str, Any]
    models: Evidence
    methods: Evidence | None
    without_fold: Mapping[int, Evidence]


def draft_rows(
    aligned: Aligned,
    margin: float,
    declared: Sequence[str],
    seed: int,
    n_permutations: int,
    *,
    worst_loss: float = inf,
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
        worst_loss: What a failure may cost, in the metric's unit.
        against_first: Whether only the pairs with the first method were declared.
        grouping, group: Which cases these are.
    """
    values = aligned.model_values
    pairs = list(combinations(range(len(aligned.methods)), 2))
    compared = [Paired(values[second] - values[first], aligned.patients) for first, second in pairs]
    random = generator_for(seed, len(aligned.case_ids))
    by_patient = np.hstack([paired.by_patient for paired in compared])
    shares = np.hstack([paired.shares_by_patient for paired in compared])
    permuted = np.split(np.array(sign_flip_tests(by_patient, shares, random, n_permutations)), len(pairs), axis=1)
    names = (*aligned.labels, MEAN_LABEL) if len(aligned.labels) > 1 else aligned.labels
    own = {"grouping": grouping, "group": group}
    declared = () if grouping else declared or names[-1:]
    drafts: list[Draft] = []
    for (first, second), paired, found in zip(pairs, compared, permuted, strict=True):
        tests = _tests(
            aligned, (first, second), paired, found, worst_loss,
            seed=seed, n_permutations=n_permutations, is_group=bool(grouping),
        )  # fmt: skip
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
            **draft.values | {"rests_on_folds": _decisive_folds(draft, about_models)},
            models=verdict(about_models),
            methods=verdict(methods[id(draft)]) if id(draft) in methods else None,
        )
        for draft, about_models in zip(drafts, models, strict=True)
    ]


def _decisive_folds(draft: Draft, models: Evidence) -> tuple[int, ...]:
    """The folds without which the answer on the models would be another, with the same correction and rates."""
    factor = models.p_adjusted / models.p_value if models.p_value > 0 else 1.0
    equivalence_factor = models.p_equivalence_adjusted / models.p_equivalence if models.p_equivalence > 0 else 1.0
    answer = answer_of(models)
    if answer == "cannot tell":
        return ()
    return tuple(
        fold
        for fold, found in draft.without_fold.items()
        if answer
        != answer_of(
            replace(
                found,
                unseen=models.unseen,
                p_adjusted=found.p_value * factor,
                p_equivalence_adjusted=found.p_equivalence * equivalence_factor,
            )
        )
    )


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
    permuted: NDArray[np.float64]  # p, lower and upper limit
    unseen: tuple[Unseen, ...]
    wilcoxon: NDArray[np.float64]
    models: Estimate
    methods: MethodEstimate | None
    folds: Estimate | None
    by_fold: NDArray[np.float64] | None  # (n_folds, n_endpoints) mean differences
    without_fold: Mapping[int, tuple[Estimate, NDArray[np.float64]]]  # and p-values


def _tests(
    aligned: Aligned,
    pair: tuple[int, int],
    paired: Paired,
    permuted: NDArray[np.float64],
    worst_loss: float,
    *,
    seed: int,
    n_permutations: int,
    is_group: bool,
) -> _Tests:
    first, second = pair
    counted = ~np.isnan(paired.differences)
    alone = [Paired(np.where(counted, aligned.model_values[m], np.nan), aligned.patients) for m in (first, second)]
    values, folds = (aligned.values[first], aligned.values[second]), aligned.folds
    by_fold = None if folds is None else fold_differences(paired, values, folds)
    without_fold = {}
    if folds is not None and len(folds) == 1 and not is_group:
        without_fold = _without_each_fold(paired, folds[0], seed, n_permutations)
    return _Tests(
        aligned=aligned,
        names=(aligned.methods[first], aligned.methods[second]),
        paired=paired,
        alone=(alone[0], alone[1]),
        permuted=permuted,
        unseen=tuple(unseen_failures(column, worst_loss) for column in paired.patient_means.T),
        wilcoxon=wilcoxon_p_values(paired),
        models=model_estimate(paired),
        methods=method_estimate(paired, values, folds) if aligned.n_seeds > 1 else None,
        folds=None if by_fold is None else nadeau_bengio(by_fold),
        by_fold=by_fold[0] if by_fold is not None and len(by_fold) == 1 else None,
        without_fold=without_fold,
    )


def _without_each_fold(
    paired: Paired, folds: NDArray[np.intp], seed: int, n_permutations: int
) -> dict[int, tuple[Estimate, NDArray[np.float64]]]:
    """Differences and permutation p-values of the cases of all folds but one, by that one; folds (n_cases,)."""
    result = {}
    for fold in np.unique(folds).tolist():
        kept = folds != fold
        patients = np.unique(paired.patients[kept], return_inverse=True)[1]
        rest = Paired(paired.differences[kept], patients)
        random = generator_for(seed, int(kept.sum()), fold)
        result[fold] = model_estimate(rest), sign_flip_p_values(rest.by_patient, random, n_permutations)
    return result


def _draft(tests: _Tests, index: int, label: str, margin: float, is_declared: bool, own: dict[str, str]) -> Draft:
    aligned, paired = tests.aligned, tests.paired
    p_value, low, high = tests.permuted[:, index].tolist()
    n_patients = int((~np.isnan(paired.patient_means[:, index])).sum())
    note = _note(n_patients, low, high, is_constant=tests.models.variance[index] == 0)
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
        "n_patients": n_patients,
        "n_left_out": len(aligned.case_ids) - int(paired.n_cases[index]),
        "mean_baseline": finite_or_none(tests.alone[0].estimates[index]),
        "mean_method": finite_or_none(tests.alone[1].estimates[index]),
        "difference": finite_or_none(paired.estimates[index]),
        **(asdict(effect) if effect else dict.fromkeys(("standardised", "probability_of_improvement", "cliffs_delta"))),
        "p_wilcoxon": finite_or_none(tests.wilcoxon[index]),
        "methods_basis": tests.methods.basis if tests.methods else ONLY_ALL if own["grouping"] else ONE_SEED,
        "folds": None if own["grouping"] else _fold_test(tests.folds, index, margin, aligned.sign),
        "fold_differences": () if tests.by_fold is None or own["grouping"] else _numbers(tests.by_fold[:, index]),
        "rests_on_folds": (),
        "note": note,
    }
    common = Evidence(*tests.names, label, aligned.metric, margin, "models", nan, nan, nan, nan, nan, nan, nan, nan)
    common = replace(common, unseen=tests.unseen[index])
    models = _evidence(common, tests.models, index)
    models = replace(models, low=nan if note else low, high=nan if note else high)
    models = replace(models, p_value=p_value if paired.n_cases[index] else nan)
    methods = None
    if tests.methods is not None and not own["grouping"]:
        methods = _evidence(replace(common, about="methods"), tests.methods.estimate, index)
    without_fold = {
        fold: replace(
            models,
            difference=float(estimate.value[index]),
            p_value=float(p_values[index]),
            p_equivalence=float(estimate.equivalence_p_values(margin)[index]),
        )
        for fold, (estimate, p_values) in tests.without_fold.items()
    }
    return Draft(values, models, methods, without_fold)


def _evidence(common: Evidence, estimate: Estimate, index: int) -> Evidence:
    value, half = float(estimate.value[index]), float(estimate.half_widths[index])
    half_90 = float(estimate.equivalence_half_widths[index])
    return replace(
        common,
        equivalence_low=value - half_90,
        equivalence_high=value + half_90,
        difference=value,
        low=value - half,
        high=value + half,
        p_value=float(estimate.p_values[index]),
        p_equivalence=float(estimate.equivalence_p_values(common.margin)[index]),
        detectable=float(estimate.detectable[index]),
    )


def _note(n_patients: int, low: float, high: float, *, is_constant: bool) -> str:
    """Why there is no interval; empty if there is one."""
    if n_patients == 0:
        return "no case counts"
    if is_constant:
        return "all patients equal: no interval"
    has_interval = n_patients >= FEWEST_PATIENTS and isfinite(low) and isfinite(high)
    return "" if has_interval else f"{count(n_patients, 'patient')}: too few for an interval of the difference"


def _numbers(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(finite_or_none(value) for value in values.tolist())


def _fold_test(estimate: Estimate | None, index: int, margin: float, sign: int) -> FoldTest | None:
    if estimate is None or not estimate.variance[index] > 0:
        return None
    worse, equivalent, better = posterior(estimate, margin, sign)[:, index].tolist()
    value, half = float(estimate.value[index]), float(estimate.half_widths[index])
    p_value = float(estimate.p_values[index])
    return FoldTest(
        p_value=p_value, low=value - half, high=value + half, worse=worse, equivalent=equivalent, better=better
    )
