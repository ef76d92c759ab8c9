"""Randomness comes from one seed and the place it is used at."""

from __future__ import annotations

import numpy as np


def seed_for(run_seed: int, *place: int) -> int:
    """Seed of one place in a run, 0 to 2³²-1, e.g. `seed_for(7, fold, iteration)`.

    Example:
        >>> seed_for(7, 0, 1) == seed_for(7, 0, 1), seed_for(7, 0, 1) == seed_for(7, 1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(run_seed, spawn_key=place).generate_state(1)[0])


def generator_for(run_seed: int, *place: int) -> np.random.Generator:
    """Numpy generator of one place in a run."""
    return np.random.default_rng(np.random.SeedSequence(run_seed, spawn_key=place))
