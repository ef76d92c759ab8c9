"""Similarity of sites: features pooled by case, cosines by hand, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import write_nnunet
from specs import unet
from stages import plan_data, train
from test_json import require_parts

from segpipe.analyse.sites import pair_cosines, pooled_features
from segpipe.cli.main import run
from segpipe.data.splits import Splits
from segpipe.networks.build import build
from segpipe.pipeline.requests import Machine
from segpipe.pipeline.sites import SiteSimilarity

MACHINE = Machine("cpu", 1)
EDITS = ("training.epochs=1", "training.iterations_per_epoch=1", "training.validation_iterations=1")


def test_cosines_by_hand():
    # the mean of the four is (0, 1): without it a and b are (±1, 0) and c, d (0, ±1)
    features = {name: np.array(v, float) for name, v in {"a": (1, 1), "b": (-1, 1), "c": (0, 2), "d": (0, 0)}.items()}
    sites, patients = {"a": "s", "b": "s", "c": "t", "d": "t"}, {"a": "1", "b": "2", "c": "3", "d": "3"}
    found = pair_cosines(features, sites, patients)
    assert found == {("s", "s"): [-1.0], ("s", "t"): [0.0, 0.0, 0.0, 0.0]}  # c and d are one patient


@pytest.mark.parametrize("view", ["3d", "2d"])
def test_features_are_the_mean_over_windows_that_cover_the_case_once(view):
    torch.manual_seed(0)
    network = build(unet("plain", view), 1, 2).eval()
    image = np.random.default_rng(0).normal(size=(1, 2, 16, 32)).astype(np.float32)
    maps = []
    encoder = next(m for name, m in network.named_modules() if name.endswith("encoder"))
    hook = encoder.register_forward_hook(lambda _, __, out: maps.append(out[-1].detach()))
    with torch.no_grad():
        for half in (image[..., :16], image[..., 16:]):
            network(torch.from_numpy(half)[None])
    hook.remove()
    axes = tuple(n for n in range(maps[0].ndim) if n != 1)
    expected = torch.stack([m.double().mean(axes) for m in maps]).mean(0)
    found = pooled_features(network, image, (2, 16, 16))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_a_network_without_an_encoder_of_ours_has_no_features():
    assert pooled_features(torch.nn.Conv3d(1, 1, 1), np.zeros((1, 2, 2, 2), np.float32), (2, 2, 2)) is None


def test_the_command_writes_matrix_and_picture(tmp_path: Path, capsys):
    patients = ["p1", "p2", "p3", "p4", "p5", "p6"]
    write_nnunet(tmp_path / "data", patients)
    work = tmp_path / "work"
    plan_data(tmp_path / "data", work, MACHINE, n_folds=2, edits=EDITS)
    train(work, "3d_fullres", [0], MACHINE)
    ids = Splits.load(work / "splits.json").folds[0].validation
    table = "case_id,scanner\n" + "".join(f"{case},{'AB'[n % 2]}\n" for n, case in enumerate(ids))
    (tmp_path / "cases.csv").write_text(table)
    command = ["analyse", "sites", str(work), "-c", "3d_fullres", "--by", "scanner", "--device", "cpu"]
    command += ["--cases", str(tmp_path / "cases.csv")]
    assert run([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    require_parts(values, "analyse sites")
    assert values["sites"] == ["A", "B"] and sum(values["n_cases"]) == 3
    found = SiteSimilarity.load(work / "runs" / "3d_fullres" / "sites.json")
    assert found.cosines[0][1] == found.cosines[1][0] and -1 <= (found.cosines[0][1] or 0) <= 1
    # each of 3 pairs counts in one place, or in two places beside the diagonal
    assert found.n_pairs[0][0] + found.n_pairs[0][1] + found.n_pairs[1][1] == 3
    assert (work / "runs" / "3d_fullres" / "sites.png").read_bytes().startswith(b"\x89PNG")
    assert run(command) == 0 and "A" in capsys.readouterr().out
