"""Coverage of intervals and false alarms of tests, on simulated cross-validations whose truth is known.

    python benchmarks/simulate_compare.py [N_SIMULATIONS]

Prints two tables. Coverage: how often the 95 % interval of a mean holds the true mean, for scores like Dice.
Positives: how often a test at 5 % says that two methods differ; if they do not, that is the type I error.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.paired import ALPHA, Paired, wilcoxon_p_values
from segpipe.compare.permutation import sign_flip_p_values
from segpipe.compare.training_variance import fold_differences, method_estimate, nadeau_bengio
from segpipe.evaluate.intervals import mean_with_interval

N_SIMULATIONS = 2000
_N_PERMUTATIONS = 1999


@dataclass(frozen=True)
class Study:
    """Cross-validation of two methods; SDs are of the difference between them.

    Args:
        n_cases, n_folds, n_seeds: Size of the study; 1 fold is a test set, scored by every seed's model.
        case_sd: SD of a case's difference, the same for every training.
        training_sd: SD of a training (fold and seed): the luck of initialisation and order.
        shared_sd: SD common to all trainings: the choice of training cases.
        fold_sd: SD common to the seeds of a fold.
        difference: True difference.
        has_own_folds: Whether each seed has its own folds (repeated cross-validation).
    """

    n_cases: int = 100
    n_folds: int = 5
    n_seeds: int = 3
    case_sd: float = 0.05
    training_sd: float = 0.01
    shared_sd: float = 0.0
    fold_sd: float = 0.0
    difference: float = 0.0
    has_own_folds: bool = False


STUDIES = {
    "no training noise": Study(training_sd=0.0),
    "training SD 0.01": Study(),
    "+ shared 0.005": Study(shared_sd=0.005),
    "training SD 0.02": Study(training_sd=0.02),
    "400 cases, 0.005": Study(n_cases=400, training_sd=0.005),
    "fold SD 0.01 too": Study(fold_sd=0.01),
    "own folds": Study(has_own_folds=True),
    "test set": Study(n_folds=1),
    "true +0.01": Study(difference=0.01),
    "true +0.02": Study(difference=0.02),
}
TESTS = ("Wilcoxon", "permutation", "Nadeau-Bengio", "method")


def simulate(study: Study, random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Draw scores (2 methods, n_seeds, n_cases, 1 label) and folds (1 or n_seeds, n_cases)."""
    n_splits = study.n_seeds if study.has_own_folds else 1
    even = np.arange(study.n_cases) % study.n_folds
    folds = np.array([random.permutation(even) for _ in range(n_splits)])
    root = np.sqrt(2)
    scores = np.full((2, study.n_seeds, study.n_cases), 0.8)
    scores[1] += study.difference + random.normal(0, study.case_sd, study.n_cases)
    for of_method in scores:
        training = random.normal(0, study.training_sd / root, (study.n_seeds, study.n_folds))
        training += random.normal(0, study.shared_sd / root) + random.normal(0, study.fold_sd / root, study.n_folds)
        of_method += np.take_along_axis(training, np.broadcast_to(folds, of_method.shape), axis=1)
    return scores[..., None], folds


def p_values(study: Study, random: np.random.Generator) -> dict[str, float]:
    """Return the p-value of each test on one simulated study; NaN if there is none."""
    scores, folds = simulate(study, random)
    paired = Paired(scores[1].mean(axis=0) - scores[0].mean(axis=0), np.arange(study.n_cases))
    both, split = (scores[0], scores[1]), folds if study.n_folds > 1 else None
    found = method_estimate(paired, both, split)
    permuted = sign_flip_p_values(paired.by_patient, random, _N_PERMUTATIONS)
    by_fold = np.nan if split is None else nadeau_bengio(fold_differences(paired, both, split)).p_values[0]
    method = np.nan if found is None else found.estimate.p_values[0]
    return dict(zip(TESTS, map(float, (wilcoxon_p_values(paired)[0], permuted[0], by_fold, method)), strict=True))


def positives(study: Study, n_simulations: int, seed: int = 0) -> dict[str, float]:
    """Return the share of simulated studies in which each test finds a difference."""
    random = np.random.default_rng(seed)
    found = [p_values(study, random) for _ in range(n_simulations)]
    return {
        test: np.nan if np.isnan(found[0][test]) else float(np.mean([one[test] < ALPHA for one in found]))
        for test in TESTS
    }


def scores_like_dice(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float64]:
    """Draw a skewed bulk, 8 % failures and 2 % zeros; SD 0.2. Their mean is `TRUE_MEAN`."""
    kind = random.random(shape)
    bulk, failures = random.beta(18, 3, shape), random.uniform(0, 0.4, shape)
    return np.where(kind < 0.02, 0.0, np.where(kind < 0.1, failures, bulk))


TRUE_MEAN = 0.9 * 18 / 21 + 0.08 * 0.2


def coverage(n_patients: int, n_simulations: int, seed: int = 0) -> float:
    """Return how often the 95 % interval of the mean holds the true mean."""
    random = np.random.default_rng(seed)
    patients, n_held = np.arange(n_patients), 0
    for _ in range(n_simulations):
        found = mean_with_interval(scores_like_dice((n_patients, 1), random), patients)
        n_held += found.low is not None and found.high is not None and found.low <= TRUE_MEAN <= found.high
    return n_held / n_simulations


def main(n_simulations: int = N_SIMULATIONS) -> None:
    """Print both tables."""
    print(
        f"{n_simulations} simulations each; standard error of a share of 5 %: {(0.0475 / n_simulations) ** 0.5:.3f}\n"
    )
    print("| patients | coverage of the BCa interval |\n|---|---|")
    for n_patients in (10, 20, 50, 100, 200):
        print(f"| {n_patients} | {coverage(n_patients, n_simulations):.3f} |", flush=True)
    print(f"\n| study | seeds | {' | '.join(TESTS)} |\n|---|---|{'---|' * len(TESTS)}")
    for name, study in STUDIES.items():
        for n_seeds in (1, 2, 3, 5):
            found = positives(replace(study, n_seeds=n_seeds), n_simulations)
            shares = " | ".join("–" if np.isnan(share) else f"{share:.3f}" for share in found.values())
            print(f"| {name} | {n_seeds} | {shares} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
