"""Prediction of cases: every kind of file, faults that stay with their case, rows that survive a kill, memory."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from datasets import SHAPE_ZYX, oblique_affine, tiny_image, write_tiny
from dicom import write_series
from models import write_work
from torch import Tensor, nn

from plans import REGIONS, small_plan, small_spec
from segpipe.cli.main import run
from segpipe.core.errors import DataError, ResourceError, UsageError
from segpipe.core.grid import Grid
from segpipe.core.volume import read_header, read_labels, write_image
from segpipe.core.work import FoldFolder
from segpipe.data.dataset import Case
from segpipe.data.inputs import list_inputs
from segpipe.networks.build import build
from segpipe.plan.schema import Normalisation
from segpipe.plan.training_stats import ChannelRange, Span, TrainingStats
from segpipe.predict.memory import budget_for, prediction_bytes, windows_at_once
from segpipe.predict.model import Ensemble, Model
from segpipe.predict.options import PredictOptions
from segpipe.predict.outputs import UNKNOWN_WARNING, PredictionResult, PredictionTable, mask_path, write_label_table
from segpipe.predict.run import predict_cases
from segpipe.predict.segment import Batching, segment, smaller_batchings
from segpipe.prepare.case import Prepared, prepare_case
from segpipe.train.checkpoint import save_weights


def model_of(n_channels: int = 1) -> Model:
    """Random weights: what is found does not matter here."""
    torch.manual_seed(0)
    names = tuple(f"MR{channel}" for channel in range(n_channels))
    schemes = (Normalisation(scheme="zscore"),) * n_channels
    plan = small_plan().model_copy(update={"channels": names, "normalisation": schemes, "mirror_axes": ()})
    configuration = plan.configurations["3d_fullres"]
    return Model(plan, configuration, (build(configuration.network, n_channels, 3).eval(),), "0")


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of()


class Failing(nn.Module):
    """A network that raises `fault` on its first calls and is constant then."""

    def __init__(self, fault: Exception, n_failures: int) -> None:
        super().__init__()
        self.fault, self.n_failures = fault, n_failures
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        if self.n_failures > 0 and type(x_BCZYX) is Tensor:  # not where memory is foretold on fake tensors
            self.n_failures -= 1
            raise self.fault
        return [torch.cat([x_BCZYX * 0, x_BCZYX * 0 + self.weight, x_BCZYX * 0], 1)]


def failing(fault: Exception, n_failures: int) -> Model:
    model = model_of()
    return Model(model.plan, model.configuration, (Failing(fault, n_failures),), "1")


def predicted(model: Model, images: Path, output: Path, options: PredictOptions | None = None) -> PredictionResult:
    return predict_cases(model, list_inputs(images, model.plan.channels), output, options)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_mask_its_row_and_the_names_of_its_values(model: Model, tmp_path: Path) -> None:
    write_tiny(tmp_path / "in" / "a.nii.gz", tiny_image(1))
    (path,) = predicted(model, tmp_path / "in", tmp_path / "out").require_all()
    image, mask = nib.load(tmp_path / "in" / "a.nii.gz"), nib.load(path)
    assert np.array_equal(mask.affine, image.affine) and mask.get_data_dtype() == np.uint8
    assert mask.header.get_intent()[0] == "label"
    assert (tmp_path / "out" / "dseg.tsv").read_text("utf-8") == "index\tname\n0\tbackground\n1\ta\n2\tb\n"
    (row,) = rows_of(tmp_path / "out")
    n_a = int((np.asarray(mask.dataobj) == 1).sum())
    assert row["case_id"] == "a" and row["voxels_a"] == str(n_a) and row["warnings"] == ""
    assert float(row["volume_ml_a"]) == pytest.approx(n_a * 1.0 * 1.5 * 2.5 / 1000, rel=1e-5)  # voxels of 3.75 mm³
    assert all(float(row[f"seconds_{part}"]) > 0 for part in ("prepare", "network", "export"))


def test_regions_are_named_by_what_is_painted_last(tmp_path: Path) -> None:
    write_label_table(tmp_path, REGIONS)
    assert (tmp_path / "dseg.tsv").read_text("utf-8") == "index\tname\n0\tbackground\n1\twhole\n2\tcore\n"


def _nrrd(path: Path) -> None:
    image = sitk.GetImageFromArray(tiny_image(1))
    image.SetSpacing((1.0, 1.5, 2.5))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", "dicom", ".nii"])
def test_every_format_gives_a_mask_in_the_same_place(ending: str, model: Model, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / f"a{ending}"
    if ending == "dicom":
        write_series(source := tmp_path / "in" / "a", tiny_image(1).astype(np.int16))
    elif ending == ".nii":
        write_tiny(source, tiny_image(1))
    else:
        _nrrd(source)
    (path,) = predicted(model, tmp_path / "in", tmp_path / "out").require_all()
    image, mask = read_header(source), read_header(path)
    assert path.name == "a.nii.gz" and image.grid.corner_gap_mm(mask.grid) < 1e-4
    assert mask.grid.orientation == image.grid.orientation


@pytest.mark.parametrize(
    ("shape_zyx", "spacing_xyz_mm"),
    [((1, 10, 12), (1, 1.5, 2.5)), ((2, 3, 2), (1, 1.5, 2.5)), ((30, 4, 5), (4, 6, 0.5)), ((1, 1, 1), (1, 1, 1))],
    ids=["one slice", "tiny", "other spacing", "one voxel"],
)
def test_shapes_and_spacings_of_all_kinds(
    shape_zyx: tuple[int, int, int], spacing_xyz_mm: tuple[float, ...], model: Model, tmp_path: Path
) -> None:
    voxels = np.random.default_rng(0).normal(100, 20, shape_zyx).astype(np.float32)
    write_tiny(tmp_path / "in" / "a.nii.gz", voxels, np.diag([*spacing_xyz_mm, 1.0]))
    (path,) = predicted(model, tmp_path / "in", tmp_path / "out", PredictOptions(probabilities=True)).require_all()
    assert read_labels(path)[0].shape == shape_zyx
    with np.load(tmp_path / "out" / "a_probabilities.npz") as stored:
        assert stored["probabilities"].shape == (3, *shape_zyx) and stored["probabilities"].dtype == np.float16


def test_channels_in_one_file_or_in_several_give_one_mask(tmp_path: Path) -> None:
    model = model_of(2)
    both = np.stack([tiny_image(1), tiny_image(2)])
    write_image(tmp_path / "one" / "a.nii.gz", both, oblique_affine())
    for channel in range(2):
        write_tiny(tmp_path / "two" / f"a_{channel:04d}.nii.gz", both[channel])
    (first,) = predicted(model, tmp_path / "one", tmp_path / "out1").require_all()
    (second,) = predicted(model, tmp_path / "two", tmp_path / "out2").require_all()
    assert np.array_equal(read_labels(first)[0], read_labels(second)[0])
    (tmp_path / "one" / "b.nii.gz").write_text("no image")  # must not keep a from being predicted
    assert [fault.case_id for fault in predicted(model, tmp_path / "one", tmp_path / "out1").faults] == ["b"]
    (tmp_path / "two" / "a_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case a: channel 0001 \(MR1\) is missing; found a_0000.nii.gz \(1 channel\)"):
        list_inputs(tmp_path / "two", model.plan.channels)


def test_a_case_without_a_channel_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = write_work(tmp_path / "work", n_folds=1, n_channels=2)
    for name in ("a_0000", "a_0001", "b_0001", "c_0000", "c_0002", "d_0000", "d_0001"):
        write_tiny(tmp_path / "in" / f"{name}.nii.gz", tiny_image(1))
    command = ["predict", "-m", str(work), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-j", "1", "--json"]
    assert run([*command, "--dry-run"]) == 3
    assert json.loads(capsys.readouterr().out)["exit_code"] == 3
    assert run(command) == 3
    said = json.loads(capsys.readouterr().out)
    assert [Path(mask).name for mask in said["masks"]] == ["a.nii.gz", "d.nii.gz"]
    texts = {fault["case_id"]: fault["message"] for fault in said["failed"]}
    assert set(texts) == {"b", "c"} and "0000 (MR0) is missing" in texts["b"] and "0001 (MR1)" in texts["c"]


def test_a_bad_case_is_listed_and_the_others_are_done(model: Model, tmp_path: Path) -> None:
    images = tmp_path / "in"
    for name in ("a", "e"):
        write_tiny(images / f"{name}.nii.gz", tiny_image(1))
    (images / "b.nii.gz").write_text("this is text")
    (images / "c.nii.gz").symlink_to(images / "gone.nii.gz")
    (images / "f.nii.gz").symlink_to(images / "f.nii.gz")
    write_tiny(images / "d.nii.gz", np.where(np.arange(12) > 5, np.nan, tiny_image(1)).astype(np.float32))
    outcome = predicted(model, images, tmp_path / "out")
    assert [fault.case_id for fault in outcome.faults] == ["b", "c", "d", "f"] and outcome.exit_code == 3
    assert [path.name for path in outcome.masks] == ["a.nii.gz", "e.nii.gz"]
    assert [row["case_id"] for row in rows_of(tmp_path / "out")] == ["a", "e"]
    with pytest.raises(
        DataError, match=r"4 of 6 cases could not be predicted:\n  b: .*\n  c: .*which is missing.*\n  d: "
    ):
        outcome.require_all()
    assert json.loads(json.dumps([row.to_json() for row in outcome.rows]))[0]["case_id"] == "a"


def test_a_fault_of_the_program_is_logged_and_the_others_go_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiny(tmp_path / "in" / f"{name}.nii.gz", tiny_image(1))
    outcome = predicted(failing(TypeError("a bug"), 1), tmp_path / "in", tmp_path / "out")
    assert [f.text for f in outcome.faults] == ["a: unexpected TypeError (a bug); see errors.log for its traceback."]
    assert [row.case_id for row in outcome.rows] == ["b"]
    log = (tmp_path / "out" / "errors.log").read_text("utf-8")
    assert log.startswith("a\nTraceback") and "in forward" in log
    again = predicted(failing(TypeError("a bug"), 0), tmp_path / "in", tmp_path / "out")
    assert [row.case_id for row in again.rows] == ["a", "b"] and again.exit_code == 0


def test_rows_survive_a_kill_and_are_made_anew_when_they_are_gone(model: Model, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_tiny(tmp_path / "in" / f"{name}.nii.gz", tiny_image(1))
    predicted(model, tmp_path / "in", tmp_path / "out")
    table = tmp_path / "out" / "predictions.csv"
    before = rows_of(tmp_path / "out")
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.nii.gz"))]
    lines = table.read_text("utf-8").splitlines(keepends=True)
    table.write_text("".join(lines[:3]) + lines[3].rstrip("\n"))  # killed within the last row
    outcome = predicted(model, tmp_path / "in", tmp_path / "out")
    assert rows_of(tmp_path / "out")[:2] == before[:2]
    last = rows_of(tmp_path / "out")[2]
    assert last["warnings"] == UNKNOWN_WARNING and last["seconds_network"] == ""
    assert {k: v for k, v in last.items() if "vo" in k} == {k: v for k, v in before[2].items() if "vo" in k}
    table.unlink()
    assert len(predicted(model, tmp_path / "in", tmp_path / "out").rows) == 3 == len(rows_of(tmp_path / "out"))
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.nii.gz"))] == times
    predicted(
        model, tmp_path / "in", tmp_path / "out", PredictOptions(probabilities=True)
    )  # made again: one row each, not two
    assert [row["case_id"] for row in rows_of(tmp_path / "out")] == ["a", "b", "c"]
    assert outcome.rows[0].sizes["a"].voxels == int(before[0]["voxels_a"])
    mask_path(tmp_path / "out", "b").unlink()
    (tmp_path / "in" / "b.nii.gz").unlink()
    predicted(model, tmp_path / "in", tmp_path / "out")
    assert [row["case_id"] for row in rows_of(tmp_path / "out")] == ["a", "c"]  # no row without a mask


def test_a_table_of_other_labels_is_not_read(model: Model, tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("case_id,warnings\na,\n")
    assert PredictionTable(tmp_path, model.plan.labels).rows == {}


def prepared_tiny(model: Model, folder: Path) -> Prepared:
    path = write_tiny(folder / "t.nii.gz", tiny_image(1))
    case = Case(case_id="t", patient_id="t", images=(str(path),))
    return prepare_case(case, model.plan, model.configuration)


def test_out_of_memory_takes_fewer_windows_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = failing(torch.OutOfMemoryError("CUDA out of memory. Tried"), 2)
    _, taken = segment(Ensemble((model,)), [prepared_tiny(model, tmp_path)], PredictOptions(), "t", Batching(4))
    assert taken.n_windows == 1
    assert capsys.readouterr().err.splitlines() == [
        "t: not enough memory with 4 windows at a time; trying again with 2 windows at a time.",
        "t: not enough memory with 2 windows at a time; trying again with 1 window at a time.",
    ]


def test_sums_move_to_the_cpu_last() -> None:
    steps = list(smaller_batchings(Batching(2), torch.device("cuda")))
    assert [(step.n_windows, step.sum_on) for step in steps] == [(2, None), (1, None), (1, torch.device("cpu"))]


def test_memory_that_is_never_enough_is_an_error_of_its_own_kind(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiny(tmp_path / "in" / f"{name}.nii.gz", tiny_image(1))
    outcome = predicted(failing(MemoryError("no"), 1), tmp_path / "in", tmp_path / "out")
    assert outcome.exit_code == 5 and [row.case_id for row in outcome.rows] == ["b"]
    with pytest.raises(ResourceError, match="1 of 2 cases"):
        outcome.require_all()


def test_only_out_of_memory_is_treated_as_such(tmp_path: Path) -> None:
    model = failing(RuntimeError("CUDA error: an illegal memory access"), 1)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        segment(Ensemble((model,)), [prepared_tiny(model, tmp_path)], PredictOptions(), "t", Batching(4))


def test_a_case_beyond_the_limit_is_refused_before_it_is_read(model: Model, tmp_path: Path) -> None:
    write_tiny(tmp_path / "in" / "a.nii.gz", tiny_image(1))
    write_tiny(tmp_path / "in" / "huge.nii.gz", np.zeros((400, 400, 400), np.uint8))
    outcome = predicted(model, tmp_path / "in", tmp_path / "out", PredictOptions(max_memory_gib=1.0, any_size=True))
    assert [row.case_id for row in outcome.rows] == ["a"] and outcome.exit_code == 5
    text = outcome.faults[0].text  # by hand: 64e6 voxels × 12 bytes, float32 and what a library reads, are 0.72 GiB
    assert text.startswith("huge: needs about 732 MiB of memory, according to its header; --max-memory leaves 154 MiB")


def test_windows_at_once_follow_the_memory(model: Model) -> None:
    budget = budget_for(torch.device("cpu"), None)
    assert budget.host_bytes and not budget.is_limit and windows_at_once(model, budget) == 1
    limited = budget_for(torch.device("cpu"), 2.0)
    assert limited.host_bytes == 2 * 2**30 - 870 * 2**20
    with pytest.raises(
        ResourceError, match=r"c: needs about 2.0 GiB .* --max-memory leaves 1.2 GiB after the program's own 870 MiB"
    ):
        limited.require("c", 2 * 2**30)


def test_small_slices_are_predicted_together_on_a_cpu(model: Model) -> None:
    budget = budget_for(torch.device("cpu"), None)
    for edges, n_windows in (((56, 40), 14), ((256, 224), 1), ((8, 8), 32)):  # 2^15 voxels, 32 at most
        changes = {"patch_zyx": (1, *edges), "network": small_spec(n_axes=2)}
        slices = replace(model, configuration=model.configuration.model_copy(update=changes))
        assert windows_at_once(slices, budget) == n_windows


def test_memory_of_a_case_by_hand(model: Model, tmp_path: Path) -> None:
    grid = read_header(write_tiny(tmp_path / "a.nii.gz", tiny_image(1))).grid
    assert grid.shape_zyx == SHAPE_ZYX  # 960 voxels, as many when prepared: the plan has their edges
    ensemble, options = Ensemble((model,)), PredictOptions()
    # predicting is the largest moment: the image, rows of three outputs (the patch holds all), two arrays of a slab's
    # output, two bytes for masks
    assert prediction_bytes(grid, ensemble, options, windows_bytes=7) == 960 * (4 + 3 * 4 + 2 * 4 + 2) + 7
    assert prediction_bytes(grid, ensemble, PredictOptions(probabilities=True), spools=True) == 960 * (
        4 + 3 * 4 + 2 * 4 + 2 + 2
    )  # an output, float16
    fine = Grid((40, 5, 6), np.diag([2.0, 3.0, 5.0, 1.0]))  # 1200 voxels become 80 × 10 × 12, which is resampled
    # raw, normalised, prepared; in between the result and what is clipped of it, more than between two axes
    assert prediction_bytes(fine, ensemble, options, windows_bytes=7) == (2 * 1200 + 9600 + 2 * 9600) * 4
    of_two = (2 * 1200 + 9600 + 2 * 9600 + 2 * 9600) * 4  # and what is prepared for both, at most
    assert prediction_bytes(fine, Ensemble((model, model)), options, windows_bytes=7) == of_two


def test_two_commands_do_not_share_a_folder(model: Model, tmp_path: Path) -> None:
    from segpipe.core.files import only_process

    write_tiny(tmp_path / "in" / "a.nii.gz", tiny_image(1))
    (tmp_path / "out").mkdir()
    with only_process(tmp_path / "out"), pytest.raises(UsageError, match="another process is working in it"):
        predicted(model, tmp_path / "in", tmp_path / "out")


def test_the_command_tells_each_case_in_json_and_warns_of_what_is_unlike(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fold = FoldFolder(tmp_path / "model" / "fold_0")
    fold.path.mkdir(parents=True)
    model.plan.save(fold.plan)
    save_weights(fold.weights, model.networks[0], {"configuration": "3d_fullres", "fold": "0", "finished": "1"})
    edge, extent = Span(low=1, high=2.5), Span(low=10, high=25)
    seen = ChannelRange(low=50, high=150, min=40)
    trained_on = TrainingStats(
        n_cases=2, orientations=("RAS",), spacing_mm=(edge,) * 3, extent_mm=(extent,) * 3, intensities=(seen,)
    )
    trained_on.save(fold.trained_on)
    write_tiny(tmp_path / "in" / "a.nii.gz", tiny_image(1))
    write_tiny(tmp_path / "in" / "b.nii.gz", tiny_image(1), np.diag([1.0, 1.5, 5.0, 1.0]))
    (tmp_path / "in" / "c.nii.gz").write_text("no image")
    common = ["predict", "-m", str(tmp_path / "model"), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert run([*common, "--json", "--device", "cpu", "-j", "1", "--max-memory", "4"]) == 3
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert [row["case_id"] for row in result["cases"]] == ["a", "b"] and len(result["masks"]) == 2
    assert [fault["case_id"] for fault in result["failed"]] == ["c"]
    assert result["cases"][0]["warnings"] == []
    assert result["cases"][1]["warnings"][0] == "voxels of 5 mm head–feet, trained on 1 to 2.5 mm"
    assert "warning: b: voxels of 5 mm head–feet" in printed.err and "1 of 3 cases could not" in printed.err
    assert rows_of(tmp_path / "out")[1]["warnings"] == "; ".join(result["cases"][1]["warnings"])
