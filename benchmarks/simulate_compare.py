"""False alarms of tests, on simulated cross-validations whose truth is known.

    python benchmarks/simulate_compare.py [N_SIMULATIONS]
    python benchmarks/simulate_compare.py claims [N_SIMULATIONS]

Prints two tables; with `claims` only the last. Positives: how often a test at 5 % says that two methods differ; if they
do not, that is the type I error. Claims: how often a verdict is wrong because few patients show no rare failure, and
how often a right one is still reached where there are none; each without a rule, with the rule of
`segpipe.compare.verdict_sentences`, and with the strict one that tolerates no rate.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.paired import Paired, model_estimate, wilcoxon_p_values
from segpipe.compare.permutation import ALPHA, sign_flip_p_values
from segpipe.compare.training_variance import fold_differences, method_estimate, nadeau_bengio
from segpipe.compare.verdict_sentences import Evidence, answer_of, unseen_failures
from segpipe.evaluate.metrics import METRICS

N_SIMULATIONS = 2000
_N_PERMUTATIONS = 1999
_N_SIGNS = 999  # of the table of claims


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


@dataclass(frozen=True)
class Rare:
    """Differences of patients: a bulk, and rare failures.

    Args:
        metric: Of the scores; decides the sign.
        bulk, sd: Mean and SD of patients without a failure.
        rate, failure: Share of failures, and the difference of one.
        margin: Largest difference that counts as none.
        answers: Answers that count: false claims, or right ones.
        loss: What a failure may cost.
    """

    metric: str
    bulk: float
    sd: float
    rate: float
    failure: float
    margin: float
    answers: tuple[str, ...]
    loss: float = 1.0


_DIAGONAL_MM = 350.0
FALSE_CLAIMS = {
    "A: Dice 0.02 worse, called no difference": Rare("dice", 0.0, 0.002, 0.05, -0.4, 0.005, ("no difference",)),
    "B: equal Dice, called better": Rare("dice", 0.02, 0.005, 0.05, -0.38, 0.005, ("better",)),
    "C: HD95 3 mm worse, called no difference": Rare(
        "hd95", 0.0, 0.3, 0.03, 100.0, 1.0, ("no difference",), _DIAGONAL_MM
    ),
}
RIGHT_CLAIMS = {
    "equal, SD 0.02, no difference": Rare("dice", 0.0, 0.02, 0.0, 0.0, 0.005, ("no difference",)),
    "equal HD95, SD 3 mm, no difference": Rare("hd95", 0.0, 3.0, 0.0, 0.0, 1.0, ("no difference",), _DIAGONAL_MM),
    "+0.01, SD 0.05, better": Rare("dice", 0.01, 0.05, 0.0, 0.0, 0.005, ("better",)),
    "+0.02, SD 0.05, better": Rare("dice", 0.02, 0.05, 0.0, 0.0, 0.005, ("better",)),
}
N_PATIENTS = (5, 7, 10, 20, 30, 50, 70, 98, 99, 100, 120, 150, 200)


def claims(rare: Rare, n_patients: int, n_simulations: int, seed: int = 0) -> tuple[float, float, float]:
    """Return the share of studies with one of the answers: without a rule of unseen failures, with it, with the strict.

    The strict rule lets no claim pass that the largest possible rate times the worst loss could undo, however small
    that rate is.
    """
    random = np.random.default_rng([seed, n_patients])
    has_failed = random.random((n_simulations, n_patients)) < rare.rate
    bulk = random.normal(rare.bulk, rare.sd, has_failed.shape)
    differences = np.where(has_failed, rare.failure, bulk).T  # (n_patients, n_simulations): all studies at once
    paired = Paired(differences, np.arange(n_patients))
    estimate, p_values = model_estimate(paired), sign_flip_p_values(paired.by_patient, random, _N_SIGNS)
    p_equivalence = estimate.equivalence_p_values(rare.margin)
    counts = np.zeros(3)
    for index, column in enumerate(differences.T):
        tests = [float(p_values[index])] * 2 + [float(p_equivalence[index])] * 2
        found = Evidence("a", "b", "x", METRICS[rare.metric], rare.margin, "models",
                         float(estimate.value[index]), np.nan, np.nan, *tests, np.nan)  # fmt: skip
        guarded = replace(found, unseen=unseen_failures(column, rare.loss))
        is_claimed, is_kept = (answer_of(one) in rare.answers for one in (found, guarded))
        enough = rare.margin if rare.answers == ("no difference",) else abs(found.difference)
        is_strict = guarded.unseen.rate * rare.loss < enough
        counts += [is_claimed, is_kept, is_claimed and is_strict]
    before, after, strict = (counts / n_simulations).tolist()
    return before, after, strict


def print_claims(n_simulations: int) -> None:
    """Print the table of claims."""
    print(f"{n_simulations} simulations each, seed 0; standard error of a share of 6 %: "
          f"{(0.0564 / n_simulations) ** 0.5:.3f}, of 50 %: {(0.25 / n_simulations) ** 0.5:.3f}. "
          "Without a rule → with the rule (with the strict one).\n")  # fmt: skip
    for title, studies, sizes in (
        ("false claims", FALSE_CLAIMS, N_PATIENTS),
        ("right claims", RIGHT_CLAIMS, (50, 99, 100, 120, 150, 200)),
    ):
        print(f"\n| {title}: patients | {' | '.join(studies)} |\n|---|{'---|' * len(studies)}")
        for n_patients in sizes:
            found = [claims(rare, n_patients, n_simulations) for rare in studies.values()]
            shares = " | ".join(f"{before:.3f} → {after:.3f} ({strict:.3f})" for before, after, strict in found)
            print(f"| {n_patients} | {shares} |", flush=True)


def main(n_simulations: int = N_SIMULATIONS) -> None:
    """Print all tables."""
    print(
        f"{n_simulations} simulations each; standard error of a share of 5 %: {(0.0475 / n_simulations) ** 0.5:.3f}\n"
    )
    print(f"| study | seeds | {' | '.join(TESTS)} |\n|---|---|{'---|' * len(TESTS)}")
    for name, study in STUDIES.items():
        for n_seeds in (1, 2, 3, 5):
            found = positives(replace(study, n_seeds=n_seeds), n_simulations)
            shares = " | ".join("–" if np.isnan(share) else f"{share:.3f}" for share in found.values())
            print(f"| {name} | {n_seeds} | {shares} |", flush=True)

    print()
    print_claims(n_simulations)


if __name__ == "__main__":
    if sys.argv[1:2] == ["claims"]:
        print_claims(*map(int, sys.argv[2:] or [N_SIMULATIONS]))
    else:
        main(*map(int, sys.argv[1:]))
