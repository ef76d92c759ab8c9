"""Failures that n patients cannot exclude: those that none of them had, and more losses like the ones that a few had.

A test on differences takes the sample for the whole: ten patients without a failure say nothing of a failure in one
patient of ten, which can outweigh everything that was seen. A verdict therefore has to survive the rates that are still
possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95  # one-sided, of every rate
TOLERATED_RATE = 0.03  # an unseen failure may be this rare; verdicts name the rate. 99 patients reach it
_TAIL = 0.5  # patients who lose at least this part of the largest loss belong to the tail


@dataclass(frozen=True)
class Unseen:
    """Rates of failures that the patients of a comparison leave open.

    Args:
        n_patients: Patients with a pair of scores.
        rate: Largest rate of a failure that none of them had.
        loss: What such a failure may cost, in the metric's unit; inf if unknown.
        n_tail: Patients who lose about as much as the one who loses most, against the sign of the mean difference.
        tail_rate: Largest rate of such patients.
        tail_loss: The largest loss; 0 if no patient loses.
    """

    n_patients: int
    rate: float
    loss: float
    n_tail: int
    tail_rate: float
    tail_loss: float

    @property
    def unseen_cost(self) -> float:
        """Largest amount that unseen failures may add to a mean difference; 0 if only tolerated rates are open."""
        return self.rate * self.loss if self.rate > TOLERATED_RATE else 0.0

    @property
    def tail_cost(self) -> float:
        """Part of the mean difference that is lost if losses like the largest are as frequent as they may be."""
        return (self.tail_rate - self.n_tail / max(self.n_patients, 1)) * self.tail_loss


def largest_rate(n_failures: int, n_patients: int) -> float:
    """One-sided 95 % limit of a rate, 1 without patients.

    Source:
        Clopper and Pearson 1934, Biometrika 26(4). Without failures it is 1 - 0.05^(1/n).

    Example:
        >>> round(largest_rate(0, 10), 2), round(largest_rate(0, 100), 3)
        (0.26, 0.03)
    """
    if n_failures >= n_patients:
        return 1.0
    return float(stats.beta.ppf(CONFIDENCE, n_failures + 1, n_patients - n_failures))


def unseen_failures(differences: NDArray[np.float64], loss: float) -> Unseen:
    """Find the rates that the differences of patients leave open.

    Args:
        differences: (n_patients,) mean difference of each patient; NaN without a pair.
        loss: What a failure may cost.
    """
    known = differences[~np.isnan(differences)]
    losses = -known * np.sign(known.mean()) if known.size else known
    worst = max(float(losses.max(initial=0.0)), 0.0)
    n_tail = int((losses >= _TAIL * worst).sum()) if worst > 0 else 0
    n_patients = len(known)
    return Unseen(n_patients, largest_rate(0, n_patients), loss, n_tail, largest_rate(n_tail, n_patients), worst)


NOTHING_OPEN = Unseen(0, 0.0, inf, 0, 0.0, 0.0)  # e.g. for verdicts that do not rest on patients
