"""Numbers of patients and learning curves of `segpipe size`, on simulations whose truth is known.

    python benchmarks/simulate_size.py [N_SIMULATIONS]

Prints two tables. Half-widths: from a known spread the number of patients is computed, studies of that size are drawn,
and the mean half-width of segpipe's intervals is divided by the wanted one. Curves: how often the 95 % intervals hold
the true gain of doubling the training patients and of 20 more.
"""

from __future__ import annotations

import sys

import numpy as np

from segpipe.compare import learning_curve
from segpipe.compare.learning_curve import fit_curve
from segpipe.compare.sample_size import patients_for_half_width
from segpipe.evaluate.intervals import mean_with_interval

N_SIMULATIONS = 300
_LARGEST = 80
_SHARES = np.array([0.25, 0.5, 0.75, 1.0])


def ratio_of_half_widths(
    wanted: float, icc: float, n_scans: int, n_simulations: int, seed: int = 0
) -> tuple[int, float]:
    """Return the patients computed for a half-width, and the mean half-width with so many over the wanted one.

    Scores are normal with SD 0.1; `icc` of the variance lies between patients, who have `n_scans` each.
    """
    random = np.random.default_rng(seed)
    between, within = icc * 0.01, (1 - icc) * 0.01
    n = patients_for_half_width(between + within / n_scans, wanted)
    widths = []
    for _ in range(n_simulations):
        scores = random.normal(0.5, between**0.5, (n, 1)) + random.normal(0, within**0.5, (n, n_scans))
        found = mean_with_interval(scores.reshape(-1, 1), np.repeat(np.arange(n), n_scans))
        assert found.low is not None and found.high is not None
        widths.append((found.high - found.low) / 2)
    return n, float(np.mean(widths)) / wanted


def coverage_of_gains(exponent: float, n_folds: int, training_sd: float, n_simulations: int) -> tuple[float, float]:
    """Return how often the interval holds the gain of twice as many patients, and of 20 more.

    The error is 0.1 + 0.1 · (n / 20)^-exponent. A fold has its own difficulty (SD 0.01) and each training its luck.
    """
    random = np.random.default_rng([0, n_folds, int(10 * exponent), int(1000 * training_sd)])
    sizes = _LARGEST * _SHARES

    def truth(n: float) -> float:
        return float(0.1 + 0.1 * (n / 20) ** -exponent)

    held = np.zeros(2)
    for _ in range(n_simulations):
        errors = np.array([truth(n) for n in sizes]) + random.normal(0, 0.01, (n_folds, 1))
        errors = errors + random.normal(0, training_sd, errors.shape)
        curve = fit_curve(sizes.tolist(), errors, random, 1.0)
        for place, n_more in enumerate((_LARGEST, 20)):
            _, low, high = curve.gain(_LARGEST, n_more)
            held[place] += low <= truth(_LARGEST) - truth(_LARGEST + n_more) <= high
    doubled, twenty = (held / n_simulations).tolist()
    return doubled, twenty


def main(n_simulations: int = N_SIMULATIONS) -> None:
    """Print both tables."""
    print(f"{n_simulations} simulations each, seed 0; standard error of a share of 95 %: "
          f"{(0.0475 / n_simulations) ** 0.5:.3f}.\n")  # fmt: skip
    print(
        "| wanted half-width | ICC | scans of a patient | patients | mean half-width / wanted |\n|---|---|---|---|---|"
    )
    for wanted, icc, n_scans in ((0.08, 1.0, 1), (0.05, 1.0, 1), (0.03, 1.0, 1), (0.02, 1.0, 1), (0.03, 0.7, 2),
                                 (0.03, 0.3, 4)):  # fmt: skip
        n, ratio = ratio_of_half_widths(wanted, icc, n_scans, n_simulations)
        print(f"| {wanted:g} | {icc:g} | {n_scans} | {n} | {ratio:.3f} |", flush=True)
    learning_curve.FEWEST_FOLDS = 2  # to see why two are refused
    print("\n| exponent | folds | training SD | gain of twice as many | of 20 more |\n|---|---|---|---|---|")
    for exponent in (0.3, 0.5, 1.0):
        for n_folds, training_sd in ((2, 0.01), (3, 0.01), (5, 0.005), (5, 0.01), (5, 0.02), (10, 0.01)):
            doubled, twenty = coverage_of_gains(exponent, n_folds, training_sd, n_simulations)
            print(f"| {exponent} | {n_folds} | {training_sd} | {doubled:.3f} | {twenty:.3f} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
