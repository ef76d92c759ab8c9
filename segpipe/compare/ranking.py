"""Rank methods, with the stability of the ranks under other patients, and the suitability of the data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata

from segpipe.compare.comparison_records import Ranking, Suitability
from segpipe.compare.paired import Paired
from segpipe.evaluate.intervals import patient_weights, sums_by_patient

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
