"""A cascade: what a coarse network predicts guides a fine one, out of fold in training, in memory in prediction."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import write_nnunet
from stages import plan_data
from torch import Tensor, nn

from plans import LABELS, REGIONS, small_plan
from segpipe.cli.main import run
from segpipe.core.grid import Box
from segpipe.core.labels import Label, LabelSet
from segpipe.core.volume import read_labels
from segpipe.core.work import Work
from segpipe.data.splits import Splits
from segpipe.evaluate.scores import ScoreTable
from segpipe.fingerprint.record import Fingerprint
from segpipe.pipeline.cascade import guides_for
from segpipe.pipeline.costs import fit_to_memory, planned_costs
from segpipe.pipeline.plan import PlannedWork
from segpipe.pipeline.requests import Machine
from segpipe.plan.schema import Plan
from segpipe.predict.model import Model, load_model, load_out_of_fold
from segpipe.predict.options import PredictOptions
from segpipe.predict.segment import Batching, logit_rows
from segpipe.prepare.case import Prepared, Trace, prepare_indices
from segpipe.prepare.dataset import prepared_folder
from segpipe.prepare.store import StoredCase, StoredGuide, open_case
from segpipe.train.checkpoint import save_weights

CPU, MACHINE = torch.device("cpu"), Machine("cpu", 1)
CASES = ["p0", "p1", "p2", "p3"]
EDITS = (
    "configurations.3d_lowres={inherits: 3d_fullres, spacing_mm: [4, 2, 2]}",
    "configurations.3d_cascade={inherits: 3d_fullres, previous: 3d_lowres}",
    "training.epochs=1",
    "training.iterations_per_epoch=2",
    "training.validation_iterations=1",
    "training.precision=fp32",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planned with two folds; one command trains the coarse configuration and the cascade."""
    folder = tmp_path_factory.mktemp("cascade")
    write_nnunet(folder / "data", CASES)
    plan_data(folder / "data", folder / "work", MACHINE, n_folds=2, edits=EDITS)
    common = ["-o", str(folder / "work"), "-c", "3d_cascade", "--device", "cpu", "-j", "1"]
    assert run(["run", str(folder / "data"), *common]) == 0
    return folder


def guides_of(work: Work) -> Path:
    plan = Plan.load(work.plan)
    return work.guides(prepared_folder(work, plan, plan.configurations["3d_cascade"]), "3d_lowres")


def remake_guides(work: Work) -> Path | None:
    return guides_for(PlannedWork.load(work.path), "3d_cascade", MACHINE)


def test_one_command_trains_both_and_scores_every_case(trained):
    work = Work(trained / "work")
    assert sorted(ScoreTable.load(work.scores("3d_cascade")).case_ids) == CASES
    assert sorted(ScoreTable.load(work.scores("3d_lowres")).case_ids) == CASES
    assert sorted(folder.name for folder in guides_of(work).iterdir()) == CASES


def test_a_case_is_guided_by_the_fold_that_did_not_see_it(trained):
    """The cascade has the grid of the images here, so the guide is that fold's validation mask, turned and cropped."""
    work, found = Work(trained / "work"), set()
    plan, splits = Plan.load(work.plan), Splits.load(work.splits)
    prepared = prepared_folder(work, plan, plan.configurations["3d_cascade"])
    for number, split in enumerate(splits.folds):
        validation = work.fold("3d_lowres", str(number)).validation
        for case_id in split.validation:
            trace = StoredCase.load(prepared / case_id / "case.json").trace
            assert trace.prepared_shape_zyx == trace.box.shape_zyx  # nothing is resampled
            mask = read_labels(validation / f"{case_id}.nii.gz")[0]
            by_hand = prepare_indices(plan.labels.encode(mask, case_id), trace)
            case = open_case(prepared / case_id, guides_of(work) / case_id)
            assert np.array_equal(case.guide[...], by_hand)
            found |= set(np.unique(by_hand).tolist())
    assert found > {0}  # networks that hardly trained still predict some label


def test_validation_is_guided_by_the_same_fold_and_prediction_by_all(trained):
    work = Work(trained / "work")
    for number in ("0", "1"):
        fold = load_out_of_fold(work.fold("3d_cascade", number), CPU)
        assert fold.guide is not None and fold.guide.digest == load_model([work.fold("3d_lowres", number)], CPU).digest
    whole = load_model([work.fold("3d_cascade", "0")], CPU)
    assert whole.guide is not None and len(whole.guide.networks) == 2
    assert whole.digest != load_out_of_fold(work.fold("3d_cascade", "0"), CPU).digest


def test_a_coarse_fold_that_is_trained_again_is_told_in_training_and_prediction(trained, tmp_path, capsys):
    shutil.copytree(trained / "work", tmp_path / "work")
    work, common = Work(tmp_path / "work"), ["--device", "cpu", "-j", "1"]
    image = trained / "data" / "imagesTr" / "p1_0000.nii.gz"
    commands = (
        ["train", str(work.path), "-c", "3d_cascade", "-f", "0", *common],
        ["predict", "-m", str(work.path), "-c", "3d_cascade", "-i", str(image), "-o", str(tmp_path / "out"), *common],
    )
    for command in commands:
        assert run(command) == 0 and "was trained again" not in capsys.readouterr().err
    weights = work.fold("3d_lowres", "1").weights
    network = load_model([work.fold("3d_lowres", "0")], CPU).networks[0]
    save_weights(weights, network, {"configuration": "3d_lowres", "fold": "1", "finished": "1"})
    commands[1][commands[1].index("-o") + 1] = str(tmp_path / "again")
    for command in commands:
        assert run(command) == 0
        assert "3d_lowres/1 was trained again since it guided this cascade" in capsys.readouterr().err
    assert run([*commands[0], "--restart"]) == 0 and "was trained again" not in capsys.readouterr().err


def test_new_images_are_predicted_without_files_of_the_coarse_model(trained, tmp_path):
    image = trained / "data" / "imagesTr" / "p1_0000.nii.gz"
    command = ["predict", "-m", str(trained / "work"), "-c", "3d_cascade", "-i", str(image), "--device", "cpu"]
    assert run([*command, "-o", str(tmp_path / "a")]) == 0
    assert sorted(p.name for p in (tmp_path / "a").glob("*.nii.gz")) == ["p1.nii.gz"]  # no files of the coarse one
    assert read_labels(tmp_path / "a" / "p1.nii.gz")[0].shape == (8, 10, 12)


def test_guides_of_other_weights_are_made_anew_and_no_others(trained, tmp_path):
    shutil.copytree(trained / "work", tmp_path / "work")
    work = Work(tmp_path / "work")
    guides = guides_of(work)
    stale = guides / "p2" / "guide.json"
    about = StoredGuide.load(stale)
    about.model_copy(update={"model": "000000000000"}).save(stale)
    before = {case: (guides / case).stat().st_ino for case in CASES}
    assert remake_guides(work) == guides
    after = {case: (guides / case).stat().st_ino for case in CASES}
    assert [case for case in CASES if before[case] != after[case]] == ["p2"]
    assert StoredGuide.load(stale) == about


def test_the_coarse_folds_that_are_missing_are_named_with_the_command(trained, tmp_path, capsys):
    shutil.copytree(trained / "work", tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "runs" / "3d_lowres" / "fold_1")
    assert run(["train", str(tmp_path / "work"), "-c", "3d_cascade", "-f", "0", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "not trained on the current splits: 1." in said
    assert f"segpipe train {tmp_path / 'work'} -c 3d_lowres -f 1" in said


def test_a_cascade_without_its_coarse_folds_does_not_predict(trained, tmp_path, capsys):
    shutil.copytree(trained / "work" / "runs" / "3d_cascade", tmp_path / "models" / "3d_cascade")
    image = trained / "data" / "imagesTr" / "p1_0000.nii.gz"
    command = ["predict", "-m", str(tmp_path / "models" / "3d_cascade"), "-i", str(image), "--device", "cpu", "-o"]
    assert run([*command, str(tmp_path / "a")]) == 2
    assert "is guided by 3d_lowres" in capsys.readouterr().err
    shutil.copytree(trained / "work" / "runs" / "3d_lowres", tmp_path / "models" / "3d_lowres")
    assert run([*command, str(tmp_path / "a")]) == 0


def test_a_coarse_configuration_of_another_plan_is_refused(trained, tmp_path, capsys):
    shutil.copytree(trained / "work", tmp_path / "work")
    edit = "configurations.3d_lowres.spacing_mm=[5,2,2]"
    assert run(["train", str(tmp_path / "work"), "-c", "3d_cascade", "--set", edit, "--device", "cpu", "-f", "0"]) == 2
    assert "has another 3d_lowres than the one that was trained" in capsys.readouterr().err


def test_channels_of_a_cascade_by_hand():
    """One image channel, and one for each value: of the regions {1, 2} and {2} with ignore 9 the values are 1 and 2."""
    for labels in (LABELS, REGIONS):
        plan = small_plan(labels)
        full = plan.configurations["3d_fullres"]
        assert plan.n_inputs(full) == 1
        assert plan.n_inputs(full.model_copy(update={"previous": "3d_lowres"})) == 3


def test_the_first_convolution_of_a_cascade_is_the_only_one_with_more_weights(trained):
    work = Work(trained / "work")
    plan = Plan.load(work.plan)
    costs = {taken.configuration: taken for taken in planned_costs(plan, Fingerprint.load(work.fingerprint), MACHINE)}
    network = plan.configurations["3d_cascade"].network
    more = 2 * network.features[0] * int(np.prod(network.kernels_zyx[0]))  # two labels
    assert costs["3d_cascade"].parameters == costs["3d_fullres"].parameters + more
    assert costs["3d_cascade"].training_gib > costs["3d_fullres"].training_gib


def test_a_cascade_that_is_too_large_is_made_smaller_alone(trained):
    """With memory between what the two take, the base stays and the cascade's patch shrinks."""
    work = Work(trained / "work")
    plan = Plan.load(work.plan).model_copy(update={"is_for_gpu": True})
    costs = planned_costs(plan, Fingerprint.load(work.fingerprint), MACHINE)
    taken = {cost.configuration: cost.training_gib for cost in costs}
    plan = plan.model_copy(update={"gpu_memory_gib": (taken["3d_fullres"] + taken["3d_cascade"]) / 2})
    found = fit_to_memory(plan, costs, MACHINE, plan.gpu_memory_gib)
    base, cascade = found.configurations["3d_fullres"], found.configurations["3d_cascade"]
    assert base == plan.configurations["3d_fullres"] and cascade.previous == "3d_lowres"
    assert np.prod(cascade.patch_zyx) * cascade.batch_size < np.prod(base.patch_zyx) * base.batch_size
    assert "Made smaller" in found.reasons["3d_cascade"] and "Made smaller" not in found.reasons["3d_fullres"]


class _Echo(nn.Module):
    """Gives the channels that guide it, and background where none does, as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        guides = x_BCZYX[:, 1:]
        return [self.scale * torch.cat([1 - guides.sum(1, keepdim=True), guides], 1)]


def test_where_sides_change_places_those_of_the_guide_do_too():
    """A network that repeats its guide says the same of every mirrored copy."""
    labels = LabelSet(labels=(Label(name="left", values=(1,)), Label(name="right", values=(2,))))
    plan = small_plan(labels)
    cascade = plan.configurations["3d_fullres"].model_copy(update={"previous": "coarse", "inherits": "3d_fullres"})
    coarse = plan.configurations["3d_fullres"]
    configurations = {"coarse": coarse, "3d_fullres": coarse, "3d_cascade": cascade}
    plan = plan.model_copy(update={"configurations": configurations, "mirror_swaps": (("left", "right"),)})
    guide = np.random.default_rng(0).integers(0, 3, (8, 10, 14))
    image = np.stack([np.zeros(guide.shape), guide]).astype(np.float32)
    model = Model(plan, cascade, (_Echo().eval(),), "0")
    trace = Trace(
        shape_zyx=guide.shape,
        axes_zyx=(0, 1, 2),
        flips_zyx=(False, False, False),
        spacing_mm=(2.5, 1.5, 1.0),
        box=Box.whole(guide.shape),
        target_mm=(2.5, 1.5, 1.0),
        prepared_shape_zyx=guide.shape,
    )
    rows = logit_rows(model, Prepared(image, None, trace), PredictOptions(), Batching())
    logits = torch.stack(list(rows), dim=1).numpy()
    expected = np.stack([guide == value for value in range(3)])
    assert np.allclose(logits, expected, atol=1e-5)
