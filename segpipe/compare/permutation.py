"""Sign-flip permutation by patient, and corrections for asking more than once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

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
    is_exact = len(by_patient) <= MAX_EXACT_PATIENTS
    observed = np.abs(by_patient.sum(axis=0)) - _SMALL * np.abs(by_patient).sum(axis=0)
    n_extreme, n_patterns = np.zeros(by_patient.shape[1]), 0
    signs = _all_signs(len(by_patient)) if is_exact else _drawn_signs(len(by_patient), random, n_permutations)
    for block in signs:
        n_extreme += (np.abs(block @ by_patient) >= observed).sum(axis=0)
        n_patterns += len(block)
    return n_extreme / n_patterns if is_exact else (n_extreme + 1) / (n_patterns + 1)


def _all_signs(n_patients: int) -> Iterator[NDArray[np.float64]]:
    """Every pattern that leaves the first patient as it is: the others are their mirror images."""
    n_patterns = 2 ** max(0, n_patients - 1)
    n_rows = _CHUNK // max(1, n_patients)
    for start in range(0, n_patterns, n_rows):
        number = np.arange(start, min(start + n_rows, n_patterns))[:, None]
        yield (1 - 2 * ((number >> np.arange(n_patients)[::-1]) & 1)).astype(np.float64)


def _drawn_signs(n_patients: int, random: np.random.Generator, n_permutations: int) -> Iterator[NDArray[np.float64]]:
    n_rows = max(1, _CHUNK // n_patients)
    for start in range(0, n_permutations, n_rows):
        shape = (min(n_rows, n_permutations - start), n_patients)
        yield (1 - 2 * random.integers(2, size=shape, dtype=np.int8)).astype(np.float64)


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
