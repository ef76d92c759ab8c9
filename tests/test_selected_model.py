"""What predicts if nobody says otherwise: what was chosen, as long as the weights are those it was chosen on."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from datasets import tiny_image, write_tiny
from stages import predict

from plans import small_plan
from segpipe.core.errors import UsageError
from segpipe.core.volume import read_labels
from segpipe.core.work import FoldFolder, Work
from segpipe.networks.build import build
from segpipe.pipeline.predict import average
from segpipe.pipeline.requests import Machine
from segpipe.predict.folds import SELECTED_MODEL_FILE, SELECTION, SelectedModel, find_members, weights_of
from segpipe.predict.options import PredictOptions
from segpipe.predict.outputs import PredictionResult
from segpipe.predict.postprocess import POSTPROCESSING_FILE, Postprocessing, Steps
from segpipe.train.checkpoint import save_weights

MACHINE = Machine("cpu", 1)
NAMES = ("3d_fullres", "3d_lowres")


def train_again(fold: FoldFolder, name: str, seed: int) -> None:
    """Random weights."""
    plan = small_plan().model_copy(update={"mirror_axes": ()})
    coarse = plan.configurations["3d_fullres"].model_copy(update={"spacing_mm": (3.0, 2.0, 2.0)})
    plan = plan.model_copy(update={"configurations": plan.configurations | {"3d_lowres": coarse}})
    torch.manual_seed(seed)
    fold.path.mkdir(parents=True, exist_ok=True)
    plan.save(fold.plan)
    about = {"configuration": name, "fold": fold.path.name.removeprefix("fold_"), "finished": "1"}
    save_weights(fold.weights, build(plan.configurations[name].network, 1, 3), about)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Two configurations of two folds, and an image."""
    work = Work(tmp_path / "work")
    for number, name in enumerate(NAMES):
        for fold in range(2):
            train_again(work.fold(name, str(fold)), name, 2 * number + fold)
    write_tiny(tmp_path / "in" / "p.nii.gz", tiny_image(1))
    return work


def choose(work: Work, *names: str, steps: Postprocessing | None = None) -> None:
    """As `segpipe select` leaves it."""
    weights = weights_of(work.fold(name, str(fold)) for name in names for fold in range(2))
    home = work.path / SELECTION
    SelectedModel(configurations=names, weights=weights).save(home / SELECTED_MODEL_FILE)
    if steps:
        place = home if len(names) > 1 else work.run(names[0])
        steps.model_copy(update={"weights": weights}).save(place / POSTPROCESSING_FILE)


EMPTIED = Postprocessing(labels={name: Steps(min_volume_mm3=1e6) for name in ("a", "b")})


def masks(work: Work, name: str, **more: object) -> np.ndarray:
    """What is found in the image."""
    return read_labels(outcome(work, name, **more).require_all()[0])[0]


def outcome(work: Work, name: str, **more: object) -> PredictionResult:
    home = work.path.parent
    return predict(more.pop("models", work.path), home / "in", home / name, MACHINE, PredictOptions(**more))  # type: ignore[arg-type]


def test_what_was_chosen_predicts_and_its_postprocessing_is_applied(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = masks(work, "alone")
    together = masks(work, "together", configurations=NAMES)
    assert alone.any() and together.any() and (alone != together).any()
    choose(work, *NAMES, steps=EMPTIED)
    assert not masks(work, "chosen").any()
    said = capsys.readouterr().err
    assert "predicting with 3d_fullres + 3d_lowres, from selection/model.yaml" in said and "selection/postproc" in said
    assert np.array_equal(masks(work, "raw", postprocesses=False), together)
    assert not masks(work, "asked for", configurations=NAMES[::-1]).any()  # the same two, by name
    assert np.array_equal(masks(work, "one", configurations=["3d_fullres"]), alone)  # nothing was chosen for it alone


def test_a_choice_on_weights_that_are_gone_does_not_count(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    alone = masks(work, "alone")
    choose(work, *NAMES, steps=EMPTIED)
    train_again(work.fold("3d_lowres", "1"), "3d_lowres", 9)
    assert np.array_equal(masks(work, "default"), alone)
    assert "3d_lowres/1 has been trained again since; using the default configuration" in capsys.readouterr().err
    assert masks(work, "together", configurations=NAMES).any()
    assert "postprocessing.yaml: 3d_lowres/1 has been trained again since; not applied" in (capsys.readouterr().err)
    file = work.path / SELECTION / POSTPROCESSING_FILE
    assert not masks(work, "nevertheless", configurations=NAMES, postprocessing=file).any()


def test_steps_beside_one_configuration_count_for_folds_they_were_chosen_on_and_new_ones(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    choose(work, "3d_lowres", steps=EMPTIED)
    train_again(work.fold("3d_lowres", "2"), "3d_lowres", 9)  # a further fold takes nothing back
    assert not masks(work, "new").any()
    train_again(work.fold("3d_lowres", "0"), "3d_lowres", 10)
    assert masks(work, "changed", configurations=["3d_lowres"]).any()
    assert "3d_lowres/0 has been trained again since" in capsys.readouterr().err
    assert not masks(work, "other folds", configurations=["3d_lowres"], folds=["1"]).any()
    EMPTIED.save(work.run("3d_lowres") / POSTPROCESSING_FILE)  # by hand: of no weights
    assert not masks(work, "by hand", configurations=["3d_lowres"]).any()


def test_several_folders_are_averaged_and_none_twice(work: Work) -> None:
    runs = [work.run(name) for name in NAMES]
    together = masks(work, "together", configurations=NAMES)
    assert np.array_equal(masks(work, "folders", models=runs), together)
    choose(work, "3d_fullres")
    EMPTIED.save(work.path / SELECTION / POSTPROCESSING_FILE)  # of another ensemble: nothing to these two
    assert np.array_equal(masks(work, "others", configurations=NAMES), together)
    with pytest.raises(UsageError, match="3d_fullres: is given twice"):
        outcome(work, "twice", models=[work.path, runs[0]])
    assert len(find_members(work.path, ["3d_lowres", "3d_lowres"])) == 1
    with pytest.raises(UsageError, match="no trained configuration '2d'"):
        outcome(work, "gone", configurations=["2d", "3d_lowres"])


def test_the_folder_of_one_configuration_does_not_stand_for_another(work: Work) -> None:
    run, copy = work.run("3d_fullres"), work.path.parent / "liver model"
    with pytest.raises(UsageError, match=r"holds folds of 3d_fullres, not of '3d_lowres'. Leave out -c"):
        find_members(run, ["3d_lowres"])
    run.rename(copy)  # its weights say what they are, whatever it is called
    assert len(find_members(copy, ["3d_fullres"])[0]) == 2


def test_files_and_one_go_agree(work: Work) -> None:
    home = work.path.parent
    together = masks(work, "together", configurations=NAMES)
    for name in NAMES:
        outcome(work, name, configurations=[name], probabilities=True).require_all()
    (path,) = average([home / name for name in NAMES], home / "averaged").require_all()
    assert (read_labels(path)[0] == together).mean() > 0.995  # probabilities are rounded to float16


def test_uncertainty_lies_beside_the_masks_on_their_grid(work: Work) -> None:
    home = work.path.parent
    outcome(work, "out", uncertainty=True, configurations=NAMES).require_all()
    image = nib.load(home / "in" / "p.nii.gz")
    found = {}
    for name in ("entropy", "disagreement"):
        file = nib.load(home / "out" / "uncertainty" / f"p_{name}.nii.gz")
        assert file.get_data_dtype() == np.uint8 and np.array_equal(file.affine, image.affine)
        assert file.header.get_intent()[0] == "estimate"
        found[name] = np.asarray(file.dataobj)
        assert found[name].shape == image.shape and found[name].min() >= 0 and 0.2 < found[name].max() <= 1
    quarters = 4 * found["disagreement"]  # four networks
    assert quarters == pytest.approx(np.round(quarters)) and len(np.unique(quarters)) > 2
    assert [path.name for path in (home / "out").glob("*.nii.gz")] == ["p.nii.gz"]  # none is taken for a mask
    for name in ("entropy", "disagreement"):  # as a kill between the two leaves them
        (home / "out" / "uncertainty" / f"p_{name}.nii.gz").unlink()
        leftover = home / "out" / "uncertainty" / f".partial-0-p_{name}.nii.gz"
        leftover.touch()
        outcome(work, "out", uncertainty=True, configurations=NAMES).require_all()
        assert (home / "out" / "uncertainty" / f"p_{name}.nii.gz").is_file() and not leftover.exists()


def test_of_configurations_without_3d_fullres_the_one_that_predicts_is_named(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(work.run("3d_fullres"), work.run("mine"))
    shutil.copytree(work.run("3d_lowres"), work.run("extra"))
    assert [folder.path.parent.name for folder in find_members(work.path, [])[0]] == ["3d_lowres", "3d_lowres"]
    assert "trained are 3d_lowres, extra, mine; using 3d_lowres." in capsys.readouterr().err
