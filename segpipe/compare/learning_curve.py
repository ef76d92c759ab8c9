"""Learning curves: what more training patients would bring, from trainings on shares of the patients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.align import Aligned
from segpipe.compare.paired import mean_of_numbers
from segpipe.compare.permutation import ALPHA
from segpipe.compare.verdict_sentences import quantity
from segpipe.core.errors import DataError
from segpipe.core.records import Record
from segpipe.core.seeds import generator_for
from segpipe.core.text import count
from segpipe.evaluate.metrics import Metric

FEWEST_SIZES = 3  # asymptote, scale and exponent
FEWEST_FOLDS = 3  # intervals from two hold the gain in 83 % of simulations (benchmarks/results/simulate_size.md)
_EXPONENTS = np.geomspace(0.1, 2.0, 49)  # of curves that are tried: from hardly any gain to one that is soon used up
_N_DRAWS = 2000
_N_DRAWN = 33  # points of the line in a picture


class CurvePoint(Record):
    """An arm of a learning curve.

    Args:
        arm: Its name.
        n_patients: To train on, mean over folds.
        mean: Score, mean over folds.
        of_folds: The score in each fold.
    """

    arm: str
    n_patients: float
    mean: float
    of_folds: tuple[float, ...]


class FittedPoint(Record):
    """A place of the fitted line: training patients, the score, and its 95 % interval."""

    n_patients: float
    score: float
    low: float
    high: float


class LearningCurve(Record):
    """Gain that more training patients would bring, by an inverse power law of the error.

    Args:
        points: Arms, the smallest first.
        asymptote, scale, exponent: Error = asymptote + scale × n^-exponent; the error is 1 - score for overlaps.
        fitted: The line, from the smallest arm to the patients with those to add.
        n_more: Patients to add to those of the largest arm.
        gain, low, high: How much better the score would be, with its 95 % interval.
        n_folds: Trained apart, from whose spread the interval comes.
    """

    points: tuple[CurvePoint, ...]
    asymptote: float
    scale: float
    exponent: float
    fitted: tuple[FittedPoint, ...]
    n_more: int
    gain: float
    low: float
    high: float
    n_folds: int


def learning_curve(
    aligned: Aligned, sizes: Mapping[str, Sequence[int]], n_more: int | None, seed: int
) -> LearningCurve:
    """Fit the scores of arms that were trained on shares of the same patients.

    Args:
        aligned: Scores of the arms, of an overlap or a distance.
        sizes: For an arm and a fold, the patients to train on.
        n_more: Patients to add to those of the largest arm; None for as many again.
        seed: Of the interval.

    Raises:
        DataError: If there are too few arms or folds, or arms were validated in different folds.
    """
    if aligned.folds is None or len(aligned.folds) > 1:
        raise DataError("The arms of the learning curve have no folds in common, expected the same three or more.")
    values, folds = mean_of_numbers(aligned.model_values, 2), aligned.folds[0]
    order = sorted(range(len(aligned.methods)), key=lambda m: sum(sizes[aligned.methods[m]]))
    n_patients = [float(np.mean(sizes[aligned.methods[m]])) for m in order]
    scores = np.array([[np.nanmean(values[m][folds == fold]) for m in order] for fold in np.unique(folds)])
    is_overlap = aligned.metric.kind == "overlap"
    curve = fit_curve(
        n_patients,
        1 - scores if is_overlap else scores,
        generator_for(seed, len(values[0])),
        1.0 if is_overlap else inf,
    )
    added = round(n_patients[-1]) if n_more is None else n_more
    gain, low, high = curve.gain(n_patients[-1], added)
    asymptote, scale, exponent = curve.best.tolist()
    drawn = np.linspace(n_patients[0], n_patients[-1] + added, _N_DRAWN)
    columns = zip(order, n_patients, scores.mean(axis=0).tolist(), scores.T.tolist(), strict=True)
    return LearningCurve(
        points=tuple(
            CurvePoint(arm=aligned.methods[m], n_patients=n, mean=mean, of_folds=tuple(of_folds))
            for m, n, mean, of_folds in columns
        ),
        asymptote=asymptote,
        scale=scale,
        exponent=exponent,
        fitted=tuple(_place_of(curve, n, is_overlap) for n in drawn.tolist()),
        n_more=added,
        gain=gain,
        low=low,
        high=high,
        n_folds=len(scores),
    )


def _place_of(curve: Curve, n_patients: float, is_overlap: bool) -> FittedPoint:
    error, (low, high) = curve.error(n_patients), curve.limits(n_patients)
    if is_overlap:
        error, low, high = 1 - error, 1 - high, 1 - low
    return FittedPoint(n_patients=n_patients, score=error, low=low, high=high)


def curve_lines(what: str, curve: LearningCurve, metric: Metric) -> Iterator[str]:
    """Describe a curve in two sentences; `what` is the metric with its label."""
    sign = 1 if metric.kind == "overlap" else -1
    points: Sequence[str] = [f"{point.n_patients:g}: {quantity(point.mean, metric)}" for point in curve.points]
    yield f"{what} by training patients: {', '.join(points)}."
    gain, low, high = (quantity(sign * value, metric, signed=True) for value in (curve.gain, curve.low, curve.high))
    limits = f"[{low}, {high}]" if sign > 0 else f"[{high}, {low}]"
    yield (
        f"{count(curve.n_more, 'more training patient')} would bring {gain} {limits}, by an inverse power law with "
        f"exponent {curve.exponent:.2f}; the 95 % interval is from {count(curve.n_folds, 'fold')}."
    )


@dataclass(frozen=True)
class Curve:
    """Inverse power law of the error, asymptote + scale × n^-exponent, for draws of the points that were seen.

    Args:
        best: Asymptote, scale and exponent that fit the points.
        draws: The same for each draw, (n_draws, 3).
    """

    best: NDArray[np.float64]
    draws: NDArray[np.float64]

    def error(self, n_patients: float) -> float:
        """Error at a number of training patients."""
        return float(_errors(self.best[None], n_patients)[0])

    def limits(self, n_patients: float) -> tuple[float, float]:
        """95 % interval of the error at a number of training patients."""
        low, high = np.quantile(_errors(self.draws, n_patients), [ALPHA / 2, 1 - ALPHA / 2])
        return float(low), float(high)

    def gain(self, n_patients: float, n_more: float) -> tuple[float, float, float]:
        """Decrease of the error by more training patients, with its 95 % interval; never negative."""
        own = _errors(self.best[None], n_patients) - _errors(self.best[None], n_patients + n_more)
        drawn = _errors(self.draws, n_patients) - _errors(self.draws, n_patients + n_more)
        low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2])
        return float(own[0]), float(low), float(high)


def fit_curve(
    n_patients: Sequence[float], errors: NDArray[np.float64], random: np.random.Generator, highest: float = inf
) -> Curve:
    """Fit a learning curve to errors of trainings on nested sets of patients.

    Args:
        n_patients: (n_sizes,) training patients.
        errors: (n_folds, n_sizes) mean error of each fold: 1 - Dice, or a distance. Folds are trained apart, so their
            spread holds the luck of patients and of trainings.
        random: Draws means from the multivariate t of the folds' covariance.
        highest: Largest error.

    Raises:
        DataError: If there are fewer than 3 sizes or folds.

    Source:
        Viering and Loog 2023, IEEE TPAMI 45(6), on the inverse power law. Neither asymptote nor scale is negative.
    """
    n_folds, n_sizes = errors.shape
    if n_sizes < FEWEST_SIZES:
        raise DataError(
            f"{count(n_sizes, 'size')} of the training set, expected {FEWEST_SIZES} or more for a learning curve. "
            "Add arms with training_patients to the study."
        )
    if n_folds < FEWEST_FOLDS:
        raise DataError(
            f"{count(n_folds, 'fold')}, expected {FEWEST_FOLDS} or more: fewer do not tell how much trainings vary. "
            "Train more folds of the study."
        )
    mean, df = errors.mean(axis=0), n_folds - 1
    deviations = (errors - mean) / sqrt(n_folds * df)  # their square is the covariance of the means
    normal = random.standard_normal((_N_DRAWS, n_folds)) @ deviations
    drawn = mean + normal * np.sqrt(df / random.chisquare(df, _N_DRAWS))[:, None]
    sizes = np.asarray(n_patients, float)
    return Curve(_fit(sizes, mean[None], highest)[0], _fit(sizes, drawn, highest))


def _fit(sizes: NDArray[np.float64], errors: NDArray[np.float64], highest: float) -> NDArray[np.float64]:
    """Asymptote, scale, exponent of each row of errors (n, n_sizes) by least squares, (n, 3)."""
    best, smallest = np.zeros((len(errors), 3)), np.full(len(errors), inf)
    errors = np.clip(errors, 0, highest)
    for exponent in _EXPONENTS:
        x = sizes**-exponent
        spread = x - x.mean()
        scale = errors @ spread / (spread @ spread)
        asymptote = errors.mean(axis=1) - scale * x.mean()
        scale, asymptote = np.where(asymptote < 0, errors @ x / (x @ x), scale), np.maximum(asymptote, 0)
        falls = scale > 0
        scale, asymptote = np.where(falls, scale, 0), np.where(falls, asymptote, errors.mean(axis=1))
        squares = ((errors - asymptote[:, None] - scale[:, None] * x) ** 2).sum(axis=1)
        is_better = squares < smallest
        best[is_better] = np.column_stack([asymptote, scale, np.full(len(errors), exponent)])[is_better]
        smallest = np.minimum(squares, smallest)
    return best


def _errors(curves: NDArray[np.float64], n_patients: float) -> NDArray[np.float64]:
    asymptote, scale, exponent = curves.T
    return np.asarray(asymptote + scale * n_patients**-exponent)
