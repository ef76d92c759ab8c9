"""Tests that account for folds and seeds: would a difference survive training again?

Cases of one fold share a trained model. A test on pooled cases takes the luck of five trainings for the worth of a
method; its chance of a false claim is 13 to 32 % where 5 % is said (benchmarks/results/simulate_compare.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from segpipe.compare.paired import Estimate, Paired, sum_by

Basis = Literal["folds and seeds", "seeds", "repeated cross-validation"]


@dataclass(frozen=True)
class MethodEstimate:
    """A difference of methods, trainings and patients varying.

    Args:
        estimate: For each endpoint.
        basis: What the variance was estimated from.
    """

    estimate: Estimate
    basis: Basis


def method_estimate(
    paired: Paired,
    values: tuple[NDArray[np.float64], NDArray[np.float64]],
    folds: NDArray[np.intp] | None,
) -> MethodEstimate | None:
    """The difference of two methods with at least two seeds.

    With the same folds for every seed the variance is the larger of two: that of the folds' means, and that of patients
    plus that of trainings (from seeds of one fold, which saw the same cases); t has folds - 1 degrees of freedom, since
    folds share most of their training cases and more seeds do not change that. Without folds it is the sum of the two,
    with Satterthwaite's degrees of freedom, each method's trainings by themselves, and no more than trainings - 1: a
    lucky agreement of two seeds would give many. With new folds for each seed it is Nadeau and Bengio's.

    Args:
        paired: Differences of the methods' means over trainings.
        values: Of both methods, each (n_trainings, n_cases, n_labels).
        folds: As in `Aligned`.

    Returns:
        None if a method was trained once: the variation between trainings is unknown.
    """
    if min(len(of) for of in values) < 2:
        return None
    if folds is not None and len(folds) > 1:
        return MethodEstimate(nadeau_bengio(fold_differences(paired, values, folds)), "repeated cross-validation")
    fold = np.zeros(len(paired.patients), np.intp) if folds is None else folds[0]
    of_patients, n_patients = paired.variance_over(paired.patients)
    of_trainings = [_training_variance(paired, of, fold) for of in values]
    total = of_patients + of_trainings[0] + of_trainings[1]
    if folds is not None:
        of_folds, n_folds = paired.variance_over(fold)
        variance, df = np.maximum(total, of_folds), np.maximum(n_folds - 1.0, 1.0)
        return MethodEstimate(Estimate(paired.estimates, variance, df), "folds and seeds")
    squares = of_patients**2 / np.maximum(n_patients - 1, 1)
    squares += sum(variance**2 / (len(of) - 1) for variance, of in zip(of_trainings, values, strict=True))
    df = np.divide(total**2, squares, out=np.ones(total.shape), where=squares > 0)
    df = np.minimum(df, sum(map(len, values)) - 1)
    return MethodEstimate(Estimate(paired.estimates, total, df), "seeds")


def _training_variance(paired: Paired, values: NDArray[np.float64], fold: NDArray[np.intp]) -> NDArray[np.float64]:
    """The contribution of one method's trainings to the variance of its mean over trainings, (n_endpoints,)."""
    n_trainings = len(values)
    counted = ~np.isnan(paired.differences)
    centre = np.nanmean(np.where(counted, values, 0.0), axis=0)
    deviations = [sum_by(paired.endpoint_sums(np.where(counted, one - centre, 0.0)), fold) for one in values]
    return (np.array(deviations) ** 2).sum(axis=(0, 1)) / (n_trainings * (n_trainings - 1))


def fold_differences(
    paired: Paired, values: tuple[NDArray[np.float64], NDArray[np.float64]], folds: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Mean difference in each fold of each cross-validation, (n_repeats, n_folds, n_endpoints).

    With the same folds for every seed there is one repeat, of the means over seeds. NaN without a pair.
    """
    repeats = [paired.differences] if len(folds) == 1 else list(values[1] - values[0])
    n_folds = len(np.unique(folds))
    result = np.full((len(folds), n_folds, paired.differences.shape[1] + 1), np.nan)
    for repeat, (differences, of_cases) in enumerate(zip(repeats, folds, strict=True)):
        for index, fold in enumerate(np.unique(folds)):
            result[repeat, index] = Paired(differences[of_cases == fold], paired.patients[of_cases == fold]).estimates
    return result


def nadeau_bengio(differences: NDArray[np.float64]) -> Estimate:
    """The mean over folds, with a variance that allows for folds sharing training cases.

    Args:
        differences: (n_repeats, n_folds, n_endpoints) as `fold_differences` gives them.

    Source:
        Nadeau and Bengio 2003, Machine Learning 52(3), section 4.1; for repeated cross-validation Bouckaert and Frank
        2004, PAKDD: variance (1/(kr) + 1/(k-1)) s², kr - 1 degrees of freedom.
    """
    n_repeats, n_folds, n_endpoints = differences.shape
    flat = differences.reshape(-1, n_endpoints)
    n_values = n_repeats * n_folds
    factor = 1 / n_values + 1 / (n_folds - 1)
    return Estimate(flat.mean(axis=0), factor * flat.var(axis=0, ddof=1), np.full(n_endpoints, n_values - 1.0))


def posterior(estimate: Estimate, margin: float, sign: int) -> NDArray[np.float64]:
    """Probabilities that the second method is worse, practically equal and better, (3, n_endpoints).

    Args:
        estimate: Of `nadeau_bengio`.
        margin: Differences up to it are practically none (region of practical equivalence).
        sign: 1 if more is better, else -1.

    Source:
        Corani and Benavoli 2015, Machine Learning 100(2): the correlated t-test with correlation 1/k, closed form.
    """
    error = np.sqrt(estimate.variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        below = stats.t.cdf((-margin - sign * estimate.value) / error, estimate.df)
        above = stats.t.sf((margin - sign * estimate.value) / error, estimate.df)
    return np.array([below, 1 - below - above, above])
