"""predict/ensemble_files.py and `segpipe ensemble`: what is in the files decides, and must go together."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from datasets import SHAPE_ZYX, oblique_affine, tiny_labels, write_json, write_tiny

from plans import LABELS, REGIONS
from segpipe.cli.main import run
from segpipe.core.errors import DataError, PlanError, UsageError
from segpipe.core.labels import LabelSet
from segpipe.core.volume import read_labels
from segpipe.predict.ensemble_files import ensemble_folders, mean_mask
from segpipe.predict.outputs import MadeWith
from segpipe.predict.postprocess import Postprocessing, Steps

LISTED = {"background": 0, "a": 1, "b": 2}


def shares_of(*fractions: float) -> np.ndarray:
    """The same probabilities in every voxel."""
    return np.broadcast_to(np.array(fractions, np.float16)[:, None, None, None], (len(fractions), *SHAPE_ZYX))


def predicted(folder: Path, shares: dict[str, np.ndarray], labels: LabelSet | None = LABELS) -> Path:
    """A folder as `segpipe predict --save-probabilities` leaves it; without labels as nnU-Net does."""
    for case, values in shares.items():
        write_tiny(folder / f"{case}.nii.gz", tiny_labels())
        np.savez_compressed(folder / f"{case}{'_probabilities' if labels else ''}.npz", probabilities=values)
    if labels is None:
        write_json(folder / "dataset.json", {"labels": LISTED, "channel_names": {"0": "CT"}})
    else:
        MadeWith(model="0", mirrored=True, images={}, labels=labels).save(folder / "prediction.json")
    return folder


def values_of(folder: Path, case: str = "p") -> list[int]:
    return np.unique(read_labels(folder / f"{case}.nii.gz")[0]).tolist()


def test_the_mean_decides_and_the_mask_lies_where_the_first_one_does(tmp_path: Path) -> None:
    # each alone says 0 and 2; the means are 0.4, 0.25, 0.35 and 0.35, 0.25, 0.4
    first = predicted(tmp_path / "a", {"p": shares_of(0.6, 0.3, 0.1), "q": shares_of(0.5, 0.3, 0.2)})
    second = predicted(tmp_path / "b", {"p": shares_of(0.2, 0.2, 0.6), "q": shares_of(0.2, 0.2, 0.6)})
    outcome = ensemble_folders([first, second], tmp_path / "out")
    assert [row.case_id for row in outcome.rows] == ["p", "q"] and outcome.exit_code == 0
    assert values_of(tmp_path / "out", "p") == [0] and values_of(tmp_path / "out", "q") == [2]
    mask = nib.load(tmp_path / "out" / "q.nii.gz")
    assert np.allclose(mask.affine, oblique_affine()) and mask.get_data_dtype() == np.uint8
    assert (tmp_path / "out" / "dseg.tsv").read_text("utf-8") == "index\tname\n0\tbackground\n1\ta\n2\tb\n"
    assert outcome.rows[1].sizes["b"].voxels == 960
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.nii.gz"))]
    assert len(ensemble_folders([first, second], tmp_path / "out").rows) == 2  # goes on, and has nothing to do
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.nii.gz"))] == times


def test_regions_are_compared_with_one_half_once(tmp_path: Path) -> None:
    # whole 0.9 and 0.2: 0.55; core 0.9 and 0.05: 0.475. A second sigmoid would lift both above one half
    first = predicted(tmp_path / "a", {"p": shares_of(0.9, 0.9)}, REGIONS)
    second = predicted(tmp_path / "b", {"p": shares_of(0.2, 0.05)}, REGIONS)
    ensemble_folders([first, second], tmp_path / "out").require_all()
    assert values_of(tmp_path / "out") == [1]


def test_ties_go_to_the_first_output_and_one_half_is_not_painted(tmp_path: Path) -> None:
    files = [tmp_path / "1.npz", tmp_path / "2.npz"]
    for file, shares in zip(files, ([0.25, 0.5, 0.25], [0.25, 0.25, 0.5]), strict=True):
        np.savez_compressed(file, probabilities=shares_of(*shares))
    assert np.unique(mean_mask(files, LABELS, SHAPE_ZYX)).tolist() == [1]
    for file, shares in zip(files, ([0.75, 0.5], [0.5, 0.5]), strict=True):
        np.savez_compressed(file, probabilities=shares_of(*shares))
    assert np.unique(mean_mask(files, REGIONS, SHAPE_ZYX)).tolist() == [1]


def test_folders_of_nnunet_and_segpipe_go_together(tmp_path: Path) -> None:
    first = predicted(tmp_path / "a", {"p": shares_of(0.6, 0.3, 0.1)})
    second = predicted(tmp_path / "b", {"p": shares_of(0.1, 0.1, 0.8).astype(np.float32)}, None)
    assert run(["ensemble", str(first), str(second), "-o", str(tmp_path / "out"), "--json"]) == 0
    assert values_of(tmp_path / "out") == [2]


def test_masks_are_postprocessed_if_asked_for(tmp_path: Path) -> None:
    shares = np.where(tiny_labels() == 1, shares_of(0, 1, 0), shares_of(1, 0, 0))
    folders = [predicted(tmp_path / name, {"p": shares}) for name in "ab"]
    steps = Postprocessing(labels={"a": Steps(min_volume_mm3=1000.0)})  # label a has 24 × 3.75 mm³
    ensemble_folders(folders, tmp_path / "with", steps).require_all()
    ensemble_folders(folders, tmp_path / "without").require_all()
    assert values_of(tmp_path / "with") == [0] and values_of(tmp_path / "without") == [0, 1]
    with pytest.raises(PlanError, match="label 'c' is unknown"):
        ensemble_folders(folders, tmp_path / "wrong", Postprocessing(labels={"c": Steps()}))


def test_what_does_not_go_together_is_refused_with_every_place_named(tmp_path: Path) -> None:
    shares = shares_of(0.6, 0.3, 0.1)
    first = predicted(tmp_path / "a", {"p": shares, "q": shares})
    with pytest.raises(DataError, match=r"2 cases in 2 folders, 1 masks are missing.*\n.*b: no mask of q"):
        ensemble_folders([first, predicted(tmp_path / "b", {"p": shares})], tmp_path / "out")
    second = predicted(tmp_path / "b", {"p": shares, "q": shares})
    (second / "q_probabilities.npz").unlink()
    (second / "p_probabilities.npz").unlink()
    with pytest.raises(DataError, match=r"2 masks lack probabilities:\n  .*p.nii.gz.*\n  .*q.nii.gz"):
        ensemble_folders([first, second], tmp_path / "out")
    other = predicted(tmp_path / "c", {"p": shares, "q": shares}, LabelSet(labels=LABELS.labels[::-1]))
    with pytest.raises(DataError, match=r"c: labels b 2, a 1; .*a has a 1, b 2. Expected the same names"):
        ensemble_folders([first, other], tmp_path / "out")
    (other / "prediction.json").unlink()
    with pytest.raises(DataError, match=r"c: says nothing of its labels"):
        ensemble_folders([first, other], tmp_path / "out")
    with pytest.raises(UsageError, match="expected two or more"):
        ensemble_folders([first, first], tmp_path / "out")
    with pytest.raises(DataError, match="gone: no such folder"):
        ensemble_folders([first, tmp_path / "gone"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_output_may_not_be_a_folder_of_other_masks(tmp_path: Path) -> None:
    folders = [predicted(tmp_path / name, {"p": shares_of(0.6, 0.3, 0.1)}) for name in "abc"]
    with pytest.raises(UsageError, match="holds the images"):
        ensemble_folders(folders[:2], folders[0])
    with pytest.raises(UsageError, match="holds masks of another model"):
        ensemble_folders(folders[:2], folders[2])


def test_a_case_whose_files_do_not_fit_is_listed_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = shares_of(0.6, 0.3, 0.1)
    first = predicted(tmp_path / "a", {"p": shares, "q": shares, "r": shares})
    second = predicted(tmp_path / "b", {"p": shares[:, :4], "q": shares, "r": shares})
    write_tiny(second / "q.nii.gz", tiny_labels(), np.diag([1.0, 1.5, 2.5, 1.0]))
    assert run(["ensemble", str(first), str(second), "-o", str(tmp_path / "out"), "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert [row["case_id"] for row in printed["cases"]] == ["r"]
    assert [fault["case_id"] for fault in printed["failed"]] == ["p", "q"]
    assert "expected floats (3, 8, 10, 12)" in printed["failed"][0]["message"]
    assert "a corner voxel is" in printed["failed"][1]["message"]
