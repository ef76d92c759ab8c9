"""core/seeds.py: one seed, one stream per place."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from segpipe.core.seeds import generator_for, seed_for

places = st.lists(st.integers(0, 10_000), min_size=1, max_size=3)


def test_a_place_has_its_seed() -> None:
    assert seed_for(7, 0, 1) == seed_for(7, 0, 1)
    assert seed_for(7, 0, 1) != seed_for(7, 1, 0)
    assert generator_for(7, 3).integers(1000) == generator_for(7, 3).integers(1000)


def test_seeds_are_the_same_everywhere() -> None:
    # np.random.SeedSequence(7, spawn_key=(0, 1)).generate_state(1)[0]; numpy promises it does not change
    assert seed_for(7, 0, 1) == 1834709978


@given(st.integers(0, 2**32), places)
def test_seeds_fit_into_32_bits(seed: int, place: list[int]) -> None:
    assert 0 <= seed_for(seed, *place) < 2**32


def test_five_folds_of_a_thousand_iterations_share_no_seed() -> None:
    seeds = [seed_for(0, fold, iteration) for fold, iteration in product(range(5), range(1000))]
    assert len(set(seeds)) == len(seeds)
