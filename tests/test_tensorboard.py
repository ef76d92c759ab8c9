"""Event files of real trainings, read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import math
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_fold import case, plan_with

from segpipe.core.errors import SetupError
from segpipe.core.history import History
from segpipe.core.work import FoldFolder
from segpipe.data.splits import Fold
from segpipe.plan.schema import Plan
from segpipe.train.checkpoint import load_state
from segpipe.train.fold import FoldData
from segpipe.train.loop import train_fold
from segpipe.train.tensorboard import wants_tensorboard

LENGTH = {"iterations_per_epoch": 3, "validation_iterations": 12}


def data() -> FoldData:
    """Three training cases and six others, of which twelve patches hold at least four."""
    ids = tuple(f"case_{seed}" for seed in range(9))
    cases = [case(seed) for seed in range(9)]
    return FoldData(0, Fold(train=ids[:3], validation=ids[3:]), cases[:3], cases[3:])


def train(folder: Path, plan: Plan, *, tensorboard: bool = True) -> FoldFolder:
    train_fold(
        plan, "3d_fullres", data(), FoldFolder(folder), torch.device("cpu"), time.monotonic(), tensorboard=tensorboard
    )
    return FoldFolder(folder)


def events_of(folder: FoldFolder) -> EventAccumulator:
    events = EventAccumulator(str(folder.tensorboard), {"images": 0, "scalars": 0})
    return events.Reload()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> FoldFolder:
    return train(tmp_path_factory.mktemp("trained"), plan_with(epochs=3, **LENGTH))


def assert_like_the_history(folder: FoldFolder) -> None:
    """Every known number of history.csv once, at its iteration, and nothing else."""
    events, history = events_of(folder), History.load(folder.history)
    steps = history.columns["iteration"]
    found = {tag.split("/", 1)[1]: tag for tag in events.Tags()["scalars"]}
    expected = {c: v for c, v in history.columns.items() if any(map(math.isfinite, v))}
    assert set(found) == set(expected) - {"iteration", "stopped_early", "interrupted"}
    for column, tag in found.items():
        known = [(step, value) for step, value in zip(steps, expected[column], strict=True) if math.isfinite(value)]
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [step for step, _ in known], column
        assert [scalar.value for scalar in scalars] == pytest.approx([value for _, value in known], rel=1e-6), column


def test_event_files_hold_the_history_and_pictures_of_four_cases(trained):
    assert_like_the_history(trained)
    events = events_of(trained)
    tags = events.Tags()["images"]
    names = [tag.split()[-1] for tag in tags]
    assert len(set(names)) == 4 and set(names) <= {f"case_{seed}" for seed in range(3, 9)}
    assert [tag.split()[0] for tag in tags] == [f"patches/{number}" for number in (1, 2, 3, 4)]
    for tag in tags:
        pictures = events.Images(tag)
        assert [picture.step for picture in pictures] == [3, 6, 9]
        pixels = [matplotlib.image.imread(io.BytesIO(p.encoded_image_string), "png") for p in pictures]
        assert max(pixels[0].shape) < 1000
        orange = [(np.abs(p - np.array([0xE6, 0x9F, 0x00]) / 255).max(-1) < 0.01).sum() for p in pixels]
        assert min(orange) > 0  # the reference, whatever the network says
    assert events.Tensors("patches/text_summary")[0].tensor_proto.string_val[0].endswith(b"- a: orange\n- b: sky blue")


def test_a_training_that_goes_on_repeats_nothing_and_leaves_nothing_out(tmp_path):
    """The last state is lost after three epochs: training goes on from an older one, and epochs are done again."""
    plan = plan_with(epochs=3, checkpoint_minutes=1e-9, **LENGTH)
    folder = train(tmp_path, plan)
    folder.state.unlink()
    state = load_state(folder)
    assert state and state["iteration"] == 9  # the state before: all steps are done, and the last epoch has not ended
    train(tmp_path, plan)
    assert len(list(folder.tensorboard.glob("events.*"))) == 2
    assert_like_the_history(folder)
    assert [picture.step for picture in events_of(folder).Images(events_of(folder).Tags()["images"][0])] == [3, 6, 9]
    assert History.load(folder.history).interruptions == (3,)


def test_what_was_trained_without_it_is_added(tmp_path):
    plan = plan_with(epochs=2, checkpoint_minutes=1e-9, **LENGTH)
    folder = train(tmp_path, plan, tensorboard=False)
    assert not folder.tensorboard.exists()
    folder.state.unlink()
    train(tmp_path, plan)
    assert_like_the_history(folder)
    assert [p.step for p in events_of(folder).Images(events_of(folder).Tags()["images"][0])] == [6]


def test_a_new_training_does_not_show_an_older_one(tmp_path):
    folder = train(tmp_path, plan_with(epochs=2, **LENGTH))
    for state in (folder.state, folder.previous_state):
        state.unlink(missing_ok=True)
    train(tmp_path, plan_with(epochs=1, **LENGTH))
    assert_like_the_history(folder)


def test_a_long_training_has_pictures_of_a_hundred_epochs(tmp_path):
    """Of more than a hundred epochs every second: 2, 4, … 100."""
    plan = plan_with(epochs=101, iterations_per_epoch=1, validation_iterations=1, batch_size=1)
    folder = train(tmp_path, plan)
    events = events_of(folder)
    (tag,) = events.Tags()["images"]
    assert [picture.step for picture in events.Images(tag)] == list(range(2, 101, 2))


def test_without_validation_there_are_curves_alone(tmp_path):
    folder = train(tmp_path, plan_with(epochs=1, iterations_per_epoch=1, validation_iterations=0))
    assert_like_the_history(folder)
    assert not events_of(folder).Tags()["images"]


def test_it_is_written_if_it_is_installed_and_an_error_if_asked_for_in_vain(monkeypatch):
    assert wants_tensorboard(None) and wants_tensorboard(True) and not wants_tensorboard(False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not there
    assert not wants_tensorboard(None) and not wants_tensorboard(False)
    with pytest.raises(SetupError, match=r"pip install 'segpipe\[track\]'"):
        wants_tensorboard(True)
