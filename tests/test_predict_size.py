"""predict/memory.py: how much work an image is, and which is refused because it would take ages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import tiny_image, write_tiny
from models import plan_of, write_fold, write_work

import segpipe
from segpipe.cli.main import run
from segpipe.core.errors import DataError
from segpipe.core.grid import Grid
from segpipe.core.volume import read_labels
from segpipe.predict.memory import passes_of, require_usual_size, steps_of
from segpipe.predict.model import Ensemble, Model, load_model
from segpipe.predict.options import PredictOptions
from segpipe.predict.segment import Batching, prepare_for, segment
from segpipe.prepare.case import Volume

FAR_APART = np.diag([1.0, 1.5, 1000.0, 1.0])  # slices of the tiny images 1 m apart instead of 2.5 mm


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_work(tmp_path_factory.mktemp("size") / "work")


@pytest.fixture(scope="module")
def model(work: Path) -> Model:
    return load_model(
        [write_fold(work.parent / "other", plan_of(), number) for number in range(2)], torch.device("cpu")
    )


def grid_of(shape_zyx: tuple[int, int, int], spacing_zyx_mm: tuple[float, float, float] = (2.5, 1.5, 1.0)) -> Grid:
    return Grid(shape_zyx, np.diag([*spacing_zyx_mm[::-1], 1.0]))


def test_passes_by_hand(model: Model) -> None:
    # patch 8 × 8 × 12: 16 voxels take windows at 0, 4, 8; 24 at 0, 6, 12. 27 windows, 2 networks, 8 mirrored copies
    ensemble = Ensemble((model,))
    assert passes_of(grid_of((16, 16, 24)), ensemble, mirror=True) == 27 * 2 * 8
    assert passes_of(grid_of((8, 16, 24), (5.0, 1.5, 1.0)), ensemble, mirror=False) == 27 * 2  # twice as many slices


@pytest.mark.parametrize("with_uncertainty", [False, True])
def test_steps_are_those_that_are_heard_of(with_uncertainty: bool, model: Model) -> None:
    heard: list[int] = []
    options = PredictOptions(mirror=False, uncertainty=with_uncertainty)
    prepared = [prepare_for(model, Volume(tiny_image(1)[None], grid_of((8, 10, 12))))]
    segment(Ensemble((model,)), prepared, options, "case", Batching(on_window=lambda: heard.append(1)))
    assert len(heard) == steps_of(Ensemble((model,)), prepared, options) == 2 * (1 + with_uncertainty)


def test_what_is_much_larger_than_the_training_cases_is_refused_and_what_is_little_work_is_not(model: Model) -> None:
    # trained on edges of at most 25 mm: 10 × 16.7 × 25 voxels. 8 slices 1 m apart become 3200: 92 times as many voxels
    with pytest.raises(
        DataError, match=r"c: 8 × 10 × 12 voxels of 1000 × 1.5 × 1 mm .* become 3.84e\+05 .*, 92.2 times"
    ):
        require_usual_size("c", grid_of((8, 10, 12), (1000.0, 1.5, 1.0)), Ensemble((model,)))
    require_usual_size("c", grid_of((8, 10, 12), (500.0, 1.5, 1.0)), Ensemble((model,)))  # 46 times
    unknown = Model(model.plan, model.configuration, model.networks, "0")  # the median case has 8 × 10 × 12 voxels
    require_usual_size("c", grid_of((40, 40, 48)), Ensemble((unknown,)))  # 80 times, in 567 windows
    with pytest.raises(DataError, match=r"133 times the largest .*, in 1,026 windows"):
        require_usual_size("c", grid_of((80, 40, 40)), Ensemble((unknown,)))


def test_a_wrong_header_is_told_of_ahead_and_refused_unless_it_is_allowed(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path / "in" / "far.nii.gz", np.ones((8, 10, 12), np.float32), FAR_APART)
    write_tiny(tmp_path / "in" / "near.nii.gz", tiny_image(1))
    common = ["predict", "-m", str(work), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert run([*common, "--dry-run", "--json"]) == 3  # as the command
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes[0] == "at most 32 windows over all networks and mirrored copies"
    assert notes[1].startswith("far would be left out: 8 × 10 × 12 voxels of 1000 × 1.5 × 1 mm")
    assert run(common) == 3
    assert "92.2 times the largest training case" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.gz")) == ["near.nii.gz"]
    assert run([*common, "--any-size", "--no-tta", "-f", "0", "-o", str(tmp_path / "all")]) == 0
    # 799 × 2 windows of the first, 2 of the second
    assert "2 images: at most 1,600 windows over all networks" in capsys.readouterr().err
    assert read_labels(tmp_path / "all" / "far.nii.gz")[0].shape == (8, 10, 12)


def test_from_python_likewise(work: Path) -> None:
    image, edges_mm = np.ones((8, 10, 12)), (1000.0, 1.5, 1.0)
    with pytest.raises(DataError, match=r"array: .*any_size=True in Python"):
        segpipe.load(work, device="cpu").predict(image, spacing_mm=edges_mm)
    model = segpipe.load(work, device="cpu", mirror=False, folds=[0], any_size=True)
    assert model.predict(image, spacing_mm=edges_mm).mask.shape == (8, 10, 12)


def test_an_image_is_refused_before_it_is_read(work: Path, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "far.nii.gz", np.ones((8, 10, 12), np.float32), FAR_APART)
    path.write_bytes(path.read_bytes()[:-20])  # its voxels cannot be read
    with pytest.raises(DataError, match=r"92.2 times the largest"):
        segpipe.load(work, device="cpu").predict_file(path)
