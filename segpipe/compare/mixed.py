"""A linear mixed model of paired differences: the mean, with folds, trainings and patients as random terms."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from segpipe.compare.comparison_records import MixedModel
from segpipe.compare.paired import ALPHA

_MAX_ROWS = 1000  # time grows with the cube of the rows in a fold


def mixed_model(
    differences: NDArray[np.float64], patients: NDArray[np.intp], folds: NDArray[np.intp] | None
) -> MixedModel | None:
    """Fit difference ~ 1 + (1|fold) + (1|fold:seed) + (1|patient) by REML.

    Args:
        differences: (n_seeds, n_cases) of one endpoint; NaN is left out. Cases of one patient are averaged, and where
            there are very many, neighbouring patients of a fold: means of bundles follow the same model.
        patients: (n_cases,) number of each case's patient.
        folds: (n_cases,) fold of each case, the same for every seed; None without.

    Returns:
        None if neither folds nor seeds repeat, if differences do not vary, or if the fit fails. The SDs of patients and
        of the rest are those of single patients.

    Source:
        statsmodels MixedLM. Variances near 0 make its standard error too small: a second opinion, not the verdict.
    """
    folds = np.zeros(len(patients), np.intp) if folds is None else folds
    n_bundled = -(-differences.shape[0] * len(np.unique(patients)) // _MAX_ROWS)
    rows = _rows(differences, _rank_in_fold(patients, folds) // n_bundled, folds)
    n_folds, n_seeds = len(np.unique(rows[:, 1])), len(np.unique(rows[:, 2]))
    spread = float(rows[:, 0].std()) if len(rows) else 0.0
    if n_folds * n_seeds < 2 or spread <= 0:
        return None
    fit, note = _fit(rows / [spread, 1, 1, 1], n_folds, n_seeds)
    if fit is None:
        return None
    estimate, error, variances = fit
    if not np.isfinite([estimate, error]).all() or error <= 0:
        return None
    df = n_folds * n_seeds - 1
    half = float(stats.t.ppf(1 - ALPHA / 2, df)) * error
    scales = {"patient": n_bundled, "rest": n_bundled}
    sds = {name: float(np.sqrt(max(0.0, v) * scales.get(name, 1))) * spread for name, v in variances.items()}
    return MixedModel(
        estimate=estimate * spread,
        standard_error=error * spread,
        low=(estimate - half) * spread,
        high=(estimate + half) * spread,
        p_value=float(2 * stats.t.sf(abs(estimate) / error, df)),
        df=df,
        sd_fold=sds.get("fold"),
        sd_fold_seed=sds.get("seed"),
        sd_patient=sds.get("patient"),
        sd_rest=sds["rest"],
        note=note,
    )


def _rows(differences: NDArray[np.float64], patients: NDArray[np.intp], folds: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mean difference, fold, seed and patient, one row for each patient in each training."""
    n_seeds, n_cases = differences.shape
    fold = np.broadcast_to(folds, (n_seeds, n_cases))
    seed, patient = np.indices((n_seeds, n_cases))[0], np.broadcast_to(patients, (n_seeds, n_cases))
    keys = np.stack([fold, seed, patient], axis=-1)[~np.isnan(differences)]
    places, inverse, n_values = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse.ravel(), weights=differences[~np.isnan(differences)], minlength=len(places))
    return np.column_stack([sums / n_values, places])


def _rank_in_fold(patients: NDArray[np.intp], folds: NDArray[np.intp]) -> NDArray[np.intp]:
    """Number of each case's patient among the patients of its fold, from 0."""
    ranks = np.zeros(len(patients), np.intp)
    for fold in np.unique(folds):
        ranks[folds == fold] = np.unique(patients[folds == fold], return_inverse=True)[1]
    return ranks


def _fit(
    rows: NDArray[np.float64], n_folds: int, n_seeds: int
) -> tuple[tuple[float, float, dict[str, float]] | None, str]:
    """Estimate, standard error and variances in units of the differences' SD, and what the fit complained about."""
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    difference, fold, seed, patient = rows.T
    terms = {"seed": seed} if n_seeds > 1 else {}
    if len(np.unique(rows[:, [1, 3]], axis=0)) < len(rows):  # else a patient's own term is the rest
        terms["patient"] = patient
    one_hot = [[_one_hot(term[fold == own]) for own in np.unique(fold)] for term in terms.values()]
    columns = [[[str(column) for column in range(of.shape[1])] for of in by_fold] for by_fold in one_hot]
    ones = np.ones((len(rows), 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit = MixedLM(
                difference,
                ones,
                groups=fold,
                exog_re=ones if n_folds > 1 else None,
                exog_vc=VCSpec(list(terms), columns, one_hot) if terms else None,
            ).fit(reml=True)
        except (np.linalg.LinAlgError, ValueError):
            return None, ""
        found = float(fit.fe_params[0]), float(fit.bse_fe[0])
        variances = dict(zip(terms, map(float, fit.vcomp), strict=True))
        if n_folds > 1:
            variances["fold"] = float(np.asarray(fit.cov_re)[0, 0])
    note = "; ".join(dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught))
    return (*found, variances | {"rest": float(fit.scale)}), note


def _one_hot(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return (numbers[:, None] == np.unique(numbers)).astype(float)
