"""Plateaus, and labels that are never found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plans import LABELS, small_plan
from segpipe.data.splits import Fold
from segpipe.prepare.places import find_places
from segpipe.prepare.store import PatchCase
from segpipe.train.checkpoint import Row
from segpipe.train.fold import FoldData
from segpipe.train.show import CollapseAlarm, find_collapsed, has_plateaued, mean_dice, plateau_text

NAN = float("nan")


def rows(*means: float) -> list[Row]:
    return [{"epoch": n, "mean_patch_dice": mean} for n, mean in enumerate(means, 1)]


def labels(**dice: list[float]) -> list[Row]:
    """A history of each label's patch Dice."""
    n_epochs = len(next(iter(dice.values())))
    return [{"epoch": n + 1, **{f"dice_{name}": values[n] for name, values in dice.items()}} for n in range(n_epochs)]


@pytest.mark.parametrize(
    ("means", "n_epochs", "expected"),
    [
        ((0.1, 0.5, 0.4, 0.5), 2, True),  # two epochs after the second, and equal is not risen
        ((0.1, 0.5, 0.4), 2, False),
        ((0.1, 0.5, 0.4, 0.6), 2, False),
        ((0.5, 0.4, 0.3), None, False),
        ((NAN, NAN, NAN), 1, False),  # nothing is known: nothing has stopped rising
        ((NAN, 0.5, NAN, NAN), 2, True),
        ((), 1, False),
    ],
)
def test_a_plateau_by_hand(means, n_epochs, expected):
    assert has_plateaued(rows(*means), n_epochs) is expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 5))
def test_a_plateau_is_where_no_later_epoch_is_better(means, n_epochs):
    best = means.index(max(means))
    assert has_plateaued(rows(*means), n_epochs) == (len(means) - 1 - best >= n_epochs)


def test_a_plateau_is_told_with_what_it_means():
    text = plateau_text(rows(0.1, 0.5, NAN, 0.4))
    assert "after epoch 4" in text and "since epoch 2 (0.500)" in text and "optimistic" in text


def test_the_mean_is_of_what_is_known():
    assert mean_dice([0.5, NAN, 1.0]) == 0.75
    assert np.isnan(mean_dice([NAN])) and np.isnan(mean_dice([]))


def test_a_label_collapses_once():
    history = labels(a=[0, 0, 0, 0, 0.1, 0, 0, 0, 0], b=[0.2, 0, 0, 0, 0, 0, 0, 0, 0], c=[NAN] * 9)
    found = [find_collapsed(history[:n], 3) for n in range(len(history) + 1)]
    assert found == [(), (), (), ("a",), ("b",), (), (), (), (), ()]


def case(**sizes_vox: int) -> PatchCase:
    """A case of 20×20×20 voxels that holds labels a and b in these sizes."""
    indices = np.zeros(8000, np.int8)
    for place, (name, n) in enumerate(sizes_vox.items()):
        indices[4000 * place : 4000 * place + n] = 1 + "ab".index(name)
    indices = indices.reshape(20, 20, 20)
    return PatchCase(
        Path("case"), np.zeros((1, 20, 20, 20), np.float32), indices, find_places(indices, LABELS).by_label()
    )


def told(train: list[PatchCase], validation: list[PatchCase], history: list[Row], **training: object) -> list[str]:
    """What the alarm says of a history."""
    plan = small_plan(collapse_epochs=3, **training)
    said: list[str] = []
    data = FoldData(0, Fold(train=("x",), validation=("y",)), train, validation)
    CollapseAlarm(plan, plan.configurations["3d_fullres"], data, said.append)(history)
    return said


NEVER = labels(a=[0.5, 0.5, 0.5], b=[0, 0, 0])


def test_a_label_that_few_cases_hold_and_that_is_small():
    (text,) = told([case(a=50, b=8)] + [case(a=50)] * 19, [case(a=50)], NEVER)
    assert text.startswith("warning: label 'b': its Dice on validation patches has been 0 for 3 epochs (epoch 3).")
    assert "few cases contain it (1 of 20)" in text
    assert "no validation case contains it (1 case)" in text
    assert "too small for this spacing: 8 voxels in the median case" in text
    assert "foreground_fraction" not in text and "learning rate" not in text


def test_a_label_that_no_training_case_holds():
    (text,) = told([case(a=50)] * 2, [case(a=50, b=50)], NEVER)
    assert "no training case contains it (2 cases)" in text


def test_labels_that_no_patch_is_centred_on():
    (text,) = told([case(a=50, b=50)] * 2, [case(b=50)], NEVER, foreground_fraction=0.0)
    assert "no patch is centred on a label, as foreground_fraction is 0" in text
    (text,) = told([case(a=50, b=50)] * 2, [case(b=50)], NEVER, foreground_fraction=0.2)  # 0.4 of 2 patches: by chance
    assert "foreground_fraction" not in text


def test_a_label_that_was_found_before_points_at_the_learning_rate():
    history = labels(a=[0.5] * 4, b=[0.71, 0, 0, 0])
    (text,) = told([case(a=50, b=50)], [case(b=50)], history, foreground_fraction=0.5, learning_rate=0.3)
    assert "it was found earlier (Dice 0.71)" in text and "learning_rate=0.1)" in text
    assert "few cases" not in text and "too small" not in text


def test_where_no_usual_cause_fits_the_numbers_are_told():
    (text,) = told([case(a=50, b=64)] * 2, [case(b=50)], NEVER, foreground_fraction=0.5)
    assert "no usual cause fits (in 2 of 2 training cases, 64 voxels in the median case, learning rate 0.01)" in text


def test_nothing_is_told_of_labels_that_are_found():
    assert not told([case(a=50, b=50)], [case(b=50)], labels(a=[0, 0, 0.1], b=[0.1, 0, 0]))
