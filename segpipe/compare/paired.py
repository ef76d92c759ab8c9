"""One method against another on the same cases: differences, and how sure they are for these trained models.

Everything is linear in the cases: a difference of means is a sum of one contribution for each case. Sign flips, robust
variances and fold terms are then sums over patients or folds of the same matrix, for all labels at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from segpipe.compare.permutation import ALPHA, MAX_EXACT_PATIENTS, sign_flip_p_values

_POWER = 0.8  # with which the smallest detectable difference is detected
_MIN_APPROXIMATE = 50  # Wilcoxon's exact distribution below, without ties
_ROUNDING = 1e-9  # relative; a smaller spread is rounding


@dataclass(frozen=True)
class Paired:
    """Differences of two methods in the metric's unit. Endpoints are the labels, then the mean over labels.

    Args:
        differences: (n_cases, n_labels); NaN where the policy leaves out one of the two scores.
        patients: (n_cases,) number of each case's patient, from 0.
    """

    differences: NDArray[np.float64]
    patients: NDArray[np.intp]

    @cached_property
    def n_cases(self) -> NDArray[np.intp]:
        """(n_endpoints,) pairs."""
        has_value = ~np.isnan(self.differences)
        return np.append(has_value.sum(axis=0), has_value.any(axis=1).sum())

    @cached_property
    def estimates(self) -> NDArray[np.float64]:
        """(n_endpoints,) mean differences; NaN without a pair."""
        return np.where(self.n_cases > 0, self.endpoint_sums(self.differences).sum(axis=0), np.nan)

    def endpoint_sums(self, of_cases: NDArray[np.float64]) -> NDArray[np.float64]:
        """Contribution of each case to endpoints' means, (n_cases, n_endpoints), of (n_cases, n_labels); NaN adds 0."""
        n_pairs = self.n_cases[:-1]
        shares = np.nan_to_num(of_cases) / np.maximum(n_pairs, 1)
        return np.column_stack([shares, shares.sum(axis=1) / max(1, np.count_nonzero(n_pairs))])

    @cached_property
    def by_patient(self) -> NDArray[np.float64]:
        """(n_patients, n_endpoints) what each patient adds to the mean differences."""
        return sum_by(self.endpoint_sums(self.differences), self.patients)

    @cached_property
    def shares_by_patient(self) -> NDArray[np.float64]:
        """(n_patients, n_endpoints) weight of each patient in the mean differences; columns sum to 1."""
        return sum_by(self.endpoint_sums(np.where(np.isnan(self.differences), np.nan, 1.0)), self.patients)

    @cached_property
    def influences(self) -> NDArray[np.float64]:
        """(n_cases, n_endpoints) what each case's deviation from the mean adds; columns sum to 0."""
        return self.endpoint_sums(self.differences - self.estimates[:-1])

    def variance_over(self, clusters: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Variance of the estimates if clusters are independent, and how many have a pair; both (n_endpoints,).

        Source:
            Liang and Zeger 1986, Biometrika 73(1), with the factor G/(G-1). NaN for fewer than two clusters.
        """
        has_value = ~np.isnan(self.differences)
        counted = np.column_stack([has_value, has_value.any(axis=1)]).astype(float)
        n_clusters = (sum_by(counted, clusters) > 0).sum(axis=0)
        squares = (sum_by(self.influences, clusters) ** 2).sum(axis=0)
        squares[np.sqrt(squares) <= _ROUNDING * np.abs(self.estimates)] = 0.0  # a constant difference has no spread
        return np.where(n_clusters > 1, squares * n_clusters / np.maximum(n_clusters - 1, 1), np.nan), n_clusters

    @cached_property
    def patient_means(self) -> NDArray[np.float64]:
        """(n_patients, n_endpoints) mean difference of each patient; NaN without a pair."""
        of_cases = np.column_stack([self.differences, mean_of_numbers(self.differences, 1)])
        number = sum_by((~np.isnan(of_cases)).astype(float), self.patients)
        sums = sum_by(np.nan_to_num(of_cases), self.patients)
        return np.where(number > 0, sums / np.maximum(number, 1), np.nan)


@dataclass(frozen=True)
class Estimate:
    """A difference with what is needed for tests and intervals; arrays (n_endpoints,).

    Args:
        value: Mean difference; NaN without a pair.
        variance: Of `value`; NaN if it cannot be estimated.
        df: Degrees of freedom of `variance`.
    """

    value: NDArray[np.float64]
    variance: NDArray[np.float64]
    df: NDArray[np.float64]

    @property
    def p_values(self) -> NDArray[np.float64]:
        """Two-sided t-test against 0."""
        return 2 * self._tail(np.abs(self.value))

    @property
    def half_widths(self) -> NDArray[np.float64]:
        """Half width of the 95 % interval."""
        return stats.t.ppf(1 - ALPHA / 2, self.df) * np.sqrt(self.variance)

    @property
    def equivalence_half_widths(self) -> NDArray[np.float64]:
        """Half width of the 90 % interval, which lies within the margin where `equivalence_p_values` are below 5 %."""
        return stats.t.ppf(1 - ALPHA, self.df) * np.sqrt(self.variance)

    def equivalence_p_values(self, margin: float) -> NDArray[np.float64]:
        """Two one-sided t-tests: p of "the difference is `margin` or more, in either direction".

        Source:
            Schuirmann 1987, J. Pharmacokinet. Biopharm. 15(6).
        """
        return self._tail(margin - np.abs(self.value))

    @property
    def detectable(self) -> NDArray[np.float64]:
        """Smallest true difference that the two-sided 5 % test finds in four of five datasets; NaN without spread."""
        quantiles = stats.t.ppf(1 - ALPHA / 2, self.df) + stats.t.ppf(_POWER, self.df)
        return np.where(self.variance > 0, quantiles * np.sqrt(self.variance), np.nan)

    def _tail(self, distance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Upper tail of t at `distance` standard errors; without variance 0 beyond the border, 0.5 on it, 1 before."""
        error = np.sqrt(self.variance)
        certain = 0.5 * (1 - np.sign(distance))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(error > 0, stats.t.sf(distance / error, self.df), np.where(error == 0, certain, np.nan))


def model_estimate(paired: Paired) -> Estimate:
    """The difference of these trained models, patients varying."""
    variance, n_patients = paired.variance_over(paired.patients)
    return Estimate(paired.estimates, variance, np.maximum(n_patients - 1.0, 1.0))


def wilcoxon_p_values(paired: Paired) -> NDArray[np.float64]:
    """Signed-rank test on patients' mean differences, (n_endpoints,); 1 if all are 0, NaN without any.

    Exact up to 20 patients, with ties too, and up to 50 without; else the normal approximation.

    Source:
        Wilcoxon 1945, Biometrics Bulletin 1(6); differences of 0 are left out, as there.
    """
    return np.array([_wilcoxon(column[~np.isnan(column)]) for column in paired.patient_means.T])


def _wilcoxon(differences: NDArray[np.float64]) -> float:
    if not differences.size:
        return float("nan")
    largest = np.abs(differences).max()
    rounded = np.round(differences / largest, 9) if largest > 0 else differences  # equal on paper is a tie
    nonzero = rounded[rounded != 0]
    if not nonzero.size:
        return 1.0
    if len(nonzero) <= MAX_EXACT_PATIENTS:
        signed_ranks = np.sign(nonzero) * stats.rankdata(np.abs(nonzero))
        return float(sign_flip_p_values(signed_ranks[:, None], np.random.default_rng(0))[0])
    has_ties = len(np.unique(np.abs(nonzero))) < len(nonzero)
    method = "approx" if has_ties or len(nonzero) > _MIN_APPROXIMATE else "exact"
    return float(stats.wilcoxon(nonzero, method=method).pvalue)


@dataclass(frozen=True)
class Effect:
    """Size of a difference relative to the spread of patients.

    Args:
        standardised: Mean over patients of their mean difference over its SD (Cohen's d of pairs); None without spread.
        probability_of_improvement: Share of patients whose mean improves, ties counting half; 0 to 1.
        cliffs_delta: P(second better) - P(second worse) of a patient drawn for each method; -1 to 1.
    """

    standardised: float | None
    probability_of_improvement: float
    cliffs_delta: float


def effect_of(first: NDArray[np.float64], second: NDArray[np.float64], sign: int) -> Effect | None:
    """Effect sizes, positive if the second method is better.

    Args:
        first: (n_patients,) mean score of each patient; NaN is left out.
        second: The same of the second method.
        sign: 1 if more is better, else -1.

    Returns:
        None without a patient.

    Source:
        Cliff 1993, Psychol. Bull. 114(3).
    """
    counted = ~np.isnan(first) & ~np.isnan(second)
    if not counted.any():
        return None
    a, b = np.sort(sign * first[counted]), sign * second[counted]
    gains = b - sign * first[counted]
    spread = float(np.std(gains, ddof=1)) if len(gains) > 1 else 0.0
    rounding = max(_ROUNDING * abs(float(gains.mean())), 1e-12 * float(np.abs([a, b]).max()))
    return Effect(
        standardised=float(gains.mean()) / spread if spread > rounding else None,
        probability_of_improvement=float(np.mean(gains > 0) + 0.5 * np.mean(gains == 0)),
        cliffs_delta=float((np.searchsorted(a, b, "left") + np.searchsorted(a, b, "right")).mean() / len(a) - 1),
    )


def sum_by(rows: NDArray[np.float64], groups: NDArray[np.intp]) -> NDArray[np.float64]:
    """Sums of rows with the same group number, (largest number + 1, n_columns)."""
    result = np.zeros((int(groups.max()) + 1, rows.shape[1]))
    np.add.at(result, groups, rows)
    return result


def mean_of_numbers(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean over one axis of what is not NaN; NaN where nothing is."""
    n_values = (~np.isnan(values)).sum(axis=axis)
    return np.where(n_values > 0, np.nan_to_num(values).sum(axis=axis) / np.maximum(n_values, 1), np.nan)
