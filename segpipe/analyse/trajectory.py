"""Principal components of a training's path through weight space, beside those of random motion.

Source:
    Antognini and Sohl-Dickstein 2018, PCA of high dimensional random walks with comparison to neural network training,
    arXiv 1806.08805. Ours: the eigenvalues of a finite number of snapshots instead of the limit of many, a fitted pull,
    and the share of drift.
"""

# T snapshots, W weights.
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from scipy.linalg import eigh
from scipy.optimize import minimize_scalar

from segpipe.core.errors import UsageError

Floats = NDArray[np.float64]
_CHUNK_BYTES = 1 << 27  # of all snapshots together, in float64
_LEAST_PULL = 1e-4
_STATIONARY = 3.0  # pull × snapshots: below it, the motion has not reached its resting width


def gram_matrix(paths: Sequence[Path], names: Sequence[str]) -> Floats:
    """Dot products of all pairs of snapshots, from where the first one is; no snapshot is ever whole in memory.

    Args:
        paths: Files of weights of one network.
        names: Tensors that count: the parameters, without running statistics.

    Returns:
        (T, T), float64, however large the network: tensors are read in portions.

    Raises:
        UsageError: If a file is damaged, lacks a tensor, or holds numbers that are not finite.
    """
    total = np.zeros((len(paths), len(paths)))
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, "np")) for path in paths]
            for name in names:
                for rows_TW in _portions(files, name):
                    moved_TW = rows_TW - rows_TW[0]  # else the distance from 0 hides that between snapshots
                    total += moved_TW @ moved_TW.T
    except (SafetensorError, OSError, ValueError) as fault:
        raise UsageError(
            f"{paths[0].parent}: snapshots cannot be read as weights of one network ({fault}). Train the fold again "
            "with --restart."
        ) from None
    if bad := [path.name for path, value in zip(paths, np.diag(total), strict=True) if not np.isfinite(value)]:
        raise UsageError(
            f"{paths[0].parent}: {bad[0]} holds numbers that are not finite, expected finite weights. Delete it and "
            "the snapshots after it."
        )
    return total


def _portions(files: Sequence[Any], name: str) -> Iterator[Floats]:
    """Rows of a tensor of all files, (T, W), in portions of the first axis that fit into the memory for them."""
    slices = [file.get_slice(name) for file in files]
    shape = slices[0].get_shape()
    if not shape:
        yield np.array([np.asarray(file.get_tensor(name), np.float64).reshape(1) for file in files])
        return
    row_bytes = 8 * len(files) * int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, _CHUNK_BYTES // max(1, row_bytes))
    for begin in range(0, shape[0], step):
        end = min(begin + step, shape[0])  # a slice beyond it is refused, unlike in numpy
        yield np.array([np.asarray(part[begin:end], np.float64).reshape(-1) for part in slices])


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of T points.

    Args:
        fractions: Share of the variance of each component, (T - 1,), falling, sum 1; all 0 if nothing moves.
        places_TK: Coordinate of each point on each component, (T, T - 1); the sign is arbitrary.
    """

    fractions: Floats
    places_TK: Floats


def principal_components(gram_TT: Floats) -> Components:
    """Find the components from dot products; the points are centred here."""
    centred = gram_TT - gram_TT.mean(0) - gram_TT.mean(1)[:, None] + gram_TT.mean()
    values, vectors = eigh((centred + centred.T) / 2)
    order = np.argsort(values)[::-1][:-1]  # centred points lie in T - 1 dimensions
    kept = np.clip(values[order], 0, None)
    return Components(kept / (kept.sum() or 1.0), vectors[:, order] * np.sqrt(kept))


def walk_fractions(n_points: int, momentum: float = 0.0) -> Floats:
    """Expected shares of variance of a random walk in many dimensions, (T - 1,).

    Args:
        n_points: T.
        momentum: Of the walk's velocity from point to point, 0 to below 1.

    Returns:
        1 / (1 - cos(πk/T)) over their sum, which is 6 / (πk)² for many points; with momentum g, times
        1 / (1 + g² - 2g cos(πk/T)).
    """
    cosine = np.cos(np.pi * np.arange(1, n_points) / n_points)
    values = 1 / (1 - cosine) / (1 + momentum**2 - 2 * momentum * cosine)
    return np.asarray(values / values.sum())


def pulled_fractions(n_points: int, pull: float) -> Floats:
    """Expected shares of variance of an Ornstein–Uhlenbeck motion in many dimensions, (T - 1,).

    Args:
        n_points: T. The formula holds if pull × T is much larger than 1.
        pull: Share of the distance from the centre that is lost from point to point, 0 to 1.
    """
    kept = 1 - pull
    cosine = np.cos(np.pi * np.arange(1, n_points) / n_points)
    values = 1 / (1 + kept**2 - 2 * kept * cosine)
    return np.asarray(values / values.sum())


def walk_place(n_points: int, component: int) -> Floats:
    """Shape of a random walk's path along a component, (T,): half periods of a cosine, of unit length."""
    shape = np.cos(np.pi * component * (np.arange(n_points) + 0.5) / n_points)
    return np.asarray(shape / np.linalg.norm(shape))


def distance_between(found: Floats, expected: Floats) -> float:
    """Share of the variance that lies on other components, 0 (equal) to 1."""
    return float(np.abs(found - expected).sum() / 2)


def fit_pull(fractions: Floats) -> float:
    """Find the pull whose Ornstein–Uhlenbeck motion is nearest to some shares of variance."""
    n_points = len(fractions) + 1

    def miss(log_pull: float) -> float:
        return distance_between(fractions, pulled_fractions(n_points, float(np.exp(log_pull))))

    return float(np.exp(minimize_scalar(miss, bounds=(np.log(_LEAST_PULL), 0.0), method="bounded").x))


@dataclass(frozen=True)
class Motion:
    """Lengths of a path, in the unit of the weights.

    Args:
        net_displacement: From the first to the last snapshot.
        path_length: Sum of the distances between neighbours.
        walk_displacement: Expected net displacement of a random walk with the same distances.
        drift_share: Share of the mean squared step that is one common direction: 0 for a random walk, 1 for a line.
        step_cosine: Mean cosine of the angle between steps that follow each other; 0 for a random walk.
        radius: Root mean square distance from the mean of all snapshots.
    """

    net_displacement: float
    path_length: float
    walk_displacement: float
    drift_share: float
    step_cosine: float
    radius: float

    def resting_radius(self, n_points: int, pull: float) -> float | None:
        """Radius of an Ornstein–Uhlenbeck motion with steps as long; None if it cannot have settled in these points.

        Steps of mean square s² and a pull a give s / √(2a), which is √(d / (1 - (1 - a)²)) for unit noise in d
        dimensions.
        """
        if pull * n_points < _STATIONARY:
            return None
        return sqrt(self._mean_square_step(n_points) / (2 * pull))

    def _mean_square_step(self, n_points: int) -> float:
        return self.walk_displacement**2 / (n_points - 1)


def measure_motion(gram_TT: Floats) -> Motion:
    """Measure a path from the dot products of its points."""
    n_steps = len(gram_TT) - 1
    steps = np.diff(np.diff(gram_TT, axis=0), axis=1)  # dot products of the steps
    squares = np.clip(np.diag(steps), 0, None)
    net_square = max(0.0, float(steps.sum()))
    lengths, total = np.sqrt(squares), float(squares.sum())
    products = lengths[:-1] * lengths[1:]
    has_moved = products > 0
    cosines = np.diag(steps, 1)[has_moved] / products[has_moved]
    drift = (net_square - total) / (total * (n_steps - 1)) if total and n_steps > 1 else 0.0
    centred_trace = float(np.trace(gram_TT) - gram_TT.sum() / len(gram_TT))
    return Motion(
        net_displacement=sqrt(net_square),
        path_length=float(lengths.sum()),
        walk_displacement=sqrt(total),
        drift_share=float(np.clip(drift, 0, 1)),
        step_cosine=float(cosines.mean()) if len(cosines) else 0.0,
        radius=sqrt(max(0.0, centred_trace) / len(gram_TT)),
    )


def null_fractions(fractions: Floats, momentum: float) -> Mapping[str, tuple[float | None, Floats]]:
    """Return the shares of variance that random motion gives, by name, each with its parameter."""
    n_points, pull = len(fractions) + 1, fit_pull(fractions)
    return {
        "random walk": (None, walk_fractions(n_points)),
        "random walk with momentum": (momentum, walk_fractions(n_points, momentum)),
        "Ornstein–Uhlenbeck": (pull, pulled_fractions(n_points, pull)),
    }
