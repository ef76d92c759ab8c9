"""segpipe from Python: arrays in, arrays out, the same masks as the command's, nothing else changed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from datasets import oblique_affine, tiny_image, write_nnunet, write_tiny
from models import write_work
from test_cli import HEAVY

import segpipe
from segpipe.cli.main import run
from segpipe.core.errors import DataError, GeometryError, ResourceError, SegpipeError, SetupError, UsageError
from segpipe.core.volume import read_labels, write_image
from segpipe.pipeline.packing import pack
from segpipe.predict.api import Predictor
from segpipe.predict.postprocess import POSTPROCESSING_FILE, Postprocessing, Steps


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = write_work(tmp_path_factory.mktemp("model") / "work")
    steps = Postprocessing(labels={"a": Steps(keep_largest=True)})
    steps.save(work / "runs" / "3d_fullres" / POSTPROCESSING_FILE)
    return work


@pytest.fixture(scope="module")
def model(work: Path) -> Predictor:
    return segpipe.load(work, device="cpu")


@pytest.mark.parametrize("angle", [0.3, 1.5, -2.9], ids=["as trained", "turned", "mirrored"])
def test_a_mask_is_the_one_that_the_command_writes(angle: float, work: Path, model: Predictor, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "in" / "t.nii.gz", tiny_image(1), oblique_affine(angle))
    assert run(["predict", "-m", str(work), "-i", str(path), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    expected = nib.load(tmp_path / "out" / "t.nii.gz")
    image = nib.load(path)
    found = model.predict(image.get_fdata().T, affine=image.affine)
    assert np.array_equal(found.mask.T, np.asarray(expected.dataobj)) and found.mask.dtype == np.uint8
    assert np.array_equal(model.predict_file(path).mask, found.mask)
    assert found.labels == {"a": (1,), "b": (2,)} and found.probabilities is None
    assert found.volumes_ml["a"] == pytest.approx((found.mask == 1).sum() * 3.75 / 1000)  # voxels of 1 × 1.5 × 2.5 mm


def test_a_packed_model_finds_the_same(work: Path, model: Predictor, tmp_path: Path) -> None:
    pack(work, tmp_path / "m.segpipe.zip")
    packed = segpipe.load(str(tmp_path / "m.segpipe.zip"), device="cpu")
    found, expected = (m.predict(tiny_image(2), affine=oblique_affine(), probabilities=True) for m in (packed, model))
    assert np.array_equal(found.mask, expected.mask) and np.array_equal(found.probabilities, expected.probabilities)
    assert packed.postprocessing == model.postprocessing != Postprocessing()


def test_probabilities_add_up_to_one(model: Predictor) -> None:
    unchanged = replace(model, postprocessing=Postprocessing())
    found = unchanged.predict(tiny_image(1), spacing_mm=(2.5, 1.5, 1.0), probabilities=True)
    assert found.probabilities is not None and found.probabilities.shape == (3, *tiny_image(1).shape)
    assert np.allclose(found.probabilities.sum(0, dtype=np.float32), 1, atol=2e-3)
    assert np.array_equal(found.probabilities.argmax(0), found.mask)  # labels are 1 and 2


def test_without_an_affine_the_axes_are_the_plans_and_that_is_said(model: Predictor) -> None:
    found = model.predict(tiny_image(1), spacing_mm=(2.5, 1.5, 1.0))
    placed = model.predict(tiny_image(1), affine=np.diag([1.0, 1.5, 2.5, 1.0]))  # RAS, as the plan
    assert np.array_equal(found.mask, placed.mask)
    assert found.warnings == (*found.warnings[:1], *placed.warnings) and "run to R, A, S" in found.warnings[0]
    assert placed.warnings == ()


def test_what_is_unlike_the_training_cases_is_a_warning(model: Predictor) -> None:
    found = model.predict(tiny_image(1), affine=np.diag([1.0, 1.5, 5.0, 1.0]))
    assert found.warnings[0] == "voxels of 5 mm head–feet, trained on 1 to 2.5 mm"


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "int64", "float16", ">f8", "longdouble"])
def test_any_type_of_numbers_gives_the_mask_of_its_values(dtype: str, model: Predictor) -> None:
    values = np.round(tiny_image(1)).clip(0, 200)
    as_float = model.predict(values, affine=oblique_affine())
    assert np.array_equal(model.predict(values.astype(dtype), affine=oblique_affine()).mask, as_float.mask)


def test_lists_strided_and_read_only_arrays_are_images_too(model: Predictor) -> None:
    image = tiny_image(1)
    expected = model.predict(image, spacing_mm=(2.5, 1.5, 1.0)).mask
    wide = np.repeat(image, 2, axis=2)[..., ::2]
    wide.setflags(write=False)
    for same in (image.tolist(), wide, np.asfortranarray(image), torch.from_numpy(image), image[None]):
        assert np.array_equal(model.predict(same, spacing_mm=[2.5, 1.5, 1.0]).mask, expected)


@pytest.mark.parametrize("shape", [(1, 10, 12), (1, 1, 1), (30, 3, 2)])
def test_images_of_any_shape_get_a_mask_of_it(shape: tuple[int, int, int], model: Predictor) -> None:
    voxels = np.random.default_rng(0).normal(100, 20, shape)
    assert model.predict(voxels, spacing_mm=(1, 1, 1)).mask.shape == shape


def test_several_channels_are_stacked_first(tmp_path: Path) -> None:
    work = write_work(tmp_path / "work", n_folds=1, n_channels=2)
    model, both = segpipe.load(work, device="cpu", folds=[0]), np.stack([tiny_image(1), tiny_image(2)])
    write_image(tmp_path / "t.nii.gz", both, oblique_affine())
    found = model.predict(both, affine=oblique_affine())
    assert np.array_equal(found.mask, model.predict_file(tmp_path / "t.nii.gz").mask)
    with pytest.raises(DataError, match=r"shape \(8, 10, 12\), expected \(2, Z, Y, X\) for the channels MR0, MR1"):
        model.predict(both[0], affine=oblique_affine())


SPACING = {"spacing_mm": (2.5, 1.5, 1.0)}
SHEARED = np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("array", "place", "kind", "message"),
    [
        (tiny_image(1)[0], SPACING, DataError, r"shape \(10, 12\), expected \(Z, Y, X\)"),
        (np.zeros((2, 8, 10, 12)), SPACING, DataError, r"shape \(2, 8, 10, 12\), expected"),
        (np.zeros((0, 10, 12)), SPACING, DataError, "has no voxels"),
        (np.zeros((8, 10, 12), complex), SPACING, DataError, "of type complex128, expected real numbers"),
        (np.full((8, 10, 12), "a"), SPACING, DataError, "of type <U1"),
        (np.where(np.arange(12) > 5, np.nan, 1.0) * np.ones((8, 10, 12)), SPACING, DataError, "480 NaN or infinite"),
        (np.full((8, 10, 12), 1e300), SPACING, DataError, "960 NaN or infinite"),
        (tiny_image(1), {}, GeometryError, "its voxels have no size. Give `affine`, or `spacing_mm`"),
        (tiny_image(1), {"spacing_mm": (1.0, 1.0)}, GeometryError, "expected 3 finite numbers"),
        (tiny_image(1), {"spacing_mm": 1.0}, GeometryError, "expected 3 finite numbers"),
        (tiny_image(1), {"spacing_mm": (1.0, 0.0, 1.0)}, GeometryError, "above 0 mm"),
        (tiny_image(1), {"spacing_mm": (1.0, np.nan, 1.0)}, GeometryError, "finite"),
        (tiny_image(1), {"affine": np.eye(3)}, GeometryError, "expected 4 × 4 finite numbers"),
        (tiny_image(1), {"affine": [[1], [1, 2]]}, GeometryError, "expected 4 × 4 finite numbers"),
        (tiny_image(1), {"affine": np.eye(4) * 0}, GeometryError, "last row"),
        (tiny_image(1), {"affine": np.diag([1.0, 0, 1, 1])}, GeometryError, "not invertible"),
        (tiny_image(1), {"affine": SHEARED}, GeometryError, "sheared"),
        (tiny_image(1), {"affine": oblique_affine().T}, GeometryError, "transposed"),
        (tiny_image(1), {"affine": oblique_affine(), "spacing_mm": (1.0, 1.5, 2.5)}, GeometryError, "Give one of them"),
    ],
)
def test_what_cannot_be_predicted_is_said(
    array: Any, place: dict[str, Any], kind: type[SegpipeError], message: str, model: Predictor
) -> None:
    with pytest.raises(kind, match=message):
        model.predict(array, **place)


def test_models_that_are_not_there(work: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        segpipe.load(tmp_path / "nothing")
    with pytest.raises(UsageError, match="no trained fold 7"):
        segpipe.load(work, folds=[7])
    with pytest.raises(UsageError, match="no trained configuration '2d'"):
        segpipe.load(work, configurations=["2d"])
    with pytest.raises(SetupError, match="unknown"):
        segpipe.load(work, device="tpu")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none: "):
        segpipe.load(work, device="cpu").predict_file(tmp_path / "none")


def test_memory_that_may_not_be_taken_is_refused_first(work: Path) -> None:
    model = segpipe.load(work, device="cpu", max_memory_gib=0.5)
    with pytest.raises(ResourceError, match=r"array: needs about .* --max-memory leaves"):
        model.predict(tiny_image(1), **SPACING)


def test_nothing_of_the_process_or_of_the_arguments_is_changed(work: Path, tmp_path: Path) -> None:
    def state() -> tuple[Any, ...]:
        folder = sorted(path.name for path in tmp_path.iterdir())
        generators = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
        return (*generators, torch.get_num_threads(), torch.is_grad_enabled(), Path.cwd(), dict(os.environ), folder)

    image, affine = tiny_image(1), oblique_affine()
    before = state()
    segpipe.load(work, device="cpu").predict(image, affine=affine)
    assert state() == before
    assert np.array_equal(image, tiny_image(1)) and affine.flags.writeable


def test_threads_may_share_a_model(work: Path, model: Predictor) -> None:
    images = [tiny_image(seed) for seed in range(6)]
    alone = [model.predict(image, **SPACING).mask for image in images]
    shared = segpipe.load(work, device="cpu")  # its first predictions run side by side
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda image: shared.predict(image, **SPACING).mask, images))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_script_needs_no_guard_and_importing_is_free(work: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, segpipe\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))\n"
        f"model = segpipe.load({str(work)!r}, device='cpu', mirror=False)\n"
        "import numpy as np\n"
        "print(model.predict(np.ones((8, 10, 12)), spacing_mm=(2.5, 1.5, 1)).mask.shape)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n(8, 10, 12)\n"


def test_labels_read_back_are_those_of_the_dataset(model: Predictor, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "t.nii.gz", model.predict(tiny_image(1), affine=oblique_affine()).mask)
    assert set(np.unique(read_labels(path)[0])) <= {0, 1, 2}


def test_masks_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = np.zeros((4, 4, 4), np.uint8)
    reference[0] = 1
    prediction = reference.copy()
    prediction[0, :2] = 0  # 16 and 8 voxels, 8 of them in common: 2 · 8 / 24
    write_tiny(tmp_path / "r" / "c.nii.gz", reference)
    write_tiny(tmp_path / "p" / "c.nii.gz", prediction)
    found = segpipe.evaluate(tmp_path / "r", tmp_path / "p", labels="organ=1", metrics="dice", n_workers=1)
    assert next((row.label, row.mean) for row in found.summary) == ("organ", pytest.approx(2 / 3))
    assert (found.n_cases, found.policy, found.metrics) == (1, "mr", ("dice",))
    assert capsys.readouterr() == ("", "") and found.notes[0] == "labels: organ (from option -l)"
    from segpipe.evaluate.metrics import METRICS  # after this, the name is that of the package

    assert "dice" in METRICS and isinstance(segpipe.evaluate, ModuleType)
    (tmp_path / "work").mkdir()
    for said in ("Test set scored once.", "Test set scored 2 times, the same masks."):
        found = segpipe.evaluate(tmp_path / "r", tmp_path / "p", ledger=tmp_path / "work", n_workers=1)
        assert found.notes[-1] == said
    with pytest.raises(UsageError, match="unknown"):
        segpipe.evaluate(tmp_path / "r", tmp_path / "p", metrics="dies")


def test_a_run_from_check_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_nnunet(tmp_path / "data", [f"c{index}" for index in range(4)])
    edits = ("training.epochs=1", "training.iterations_per_epoch=1", "training.validation_iterations=1")
    common = {"preset": "cpu", "folds": [0], "edits": edits, "device": "cpu", "n_workers": 1}
    done = segpipe.run(data, tmp_path / "work", **common)
    assert done.report.is_file() and {row.fold for row in done.scores.rows} == {0}
    assert [row.label for row in done.summary if row.metric == "dice"] == ["a", "b", "(mean)"]
    assert capsys.readouterr().out == ""
    (tmp_path / "data" / "labelsTr" / "c0.nii.gz").write_text("no image")
    with pytest.raises(DataError, match="fatal"):
        segpipe.run(data, tmp_path / "work", **common)


def test_python_returns_what_the_command_prints(work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "work"
    shutil.copytree(work, copy)
    (copy / "runs" / "3d_fullres" / "fold_0" / "trained_on.json").unlink()
    model = segpipe.load(copy, device="cpu")
    model.predict(tiny_image(1), affine=oblique_affine())
    assert capfd.readouterr() == ("", "")
    assert any("the training images are not known" in note for note in model.notes)
    assert any(note.startswith("postprocessing: ") for note in model.notes)
    packed = tmp_path / "m.segpipe.zip"
    pack(copy, packed)
    notes = segpipe.load(packed, device="cpu").notes
    assert any(note.startswith(f"{packed.name}: masks are postprocessed") for note in notes)


def test_uncertainty_is_what_the_command_writes(work: Path, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "in" / "t.nii.gz", tiny_image(1))
    out = ["-o", str(tmp_path / "out"), "--device", "cpu", "--save-uncertainty"]
    assert run(["predict", "-m", str(work), "-i", str(path), *out]) == 0
    found = segpipe.load(work, device="cpu", uncertainty=True).predict_file(path)
    for name in ("entropy", "disagreement"):
        written = nib.load(tmp_path / "out" / "uncertainty" / f"t_{name}.nii.gz")
        assert found.uncertainty[name].dtype == np.float32
        assert np.allclose(found.uncertainty[name].T, written.get_fdata(), atol=1e-6)


def test_parameters_by_their_old_names_warn_and_count(work: Path, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="max_memory_gb is now max_memory_gib"):
        assert segpipe.load(work, device="cpu", max_memory_gb=3.0).options.max_memory_gib == 3.0
    with pytest.raises(TypeError, match="max_memory_gb is the old name of max_memory_gib"):
        segpipe.load(work, device="cpu", max_memory_gb=3.0, max_memory_gib=4.0)
    with (
        pytest.warns(DeprecationWarning, match="gpu_memory_gb is now gpu_memory_gib"),
        pytest.raises(UsageError, match="--gpu-memory -1: expected a number above 0"),
    ):
        segpipe.run(tmp_path, tmp_path / "new", gpu_memory_gb=-1.0)
