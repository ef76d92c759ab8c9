"""Bias of the calibration error and coverage of its interval, on simulated patients whose truth is known.

    python benchmarks/simulate_calibration.py [N_SIMULATIONS]

Patients differ from each other: the frequency behind a probability is right on average, shifted in each by a probit of
SD 0.3. Logits are too large by the temperature; at 1 the true gap is 0. `Kumar` is the debiased error of Kumar et al.
2019 with patients instead of voxels as units. `planted` is the share of simulations whose fitted temperature is within
one step (12 %) of the planted one.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import norm

from segpipe.evaluate.calibration import N_BINS
from segpipe.evaluate.reliability import TEMPERATURES, fit_temperature, reliability

N_SIMULATIONS = 1000
N_PATIENTS = (5, 7, 10, 20, 50, 100)
PLANTED = (1.0, 2**0.25, 2**0.5, 2.0)
_N_VOX, _SPREAD, _N_TRUTH = 400, 0.3, 20_000
Parts = list[NDArray[np.float64]]


def draw(random: np.random.Generator, n_patients: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Draw right logits (n_patients, voxels), and where the label is."""
    p = random.beta(0.35, 0.35, (n_patients, _N_VOX)).clip(1e-6, 1 - 1e-6)
    shift = _SPREAD * random.normal(size=(n_patients, 1))
    return logit(p), random.random(p.shape) < ndtr(ndtri(p) * np.sqrt(1 + _SPREAD**2) + shift)


def by_bin(logits: NDArray[np.float64], is_true: NDArray[np.bool_]) -> Parts:
    """Shares of voxels, of true ones, and sums of probabilities, each (n_patients, bins)."""
    p = expit(logits)
    at = np.minimum((p * N_BINS).astype(int), N_BINS - 1) + N_BINS * np.arange(len(p))[:, None]
    weights = (None, is_true.ravel(), p.ravel())
    return [np.bincount(at.ravel(), w, N_BINS * len(p)).reshape(len(p), N_BINS) / p.shape[1] for w in weights]


def kumar(parts: Parts) -> float:
    """Debiased error: the mean of a folded normal about each gap tells how much chance adds."""
    gaps = parts[2] - parts[1]
    mean, se = np.abs(gaps.mean(axis=0)), gaps.std(axis=0, ddof=1) / np.sqrt(len(gaps)) + 1e-12
    folded = se * np.sqrt(2 / np.pi) * np.exp(-0.5 * (mean / se) ** 2) + mean * (1 - 2 * norm.cdf(-mean / se))
    return float((2 * mean - folded).sum())


def nll_of(logits: NDArray[np.float64], is_true: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n_patients, temperatures, 1) mean −ln(probability of the truth)."""
    signed = np.where(is_true, logits, -logits)
    return np.stack([np.logaddexp(0, -signed / t).mean(axis=1) for t in TEMPERATURES], axis=1)[..., None]


def simulate(planted: float, n_patients: int, n_simulations: int, truth: float) -> list[float]:
    """Means of the three errors, coverage, width of the interval, and how often the temperature is found."""
    rows = []
    for seed in range(n_simulations):
        logits, is_true = draw(np.random.default_rng((seed, n_patients, round(1000 * planted))), n_patients)
        parts = by_bin(logits * planted, is_true)
        found = reliability(*parts)
        assert found.low is not None and found.high is not None
        fitted = TEMPERATURES[fit_temperature(nll_of(logits * planted, is_true))]
        is_covered = found.low <= truth <= found.high
        is_found = abs(np.log2(fitted / planted)) < 1.01 / 6
        rows.append((found.ece, found.ece_debiased, kumar(parts), is_covered, found.high - found.low, is_found))
    return np.mean(rows, axis=0).tolist()


def main() -> None:
    """Print one row for each temperature and number of patients."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else N_SIMULATIONS
    print(f"{n} simulations; Monte-Carlo error of a coverage of 95 %: {100 * np.sqrt(0.95 * 0.05 / n):.1f} points\n")
    print("| temperature | patients | true ECE | ECE | debiased | Kumar | coverage | width | planted |")
    print("|---|---|---|---|---|---|---|---|---|")
    for planted in PLANTED:
        logits, is_true = draw(np.random.default_rng(0), _N_TRUTH)
        truth = 0.0 if planted == 1 else reliability(*by_bin(logits * planted, is_true)).ece
        for n_patients in N_PATIENTS:
            ece, debiased, of_kumar, coverage, width, found = simulate(planted, n_patients, n, truth)
            errors = " | ".join(f"{value:.4f}" for value in (truth, ece, debiased, of_kumar))
            print(
                f"| {planted:.2f} | {n_patients} | {errors} | {coverage:.3f} | {width:.4f} | {found:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
