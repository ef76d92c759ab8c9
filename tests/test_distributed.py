"""train/distributed.py: two processes do what one does with the same batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_loop import history_of, is_same, saved_iteration, what_lasts
from two_processes import BATCH, CPU, LABELS, NAME, RECIPES, WITH_BATCH_NORM, Recipe, data_of, plan_of, train

from segpipe.core.errors import PlanError
from segpipe.core.work import FoldFolder
from segpipe.pipeline.train_processes import _free_port
from segpipe.train.augmentation.draws import draw, scope_of
from segpipe.train.distributed import ALONE, Group
from segpipe.train.fold import TRAIN, FoldTraining

SCRIPT = Path(__file__).with_name("two_processes.py")


class Together:
    """What two processes left behind."""

    def __init__(self, folder: Path) -> None:
        port = str(_free_port())
        self.folder = folder
        running = [
            subprocess.Popen(
                [sys.executable, "-W", "error", str(SCRIPT), str(folder)],
                env=os.environ
                | {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            self.errors = [process.communicate(timeout=300)[1] for process in running]
        finally:
            for process in running:
                process.kill()
        self.codes = [process.returncode for process in running]
        assert self.codes == [0, 3], self.errors
        self.results = [torch.load(folder / f"result_{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    return Together(tmp_path_factory.mktemp("together"))


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_are_one_with_the_same_batch(together: Together, name: str) -> None:
    first, second = (result[name] for result in together.results)
    assert is_same(first, second)  # each holds the same weights, bit for bit
    alone = train(RECIPES[name], ALONE)
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert first["validation"] == pytest.approx(alone["validation"], abs=1e-5)
    assert torch.allclose(first["weights"], alone["weights"], atol=1e-5)


def test_all_stop_at_the_step_in_which_one_is_asked_and_go_on_exactly(together: Together) -> None:
    first, second = (result["stopped"]["stopped"] for result in together.results)
    assert (
        first == second and "stopped by SIGTERM at iteration" in first and "Rerun the same command to resume" in first
    )
    whole, stopped = (FoldFolder(together.folder / name) for name in ("whole", "stopped"))
    assert 0 < saved_iteration(stopped.previous_state) < 12
    assert is_same(what_lasts(stopped), what_lasts(whole))
    assert [row["iteration"] for row in history_of(stopped)] == ["4", "8", "12"]


def test_a_time_budget_ends_all_at_the_same_step(together: Together) -> None:
    assert torch.load(FoldFolder(together.folder / "timed").state, weights_only=True)["finished"]
    assert together.results[0]["timed"] == together.results[1]["timed"] == {}  # else one would wait for the other


def test_the_first_process_alone_writes_and_speaks(together: Together) -> None:
    assert "epoch 3/3" in together.errors[0] and together.errors[1] == ""
    log = FoldFolder(together.folder / "stopped").log.read_text("utf-8")
    assert [log.count(f"epoch {n}/3  loss") for n in (1, 2, 3)] == [1, 1, 1]


def test_every_process_knows_the_numbers_of_all(together: Together) -> None:
    first, second = (result["gathered"] for result in together.results)
    assert first == second and [row[0] for row in first] == [0, 1]


def test_who_loses_another_process_says_so(together: Together) -> None:
    text = torch.load(together.folder / "fault.pt", weights_only=True)
    assert text.startswith("process 0 of 2: another process of this training ended; its own message says why")


def test_batch_norms_that_cannot_share_their_statistics_are_refused(together: Together) -> None:
    for result in together.results:
        assert "2 processes on cpu: it has batch norms" in result["batch norms"]
    assert np.isfinite(train(Recipe({}, network=WITH_BATCH_NORM), ALONE)["losses"]).all()


def fold_of(group: Group, **training: Any) -> FoldTraining:
    plan = plan_of(Recipe(training))
    return FoldTraining(plan, plan.configurations[NAME], data_of(LABELS), CPU, is_new=True, group=group)


@pytest.mark.parametrize("training", [{}, {"augmentation": "nnunet", "gradient_accumulation": 2}])
def test_the_samples_of_all_processes_are_those_of_one(training):
    whole = fold_of(ALONE, **training).draw(TRAIN, 5)
    for rank in range(2):
        own = fold_of(Group(rank, 2), **training).draw(TRAIN, 5)
        for part, batch in zip(own, whole, strict=True):
            assert all(map(torch.equal, part.images.each, batch.images.each[rank::2]))
            assert all(map(torch.equal, part.indices.each, batch.indices.each[rank::2]))
            assert part.case_ids == batch.case_ids[rank::2]
            if batch.draws is not None:
                seeds = batch.draws.noise_seeds[rank::2]
                assert part.draws is not None and part.draws.noise_seeds.tolist() == seeds.tolist()


def test_a_part_of_the_draws_by_hand():
    scope = scope_of(plan := plan_of(RECIPES["augmented"]), plan.configurations[NAME])
    whole = draw(scope, 6, 1, np.random.default_rng(0))
    part = whole.part(1, 3)
    assert np.array_equal(part.noise_seeds, whole.noise_seeds[[1, 4]])
    assert np.array_equal(part.turns, whole.turns[[1, 4]]) and part.gamma.shape == (2, 1)


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(PlanError, match=f"batch_size {BATCH}: cannot be divided among 3 processes"):
        fold_of(Group(0, 3))


def test_one_process_asks_nobody_and_changes_nothing():
    value = torch.tensor([1.5])
    assert ALONE.sum(value) is value and ALONE.gather([2.0, 3.0]) == [[2.0, 3.0]]
