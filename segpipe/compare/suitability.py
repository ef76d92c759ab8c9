"""Whether a dataset tells methods apart at all: spread between methods against the noise of folds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.paired import Paired
from segpipe.compare.records import Suitability


def suitability(values: NDArray[np.float64], folds: NDArray[np.intp]) -> Suitability | None:
    """Signal and noise of a cross-validation of several methods.

    Args:
        values: (n_methods, n_cases, n_labels) means over seeds; a case and label that is NaN for any method counts for
            none.
        folds: (n_cases,) fold of each case.

    Returns:
        None for fewer than two methods or folds, or if a fold has no case. `ratio` is None if there is no noise,
        `generalisability` if methods do not differ.

    Source:
        Ratio: Isensee et al. 2024, arXiv 2404.09556: SD between methods of their means over folds, by the SD within a
        method over folds, averaged over methods. Folds that are hard for all methods count there as noise although a
        paired comparison cancels them; the coefficient, of a two-way layout without the folds' main effect, is
        1 - MS(method × fold) / MS(method), and negative if there is less signal than noise.
    """
    common = np.where(np.isnan(values).any(axis=0), np.nan, values)
    names = np.unique(folds)
    if len(values) < 2 or len(names) < 2:
        return None
    no_patients = np.zeros(len(folds), np.intp)
    means = np.array([
        [Paired(of[folds == fold], no_patients[folds == fold]).estimates[-1] for fold in names] for of in common
    ])  # fmt: skip
    if np.isnan(means).any():
        return None
    n_methods, n_folds = means.shape
    between = float(means.mean(axis=1).std(ddof=1))
    within = float(means.std(axis=1, ddof=1).mean())
    rest = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    of_methods = n_folds * between**2
    of_rest = float((rest**2).sum()) / ((n_methods - 1) * (n_folds - 1))
    return Suitability(
        n_methods=n_methods,
        n_folds=n_folds,
        between_methods=between,
        within_method=within,
        ratio=between / within if within > 0 else None,
        generalisability=1 - of_rest / of_methods if of_methods > 0 else None,
    )
