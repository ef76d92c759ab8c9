"""Sign-flip permutation by patient, and corrections for asking more than once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05  # of every test; intervals are 95 %
N_PERMUTATIONS = 10_000
MAX_EXACT_PATIENTS = 20  # 2¹⁹ sign patterns, under a second; beyond, patterns are drawn
_CHUNK = 2_000_000  # signs turned into floats at a time
_SMALL = 1e-12  # relative; sums that are equal on paper differ by rounding


def sign_flip_p_values(
    by_patient: NDArray[np.float64], random: np.random.Generator, n_permutations: int = N_PERMUTATIONS
) -> NDArray[np.float64]:
    """Two-sided p of "every patient's difference could as well have the other sign", for each column.

    Args:
        by_patient: (n_patients, n_tests) what each patient adds to the difference that is tested.
        random: Draws the signs; not used for few patients.
        n_permutations: How many to draw.

    Returns:
        (n_tests,) exact for up to `MAX_EXACT_PATIENTS`, else never below 1 / (n_permutations + 1). 1 where all
        differences are 0. The patients of all tests flip together.

    Source:
        Phipson and Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9(1), eq. 2, for drawn patterns.

    Example:
        >>> sign_flip_p_values(np.array([[1.0], [2.0], [3.0]]), np.random.default_rng(0))  # 2 of 8 patterns
        array([0.25])
    """
    return _p_values(by_patient, *_patterns(len(by_patient), random, n_permutations))


def sign_flip_tests(
    by_patient: NDArray[np.float64],
    shares: NDArray[np.float64],
    random: np.random.Generator,
    n_permutations: int = N_PERMUTATIONS,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """p-values as `sign_flip_p_values`, and the 95 % intervals of differences that the same test does not reject.

    An interval excludes 0 where p is below 5 %: the two cannot contradict.

    Args:
        by_patient: (n_patients, n_tests) what each patient adds to the difference that is tested.
        shares: (n_patients, n_tests) weight of each patient in it; columns sum to 1.
        random: Draws the signs; not used for few patients.
        n_permutations: How many to draw.

    Returns:
        p, lower and upper limit, (n_tests,). -inf and inf where the test rejects nothing: below 6 patients.

    Source:
        Inversion of a test, e.g. Garthwaite 1996, Biometrics 52(4). A pattern of signs splits patients in two groups;
        the difference at which it becomes extreme is the mean of one of them, so that no search is needed.
    """
    signs, is_exact = _patterns(len(by_patient), random, n_permutations)
    n_tests = by_patient.shape[1]
    limits = np.empty((2, n_tests))
    n_columns = max(1, 2 * _CHUNK // max(1, sum(len(block) for block in signs)))
    for start in range(0, n_tests, n_columns):
        own = slice(start, start + n_columns)
        limits[:, own] = _test_limits(by_patient[:, own], shares[:, own], signs, is_exact=is_exact)
    return _p_values(by_patient, signs, is_exact), limits[0], limits[1]


def _test_limits(
    sums: NDArray[np.float64], shares: NDArray[np.float64], signs: list[NDArray[np.int8]], *, is_exact: bool
) -> NDArray[np.float64]:
    """(2, n_tests) lower and upper limit."""
    flipped = np.concatenate([block.astype(np.float64) @ sums for block in signs])
    weights = np.concatenate([block.astype(np.float64) @ shares for block in signs])
    total = sums.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        kept, turned = (total + flipped) / (1 + weights), (total - flipped) / (1 - weights)
    low, high = np.fmin(kept, turned), np.fmax(kept, turned)
    is_all = np.abs(weights) > 1 - _SMALL  # every patient keeps the sign: extreme at any difference
    low[is_all], high[is_all] = -np.inf, np.inf
    n_patterns = len(low)
    n_kept = ceil(ALPHA * n_patterns - _SMALL) if is_exact else ceil(ALPHA * (n_patterns + 1) - _SMALL) - 1
    place = max(n_kept, 1) - 1
    return np.array([np.partition(low, place, axis=0)[place], -np.partition(-high, place, axis=0)[place]])


def _p_values(by_patient: NDArray[np.float64], signs: list[NDArray[np.int8]], is_exact: bool) -> NDArray[np.float64]:
    observed = np.abs(by_patient.sum(axis=0)) - _SMALL * np.abs(by_patient).sum(axis=0)
    n_extreme, n_patterns = np.zeros(by_patient.shape[1]), 0
    for block in signs:
        n_extreme += (np.abs(block.astype(np.float64) @ by_patient) >= observed).sum(axis=0)
        n_patterns += len(block)
    return n_extreme / n_patterns if is_exact else (n_extreme + 1) / (n_patterns + 1)


def _patterns(n_patients: int, random: np.random.Generator, n_permutations: int) -> tuple[list[NDArray[np.int8]], bool]:
    """Blocks of patterns (n, n_patients), and whether they are all there are."""
    is_exact = n_patients <= MAX_EXACT_PATIENTS
    return list(_all_signs(n_patients) if is_exact else _drawn_signs(n_patients, random, n_permutations)), is_exact


def _all_signs(n_patients: int) -> Iterator[NDArray[np.int8]]:
    """Every pattern that leaves the first patient as it is: the others are their mirror images."""
    n_patterns = 2 ** max(0, n_patients - 1)
    n_rows = _CHUNK // max(1, n_patients)
    for start in range(0, n_patterns, n_rows):
        number = np.arange(start, min(start + n_rows, n_patterns))[:, None]
        yield (1 - 2 * ((number >> np.arange(n_patients)[::-1]) & 1)).astype(np.int8)


def _drawn_signs(n_patients: int, random: np.random.Generator, n_permutations: int) -> Iterator[NDArray[np.int8]]:
    n_rows = max(1, _CHUNK // n_patients)
    for start in range(0, n_permutations, n_rows):
        shape = (min(n_rows, n_permutations - start), n_patients)
        yield 1 - 2 * random.integers(2, size=shape, dtype=np.int8)


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values corrected for their number, so that the chance of any false positive keeps its level.

    Args:
        p_values: (n,) of one family; NaN is no test and does not count.

    Source:
        Holm 1979, Scand. J. Statist. 6(2).

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03]))
        array([0.03, 0.06, 0.06])
    """
    return _correct(p_values, lambda p: np.maximum.accumulate(p * np.arange(len(p), 0, -1)))


def benjamini_hochberg(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values corrected so that of the positives a given share at most is false on average.

    Args:
        p_values: (n,) of one family; NaN is no test and does not count.

    Source:
        Benjamini and Hochberg 1995, J. R. Statist. Soc. B 57(1).

    Example:
        >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03]))
        array([0.03, 0.04, 0.04])
    """
    return _correct(p_values, lambda p: np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1])


def _correct(
    p_values: NDArray[np.float64], of_sorted: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Sort what is a number, correct, clip at 1, put back."""
    result = np.full(p_values.shape, np.nan)
    tests = np.flatnonzero(~np.isnan(p_values))
    order = tests[np.argsort(p_values[tests], kind="stable")]
    result[order] = np.minimum(1.0, of_sorted(p_values[order]))
    return result
