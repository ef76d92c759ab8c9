"""train/restoration.py and pipeline/pretrain.py: learning from images without labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import write_nnunet
from safetensors.torch import load_file
from specs import unet
from stages import plan_data, train
from test_fold import case, plan_with

from segpipe.core.errors import DataError, UsageError
from segpipe.core.seeds import generator_for
from segpipe.core.work import FoldFolder, Work
from segpipe.data.splits import Fold
from segpipe.pipeline.pretrain import WEIGHTS_FILE, pretrain
from segpipe.pipeline.requests import Machine, PretrainRequest
from segpipe.plan.pretraining import PretrainedOn, compare_with_seen
from segpipe.report.work_contents import read_work
from segpipe.train.fold import TRAIN, FoldData, FoldTraining
from segpipe.train.restoration import Restoration, restoration_for, restoration_loss

HERE = Machine("cpu", 1)
QUICK = ("training.validation_iterations=1", "training.iterations_per_epoch=2", "training.precision=fp32")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of four cases, and a work folder with its plan."""
    here = tmp_path_factory.mktemp("pretrain")
    write_nnunet(here / "data", ["p0", "p1", "p2", "p3"])
    plan_data(here / "data", here / "work", HERE, n_folds=2, edits=QUICK)
    return here


def request_for(here: Path, output: str, data: str = "data/imagesTr", **more: object) -> PretrainRequest:
    return PretrainRequest(here / data, here / output, here / "work", HERE, "3d_fullres", iterations=2, **more)


def test_pretrained_weights_are_where_training_starts(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the layers that make logits; the cases they have seen are told in the log, a file and the report."""
    done = pretrain(request_for(planned, "pre"))
    stored = load_file(done.weights)
    assert done.weights == planned / "pre" / WEIGHTS_FILE and (done.n_images, done.n_held_out) == (4, 1)
    assert not any("seg_layers" in name for name in stored)
    work = Path(shutil.copytree(planned / "work", planned / "used"))
    source = f"configurations.3d_fullres.network.weights={{source: {done.weights}}}"
    train(work, "3d_fullres", [0], HERE, edits=[source, "training.learning_rate=1e-30"], iterations=1)
    fold = Work(work).fold("3d_fullres", "0")
    trained = load_file(fold.weights)
    assert all(torch.equal(value, trained[name]) for name, value in stored.items())
    found = PretrainedOn.load(fold.pretrained_on)
    assert (len(found.train), len(found.validation), found.with_labels) == (2, 2, ())
    assert found.text() in capsys.readouterr().err.replace("\n", " ")
    notes = read_work(work).notes
    assert any("pre-trained on 4 images, among them 2 validation cases (images, not labels)" in note for note in notes)


def test_weights_for_another_network_are_refused_by_their_tensors(planned: Path) -> None:
    done = pretrain(request_for(planned, "pre"))
    source = f"configurations.3d_fullres.network.weights={{source: {done.weights}}}"
    wider = "configurations.3d_fullres.network.kind=residual"
    with pytest.raises(UsageError, match=r"was pre-trained for another network \(\d+ missing: "):
        train(planned / "work", "3d_fullres", [0], HERE, edits=[source, wider], iterations=1)


def test_other_images_in_the_folder_are_refused(planned: Path) -> None:
    pretrain(request_for(planned, "pre"))
    shutil.copytree(planned / "data" / "imagesTr", planned / "fewer", dirs_exist_ok=True)
    (planned / "fewer" / "p0_0000.nii.gz").unlink()
    with pytest.raises(UsageError, match="was trained on other cases"):
        pretrain(request_for(planned, "pre", "fewer"))


def test_images_that_cannot_be_prepared_are_named_together(planned: Path) -> None:
    shutil.copytree(planned / "data" / "imagesTr", planned / "broken")
    for name in ("p0", "p1"):
        (planned / "broken" / f"{name}_0000.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"2 of 4 cases cannot be prepared(.|\n)*p0(.|\n)*p1"):
        pretrain(request_for(planned, "broken-pre", "broken"))
    assert not (planned / "broken-pre" / WEIGHTS_FILE).exists()


def test_one_image_is_too_few(planned: Path) -> None:
    with pytest.raises(DataError, match=r"1 image, expected at least 2"):
        pretrain(request_for(planned, "one", "data/imagesTr/p0_0000.nii.gz"))
    assert not (planned / "one").exists()


def test_labels_are_learned_from_only_if_asked(planned: Path) -> None:
    """And weights that saw them say so."""
    edits = ("training.loss.terms={supcon_voxel: 0.5}",)
    with pytest.raises(UsageError, match="--with-labels and the term supcon_voxel"):
        pretrain(request_for(planned, "labelled", "data", edits=edits))
    done = pretrain(request_for(planned, "labelled", "data", edits=edits, with_labels=True))
    work = Path(shutil.copytree(planned / "work", planned / "taught"))
    source = f"configurations.3d_fullres.network.weights={{source: {done.weights}}}"
    train(work, "3d_fullres", [0], HERE, edits=[source], iterations=1)
    found = PretrainedOn.load(Work(work).fold("3d_fullres", "0").pretrained_on)
    assert len(found.with_labels) == 4 and "2 validation cases (images and, of 2, labels)" in found.text()


def restoring(n_steps: int, state: dict | None = None) -> FoldTraining:
    """A network that restored images for some steps, or goes on from a state."""
    plan = plan_with(iterations=4, precision="fp32")
    configuration = plan.configurations["3d_fullres"]
    cases = [case(seed) for seed in range(3)]
    split = Fold(train=("case_0", "case_1"), validation=("case_2",))
    data = FoldData(0, split, cases[:2], cases[2:], restoration_for(configuration.network))
    fold = FoldTraining(plan, configuration, data, torch.device("cpu"), is_new=state is None)
    if state:
        fold.restore(state)
    for _ in range(n_steps):
        fold.step(fold.draw(TRAIN, fold.at.iteration), 0.01)
    return fold


def test_it_goes_on_bit_for_bit_and_learns() -> None:
    whole, half = restoring(12), restoring(5)
    again = restoring(7, half.state(finished=False))
    assert all(torch.equal(a, b) for a, b in zip(whole.network.parameters(), again.network.parameters(), strict=True))
    before, after = restoring(0).validate(3)[0], whole.validate(3)
    assert after[0] < 0.8 * before and all(np.isnan(value) for value in after[1].values())


def test_hidden_blocks_by_hand() -> None:
    """Of 4×6×8 voxels in blocks of 2×3×4, eight blocks or, moved, up to 27; 0.5 of them to a block."""
    hidden = Restoration((2, 3, 4), 0.5).draw(torch.zeros(3, 2, 4, 6, 8), generator_for(0))
    assert hidden.shape == (3, 1, 4, 6, 8) and hidden.dtype == torch.bool
    alone = Restoration((1, 1, 1), 0.25).draw(torch.zeros(2, 1, 2, 3, 4), generator_for(0))
    assert alone.sum((1, 2, 3, 4)).tolist() == [6, 6]  # a quarter of 24
    along = hidden[0, 0].float()
    assert ((along.diff(dim=2) != 0).any(1).any(0)).sum() <= 2  # borders of blocks of four among eight columns


def test_grids_of_blocks_begin_anywhere() -> None:
    """Of 60 rows of 4 voxels in blocks of 4, many have a border inside; at a fixed beginning none would."""
    hidden = Restoration((1, 1, 4), 0.5).draw(torch.zeros(60, 1, 1, 1, 4), generator_for(0))
    assert hidden.any(4).sum() > hidden.all(4).sum()


def test_edges_of_blocks_by_hand() -> None:
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    deep = unet("plain", "3d").model_copy(update={"strides_zyx": strides})
    assert restoration_for(deep).block_zyx == (4, 8, 8)
    flat = deep.model_copy(update={"strides_zyx": ((1, 1, 1), (1, 2, 2))})
    assert restoration_for(flat).block_zyx == (1, 4, 4)


def test_the_network_is_given_the_rest_of_the_image_and_other_blocks_each_time() -> None:
    fold, images = restoring(0), torch.ones(2, 1, 8, 8, 8)
    given = [fold._task(images, torch.zeros(0), TRAIN, step, 0)[0] for step in range(2)]
    assert all(0 < one.mean() < 1 for one in given) and not torch.equal(*given)


def test_the_loss_by_hand() -> None:
    """Hidden voxels alone: errors 1 and 3 of two channels of one voxel, (1 + 9) / 2."""
    output, image = torch.zeros(1, 2, 1, 1, 2), torch.tensor([[[[[1.0, 7.0]]], [[[3.0, 7.0]]]]])
    hidden = torch.tensor([[[[[True, False]]]]])
    assert restoration_loss([output], image, hidden).item() == 5.0
    assert restoration_loss([output], image, torch.zeros_like(hidden)).item() == 0.0


def test_seen_cases_are_found_by_content_whatever_their_name() -> None:
    none = "e3b0c44298fc"
    seen = {"x": f"aaa-{none}", "y": "bbb-lab"}
    found = compare_with_seen(
        "w", seen, {"t": "bbb-lab", "u": "ccc-lab"}, {"v": "aaa-lab", "z": "ddd-lab", "n": f"aaa-{none}"}
    )
    assert (found.train, found.validation, found.with_labels) == (("t",), ("v", "n"), ("t",))
    assert "none of them" in compare_with_seen("w", seen, {}, {"z": "ddd-lab"}).text()


def test_a_killed_run_leaves_no_weights_and_goes_on(planned: Path) -> None:
    """As after a kill between saving the state and the weights: the next run writes them."""
    done = pretrain(request_for(planned, "killed"))
    whole = done.weights.read_bytes()
    done.weights.unlink()
    assert pretrain(request_for(planned, "killed")).weights.read_bytes() == whole
    about = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    assert set(json.loads(about["pretrained_on"])) == {"p0", "p1", "p2", "p3"}
    assert FoldFolder(planned / "killed" / "training").state.is_file()
