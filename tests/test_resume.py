"""train/resume.py and train/show.py: what may change on the way, and what a loss that is not finite leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_loop import CPU, Ready, history_of, interrupted, is_same, ready, saved_iteration, what_lasts
from torch import nn

from plans import small_plan, small_spec
from segpipe.core.errors import PlanError, UsageError
from segpipe.core.work import FoldFolder
from segpipe.data.splits import Fold
from segpipe.networks.build import build
from segpipe.plan.edit import edit_plan
from segpipe.plan.schema import Plan
from segpipe.prepare.store import PatchCase
from segpipe.train.checkpoint import save_weights
from segpipe.train.distributed import Group
from segpipe.train.divergence import are_finite, divergence, note_divergence
from segpipe.train.fold import FoldTraining
from segpipe.train.loop import _Loop
from segpipe.train.resume import PROCESSES, require_same_training

__all__ = ["ready"]  # a fixture
NAME = "3d_fullres"
STEADY = {"schedule": "constant", "warmup_fraction": 0.0}


def test_a_constant_training_that_is_made_longer_is_the_long_one(ready: Ready, tmp_path, capsys):
    whole = ready.train(tmp_path / "whole", **STEADY)
    folder = ready.train(tmp_path / "longer", **STEADY, epochs=2)
    folder.scores.write_text("of the short one")
    capsys.readouterr()
    ready.train(folder.path, **STEADY)
    assert "resumes at iteration 8" in capsys.readouterr().err
    assert "From here on training.epochs 3 instead of 2." in folder.log.read_text("utf-8")
    assert is_same(what_lasts(folder), what_lasts(whole))
    assert Plan.load(folder.plan).training.epochs == 3 and not folder.scores.exists()
    ready.train(folder.path, **STEADY, epochs=1)  # shorter than what is done: nothing is left
    assert "already trained (12 iterations)" in capsys.readouterr().err
    assert Plan.load(folder.plan).training.epochs == 3


def test_one_that_was_killed_as_it_was_made_longer_goes_on(ready: Ready, tmp_path):
    whole = ready.train(tmp_path / "whole", **STEADY)
    folder = ready.train(tmp_path / "longer", **STEADY, epochs=2)
    interrupted(replace(ready, plan=with_recipe(ready.plan, **STEADY)), folder.path)
    assert not torch.load(folder.state, weights_only=True)["finished"]
    ready.train(folder.path, **STEADY)
    assert is_same(what_lasts(folder), what_lasts(whole))


def with_recipe(plan: Plan, **changed: object) -> Plan:
    return plan.model_copy(update={"training": plan.training.model_copy(update=changed)})


@pytest.mark.parametrize(
    ("recipe", "why"), [({}, "poly, warm-up"), (STEADY | {"warmup_fraction": 0.5}, "constant, warm-up")]
)
def test_a_schedule_that_follows_the_length_is_not_made_longer_but_begun_anew(ready, tmp_path, capsys, recipe, why):
    folder = ready.train(tmp_path, **recipe, epochs=1)
    old = folder.weights.read_bytes()
    with pytest.raises(UsageError, match=rf"training.epochs: 1, now 2\).*depends on its length \({why}\).*--restart"):
        ready.train(folder.path, **recipe, epochs=2)
    capsys.readouterr()
    ready.train(folder.path, **recipe, epochs=2, restart=True)
    assert "starts with" in capsys.readouterr().err
    assert [row["epoch"] for row in history_of(folder)] == ["1", "2"]
    assert (folder.path / "checkpoint_before.safetensors").read_bytes() == old


def test_a_training_that_was_stopped_on_a_plateau_goes_on_without_it(ready: Ready, tmp_path):
    nearly_nothing = {"learning_rate": 1e-20, "weight_average": 0.0}
    folder = ready.train(tmp_path, **nearly_nothing, early_stop_epochs=1)
    assert saved_iteration(folder.state) == 8
    ready.train(folder.path, **nearly_nothing, early_stop_epochs=2)
    assert saved_iteration(folder.state) == 12


class Spoilt(Sequence[PatchCase]):
    """Cases whose images are not a number from the fourth batch on."""

    def __init__(self, cases: Sequence[PatchCase]) -> None:
        self.cases, self.n_drawn = cases, 0

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index):
        self.n_drawn += 1  # two cases in a batch
        case = self.cases[index]
        return case if self.n_drawn < 7 else replace(case, image=np.full(case.image.shape, np.nan, np.float32))


def test_after_a_loss_that_is_nan_the_state_before_goes_on_with_a_lower_rate(ready: Ready, tmp_path, capsys):
    spoilt = replace(ready, data=replace(ready.data, train=Spoilt(ready.data.train)))
    with pytest.raises(
        PlanError, match=r"loss is nan at iteration 3\. Lower it .*state of iteration 3, where all was finite, is kept"
    ):
        spoilt.train(tmp_path, checkpoint_minutes=1e-9)
    folder = FoldFolder(tmp_path)
    assert saved_iteration(folder.state) == 3 and folder.divergence_note.is_file()
    with pytest.raises(UsageError, match="momentum"):  # not what mends it
        ready.train(folder.path, momentum=0.5)
    ready.train(folder.path, learning_rate=0.001, epochs=3)
    assert "training.learning_rate 0.001 instead of 0.01" in folder.log.read_text("utf-8")
    assert Plan.load(folder.plan).training.learning_rate == 0.001 and not folder.divergence_note.exists()
    assert saved_iteration(folder.state) == 12 and "resumes at iteration 3" in capsys.readouterr().err


def test_without_a_state_before_it_begins_anew(ready: Ready, tmp_path):
    spoilt = replace(ready, data=replace(ready.data, train=Spoilt(ready.data.train)))
    with pytest.raises(
        PlanError, match="No earlier state was saved: rerun the command with such a change to start over"
    ):
        spoilt.train(tmp_path)
    ready.train(tmp_path, learning_rate=0.001)


def test_weights_that_are_not_finite_are_never_saved(ready: Ready, tmp_path):
    # the loss of the first step is finite; a rate that float32 cannot hold then spoils the weights
    with pytest.raises(PlanError, match=r"weights are infinite or NaN at iteration 1\. Lower it"):
        ready.train(tmp_path, optimizer="adamw", learning_rate=1e45, warmup_fraction=0.0, checkpoint_minutes=1e-9)
    assert not FoldFolder(tmp_path).state.exists() and not FoldFolder(tmp_path).weights.exists()


@pytest.mark.parametrize("name", ["0.bias", "1.running_var"])
def test_a_single_number_that_is_not_finite_is_seen_in_whatever_is_saved(name):
    sound, spoilt = (nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2)) for _ in range(2))
    assert are_finite([sound, spoilt])  # and the count of batches, an integer, is no matter
    spoilt.state_dict()[name][1] = torch.inf
    assert not are_finite([sound, spoilt])


def test_of_processes_that_train_together_only_the_first_looks_at_weights_and_says_what_is_saved(ready, tmp_path):
    # the others never save: they would look after every step, end all, and leave no note that the rate may change
    folder, fault = FoldFolder(tmp_path), divergence("the loss is nan", 5, ready.plan.training, torch.float32)
    fold = FoldTraining(ready.plan, ready.plan.configurations[NAME], ready.data, CPU, is_new=True, group=Group(rank=1))
    with torch.no_grad():
        next(fold.network.parameters()).fill_(torch.nan)
    _Loop(fold, folder, {}, 0.0)._save()
    assert note_divergence(folder, fault, 0, keeps=False) is fault and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("processes", "before", "now", "advice"),
    [
        (2, 4, (1, 2), r"on 2 devices with 2 patches each; now there is 1. Resume with --devices 2, or with --set "
                       r"configurations.3d_fullres.batch_size=4 for the same batch on 1, "),
        (1, 2, (2, 4), r"on 1 device with 2 patches each; now there are 2. Resume with --devices 1, or with --set "
                       r"configurations.3d_fullres.batch_size=1 for the same batch on 2, "),
        (3, 9, (2, 6), r"on 3 devices with 3 patches each; now there are 2. Resume with --devices 3, or"),
        (1, 4, (1, 2), r"Use another work folder, or add --restart"),
    ],
)  # fmt: skip
def test_a_batch_that_other_devices_shared_is_told_by_devices(tmp_path, processes, before, now, advice):
    folder, split = FoldFolder(tmp_path), Fold(train=("a",), validation=("b",))
    plan = edit_plan(small_plan(), [f"configurations.{NAME}.batch_size={before}"])
    plan.save(folder.plan)
    split.save(folder.split)
    save_weights(folder.weights, build(small_spec(), 1, 3), {PROCESSES: str(processes)})
    n_devices, batch_size = now
    with pytest.raises(UsageError, match=rf"batch_size: {before}, now {batch_size}\)\. .*{advice}"):
        require_same_training(
            edit_plan(plan, [f"configurations.{NAME}.batch_size={batch_size}"]),
            split,
            folder,
            is_finished=False,
            n_processes=n_devices,
        )
