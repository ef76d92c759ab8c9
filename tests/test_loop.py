"""Training one fold: its length, going on after a stop at any moment, stopping early, what is told and kept."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from datasets import write_nnunet
from stages import plan_data, prepare

from segpipe.core.errors import Interrupted, UsageError
from segpipe.core.history import History
from segpipe.core.work import FoldFolder, Work
from segpipe.data.splits import Splits
from segpipe.pipeline.requests import Machine
from segpipe.plan.schema import Plan
from segpipe.prepare.store import PatchCase, open_cases
from segpipe.train.checkpoint import save_state
from segpipe.train.fold import FoldData
from segpipe.train.loop import train_fold

CPU = torch.device("cpu")
NAME = "3d_fullres"
EDITS = (
    "training.epochs=3",
    "training.iterations_per_epoch=4",
    "training.validation_iterations=1",
    "training.precision=fp32",
    "training.weight_average=0.9",
    f"configurations.{NAME}.network.parts.dropout_fraction=0.2",
)


@dataclass(frozen=True)
class Ready:
    """A plan and a fold's prepared cases."""

    plan: Plan
    data: FoldData

    def train(self, folder: Path, *, restart: bool = False, **changed: object) -> FoldFolder:
        """Train with another recipe, or go on."""
        training = self.plan.training.model_copy(update=changed)
        plan = self.plan.model_copy(update={"training": training})
        train_fold(plan, NAME, self.data, FoldFolder(folder), CPU, time.monotonic(), restart=restart)
        return FoldFolder(folder)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    folder, machine = tmp_path_factory.mktemp("loop"), Machine("cpu", 1)
    write_nnunet(folder / "data", ["p1", "p2", "p3", "p4"])
    plan_data(folder / "data", folder / "work", machine, n_folds=2, edits=EDITS)
    prepared = prepare(folder / "work", NAME, machine)
    split = Splits.load(Work(folder / "work").splits).folds[0]
    train, validation = (open_cases(prepared, ids, 1) for ids in (split.train, split.validation))
    return Ready(Plan.load(Work(folder / "work").plan), FoldData(0, split, train, validation))


@pytest.fixture(scope="module")
def whole(ready: Ready, tmp_path_factory: pytest.TempPathFactory) -> FoldFolder:
    """Trained without interruption."""
    return ready.train(tmp_path_factory.mktemp("whole"))


def history_of(folder: FoldFolder) -> list[dict[str, str]]:
    with folder.history.open() as file:
        return list(csv.DictReader(file))


def what_lasts(folder: FoldFolder) -> dict[str, object]:
    """Everything in a state that does not tell the time, or of interruptions."""
    state = torch.load(folder.state, weights_only=True)
    clocks = {"seconds", "iterations_per_second", "wait_share", "peak_memory_bytes", "seconds_left", "interrupted"}
    history = [{k: v for k, v in row.items() if k not in clocks} for row in state.pop("history")]
    del state["seconds"], state["running"], state["log_bytes"]
    return state | {"history": history}


def is_same(first: object, second: object) -> bool:
    """Equal bit for bit, NaN like NaN."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(is_same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(is_same, first, second))
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    return first == second or (first != first and second != second)


def test_a_training_leaves_plan_weights_state_history_and_log(whole):
    assert all(f.is_file() for f in (whole.plan, whole.split, whole.weights, whole.state))
    rows = history_of(whole)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and [row["iteration"] for row in rows] == ["4", "8", "12"]
    assert {"iterations_per_second", "wait_share", "peak_memory_bytes", "mean_patch_dice", "dice_a"} <= set(rows[0])
    columns = History.load(whole.history).columns  # as the report reads it
    assert columns["stopped_early"] == (0, 0, 0) and len(columns["dice_b"]) == 3
    log = whole.log.read_text("utf-8")
    assert [log.count(f"fold 0  epoch {n}/3  loss") for n in (1, 2, 3)] == [1, 1, 1]


class Knocking(Sequence[PatchCase]):
    """Cases that ask the training to stop when the fourth batch is drawn, two or three steps ahead of its turn."""

    def __init__(self, cases: Sequence[PatchCase], number: int) -> None:
        self.cases, self.number, self.n_drawn = cases, number, 0

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index):
        self.n_drawn += 1
        if self.n_drawn == 7:  # two cases in a batch
            os.kill(os.getpid(), self.number)
        return self.cases[index]


def test_stopped_again_and_again_it_ends_as_if_it_never_was(ready, whole, tmp_path, capsys):
    n_stops, finished = 0, False
    while not finished:
        knocking = replace(ready.data, train=Knocking(ready.data.train, signal.SIGTERM))
        try:
            replace(ready, data=knocking).train(tmp_path, checkpoint_minutes=1e-9)
            finished = True
        except Interrupted as fault:
            assert "stopped by SIGTERM" in str(fault) and "state saved. Rerun the same command to resume" in str(fault)
            n_stops += 1
    assert n_stops > 2
    assert is_same(what_lasts(FoldFolder(tmp_path)), what_lasts(whole))
    assert [row["epoch"] for row in history_of(FoldFolder(tmp_path))] == ["1", "2", "3"]
    log = FoldFolder(tmp_path).log.read_text("utf-8")
    assert [log.count(f"fold 0  epoch {n}/3  loss") for n in (1, 2, 3)] == [1, 1, 1]
    assert log.count("resumes at iteration") >= n_stops - 1 and "epoch 2/3" in capsys.readouterr().err


def test_ctrl_c_saves_too(ready, tmp_path):
    knocking = replace(ready.data, train=Knocking(ready.data.train, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        replace(ready, data=knocking).train(tmp_path)
    assert torch.load(FoldFolder(tmp_path).state, weights_only=True)["iteration"] > 0


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_other_requests_to_stop_save_too(ready, tmp_path, name):
    knocking = replace(ready.data, train=Knocking(ready.data.train, getattr(signal, name)))
    with pytest.raises(Interrupted, match=f"stopped by {name} at iteration"):
        replace(ready, data=knocking).train(tmp_path)
    assert torch.load(FoldFolder(tmp_path).state, weights_only=True)["iteration"] > 0


def test_a_signal_that_nohup_ignores_is_not_heard(ready, whole, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        knocking = replace(ready.data, train=Knocking(ready.data.train, signal.SIGHUP))
        replace(ready, data=knocking).train(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert is_same(what_lasts(FoldFolder(tmp_path)), what_lasts(whole))


def test_a_state_of_another_network_is_set_aside_for_the_one_before(ready, whole, tmp_path, capsys):
    folder = interrupted(ready, tmp_path)
    state = torch.load(folder.state, weights_only=True)
    save_state(folder, state | {"network": {"elsewhere": torch.zeros(2)}})
    ready.train(folder.path)
    assert "holds tensors of another network, kept as state.damaged" in capsys.readouterr().err
    assert is_same(what_lasts(folder), what_lasts(whole))


def interrupted(ready: Ready, folder: Path) -> FoldFolder:
    """A training that was stopped after two or three steps."""
    knocking = replace(ready.data, train=Knocking(ready.data.train, signal.SIGTERM))
    with pytest.raises(Interrupted):
        replace(ready, data=knocking).train(folder)
    return FoldFolder(folder)


def test_history_and_log_that_are_ahead_of_the_state_are_put_back(ready, whole, tmp_path):
    folder = interrupted(ready, tmp_path)
    before = folder.log.read_text("utf-8")
    folder.history.write_text(whole.history.read_text("utf-8"))
    folder.log.write_text(before + whole.log.read_text("utf-8"))  # as if two more epochs had ended before a kill
    ready.train(folder.path)
    assert is_same(what_lasts(folder), what_lasts(whole))
    assert [row["epoch"] for row in history_of(folder)] == ["1", "2", "3"]
    log = folder.log.read_text("utf-8")
    assert log.startswith(before) and [log.count(f"epoch {n}/3  loss") for n in (1, 2, 3)] == [1, 1, 1]


def test_only_what_watches_may_change_on_the_way(ready, whole, tmp_path):
    folder = interrupted(ready, tmp_path)
    with pytest.raises(UsageError, match=r"another plan \(training.learning_rate: .*, now 0.5\)"):
        ready.train(folder.path, learning_rate=0.5)
    ready.train(folder.path, checkpoint_minutes=1.0, collapse_epochs=99)
    assert is_same(what_lasts(folder), what_lasts(whole))


def test_weights_of_a_training_whose_state_is_gone_do_not_pass_for_the_new_ones(ready, whole, tmp_path, capsys):
    folder = FoldFolder(Path(shutil.copytree(whole.path, tmp_path / "fold_0")))
    old = folder.weights.read_bytes()
    folder.state.unlink()
    folder.previous_state.unlink(missing_ok=True)
    stopping = Ready(ready.plan, replace(ready.data, train=Knocking(ready.data.train, signal.SIGTERM)))
    with pytest.raises(Interrupted):
        stopping.train(folder.path)
    assert folder.weights.read_bytes() != old
    assert (folder.path / "checkpoint_before.safetensors").read_bytes() == old
    assert "without a state to resume from" in capsys.readouterr().err


def test_short_epochs_are_not_all_saved_but_the_clock_and_the_end_save(ready, whole, tmp_path):
    assert not whole.previous_state.is_file() or saved_iteration(whole.previous_state) < 12
    always = ready.train(tmp_path, checkpoint_minutes=1e-9)
    assert saved_iteration(always.state) == saved_iteration(always.previous_state) == 12  # its last step, its end
    assert is_same(what_lasts(always), what_lasts(whole))


def saved_iteration(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["iteration"])


def test_iterations_end_training_in_the_middle_of_an_epoch(ready, tmp_path):
    rows = history_of(ready.train(tmp_path, iterations=6))
    assert [(row["epoch"], row["iteration"]) for row in rows] == [("1", "4"), ("2", "6")]
    assert float(rows[-1]["learning_rate"]) == 0


def test_training_stops_on_a_plateau_and_says_so(ready, tmp_path, capsys):
    # a step of nearly 0 changes no mask: the mean Dice of the first epoch is never surpassed
    folder = ready.train(tmp_path, learning_rate=1e-20, weight_average=0.0, epochs=9, early_stop_epochs=2)
    rows = history_of(folder)
    assert [row["stopped_early"] for row in rows] == ["0", "0", "1"]
    for told in (capsys.readouterr().err, folder.log.read_text("utf-8")):
        assert "stopped early after epoch 3: the mean patch Dice has not risen since epoch 1" in told
        assert "this fold's validation scores are optimistic" in told
    ready.train(tmp_path, learning_rate=1e-20, weight_average=0.0, epochs=9, early_stop_epochs=2)
    assert "already trained (12 iterations)" in capsys.readouterr().err


def test_a_smaller_time_budget_ends_a_training_that_goes_on(ready, tmp_path):
    folder = interrupted(ready, tmp_path)
    before = saved_iteration(folder.state)
    ready.train(folder.path, time_budget_seconds=1e-3)
    assert torch.load(folder.state, weights_only=True)["finished"] and saved_iteration(folder.state) == before
