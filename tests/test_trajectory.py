"""Snapshots along a training, and their principal components beside random motion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from test_loop import Ready, interrupted, ready

from plans import small_plan
from segpipe.analyse import trajectory as analysis
from segpipe.core.errors import PlanError, UsageError
from segpipe.core.work import FoldFolder, Work
from segpipe.pipeline import trajectory
from segpipe.plan.edit import edit_plan
from segpipe.train.schedule import Progress, Schedule
from segpipe.train.snapshots import snapshot_paths

__all__ = ["ready"]  # a fixture
T, W = 400, 10_000


def fractions_of(path_TW: np.ndarray) -> np.ndarray:
    return analysis.principal_components(path_TW @ path_TW.T).fractions


def test_the_walks_shares_are_those_of_the_paper():
    """6 / (πk)² in the limit: .6079, .1520, .0675, .0380, .0243; with momentum .9, .6496, .1598, .0691."""
    assert analysis.walk_fractions(T)[:5] == pytest.approx([0.6079, 0.1520, 0.0675, 0.0380, 0.0243], abs=6e-5)
    assert analysis.walk_fractions(T, 0.9)[:3] == pytest.approx([0.6496, 0.1598, 0.0691], abs=6e-5)
    assert analysis.pulled_fractions(T, 0.02)[0] == pytest.approx(0.245, abs=5e-4)
    assert analysis.walk_fractions(3) == pytest.approx([2 / (2 + 2 / 3), 2 / 3 / (2 + 2 / 3)])  # 1/(1-½), 1/(1+½)


def test_a_random_walk_has_the_walks_shares_and_cosines():
    steps = np.random.default_rng(0).standard_normal((T, W))
    path = steps.cumsum(0)
    found = analysis.principal_components(path @ path.T)
    assert found.fractions[:5] == pytest.approx([0.6093, 0.1519, 0.0670, 0.0374, 0.0245], abs=8e-3)
    for component in (1, 2, 3):
        cosine = np.corrcoef(found.places_TK[:, component - 1], analysis.walk_place(T, component))[0, 1]
        assert abs(cosine) > 0.9997
    motion = analysis.measure_motion(path @ path.T)
    assert motion.net_displacement == pytest.approx(motion.walk_displacement, rel=0.03)
    assert motion.net_displacement == pytest.approx(np.linalg.norm(path[-1] - path[0]))
    assert motion.path_length == pytest.approx(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
    assert motion.drift_share < 0.001 and abs(motion.step_cosine) < 0.01
    velocity = np.zeros(W)
    carried = np.array([(velocity := 0.9 * velocity + step) for step in steps]).cumsum(0)
    assert fractions_of(carried)[:3] == pytest.approx([0.6463, 0.1612, 0.0692], abs=5e-3)


def test_a_pulled_motion_rests_at_its_radius_and_its_pull_is_found():
    generator, kept = np.random.default_rng(1), 0.98
    place = generator.standard_normal(W) / np.sqrt(1 - kept**2)
    path = np.array([(place := kept * place + generator.standard_normal(W)) for _ in range(T)])
    shares = fractions_of(path)
    assert shares[0] == pytest.approx(0.224, abs=4e-3)
    assert analysis.fit_pull(shares) == pytest.approx(0.02, abs=5e-3)
    motion = analysis.measure_motion(path @ path.T)
    expected = np.sqrt(W / (1 - kept**2))
    assert motion.resting_radius(T, 0.02) == pytest.approx(expected, rel=0.005)
    assert np.linalg.norm(path, axis=1).mean() == pytest.approx(expected, rel=0.005)
    assert motion.resting_radius(T, 0.001) is None


@given(st.integers(3, 12), st.integers(2, 6), st.integers(0, 99))
def test_components_do_not_change_when_space_is_turned_moved_or_scaled(n_points, n_axes, seed):
    generator = np.random.default_rng(seed)
    path = generator.standard_normal((n_points, n_axes))
    turn = np.linalg.qr(generator.standard_normal((n_axes, n_axes)))[0]
    assert fractions_of(path @ turn * 3 + 5) == pytest.approx(fractions_of(path), abs=1e-9)
    singular = np.linalg.svd(path - path.mean(0), compute_uv=False) ** 2  # a second opinion
    kept = min(n_points - 1, n_axes)
    assert fractions_of(path)[:kept] == pytest.approx(singular[:kept] / singular.sum(), abs=1e-9)


def test_a_straight_line_has_one_component_and_only_drift():
    path = np.arange(9.0)[:, None] * np.array([[3.0, 4.0]])
    assert fractions_of(path) == pytest.approx([1, *[0] * 7])
    motion = analysis.measure_motion(path @ path.T)
    assert (motion.net_displacement, motion.path_length) == pytest.approx((40, 40))
    assert (motion.drift_share, motion.step_cosine) == pytest.approx((1, 1))


def test_dot_products_are_read_in_portions_and_far_from_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(2)
    stored = [
        {
            "a": generator.standard_normal((7, 5, 3)),
            "b": generator.standard_normal(11),
            "c": np.full((), 0.5),
            "n": np.ones(4),
        }
        for _ in range(4)
    ]
    paths = [tmp_path / f"{index}.safetensors" for index in range(4)]
    for path, tensors in zip(paths, stored, strict=True):
        save_file({name: np.array(value + 1000, np.float32) for name, value in tensors.items()}, path)
    monkeypatch.setattr(analysis, "_CHUNK_BYTES", 300)
    loaded = [load_file(path) for path in paths]
    whole = np.array([np.concatenate([np.float64(one[name]).ravel() for name in "abc"]) for one in loaded])
    whole -= whole[0]
    assert analysis.gram_matrix(paths, ["a", "b", "c"]) == pytest.approx(whole @ whole.T, rel=1e-12)
    save_file({"a": np.float32(stored[0]["a"]) * np.nan, "b": np.zeros(11, np.float32)}, paths[2])
    with pytest.raises(UsageError, match=r"2\.safetensors holds numbers that are not finite"):
        analysis.gram_matrix(paths, ["a", "b"])
    with pytest.raises(UsageError, match="cannot be read as weights of one network"):
        analysis.gram_matrix(paths, ["c"])
    paths[1].write_bytes(b"x")
    with pytest.raises(UsageError, match="cannot be read as weights of one network"):
        analysis.gram_matrix(paths, ["a"])


def test_a_killed_training_keeps_the_snapshots_of_one_that_was_not(ready: Ready, tmp_path: Path):
    """12 steps and 5 snapshots: before the first, and after steps 3, 6, 9 and 12."""
    plan = ready.plan.model_copy(update={"training": ready.plan.training.model_copy(update={"snapshots": 5})})
    ready = replace(ready, plan=plan)
    whole = ready.train(tmp_path / "whole")
    assert list(snapshot_paths(whole)) == [0, 3, 6, 9, 12]
    folder = FoldFolder(tmp_path / "killed")
    interrupted(ready, folder.path)
    (folder.snapshots / "00000011.safetensors").write_bytes(b"of a step that is repeated")
    ready.train(folder.path)
    assert list(snapshot_paths(folder)) == [0, 3, 6, 9, 12]
    for first, second in zip(snapshot_paths(whole).values(), snapshot_paths(folder).values(), strict=True):
        one, other = load_file(first), load_file(second)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    ready.train(folder.path, restart=True, snapshots=0)
    assert not folder.snapshots.exists()


def test_snapshots_of_a_time_budget_are_equal_in_time_and_end_with_it(tmp_path: Path):
    from torch import nn

    from segpipe.train.snapshots import Snapshots

    folder = FoldFolder(tmp_path)
    training = small_plan(time_budget_seconds=100.0, snapshots=5).training
    keeper, network = Snapshots(folder, Schedule(training)), nn.Linear(1, 1)
    for step, seconds in enumerate((0, 10, 24.9, 25, 49, 60, 74, 90)):
        keeper.take(network, Progress(iteration=step, seconds=seconds))
    assert list(snapshot_paths(folder)) == [0, 3, 5, 7]
    resumed = Snapshots(folder, Schedule(training))
    resumed.rewind(Progress(iteration=6, seconds=74))
    assert list(snapshot_paths(folder)) == [0, 3, 5]
    resumed.take(network, Progress(iteration=7, seconds=74.5))
    assert list(snapshot_paths(folder)) == [0, 3, 5]
    resumed.take(network, Progress(iteration=8, seconds=96), is_end=True)
    assert list(snapshot_paths(folder)) == [0, 3, 5, 8]


def test_two_snapshots_are_refused_and_none_is_not_written():
    with pytest.raises(PlanError, match="snapshots 2: expected 0 or at least 3"):
        edit_plan(small_plan(), ["training.snapshots=2"])
    assert "snapshots" not in small_plan().to_yaml()
    assert "snapshots: 9" in edit_plan(small_plan(), ["training.snapshots=9"]).to_yaml()


def test_the_analysis_of_a_fold(ready: Ready, tmp_path: Path):
    plan = ready.plan.model_copy(update={"training": ready.plan.training.model_copy(update={"snapshots": 7})})
    work = Work(tmp_path)
    plan.save(work.plan)
    folder = replace(ready, plan=plan).train(work.fold("3d_fullres", "0").path)
    request = trajectory.TrajectoryRequest(tmp_path)
    (found,) = trajectory.run(trajectory.resolve(request)).trajectories
    assert found == trajectory.Trajectory.load(folder.trajectory)
    assert folder.trajectory.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert found.iterations == (0, 2, 4, 6, 8, 10, 12) and sum(found.fractions) == pytest.approx(1)
    first, last = (load_file(path) for path in list(snapshot_paths(folder).values())[:: len(found.iterations) - 1])
    moved = sum(float(((last[name] - first[name]).astype(float) ** 2).sum()) for name in first)
    assert found.net_displacement == pytest.approx(moved**0.5, rel=1e-6)
    assert found.n_parameters == sum(value.size for value in first.values())
    assert {null.name for null in found.nulls} == {"random walk", "random walk with momentum", "Ornstein–Uhlenbeck"}
    momentum = next(null for null in found.nulls if "momentum" in null.name).parameter
    assert momentum == pytest.approx(plan.training.momentum**2)
    assert "A pure random walk of 7 points gives 80%" in found.notes[0]  # (10.098 + 2.656) / 16
    text = trajectory.trajectory_text(found)
    assert "7 snapshots of steps 0 to 12" in text and "random walk" in text
    (folder.snapshots / "00000008.safetensors").unlink()
    (folder.snapshots / "00000006.safetensors").unlink()
    (found,) = trajectory.run(trajectory.resolve(request)).trajectories
    assert "Steps between snapshots range from 2 to 6" in found.notes[-1]
