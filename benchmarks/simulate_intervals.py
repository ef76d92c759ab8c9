"""Coverage of the intervals of one method, on samples whose truth is known.

    python benchmarks/simulate_intervals.py [N_SIMULATIONS [POPULATION]]

How often 95 % intervals hold the true value: of means, beside other constructions from the same resamples; of medians;
of failure rates. `note` is how often a note says that one patient decides the mean. Last, how often the largest gap
between groups of one population is significant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

from segpipe.evaluate.groups import gap_test
from segpipe.evaluate.intervals import mean_with_interval, median_interval, patient_weights, rate_interval

N_SIMULATIONS = 1000
_N_RESAMPLES = 1999  # of the constructions that segpipe does not use
N_PATIENTS = (5, 7, 10, 20, 30, 50, 100)
RATES = (0.01, 0.03, 0.05, 0.1, 0.2)
_Z = float(ndtri(0.975))
_DIAGONAL_MM = 350.0
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """Scores of patients.

    Args:
        draw: Scores (n_patients, n_cases_of_each) from a number of patients and a generator.
        mean, median: True ones.
        highest: Largest value that a score can have; the smallest is 0.
    """

    draw: Callable[[int, np.random.Generator], Values]
    mean: float
    median: float
    highest: float


def _dice(shape: tuple[int, ...], random: np.random.Generator) -> Values:
    return random.beta(14, 1.6, shape)


def _failing_dice(n: int, random: np.random.Generator) -> Values:
    return np.where(random.random((n, 1)) < 0.07, random.uniform(0, 0.3, (n, 1)), _dice((n, 1), random))


def _pairs_of_dice(n: int, random: np.random.Generator) -> Values:
    """Two scans of each patient, correlated by 0.7 (Gaussian copula)."""
    normal = random.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], n)
    return np.asarray(stats.beta.ppf(ndtr(normal), 14, 1.6))


def _distance(n: int, random: np.random.Generator) -> Values:
    return random.lognormal(np.log(4), 0.9, (n, 1))


def _failing_distance(n: int, random: np.random.Generator) -> Values:
    return np.where(random.random((n, 1)) < 0.03, _DIAGONAL_MM, _distance(n, random))


_DICE_MEAN, _DICE_MEDIAN = 14 / 15.6, float(stats.beta.median(14, 1.6))
_DISTANCE_MEAN = 4 * float(np.exp(0.9**2 / 2))
POPULATIONS = {
    "Dice, skewed: Beta(14, 1.6)": Population(lambda n, r: _dice((n, 1), r), _DICE_MEAN, _DICE_MEDIAN, 1.0),
    "the same, two scans of each patient": Population(_pairs_of_dice, _DICE_MEAN, _DICE_MEDIAN, 1.0),
    "Dice, 7 % failures": Population(
        _failing_dice, 0.93 * _DICE_MEAN + 0.07 * 0.15, float(stats.beta.ppf(1 - 0.5 / 0.93, 14, 1.6)), 1.0
    ),
    "HD95, lognormal: median 4 mm, σ 0.9": Population(_distance, _DISTANCE_MEAN, 4.0, np.inf),
    "HD95, 3 % at the diagonal of 350 mm": Population(
        _failing_distance,
        0.97 * _DISTANCE_MEAN + 0.03 * _DIAGONAL_MM,
        float(stats.lognorm.ppf(0.5 / 0.97, 0.9, scale=4)),
        np.inf,
    ),
}


@lru_cache(maxsize=1)
def _weights(n: int) -> Values:
    return np.concatenate(list(patient_weights(n, 0)))[:_N_RESAMPLES]


def other_intervals(x: Values) -> dict[str, tuple[float, float]]:
    """Intervals of the mean of x (n,) that segpipe does not use."""
    n, mean = len(x), float(x.mean())
    error, t = float(x.std(ddof=1) / np.sqrt(n)), float(stats.t.ppf(0.975, n - 1))
    weights = _weights(n)
    means = weights @ x / n
    errors = np.sqrt(np.maximum(weights @ (x - mean) ** 2 / n - (means - mean) ** 2, 0) / (n - 1))
    known = errors > 1e-9 * error
    deviations = x - mean  # of left-out means, up to a factor
    acceleration = np.sum(deviations**3) / (6 * np.sum(deviations**2) ** 1.5)
    bias = ndtri(np.mean(means < mean) + 0.5 * np.mean(means == mean))

    def bca(z: float) -> tuple[float, float]:
        shifted = bias + np.array([-z, z])
        low, high = np.quantile(means, ndtr(bias + shifted / (1 - acceleration * shifted)))
        return float(low), float(high)

    low, high = np.quantile((means - mean)[known] / errors[known], [0.025, 0.975])
    logs = np.log(means[known] / mean) * means[known] / errors[known]
    log_low, log_high = np.quantile(logs, [0.025, 0.975]) * error / mean
    return {
        "t": (mean - t * error, mean + t * error),
        "BCa": bca(_Z),
        "expanded BCa": bca(t * np.sqrt(n / (n - 1))),
        "bootstrap-t": (mean - high * error, mean - low * error),
        "bootstrap-t of logs": (mean * np.exp(-log_high), mean * np.exp(-log_low)),
    }


def coverage_of_means(population: Population, n: int, n_simulations: int, seed: int = 0) -> dict[str, float]:
    """Share of samples whose interval holds the true mean, by construction; and the share with a note."""
    random = np.random.default_rng([seed, n])
    held: dict[str, list[bool]] = {}
    has_note = []
    for _ in range(n_simulations):
        scores = population.draw(n, random)
        patients = np.repeat(np.arange(n), scores.shape[1])
        found = mean_with_interval(scores.reshape(-1, 1), patients, limits=(0.0, population.highest))
        own = (found.low, found.high) if found.low is not None and found.high is not None else (np.nan, np.nan)
        has_note.append("one patient" in found.note)
        errors = population.highest < np.inf  # logs are taken of 1 - Dice
        x = scores.mean(axis=1)
        others = {
            name: (1 - limits[1], 1 - limits[0]) if errors else limits
            for name, limits in other_intervals(1 - x if errors else x).items()
        }
        for name, (low, high) in {"segpipe": own, **others}.items():
            held.setdefault(name, []).append(bool(low <= population.mean <= high))
    return {name: float(np.mean(of)) for name, of in held.items()} | {"note": float(np.mean(has_note))}


def coverage_of_medians(population: Population, n: int, n_simulations: int, seed: int = 0) -> float:
    """Share of samples whose interval holds the true median; NaN where there is none."""
    random = np.random.default_rng([seed, n])
    n_held = 0
    for _ in range(n_simulations):
        scores = population.draw(n, random)
        limits = median_interval(scores.ravel(), np.repeat(np.arange(n), scores.shape[1]))
        if limits is None:
            return float("nan")
        n_held += limits[0] <= population.median <= limits[1]
    return n_held / n_simulations


def coverage_of_rate(rate: float, n: int) -> float:
    """Probability that the interval of a failure rate holds it; exact, without simulation."""
    limits = np.array([rate_interval(k, n) for k in range(n + 1)])
    holds = (limits[:, 0] <= rate) & (rate <= limits[:, 1])
    return float(stats.binom.pmf(np.arange(n + 1), n, rate)[holds].sum())


GROUPS = ((8, 8), (8, 40), (20, 20, 20), (8, 8, 8, 8), (8, 12, 20, 40), (8, 8, 16, 16, 40, 40))


def false_gaps(sizes: tuple[int, ...], n_labels: int, n_simulations: int, seed: int = 0) -> float:
    """Share of samples without a difference between groups in which a gap of any label has p < 0.05."""
    random = np.random.default_rng([seed, *sizes])
    groups, found = np.repeat(np.arange(len(sizes)), sizes), 0
    for _ in range(n_simulations):
        values = _dice((len(groups), n_labels), random)
        test = gap_test(values, np.ones_like(values), groups, random, n_permutations=499)
        found += bool((test.p_values < 0.05).any())
    return found / n_simulations


def main(n_simulations: int = N_SIMULATIONS, only: str = "") -> None:
    """Print the tables of all populations, or of those whose name contains a word."""
    print(f"{n_simulations} simulations each, seed 0; standard error of a share of 95 %: "
          f"{(0.0475 / n_simulations) ** 0.5:.3f}, of 80 %: {(0.16 / n_simulations) ** 0.5:.3f}.")  # fmt: skip
    for name, population in ((name, one) for name, one in POPULATIONS.items() if only in name):
        print(f"\n### {name}\n")
        for index, n in enumerate(N_PATIENTS):
            found = coverage_of_means(population, n, n_simulations)
            if index == 0:
                print(f"| patients | {' | '.join(found)} | median |\n|---|{'---|' * (len(found) + 1)}")
            median = coverage_of_medians(population, n, n_simulations)
            shares = [*found.values(), median]
            print(f"| {n} | {' | '.join('–' if np.isnan(s) else f'{s:.3f}' for s in shares)} |", flush=True)
    print(f"\n### Failure rates, exact\n\n| patients | {' | '.join(f'{r:g}' for r in RATES)} |\n|---|{'---|' * 5}")
    for n in (*N_PATIENTS, 200):
        print(f"| {n} | {' | '.join(f'{coverage_of_rate(rate, n):.3f}' for rate in RATES)} |")

    print_gaps(n_simulations)


def print_gaps(n_simulations: int) -> None:
    """Print how often groups of one population are said to differ."""
    print("\n### Largest gap between groups that do not differ, p < 0.05\n")
    print("| patients | 1 label | 3 labels |\n|---|---|---|")
    for sizes in GROUPS:
        shares = " | ".join(f"{false_gaps(sizes, n_labels, n_simulations):.3f}" for n_labels in (1, 3))
        print(f"| {', '.join(map(str, sizes))} | {shares} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else N_SIMULATIONS, *sys.argv[2:3])
