"""Running statistics: the shift of variance, found and mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import write_nnunet
from safetensors.torch import load_file
from stages import plan_data, train
from test_json import require_parts
from torch import nn

from plans import small_plan
from segpipe.analyse.variance import measure_variance, shift_ratio
from segpipe.cli.main import run
from segpipe.core.errors import PlanError, UsageError
from segpipe.networks.norms import PhaseNorm, UniformNoise
from segpipe.pipeline import variance
from segpipe.pipeline.requests import Machine
from segpipe.plan.edit import edit_plan
from segpipe.plan.schema import Plan
from segpipe.train.running_statistics import renewed_statistics

MACHINE = Machine("cpu", 1)
NAME = "3d_fullres"
EDITS = (
    "training.epochs=2",
    "training.iterations_per_epoch=3",
    "training.validation_iterations=1",
    "training.precision=fp32",
    "training.weight_average=0.9",
    f"configurations.{NAME}.network.parts.norm=batch",
)


def passes(network: nn.Module, n: int = 200, seed: int = 0) -> Iterator[None]:
    """Batches with mean 0.5 and variance 1."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        network(torch.randn(64, 32, 4, 4, generator=generator) + 0.5)
        yield


def planted(noise: nn.Module, norm: nn.Module | None = None) -> nn.Module:
    """Noise before a norm that has seen many batches in training."""
    network = nn.Sequential(noise, norm or nn.BatchNorm2d(32))
    network[1].momentum = None
    torch.manual_seed(99)  # noise of the seed of the values would go with them
    with torch.no_grad():
        list(passes(network.train()))
    return network


@pytest.mark.parametrize(("fraction", "expected"), [(0.1, 0.878), (0.3, 0.651), (0.5, 0.444)])
def test_dropout_before_a_running_norm_is_found_with_its_published_ratio(fraction, expected):
    network = planted(nn.Dropout(fraction))
    (found,) = measure_variance(network, passes(network, seed=1))
    assert round(shift_ratio(0.5, 1.0, fraction), 3) == expected
    assert found.ratio == pytest.approx(expected, rel=0.01) and found.is_shifted
    assert (found.layer, found.n_features) == ("1", 32) and found.lowest < found.ratio < found.highest
    assert found.mean_shift < 0.01  # dropout keeps the mean


def test_without_dropout_both_agree_and_noise_shifts_by_a_third_of_its_square():
    network = planted(nn.Identity(), PhaseNorm(32))
    (found,) = measure_variance(network, passes(network, seed=1))
    assert found.ratio == pytest.approx(1, abs=0.005) and not found.is_shifted
    network = planted(UniformNoise(0.1))
    (found,) = measure_variance(network, passes(network, seed=1))
    # variance in training (0.25 + 1) (1 + 0.01 / 3) - 0.25; without a mean it would be 300 / 301
    assert found.ratio == pytest.approx(1 / (1.25 * (1 + 0.01 / 3) - 0.25), abs=0.003) and not found.is_shifted


def test_renewed_statistics_mend_the_shift_and_are_put_back():
    network = planted(nn.Dropout(0.5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with renewed_statistics(network, passes(network, seed=2)) as n_norms:
        assert n_norms == 1 and not network.training
        (found,) = measure_variance(network, passes(network, seed=1))
        assert found.ratio == pytest.approx(1, abs=0.01)
        network[1].train()
    assert network.training and network[1].momentum is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_recalibration_needs_a_norm_with_running_statistics():
    with pytest.raises(
        PlanError, match=r"recalibrate 5: norm instance keeps no running statistics, only batch, pcnorm"
    ):
        edit_plan(small_plan(), ["training.recalibrate=5"])
    plan = edit_plan(small_plan(), [f"configurations.{NAME}.network.parts.norm=ccnorm", "training.recalibrate=5"])
    assert plan.training.recalibrate == 5
    assert "recalibrate" not in small_plan().to_yaml()


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Work folders whose first fold is trained, by the number of batches for recalibration."""
    folder = tmp_path_factory.mktemp("variance")
    write_nnunet(folder / "data", ["p1", "p2", "p3", "p4"])
    works = {n: folder / f"work_{n}" for n in (0, 16)}
    for n, work in works.items():
        plan_data(folder / "data", work, MACHINE, n_folds=2, edits=(*EDITS, f"training.recalibrate={n}"))
        train(work, NAME, [0], MACHINE)
    return works


def test_recalibration_changes_stored_statistics_alone_and_no_state(works):
    plain, mended = (works[n] / "runs" / NAME / "fold_0" for n in (0, 16))
    weights, others = load_file(plain / "checkpoint.safetensors"), load_file(mended / "checkpoint.safetensors")
    changed = {name.rpartition(".")[2] for name in weights if not torch.equal(weights[name], others[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    states = [torch.load(fold / "state.pt", weights_only=True) for fold in (plain, mended)]
    for part in ("network", "average"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())
    assert "running statistics of 6 norms recalibrated on 16 training batches" in (mended / "log.txt").read_text()


def test_the_command_flags_the_training_that_was_not_recalibrated(works, capsys):
    assert run(["analyse", "variance", str(works[0]), "-c", NAME, "-f", "0", "--batches", "16", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "shifted" in text and "training.recalibrate=100" in text
    command = ["analyse", "variance", str(works[16]), "-c", NAME, "--batches", "16", "--device", "cpu", "--json"]
    assert run(command) == 0
    values = json.loads(capsys.readouterr().out)
    require_parts(values, "analyse variance")
    (fold,) = values["folds"]
    assert fold["notes"] == ["Running and real variance agree in every norm, within 5 % or 4 standard errors."]
    stored = variance.FoldVariance.load(works[16] / "runs" / NAME / "fold_0" / "variance.json")
    assert [layer.ratio for layer in stored.layers] == [layer["ratio"] for layer in fold["layers"]]


def test_norms_without_running_statistics_are_refused(works):
    folder = works[0] / "runs" / NAME / "fold_0"
    plan = Plan.load(folder.joinpath("plan.yaml"))
    edit_plan(plan, [f"configurations.{NAME}.network.parts.norm=instance"]).save(folder / "plan.yaml")
    request = variance.VarianceRequest(works[0], NAME, (), 1, MACHINE)
    try:
        with pytest.raises(UsageError, match="norm 'instance' computes its statistics anew for every patch"):
            variance.resolve(request)
    finally:
        plan.save(folder / "plan.yaml")
