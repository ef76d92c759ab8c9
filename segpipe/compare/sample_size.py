"""Numbers of patients: for an interval of some width, and for a difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from segpipe.compare.permutation import ALPHA
from segpipe.compare.verdict_sentences import TOLERATED_RATE, largest_rate
from segpipe.core.errors import DataError
from segpipe.core.text import count
from segpipe.evaluate.intervals import FEWEST_PATIENTS

MOST_PATIENTS = 1_000_000


@dataclass(frozen=True)
class VarianceComponents:
    """Variance components of scores, in the unit of the metric.

    Args:
        n_cases, n_patients: Of the pilot.
        sd_patients: SD between patients.
        sd_cases: SD of the cases of a patient; 0 if every patient has one, whose SD is then part of `sd_patients`.
        icc: Share of the variance that patients explain, 0 to 1; None if every patient has one case.
    """

    n_cases: int
    n_patients: int
    sd_patients: float
    sd_cases: float
    icc: float | None

    def variance(self, cases_of_patient: int) -> float:
        """Variance of a patient's mean over so many cases."""
        return self.sd_patients**2 + self.sd_cases**2 / cases_of_patient


def spread_of(values: NDArray[np.float64], patients: NDArray[np.intp]) -> VarianceComponents:
    """Variance components of a one-way layout.

    Args:
        values: (n_cases,) scores or differences; NaN is left out.
        patients: (n_cases,) number of the patient of each case.

    Raises:
        DataError: If there are fewer than two patients, or all values are equal.

    Source:
        Donner 1986, Int. Stat. Rev. 54(1): ANOVA estimator for groups of unequal size; a negative variance is 0.
    """
    known = ~np.isnan(values)
    values, owner = values[known], np.unique(patients[known], return_inverse=True)[1]
    sizes = np.bincount(owner) if len(owner) else np.zeros(0, int)
    n_patients, n_cases = len(sizes), len(values)
    if n_patients < 2:
        raise DataError(f"{count(n_patients, 'patient')} with a score, expected 2 or more: their spread is not known. "
                        "Score more patients.")  # fmt: skip
    if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        raise DataError(f"all {count(n_cases, 'value')} are equal: their spread is not known. Use other scores.")
    means = np.bincount(owner, values) / sizes
    if n_cases == n_patients:
        return VarianceComponents(n_cases, n_patients, float(means.std(ddof=1)), 0.0, None)
    within = float(((values - means[owner]) ** 2).sum() / (n_cases - n_patients))
    between = float((sizes * (means - values.mean()) ** 2).sum() / (n_patients - 1))
    n_typical = (n_cases - float((sizes**2).sum()) / n_cases) / (n_patients - 1)
    own = max((between - within) / n_typical, 0.0)
    return VarianceComponents(n_cases, n_patients, sqrt(own), sqrt(within), own / (own + within))


def half_width(variance: float, n_patients: int) -> float:
    """Expected half-width of the 95 % interval of a mean of n patients whose means have this variance.

    It is that of t with segpipe's factor sqrt(n / (n - 1)); intervals of skewed scores are wider at few patients.
    """
    n = n_patients
    return float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * sqrt(n / (n - 1)) * sqrt(variance / n)


def patients_for_half_width(variance: float, wanted: float) -> int:
    """Smallest number of patients whose interval has this half-width or a smaller one; `MOST_PATIENTS` at most."""
    return _smallest(lambda n: half_width(variance, n) <= wanted, FEWEST_PATIENTS)


def patients_for_difference(variance: float, difference: float, power: float) -> int:
    """Smallest number of patients with which a t-test at 5 % finds a mean difference with this power.

    Source:
        Noncentral t, e.g. Cohen 1988, Statistical Power Analysis, section 2.
    """

    def has_power(n: int) -> bool:
        limit, shift = stats.t.ppf(1 - ALPHA / 2, n - 1), abs(difference) * sqrt(n / variance)
        return float(stats.nct.sf(limit, n - 1, shift)) >= power

    return _smallest(has_power, FEWEST_PATIENTS)


def patients_for_verdict(difference: float, worst_loss: float) -> int:
    """Smallest number of patients without a failure that leaves "better" open: see `verdict_sentences`."""
    return _smallest(
        lambda n: (rate := largest_rate(0, n)) <= TOLERATED_RATE or rate * worst_loss < abs(difference), FEWEST_PATIENTS
    )


def limits_of_variance(variance: float, n_patients: int) -> tuple[float, float]:
    """95 % interval of a variance estimated from so many patients, as if their means were normal."""
    df = n_patients - 1
    return df * variance / float(stats.chi2.ppf(0.975, df)), df * variance / float(stats.chi2.ppf(0.025, df))


def _smallest(is_enough: Callable[[int], bool], first: int) -> int:
    """Smallest n from `first` for which it holds, if it holds for all larger ones; `MOST_PATIENTS` at most."""
    low, high = first - 1, first
    while high < MOST_PATIENTS and not is_enough(high):
        low, high = high, min(2 * high, MOST_PATIENTS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
