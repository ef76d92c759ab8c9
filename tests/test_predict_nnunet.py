"""Whole predictions equal nnunetv2's with the same weights: phantom and published data, from files to masks."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import nnunet_training as training
import numpy as np
import pytest
import torch
from datasets import oblique_affine, write_json, write_tiny
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from specs import VIEWS, unet
from test_unet import nnunets
from torch import nn

from segpipe.bridge.nnunet_model import (
    NnunetCheckpoint,
    export_nnunet_model,
    import_nnunet_model,
    read_checkpoint,
    write_checkpoint,
)
from segpipe.cli.main import run
from segpipe.core.errors import DataError, UsageError
from segpipe.core.volume import read_image, read_labels, write_image
from segpipe.core.work import Work
from segpipe.data.phantom import make_phantom
from segpipe.networks.build import build
from segpipe.plan.schema import Configuration, Plan
from segpipe.predict.folds import choose_folds
from segpipe.train.checkpoint import save_weights

MIN_AGREEMENT = 0.999  # of the voxels that are foreground in either mask
FEATURES = 4  # of the first stage, so that a forward pass is quick; windows, mirroring and export do not know of it


def planned(data: Path, folder: Path) -> Work:
    """A work folder with nnU-Net's plan, but for a thin network."""
    assert run(["plan", str(data), "-o", str(folder), "--preset", "nnunet", "--no-cost", "--no-report"]) == 0
    return Work(folder)


def thin(configuration: Configuration) -> Configuration:
    network = configuration.network
    features = tuple(min(FEATURES * 2**stage, 8 * FEATURES) for stage in range(len(network.features)))
    return configuration.model_copy(update={"network": network.model_copy(update={"features": features})})


def write_random_fold(work: Work, name: str, fold: str = "0") -> None:
    """Weights that nobody trained, with outputs of which each wins somewhere."""
    plan = Plan.load(work.plan)
    configuration = thin(plan.configurations[name])
    plan = plan.model_copy(update={"configurations": {name: configuration}})
    torch.manual_seed(int(fold))
    network = build(configuration.network, len(plan.channels), plan.labels.n_outputs)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        logits = network.eval()(torch.randn(1, len(plan.channels), *configuration.patch_zyx))[0]
        last_head(network).bias -= logits.mean((0, 2, 3, 4))
    plan.save(work.fold(name, fold).plan)
    save_weights(work.fold(name, fold).weights, network, {"configuration": name, "fold": fold, "finished": "1"})


def last_head(network: nn.Module) -> nn.Module:
    return getattr(network, "network", network).decoder.seg_layers[-1]


def nnunets_masks(model: Path, cases: list[list[Path]], output: Path) -> None:
    """Predict with nnunetv2; its messages and the warnings of its libraries are not ours.

    Its windows are added up in float32 as ours: outputs of random weights lie so close together that float16, in which
    it adds them, decides up to 2 % of the voxels.
    """
    output.mkdir()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), None)
        files = [[str(path) for path in images] for images in cases]
        names = [str(output / images[0].name.removesuffix("_0000.nii.gz")) for images in cases]
        with mock.patch.object(torch, "half", torch.float32):
            predictor.predict_from_files_sequential(files, names)


def agreement(ours: Path, theirs: Path) -> float:
    """Share of equal voxels among those that are foreground in either mask."""
    (own, _), (other, _) = read_labels(ours), read_labels(theirs)
    is_foreground = (own > 0) | (other > 0)
    assert is_foreground.mean() > 0.02 and len(np.unique(other)) > 1, "the masks say nothing"
    return float((own == other)[is_foreground].mean())


def require_equal_predictions(work: Work, name: str, images: Path, case_ids: list[str], folder: Path) -> None:
    """Export a model, take it up again, and let both tools predict."""
    export_nnunet_model(work.path, folder / "nnunet", name)
    import_nnunet_model(folder / "nnunet", folder / "back")
    chosen = folder / "images"
    chosen.mkdir()
    cases = [sorted(images.glob(f"{case_id}_0*.nii.gz")) for case_id in case_ids]
    for path in (path for case in cases for path in case):
        (chosen / path.name).symlink_to(path)
    options = ["-i", str(chosen), "-o", str(folder / "ours"), "--device", "cpu", "-j", "1"]
    assert run(["predict", "-m", str(folder / "back"), *options]) == 0
    nnunets_masks(folder / "nnunet", cases, folder / "theirs")
    for case_id in case_ids:
        found = agreement(folder / "ours" / f"{case_id}.nii.gz", folder / "theirs" / f"{case_id}.nii.gz")
        assert found >= MIN_AGREEMENT, (case_id, found)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom"), 5, 0)


def test_two_folds_predict_the_phantom_as_nnunetv2_does(phantom, tmp_path, capsys):
    work = planned(phantom, tmp_path / "work")
    for fold in ("0", "1"):
        write_random_fold(work, "3d_fullres", fold)
    case_ids = [case["case_id"] for case in json.loads(work.dataset.read_text("utf-8"))["cases"]]
    require_equal_predictions(work, "3d_fullres", phantom / "imagesTr", case_ids[:1], tmp_path)
    require_kinds_of_folds_are_told_apart(tmp_path / "nnunet", tmp_path / "kinds", capsys)


TURNS = {  # axes x, y, z of a file in the world, orthogonal
    "RAS": np.eye(3),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "PIR": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "oblique": Rotation.from_euler("zyx", (25, -15, 20), degrees=True).as_matrix(),
}


def test_an_exported_model_is_right_for_images_of_any_orientation(tmp_path):
    data, queries = tmp_path / "data", tmp_path / "queries"
    write_blobs(data, labels={"background": 0, "a": 1, "b": 2})
    work = planned(data, tmp_path / "work")
    assert Plan.load(work.plan).orientation == "RAS"
    write_random_fold(work, "3d_fullres")
    image = read_image(data / "imagesTr" / "c0_0000.nii.gz")
    for name, turn in TURNS.items():
        affine = np.eye(4)
        affine[:3, :3] = turn * (1.0, 1.5, 2.5)  # coarse along z of the file: in PIR that is from side to side
        write_image(queries / f"{name}_0000.nii.gz", image.voxels_czyx, affine)
    require_equal_predictions(work, "3d_fullres", queries, list(TURNS), tmp_path)
    assert "WithReorient" in (tmp_path / "nnunet" / "plans.json").read_text("utf-8")


def test_a_model_in_an_orientation_that_nnunet_turns_nothing_to_is_exported_only_if_asked(tmp_path, capsys):
    write_blobs(tmp_path / "data", labels={"background": 0, "a": 1, "b": 2})
    work = planned(tmp_path / "data", tmp_path / "work")
    write_random_fold(work, "2d")
    fold = work.fold("2d", "0")
    Plan.load(fold.plan).model_copy(update={"orientation": "LPS"}).save(fold.plan)
    export = ["export", str(work.path), str(tmp_path / "model"), "--to", "nnunet-model"]
    assert run(export) == 2
    assert "turns images to LPS; nnU-Net turns them to RAS or not at all" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert run([*export, "--any-orientation"]) == 0
    assert "only images that are stored as LPS" in capsys.readouterr().err
    assert json.loads((tmp_path / "model" / "plans.json").read_text("utf-8"))["image_reader_writer"] == "SimpleITKIO"


def require_kinds_of_folds_are_told_apart(model: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fold trained on every case is imported by name, and never without one where there are others."""
    shutil.copytree(model / "fold_0", model / "fold_all")
    assert run(["import", str(model), "-o", str(work), "-f", "all"]) == 2
    assert "fold_all (one network, trained on every case) or folds 0, 1" in capsys.readouterr().err
    assert not work.exists()
    assert run(["import", str(model), "-o", str(work), "-f", "fold_all"]) == 0
    assert [path.name for path in (work / "runs" / "3d_fullres").iterdir()] == ["fold_all"]
    assert run(["import", str(model), "-o", str(work)]) == 0
    assert "importing folds 0, 1; fold_all is left out" in capsys.readouterr().err
    assert run(["predict", "-m", str(work), "-i", str(work), "-o", str(work / "o"), "-f", "all"]) == 2
    assert "Use -f fold_all or -f 0,1." in capsys.readouterr().err
    (model / "fold_all" / "checkpoint_final.pth").rename(model / "fold_all" / "checkpoint_best.pth")
    assert run(["import", str(model), "-o", str(work / "best"), "-f", "fold_all"]) == 2
    assert "no fold_all/checkpoint_final.pth (found: checkpoint_best.pth, " in capsys.readouterr().err
    assert run(["import", str(model), "-o", str(work / "best"), "--checkpoint", "checkpoint_best.pth"]) == 0


@pytest.mark.parametrize(
    ("found", "asked", "chosen"),
    [
        (["1", "0", "10", "all"], [], ["0", "1", "10"]),
        (["all"], [], ["all"]),
        (["all"], ["all"], ["all"]),
        (["1", "0"], ["all"], ["0", "1"]),
        (["0", "1", "all"], ["1", "fold_0", "fold_1"], ["1", "0"]),
        (["0", "all"], ["fold_all"], ["all"]),
    ],
)
def test_folds_are_chosen_by_name(found, asked, chosen):
    assert choose_folds(Path("model"), found, asked)[0] == chosen


def test_a_fold_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(UsageError, match=r"no trained fold 3 \(it has 0, fold_all\)"):
        choose_folds(Path("model"), ["all", "0"], ["fold_3"])


def test_slices_with_regions_are_predicted_as_by_nnunetv2(phantom, tmp_path):
    data = tmp_path / "regions"
    data.mkdir()
    for name in ("imagesTr", "labelsTr"):
        (data / name).symlink_to(phantom / name)
    description = json.loads((phantom / "dataset.json").read_text("utf-8"))
    values = sorted(value for value in description["labels"].values() if value)
    regions = {"background": 0, "all": values, "last": values[-1]}  # painted one after the other, the smaller one last
    description |= {"labels": regions, "regions_class_order": [values[0], values[-1]]}
    (data / "dataset.json").write_text(json.dumps(description))
    work = planned(data, tmp_path / "work")
    write_random_fold(work, "2d")
    case_ids = [case["case_id"] for case in json.loads(work.dataset.read_text("utf-8"))["cases"]]
    require_equal_predictions(work, "2d", data / "imagesTr", case_ids[:1], tmp_path)


def test_a_published_case_smaller_than_the_patch_is_predicted_as_by_nnunetv2(shared_data, tmp_path):
    dataset, name = "hippocampus", "3d_fullres"
    data = tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
        for path in sorted((shared_data / dataset / folder).iterdir())[:4]:
            (data / folder / path.name).symlink_to(path)
    description = json.loads((shared_data / dataset / "dataset.json").read_text("utf-8"))
    (data / "dataset.json").write_text(json.dumps(description | {"numTraining": 4}))
    work = planned(data, tmp_path / "work")
    write_random_fold(work, name)
    case_ids = [case["case_id"] for case in json.loads(work.dataset.read_text("utf-8"))["cases"]]
    require_equal_predictions(work, name, data / "imagesTr", case_ids[:1], tmp_path)


def write_blobs(folder: Path, **labels: object) -> None:
    """Three cases of smooth noise, brighter where there are labels."""
    for number in range(3):
        noise = gaussian_filter(np.random.default_rng(number).normal(size=(18, 26 - number, 22)), 2)
        structures = np.digitize(noise / noise.std(), (0.5, 1.2)).astype(np.uint8)
        affine = oblique_affine() @ np.diag([1 + number / 4, 1, 1, 1])  # so that masks are not on the network's grid
        write_tiny(folder / "imagesTr" / f"c{number}_0000.nii.gz", (100 * noise).astype(np.float32), affine)
        write_tiny(folder / "labelsTr" / f"c{number}.nii.gz", structures, affine)
    described = {"channel_names": {"0": "MRI"}, **labels, "numTraining": 3, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", described)


@pytest.mark.slow
def test_models_that_nnunetv2_trained_predict_here_what_they_predict_there(tmp_path):
    """Residual, 2D, low resolution, cascade and regions: trained for two steps and exported by nothing of ours."""
    write_blobs(tmp_path / "raw" / training.LABELS, labels={"background": 0, "a": 1, "b": 2})
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    write_blobs(tmp_path / "raw" / training.REGIONS, **regions)
    done = subprocess.run([sys.executable, training.__file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for dataset, plans, configurations in training.TRAININGS:
        work = str(tmp_path / plans / dataset)
        for theirs in configurations:
            model = training.model_folder(tmp_path / "results", dataset, plans, theirs)
            assert run(["import", str(model), "-o", work]) == 0
        for theirs in configurations:
            output = tmp_path / "ours" / f"{dataset}_{plans}_{theirs}"
            options = ["-c", theirs.removesuffix("_fullres") if "cascade" in theirs else theirs, "-j", "1"]
            images = str(tmp_path / "raw" / dataset / "imagesTr")
            assert run(["predict", "-m", work, "-i", images, "-o", str(output), *options]) == 0
            for number in range(training.N_PREDICTED):
                own, other = (
                    read_labels(folder / f"c{number}.nii.gz")[0]
                    for folder in (output, tmp_path / "predicted" / output.name)
                )
                shares = np.bincount(other.ravel().astype(int), minlength=3) / other.size
                assert np.sort(shares)[-2] > 0.01, f"{output.name}: {shares}: the masks say nothing"
                assert (own == other).mean() >= 0.99, f"{output.name}: {(own == other).mean()}"


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Offender:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"network_weights": {}, "trainer_name": Offender()}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(DataError, match="cannot be read as a checkpoint of nnU-Net"):
        read_checkpoint(tmp_path / "checkpoint_final.pth")
    assert not (tmp_path / "ran").exists()


WEIGHT, TWICE = "encoder.stages.0.0.convs.0.conv.weight", "encoder.stages.0.0.convs.0.all_modules.0.weight"
NETWORK = {WEIGHT: torch.ones(2, 2), TWICE: torch.ones(2, 2), f"decoder.{WEIGHT}": torch.ones(2, 2)}
WHOLE = {"network_weights": NETWORK, "trainer_name": "nnUNetTrainer", "init_args": {"configuration": "2d"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], "has no network_weights and no init_args \\(found: a list\\)"),
        (NETWORK, f"has no network_weights and no init_args \\(found: {WEIGHT}, .*weights={{source: FILE}}"),
        (WHOLE | {"init_args": {}}, "has no init_args.configuration"),
        (WHOLE | {"init_args": None}, "has no init_args "),
        (WHOLE | {"network_weights": NETWORK | {TWICE: torch.zeros(2, 2)}}, f"two different tensors for {WEIGHT}"),
        (WHOLE | {"network_weights": {WEIGHT: torch.full((2,), torch.nan)}}, "not finite. Take an earlier checkpoint"),
        (WHOLE | {"network_weights": {WEIGHT: 1.0}}, "cannot be read as a checkpoint"),
        (WHOLE | {"inference_allowed_mirroring_axes": True}, "cannot be read as a checkpoint"),
    ],
)
def test_a_checkpoint_that_lacks_parts_or_contradicts_itself_says_so(values, message, tmp_path):
    torch.save(values, tmp_path / "c.pth")
    with pytest.raises(DataError, match=message):
        read_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_networks_and_other_trainers_are_read(prefix, tmp_path):
    values = WHOLE | {"network_weights": {prefix + name: value for name, value in NETWORK.items()}}
    torch.save({key: value for key, value in values.items() if key != "trainer_name"}, tmp_path / "c.pth")
    found = read_checkpoint(tmp_path / "c.pth")
    assert list(found.weights) == [WEIGHT] and found.trainer == "an unknown trainer" and found.mirror_axes == ()


def test_numbers_of_numpy_in_a_checkpoint_are_read(tmp_path):
    values = {"network_weights": {}, "trainer_name": "nnUNetTrainer", "init_args": {"configuration": "2d"}}
    values |= {"_best_ema": np.float64(0.5), "losses": [np.float32(1)], "inference_allowed_mirroring_axes": (0, 1)}
    torch.save(values, tmp_path / "c.pth")
    found = read_checkpoint(tmp_path / "c.pth")
    assert (found.configuration, found.trainer, found.mirror_axes) == ("2d", "nnUNetTrainer", (0, 1))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_exported_weights_have_every_name_of_nnunets_network(kind, view, tmp_path):
    spec = unet(kind, view)
    network = build(spec, 2, 3)
    weights = getattr(network, "network", network).state_dict()
    write_checkpoint(tmp_path / "c.pth", NnunetCheckpoint(dict(weights), view, "nnUNetTrainer", ()), 0)
    stored = torch.load(tmp_path / "c.pth", weights_only=True)["network_weights"]
    nnunets(spec, 2, 3).load_state_dict(stored)
    assert read_checkpoint(tmp_path / "c.pth").weights.keys() == weights.keys()
