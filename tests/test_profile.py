"""Where the time of a training goes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from plans import LABELS, small_plan
from segpipe.cli.train import profile_text
from segpipe.data.splits import Fold
from segpipe.prepare.places import find_places
from segpipe.prepare.store import PatchCase
from segpipe.train.fold import FoldData, FoldTraining, Hooks
from segpipe.train.profile import PHASES, Profile, profile_fold


def fold_in_training(hooks: Hooks | None = None, **training: object) -> FoldTraining:
    """On one case of noise with both labels."""
    indices = np.zeros((8, 10, 12), np.int8)
    indices[2:4, 2:6, 1:4], indices[2:4, 2:6, 5:8] = 1, 2
    image = np.random.default_rng(0).normal(size=(1, 8, 10, 12)).astype(np.float32)
    case = PatchCase(Path("case"), image, indices, find_places(indices, LABELS).by_label())
    plan = small_plan(**{"iterations_per_epoch": 4, "validation_iterations": 2, **training})
    data = FoldData(0, Fold(train=("a",), validation=("b",)), [case], [case])
    return FoldTraining(plan, plan.configurations["3d_fullres"], data, torch.device("cpu"), is_new=True, hooks=hooks)


def of(**seconds: float) -> Profile:
    """A profile with these parts, the others nothing."""
    parts = dict.fromkeys(PHASES, 0.0) | {name.replace("_", " "): value for name, value in seconds.items()}
    return Profile.of(
        parts,
        configuration="3d_fullres",
        device="cpu",
        precision="float32",
        n_steps=30,
        draw_seconds=0.004,
        n_threads=1,
    )


def test_every_part_of_a_step_is_measured_and_nothing_is_left(tmp_path, capsys):
    found = profile_fold(fold_in_training, "3d_fullres", tmp_path)
    assert tuple(found.seconds) == PHASES and all(seconds > 0 for seconds in found.seconds.values())
    assert found.n_steps == 30 and found.precision == "float32" and found.draw_seconds > 0
    assert sum(found.shares[phase] for phase in PHASES) == pytest.approx(1)
    assert not list(tmp_path.iterdir())
    assert "profiling 3d_fullres: 30/30" in capsys.readouterr().err


def test_no_validation_takes_no_time(tmp_path):
    make_fold = partial(fold_in_training, validation_iterations=0)
    assert profile_fold(make_fold, "3d_fullres", tmp_path).seconds["validation"] == 0


def test_a_measured_step_is_a_step_of_training(tmp_path):
    """33 steps: 3 to warm up, 30 measured."""
    made: list[FoldTraining] = []

    def make_fold(hooks: Hooks) -> FoldTraining:
        made.append(fold_in_training(hooks, learning_rate=1e-3))
        return made[0]

    profile_fold(make_fold, "3d_fullres", tmp_path)
    (measured,), trained = made, fold_in_training(learning_rate=1e-3)
    for iteration in range(33):
        trained.step(trained.draw(0, iteration), 1e-3)
    first, second = measured.network.state_dict(), trained.network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("profile", "bottleneck", "advice"),
    [
        (of(forward=1, backward=2, loss=0.4), "network", "lower precision"),  # loss: 0.4 of 3.4 is 12 %
        (of(forward=1, backward=2, loss=0.6), "loss", "training.loss"),  # 17 %
        (of(forward=1, waiting_for_data=0.9, saving=0.8), "waiting for data", "-j"),
        (of(forward=1, saving=0.9), "saving", "checkpoint_minutes"),
        (of(augmentation=1, forward=0.1), "augmentation", "augmentation=light"),
    ],
)
def test_what_to_do_follows_from_the_largest_part_beside_the_network(profile, bottleneck, advice):
    assert profile.bottleneck == bottleneck and advice in profile.advice


def test_the_table_by_hand():
    lines = profile_text(of(forward=0.01, backward=0.02, optimizer=0.01)).splitlines()
    assert lines[0] == "3d_fullres on cpu, float32, mean of 30 steps"
    assert lines[5] == "  forward                10.00   25.0%  " + "█" * 8  # 7.5 of 30 is rounded to even
    assert lines[11] == "  all                    40.00  100.0%  25 it/s"
    assert lines[12] == "  Meanwhile 1 thread drew batches: 4.00 ms per batch and thread."
    assert lines[13].startswith("optimizer: A larger batch_size") and max(map(len, lines)) <= 80
    assert "2 threads drew" in profile_text(of(forward=1).model_copy(update={"n_threads": 2}))


def test_the_record_is_json():
    record = json.loads(json.dumps(of(forward=0.03, loss=0.01).model_dump()))
    assert record["shares"]["loss"] == 0.25 and record["bottleneck"] == "loss" and record["step_seconds"] == 0.04
