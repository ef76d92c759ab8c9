"""Turn the results of tests into a plain sentence."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, nan

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from segpipe.compare.comparison_records import Answer, Verdict
from segpipe.compare.permutation import ALPHA
from segpipe.core.records import finite_or_none
from segpipe.core.text import count
from segpipe.evaluate.metrics import SHOWN_UNITS, Metric, number_text
from segpipe.evaluate.summary import MEAN_LABEL

# A test on differences takes the sample for the whole: ten patients without a failure say nothing of a failure in one
# patient of ten, which can outweigh everything that was seen. A verdict therefore has to survive the rates that are
# still possible: failures that none had, and more losses like the ones that a few had.

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


@dataclass(frozen=True)
class Evidence:
    """The numbers behind a verdict; NaN where nothing can be said. Differences are second method minus first.

    Args:
        baseline, method: The first and the second.
        label: Structure, or `(mean)`.
        metric: Of the scores.
        margin: Largest difference that counts as none, in the metric's unit.
        about: `models` or `methods`.
        difference, low, high: Mean difference and its 95 % interval.
        equivalence_low, equivalence_high: Its 90 % interval.
        unseen: Failures that the patients leave open.
        p_value, p_adjusted: Of no difference.
        p_equivalence, p_equivalence_adjusted: Of a difference of the margin or more.
        detectable: Smallest true difference that four of five such datasets would show.
    """

    baseline: str
    method: str
    label: str
    metric: Metric
    margin: float
    about: str
    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    p_equivalence: float
    p_equivalence_adjusted: float
    detectable: float
    equivalence_low: float = nan
    equivalence_high: float = nan
    unseen: Unseen = NOTHING_OPEN


def verdict(found: Evidence) -> Verdict:
    """Better, worse, no difference larger than the margin, or that the data cannot tell.

    Equivalence comes first: a difference surely smaller than the stated margin is none, however certain. Each answer
    must survive the failures that so many patients cannot exclude.
    """
    answer = answer_of(found)
    return Verdict(
        answer=answer,
        sentence=_sentence(found, answer),
        equivalence_low=finite_or_none(found.equivalence_low),
        equivalence_high=finite_or_none(found.equivalence_high),
        unseen_rate=found.unseen.rate if found.unseen.n_patients else None,
        p_value=finite_or_none(found.p_value),
        p_adjusted=finite_or_none(found.p_adjusted),
        p_equivalence=finite_or_none(found.p_equivalence),
        p_equivalence_adjusted=finite_or_none(found.p_equivalence_adjusted),
        low=finite_or_none(found.low),
        high=finite_or_none(found.high),
        detectable=finite_or_none(found.detectable),
    )


def answer_of(found: Evidence) -> Answer:
    """The answer alone."""
    unseen = found.unseen
    if found.p_equivalence_adjusted < ALPHA and unseen.unseen_cost < found.margin:
        return "no difference"
    if found.p_adjusted < ALPHA and max(unseen.unseen_cost, unseen.tail_cost) < abs(found.difference):
        is_better = found.difference * (1 if found.metric.kind == "overlap" else -1) > 0
        return "better" if is_better else "worse"
    return "cannot tell"


def quantity(value: float, metric: Metric, *, signed: bool = False) -> str:
    """A value of a metric as people read it, e.g. `+0.0043` or `1.25 mm`."""
    if not isfinite(value):
        return "undefined"
    n_decimals = 4 if metric.unit == "1" else None
    return f"{number_text(value, metric.unit, signed, n_decimals)} {SHOWN_UNITS[metric.unit]}".rstrip()


def p_text(p_value: float | None) -> str:
    """A p-value as people read it."""
    if p_value is None or not isfinite(p_value):
        return "p –"
    return "p < 0.0001" if p_value < 1e-4 else f"p {p_value:.4f}" if p_value < 0.1 else f"p {p_value:.2f}"


def _sentence(found: Evidence, answer: Answer) -> str:
    metric = found.metric
    what = f"mean {metric.title}" if found.label == MEAN_LABEL else f"{metric.title} of {found.label}"
    numbers = f"{what} {quantity(found.difference, metric, signed=True)}"
    is_none = answer == "no difference"
    limits, p_value, p_adjusted = (found.low, found.high), found.p_value, found.p_adjusted
    if is_none:
        limits, p_value = (found.equivalence_low, found.equivalence_high), found.p_equivalence
        p_adjusted = found.p_equivalence_adjusted
    if all(map(isfinite, limits)):
        low, high = (quantity(limit, metric, signed=True) for limit in limits)
        numbers += f", {90 if is_none else 95} % interval {low} to {high}"
    if isfinite(p_value):
        numbers += f", {p_text(p_value)}" + (f", corrected {p_text(p_adjusted)}" if p_adjusted != p_value else "")
    is_about_models = found.about == "models"
    if answer in ("better", "worse"):
        who, verb, those = ("The trained models of ", "are", "those of ") if is_about_models else ("", "is", "")
        return f"{who}{found.method} {verb} {answer} than {those}{found.baseline} ({numbers}).{_open_rate(found)}"
    who = "the trained models of " if is_about_models else ""
    if is_none:
        both = f"{who.capitalize()}{found.method} and {found.baseline}"
        small = ", a certain but smaller difference" if found.p_adjusted < ALPHA else ""
        return f"{both} differ by no more than {quantity(found.margin, metric)} ({numbers}{small}).{_open_rate(found)}"
    shows = f"; it could detect {quantity(found.detectable, metric)}" if isfinite(found.detectable) else ""
    those = "those of " if is_about_models else ""
    if min(found.p_adjusted, found.p_equivalence_adjusted) < ALPHA:
        shows = f": {_open_text(found)}"
    return f"This dataset cannot tell {who}{found.method} from {those}{found.baseline} ({numbers}){shows}."


def _open_rate(found: Evidence) -> str:
    """The rate of failures that a claim leaves open."""
    unseen = found.unseen
    if not unseen.n_patients:
        return ""
    return f" {count(unseen.n_patients, 'patient')} cannot exclude failures in up to {100 * unseen.rate:.1f} %."


def _open_text(found: Evidence) -> str:
    """The reason why tests that are significant give no verdict."""
    unseen = found.unseen
    if unseen.rate > TOLERATED_RATE:
        return f"{count(unseen.n_patients, 'patient')} cannot exclude failures in up to {100 * unseen.rate:.0f} %"
    patients = f"{unseen.n_tail} of {count(unseen.n_patients, 'patient')}"
    loss = quantity(unseen.tail_loss, found.metric)
    return f"{patients} lose up to {loss}, and such losses may occur in up to {100 * unseen.tail_rate:.1f} %"
