"""`segpipe prune` and `segpipe analyse pruning`: a smaller network is trained on, packed, and predicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import write_nnunet
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.stats import kendalltau
from specs import unet
from stages import plan_data, predict, train

from segpipe.analyse.pruning import rank_correlation, sample_combinations, verdict
from segpipe.bridge.nnunet_model import export_nnunet_model
from segpipe.core.errors import PlanError, UsageError
from segpipe.core.work import Work
from segpipe.networks.pruning import channel_groups
from segpipe.pipeline import prune, pruning_oracle
from segpipe.pipeline.packing import pack
from segpipe.pipeline.requests import Machine
from segpipe.plan.edit import edit_plan
from segpipe.plan.schema import Plan

MACHINE, NAME = Machine("cpu", 1), "3d_fullres"
EDITS = (
    "training.epochs=2",
    "training.iterations_per_epoch=2",
    "training.validation_iterations=2",
    "training.precision=fp32",
    "configurations.3d_fullres.network.features=[8,16]",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with fold 0 trained."""
    folder = tmp_path_factory.mktemp("prune")
    write_nnunet(folder / "data", ["p1", "p2", "p3", "p4"])
    plan_data(folder / "data", folder / "work", MACHINE, n_folds=2, edits=EDITS, preset="nnunet")
    train(folder / "work", NAME, [0], MACHINE)
    return folder / "work"


def prune_into(output: Path, work: Path, **more: object) -> prune.PruneReport:
    request = {"ratios": (0.5,), "n_candidates": 3, "trial_iterations": 2, **more}
    return prune.run(prune.resolve(prune.PruneRequest(work, output, MACHINE, **request)))  # type: ignore[arg-type]


def test_a_pruned_fold_is_trained_packed_and_predicts(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = tmp_path / "small"
    report = prune_into(small, work)
    assert (report.before.features, report.after.features) == ((8, 16), (4, 8))
    assert report.after.n_parameters < 0.3 * report.before.n_parameters
    assert report.after.n_macs < 0.4 * report.before.n_macs
    (fold,) = report.folds
    assert [one.criterion for one in fold.candidates] == ["magnitude", "scale", "random"]
    assert fold.candidates[fold.chosen].score == max(one.score for one in fold.candidates)
    assert fold.new_weights.criterion == "new weights" and "taken" in prune.prune_text(report)
    beaten = fold.model_copy(update={"new_weights": fold.new_weights.model_copy(update={"score": 1.0})})
    advice = "In fold 0 new weights did as well"
    assert advice in prune.prune_text(report.model_copy(update={"folds": (beaten,)}))
    plan = Plan.load(Work(small).plan)
    assert plan.configurations[NAME].network.features == (4, 8) and "from 8, 16 to 4, 8" in plan.reasons["pruning"]
    capsys.readouterr()
    assert prune_into(small, work) == report
    assert "already pruned" in capsys.readouterr().err
    with pytest.raises(UsageError, match="was pruned otherwise"):
        prune_into(small, work, seed=1)
    with pytest.raises(UsageError, match="holds another plan"):
        prune_into(small, work, ratios=(0.25,))
    train(small, NAME, [0], MACHINE)
    assert "starts from" in capsys.readouterr().err
    exported = export_nnunet_model(small, tmp_path / "nnunet", NAME, ["0"], any_orientation=True)
    network = json.loads((exported / "plans.json").read_text("utf-8"))["configurations"][NAME]["architecture"]
    assert network["arch_kwargs"]["features_per_stage"] == [4, 8]
    pack(small, tmp_path / "m.segpipe.zip")
    images = work.parent / "data" / "imagesTr"
    assert len(predict(tmp_path / "m.segpipe.zip", images, tmp_path / "masks", MACHINE).masks) == 4


def test_training_starts_from_the_weights_in_the_folds_folder(work: Path, tmp_path: Path):
    prune_into(tmp_path, work, n_candidates=1)
    folder = Work(tmp_path).fold(NAME, "0")
    train(tmp_path, NAME, [0], MACHINE, edits=["training.learning_rate=1e-30", "training.weight_decay=0"])
    first, last = load_file(folder.initial), load_file(folder.weights)
    assert all(np.allclose(first[name], last[name], atol=1e-7) for name in first)
    (tmp_path / "runs" / NAME / "fold_0" / "initial.safetensors").unlink()
    with pytest.raises(UsageError, match=r"initial\.safetensors"):
        train(tmp_path, NAME, [0], MACHINE, restart=True)


@pytest.mark.parametrize(
    ("changed", "fault", "words"),
    [
        ({"ratios": (1.0,)}, UsageError, "--ratio 1: expected a share of channels to remove, 0 to below 1"),
        ({"ratios": (-0.1,)}, UsageError, "--ratio -0.1: expected a share"),
        ({"ratios": (0.0,)}, UsageError, "--ratio 0: removes nothing"),
        ({"ratios": (0.5, 0.5, 0.5)}, UsageError, "3 numbers, expected 1, or 2: one for each stage"),
        ({"folds": (1,)}, UsageError, "has no trained fold 1"),
        ({"configuration": "2d"}, UsageError, "no trained configuration '2d'"),
        ({"n_candidates": 0}, UsageError, "--candidates 0: expected 1 or more"),
    ],
)
def test_what_cannot_be_pruned_is_refused(work: Path, tmp_path: Path, changed, fault, words):
    with pytest.raises(fault, match=words):
        prune_into(tmp_path / "new", work, **changed)
    assert not (tmp_path / "new").exists()


def test_the_new_folder_is_another_and_empty(work: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="is the work folder itself"):
        prune_into(work, work)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="is not empty"):
        prune_into(tmp_path, work)


def test_an_unfinished_fold_and_a_kind_without_pruning_are_refused(work: Path, tmp_path: Path):
    shutil.copytree(work, tmp_path / "work")
    folder = Work(tmp_path / "work").fold(NAME, "0")
    plan = Plan.load(folder.plan)
    edit_plan(plan, ["configurations.3d_fullres.network.parts.norm=group"]).save(folder.plan)
    with pytest.raises(PlanError, match=r"configurations\.3d_fullres\.network\.parts\.norm 'group': cannot be pruned"):
        prune_into(tmp_path / "new", tmp_path / "work")
    plan.save(folder.plan)
    save_file(load_file(folder.weights), folder.weights, {"configuration": NAME, "fold": "0", "finished": "0"})
    with pytest.raises(UsageError, match=r"fold_0: not trained to the end"):
        prune_into(tmp_path / "new", tmp_path / "work", folds=(0,))


def oracle(work: Path, **more: object) -> pruning_oracle.PruningReport:
    request = {"n_combinations": 5, "iterations": 1, "fold": 0, **more}
    return pruning_oracle.run(pruning_oracle.resolve(pruning_oracle.PruningRequest(work, MACHINE, **request)))  # type: ignore[arg-type]


def test_the_analysis_resumes_and_takes_more(work: Path, capsys: pytest.CaptureFixture[str]):
    first = oracle(work, n_combinations=2)
    capsys.readouterr()
    more = oracle(work)
    err = capsys.readouterr().err
    assert "2 combinations already measured" in err and "combination 3/5" in err and "combination 2/5" not in err
    assert more.trials.combinations[:2] == first.trials.combinations and more.file == first.file
    rows = more.trials.combinations
    assert len({row.loss_before for row in rows}) == 5
    assert more.correlation.tau == pytest.approx(kendalltau([-r.loss_before for r in rows], [r.score for r in rows])[0])
    assert oracle(work, fold=None) == more
    assert oracle(work, n_combinations=2, stages=(1,)).trials.ratios == (0, 0.5)
    with pytest.raises(UsageError, match="--stage 5: the network has stages 0 to 1"):
        oracle(work, stages=(5,))
    text = pruning_oracle.report_text(more)
    assert "5 combinations, ratios 0.5, 0.5, 1 step of retraining" in text


def test_the_same_combination_gives_the_same_numbers_again(work: Path, tmp_path: Path):
    shutil.copytree(work, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "runs" / NAME / "fold_0" / "pruning", ignore_errors=True)
    again, first = oracle(tmp_path / "copy", n_combinations=2, seed=4), oracle(work, n_combinations=2, seed=4)
    assert again.trials == first.trials


def test_planted_orders_have_their_correlation():
    generator = np.random.default_rng(0)
    scores = list(generator.standard_normal(2000))
    assert rank_correlation([np.exp(s) for s in scores], scores).tau == 1
    assert rank_correlation([-s for s in scores], scores).tau == -1
    shuffled = rank_correlation(list(generator.permutation(scores)), scores)
    assert abs(shuffled.tau or 1) < 0.1 and "does not tell which channels" in verdict(shuffled)
    noisy = rank_correlation(list(np.array(scores) + generator.standard_normal(2000)), scores)
    assert noisy.tau == pytest.approx(0.5, abs=0.03)  # 2/π · asin(1/√2)
    assert noisy.low < noisy.tau < noisy.high and "tells something" in verdict(noisy)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_tau_is_scipys(pairs):
    first, second = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    found = rank_correlation(first, second)
    expected = kendalltau(first, second).statistic if len(pairs) > 1 else np.nan
    assert found.tau is None if np.isnan(expected) else found.tau == pytest.approx(expected)
    if found.low is not None and found.high is not None and found.tau is not None:
        assert -1 <= found.low <= found.tau <= found.high <= 1


def test_the_interval_covers_its_share():
    """Bivariate normal pairs of correlation .5, τ = 1/3: about 95 of 100 intervals hold it."""
    generator, held = np.random.default_rng(1), 0
    for _ in range(400):
        shared = generator.standard_normal((2, 20))
        found = rank_correlation(list(shared[0]), list(0.5 * shared[0] + 0.75**0.5 * shared[1]))
        held += found.low <= 1 / 3 <= found.high
    assert 0.92 < held / 400 < 0.98


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([1, 1, 1], [1, 2, 3], "No correlation"),
        ([1, 2, 3, 4], [4, 3, 2, 1], "look best just after pruning end worse"),
        ([1, 2, 3, 4, 5, 6], [1, 3, 2, 5, 4, 6], "measure more combinations"),
    ],
)
def test_a_verdict_says_what_to_do(first, second, words):
    assert words in verdict(rank_correlation(first, second))


def test_combinations_differ_and_end_where_there_are_no_more():
    groups = channel_groups(unet("plain", "3d"), 1, 2)
    found = list(sample_combinations(groups, (0.5, 0.5, 0.5), 30, 0))
    assert len({tuple(one.items()) for one in found}) == 30
    assert list(sample_combinations(groups, (0.5, 0.5, 0.5), 10, 0)) == found[:10]
    few = list(sample_combinations(groups[:1], (0.25, 0, 0), 30, 0))
    assert sorted(one[groups[0].name] for one in few) == [(0,), (1,), (2,), (3,)]
