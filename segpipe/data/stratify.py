"""Share patients between folds so that each fold has its part of every label, site, and label at a site."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_EMPTY = 1e6  # cost of a fold without a tag: more than any imbalance
_CROWDED = 1e9  # cost of a fold that is two patients short: never
_JOINT_WEIGHT = 0.25  # labels and sites come before labels at a site
_MAX_ATTEMPTS = 10
_MAX_SWEEPS = 50
_MAX_SEARCHED = 400  # patients of a fold tried in a swap; larger folds are balanced by their size


def stratify(
    tags: NDArray[np.bool_], joint: NDArray[np.bool_], n_cases: Sequence[int], n_folds: int, seed: int
) -> NDArray[np.int64]:
    """Choose a fold for each patient.

    Args:
        tags: (patients, tags), whether a patient has a label or belongs to a site.
        joint: (patients, pairs), the same for a label at a site; dealt out like tags, but never at their cost.
        n_cases: Cases of each patient, 1 or more.
        n_folds: From 2 to the number of patients.
        seed: The same seed gives the same folds.

    Returns:
        Fold of each patient. The folds' numbers of patients differ by at most 1. As few pairs of a fold and a tag are
        empty as the search finds: usually the unavoidable ones, where a tag has fewer patients than there are folds.

    Source:
        Sechidis et al. 2011, ECML PKDD, LNCS 6913: the rarest tag first, each patient to the fold that wants it most.
        Ours has equal numbers of patients, and then swaps patients while that leaves fewer empty pairs or less
        imbalance (sum of squares of counts less their share, each in units of the share).
    """
    random = np.random.default_rng(seed % 2**32)
    sizes = np.asarray(n_cases, float)
    unavoidable = int(np.maximum(0, n_folds - tags.sum(0)[tags.any(0)]).sum())
    best, fewest = None, None
    for _ in range(_MAX_ATTEMPTS):
        dealt = _deal(np.concatenate([tags, joint], axis=1), sizes, n_folds, random)
        fold_of = _swap(dealt, tags, joint, sizes, n_folds, random)
        n_empty = sum(int((~tags[fold_of == fold].any(0) & tags.any(0)).sum()) for fold in range(n_folds))
        if fewest is None or n_empty < fewest:
            best, fewest = fold_of, n_empty
        if n_empty == unavoidable:
            break
    assert best is not None
    return best


def _deal(
    tags: NDArray[np.bool_], sizes: NDArray[np.float64], n_folds: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Deal out the patients: those with the rarest tag first, to the fold that lacks it most."""
    n_patients = len(tags)
    fold_of = np.full(n_patients, -1)
    lacking = np.tile(tags.sum(0) / n_folds, (n_folds, 1))
    n_in, cases_in = np.zeros(n_folds, int), np.zeros(n_folds)
    n_larger = n_patients % n_folds  # folds that hold one patient more
    shuffled = random.permutation(n_patients)
    shuffled = shuffled[np.argsort(-sizes[shuffled], kind="stable")]  # many cases first, while folds can still differ
    while (waiting := shuffled[fold_of[shuffled] < 0]).size:
        n_waiting = tags[waiting].sum(0)
        rarest = int(np.argmin(np.where(n_waiting > 0, n_waiting, n_patients + 1))) if n_waiting.any() else None
        for patient in waiting if rarest is None else waiting[tags[waiting, rarest]]:
            is_full = n_in >= n_patients // n_folds + (np.count_nonzero(n_in > n_patients // n_folds) < n_larger)
            wanted = np.zeros(n_folds) if rarest is None else lacking[:, rarest]
            order = np.lexsort((random.random(n_folds), n_in, cases_in, -wanted, is_full))
            fold = fold_of[patient] = order[0]
            n_in[fold] += 1
            cases_in[fold] += sizes[patient]
            lacking[fold] -= tags[patient]
    return fold_of


def _swap(
    fold_of: NDArray[np.int64],
    tags: NDArray[np.bool_],
    joint: NDArray[np.bool_],
    sizes: NDArray[np.float64],
    n_folds: int,
    random: np.random.Generator,
) -> NDArray[np.int64]:
    """Exchange the pair of patients that helps most, between each two folds, until no exchange helps.

    A fold that is one patient short holds a blank, without tags or cases, so that an exchange with it is a move.
    """
    n_blank = -len(tags) % n_folds
    short = np.argsort(np.bincount(fold_of, minlength=n_folds), kind="stable")[:n_blank]
    fold_of = np.append(fold_of, short)
    is_blank = np.arange(len(fold_of)) >= len(tags)
    columns = np.zeros((len(fold_of), tags.shape[1] + joint.shape[1] + 1))
    columns[: len(tags), :-1] = np.concatenate([tags, joint], axis=1)
    columns[:, -1] = is_blank
    sizes = np.append(sizes, np.zeros(n_blank))
    cost = _Cost(columns.sum(0), tags.shape[1], n_folds)
    case_weight = 0.5 / np.mean(sizes) ** 2
    pairs = [(one, other) for one in range(n_folds) for other in range(one)]
    for _ in range(_MAX_SWEEPS):
        is_better = False
        for one, other in pairs:
            here, there = (_some(np.flatnonzero(fold_of == fold), random) for fold in (one, other))
            in_one, in_other = (columns[fold_of == fold].sum(0) for fold in (one, other))
            leaves = cost(in_one - 1) - cost(in_one) + cost(in_other + 1) - cost(in_other)
            enters = cost(in_one + 1) - cost(in_one) + cost(in_other - 1) - cost(in_other)
            x, y = columns[here], columns[there]  # tags that both have do not change: their cost is taken off again
            change = (x @ leaves)[:, None] + (y @ enters)[None] - (x * (leaves + enters)) @ y.T
            gained = sizes[there][None] - sizes[here][:, None]
            surplus = sizes[fold_of == one].sum() - sizes[fold_of == other].sum()
            change += case_weight * 2 * gained * (surplus + gained)
            i, j = np.unravel_index(np.argmin(change), change.shape)
            if change[i, j] < -1e-9:
                fold_of[here[i]], fold_of[there[j]] = other, one
                is_better = True
        if not is_better:
            break
    return fold_of[: len(tags)]


class _Cost:
    """Cost of the number of patients with each tag in one fold."""

    def __init__(self, totals: NDArray[np.float64], n_tags: int, n_folds: int) -> None:
        self.totals, self.share, self.n_tags = totals, totals / n_folds, n_tags
        self.weight = np.where(np.arange(len(totals)) < n_tags, 1, _JOINT_WEIGHT) / np.maximum(self.share, 1)
        self.weight[-1] = 0

    def __call__(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        result = self.weight * (counts - self.share) ** 2
        of_tags, total = counts[: self.n_tags], self.totals[: self.n_tags]
        result[: self.n_tags] += _EMPTY * (of_tags <= 0) + _EMPTY * ((of_tags >= total) & (total > 1))
        result[-1] = _CROWDED * max(0, counts[-1] - 1)
        return result


def _some(patients: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    return patients if patients.size <= _MAX_SEARCHED else random.choice(patients, _MAX_SEARCHED, replace=False)
