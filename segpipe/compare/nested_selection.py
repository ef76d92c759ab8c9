"""Choosing on the cross-validation without deceiving oneself: what was chosen is scored where it was not chosen.

The best of many candidates looks better than it is, since it was also the luckiest. So the whole choice is made again
for each fold without that fold, and each fold is scored with what the others chose: the nested number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.paired import mean_of_numbers
from segpipe.evaluate.intervals import Interval, mean_with_interval

_SLACK = 1e-9  # means that are equal on paper differ by rounding; then the earlier candidate is taken

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Scores of everything that can be chosen.

    Args:
        values: (n_models, n_steps, n_cases, n_labels), NaN where a case does not count for a label. The first step
            changes nothing; simpler ones stand before others.
        folds: (n_cases,) fold in which a case was validated.
        patients: (n_cases,) number of its patient.
        sign: 1 if more is better, else -1.
    """

    values: Floats
    folds: NDArray[np.intp]
    patients: NDArray[np.intp]
    sign: int


@dataclass(frozen=True)
class NestedChoice:
    """A model, and for each label one of the steps; numbers as in `Candidates.values`."""

    model: int
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """A choice and its worth.

    Args:
        chosen: On all cases.
        without_fold: What was chosen without each fold.
        naive: Mean of `chosen` on the cases it was chosen on: too good.
        nested: Mean over all cases, each scored with what was chosen without its fold.
    """

    chosen: NestedChoice
    without_fold: dict[int, NestedChoice]
    naive: Interval
    nested: Interval


def select(
    candidates: Candidates, score: Callable[[NestedChoice, NDArray[np.bool_]], Floats], seed: int = 0
) -> Selection:
    """Choose on all cases, and again without each fold.

    Args:
        candidates: Scores to choose by.
        score: Scores of a choice, (n_cases, n_labels) for the cases of a mask (n_cases,). The columns of `candidates`
            need not tell it, since steps of several labels may act on each other; if not, take `score_by_columns`.
        seed: Of the bootstrap.

    Raises:
        ValueError: If there are fewer than two folds.
    """
    folds = candidates.folds
    numbers = sorted(set(folds.tolist()))
    if len(numbers) < 2:
        raise ValueError(f"{len(numbers)} fold, expected two or more: nothing can be chosen without a fold")
    every = np.ones(len(folds), bool)
    chosen = choose(candidates, every)
    without_fold = {fold: choose(candidates, folds != fold) for fold in numbers}
    limits = (0.0, 1.0 if candidates.sign > 0 else inf)
    nested = np.full((len(folds), candidates.values.shape[-1]), np.nan)
    for fold, choice in without_fold.items():
        nested[folds == fold] = score(choice, folds == fold)
    return Selection(
        chosen=chosen,
        without_fold=without_fold,
        naive=mean_with_interval(score(chosen, every), candidates.patients, seed, limits),
        nested=mean_with_interval(nested, candidates.patients, seed, limits),
    )


def choose(candidates: Candidates, is_in: NDArray[np.bool_]) -> NestedChoice:
    """The model with the best mean as it is, then for each label the steps with the best mean.

    Args:
        candidates: Scores.
        is_in: (n_cases,) cases that may be looked at.

    Returns:
        Of equal means the earlier one; a label that counts for no case keeps the first step.
    """
    means = candidates.sign * mean_of_numbers(candidates.values[:, :, is_in], 2)
    of_models = np.nanmean(np.where(np.isnan(means).all(axis=2, keepdims=True), -np.inf, means)[:, 0], axis=1)
    model = _first_best(of_models)
    steps = tuple(_first_best(np.nan_to_num(of_label, nan=-np.inf)) for of_label in means[model].T)
    return NestedChoice(model, steps)


def score_by_columns(candidates: Candidates) -> Callable[[NestedChoice, NDArray[np.bool_]], Floats]:
    """Scores of a choice where the steps of one label do not change the scores of another."""

    def score(choice: NestedChoice, is_in: NDArray[np.bool_]) -> Floats:
        labels = np.arange(candidates.values.shape[-1])
        of_labels: Floats = candidates.values[choice.model, choice.steps, :, labels].T
        return of_labels[is_in]

    return score


def _first_best(means: Floats) -> int:
    slack = _SLACK * max(1.0, float(np.abs(means[np.isfinite(means)]).max(initial=0)))
    return int(np.flatnonzero(means >= means.max() - slack)[0]) if np.isfinite(means.max()) else 0
