"""`segpipe select` on masks made by hand: what is chosen, what it is worth, kept, refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import tiny_labels, write_nnunet, write_tiny
from stages import plan_data

from segpipe.cli.main import run
from segpipe.core.volume import read_labels
from segpipe.core.work import Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits
from segpipe.evaluate.ledger import LEDGER_FILE, read_ledger
from segpipe.evaluate.scores import ScoreTable
from segpipe.pipeline.requests import Machine
from segpipe.predict.postprocess import Postprocessing, Steps

CASES = ["p1", "p2", "p3", "p4"]
ISLAND_DICE = 48 / 51  # 24 voxels of the label and an island of 3: 2 × 24 / (24 + 27)


def with_island() -> np.ndarray:
    """The reference with 3 voxels (11.25 mm³) of label a far from it."""
    mask = tiny_labels()
    mask[7, 9, 9:12] = 1
    return mask


def planned(folder: Path, **description: object) -> Work:
    write_nnunet(folder / "data", CASES, **description)
    plan_data(folder / "data", folder / "work", Machine("cpu", 1), n_folds=2, predicts_costs=False)
    return Work(folder / "work")


def validated(work: Work, name: str, masks: dict[str, np.ndarray], folds: tuple[int, ...] = (0, 1)) -> None:
    """Folds as they are after training, with these masks."""
    splits = Splits.load(work.splits)
    for number in folds:
        fold, split = work.fold(name, str(number)), splits.folds[number]
        for case in split.validation:
            write_tiny(fold.validation / f"{case}.nii.gz", masks[case])
        split.save(fold.split)
        ScoreTable(()).save(fold.scores)


def selected(work: Work, capsys: pytest.CaptureFixture[str], *more: str) -> dict:
    assert run(["select", str(work.path), "--json", "-j", "2", *more]) == 0
    return json.loads(capsys.readouterr().out)


def folds_of(work: Work) -> list[tuple[str, ...]]:
    return [fold.validation for fold in Splits.load(work.splits).folds]


def test_the_better_configuration_and_the_steps_that_help_are_chosen_and_kept(tmp_path, capsys):
    work = planned(tmp_path)
    validated(work, "2d", dict.fromkeys(CASES, with_island()))
    validated(work, "3d_fullres", dict.fromkeys(CASES, np.where(tiny_labels() == 1, 0, tiny_labels())))
    found = selected(work, capsys)
    assert found["models"] == {"2d": pytest.approx((ISLAND_DICE + 1) / 2), "3d_fullres": pytest.approx(0.5)}
    wanted = {"a": {"min_volume_mm3": 30.0, "keep_largest": False, "fill_holes": False}}  # the first step that does it
    assert found["chosen"] == {"model": "2d", "postprocessing": {"labels": wanted, "weights": {}}}
    assert found["naive"]["mean"] == found["nested"]["mean"] == 1.0
    kept = Postprocessing.load(work.run("2d") / "postprocessing.yaml")
    assert kept.labels == {"a": Steps(min_volume_mm3=30.0)}
    assert json.loads((work.path / "selection" / "selection.json").read_text("utf-8")) == found
    (noted,) = read_ledger(work.path / LEDGER_FILE).scorings
    assert (noted.event, noted.name, sorted(noted.cases)) == ("selection", "2d", CASES)


def test_what_helps_one_fold_and_harms_the_other_is_worth_less_nested(tmp_path, capsys):
    work = planned(tmp_path)
    first, second = folds_of(work)
    for case in second:  # here the island is real
        write_tiny(tmp_path / "data" / "labelsTr" / f"{case}.nii.gz", with_island())
    plan_data(tmp_path / "data", work.path, Machine("cpu", 1), n_folds=2, predicts_costs=False)
    assert folds_of(work) == [first, second]
    validated(work, "2d", dict.fromkeys(CASES, with_island()))
    found = selected(work, capsys)
    # chosen on both: nothing, since of label a 48/51 and 1 with the island stand against 1 and 48/51 without
    assert found["chosen"]["postprocessing"]["labels"] == {} and not (work.run("2d") / "postprocessing.yaml").exists()
    # without fold 0 the island is kept, which costs 3 voxels in fold 0; without fold 1 it goes, which costs them there
    assert [choice["postprocessing"]["labels"] for choice in found["without_fold"].values()] == [
        {},
        {"a": {"min_volume_mm3": 30.0, "keep_largest": False, "fill_holes": False}},
    ]
    assert found["naive"]["mean"] == pytest.approx(((ISLAND_DICE + 1) / 2 + 1) / 2)
    assert found["nested"]["mean"] == pytest.approx((ISLAND_DICE + 1) / 2)
    assert run(["select", str(work.path)]) == 0
    text = capsys.readouterr().out
    assert "Naive" in text and "Nested" in text and "without fold 1: 2d; a: parts of 30 mm³ or more" in text


def test_an_ensemble_is_a_candidate_where_probabilities_are(tmp_path, capsys):
    work = planned(tmp_path)
    reference = tiny_labels()
    truth = np.stack([reference == value for value in range(3)]).astype(np.float16)
    for name, lost in (("2d", 1), ("3d_fullres", 2)):  # each misses a label by little, so that the mean has both
        shares = truth.copy()
        shares[0] += 0.6 * truth[lost]
        shares[lost] *= 0.4
        mask = shares.argmax(axis=0).astype(np.uint8)
        validated(work, name, dict.fromkeys(CASES, mask))
        for number, cases in enumerate(folds_of(work)):
            for case in cases:
                file = work.fold(name, str(number)).validation / f"{case}_probabilities.npz"
                np.savez_compressed(file, probabilities=shares)
    found = selected(work, capsys)
    assert found["models"] == {"2d": 0.5, "3d_fullres": 0.5, "2d + 3d_fullres": 1.0}
    assert found["chosen"]["model"] == "2d + 3d_fullres" and found["nested"]["mean"] == 1.0


def test_a_second_run_scores_only_what_changed(tmp_path, capsys):
    work = planned(tmp_path)
    validated(work, "2d", dict.fromkeys(CASES, with_island()))
    first = selected(work, capsys)
    files = sorted((work.path / "selection" / "scores").rglob("*.csv"))
    assert len(files) == len(CASES)
    files[0].unlink()  # as if killed
    before = files[1].stat().st_mtime_ns
    assert selected(work, capsys) == first and files[0].is_file() and files[1].stat().st_mtime_ns == before
    os.utime(next(work.run("2d").rglob("p1.nii.gz")))  # written anew, if only with the same number of bytes
    assert selected(work, capsys) == first and not files[0].exists()
    validated(work, "2d", dict.fromkeys(CASES, tiny_labels()))
    assert selected(work, capsys)["models"] == {"2d": 1.0}
    assert not (work.run("2d") / "postprocessing.yaml").exists()  # of the earlier choice
    assert len(list((work.path / "selection" / "scores").rglob("*.csv"))) == len(CASES)


def test_distances_are_chosen_by_the_least(tmp_path, capsys):
    work = planned(tmp_path)
    validated(work, "2d", dict.fromkeys(CASES, with_island()))
    found = selected(work, capsys, "--metric", "hd95")
    assert found["naive"]["mean"] == 0.0 and "a" in found["chosen"]["postprocessing"]["labels"]


def test_regions_are_chosen_for_and_scored_as_they_come_out(tmp_path, capsys):
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    work = planned(tmp_path, labels=labels, regions_class_order=[1, 2])
    validated(work, "2d", dict.fromkeys(CASES, with_island()))
    found = selected(work, capsys)
    assert set(found["chosen"]["postprocessing"]["labels"]) == {"whole"} and found["naive"]["mean"] == 1.0


def test_configurations_without_all_folds_are_left_out_and_said(tmp_path, capsys):
    work = planned(tmp_path)
    validated(work, "2d", dict.fromkeys(CASES, with_island()))
    validated(work, "3d_fullres", dict.fromkeys(CASES, tiny_labels()), folds=(0,))
    found = selected(work, capsys)
    assert found["left_out"] == ["3d_fullres"] and list(found["models"]) == ["2d"]


def test_one_fold_is_too_little(tmp_path, capsys):
    work = planned(tmp_path)
    assert run(["select", str(work.path)]) == 2
    assert "trained and scored: none" in capsys.readouterr().err
    validated(work, "2d", dict.fromkeys(CASES, tiny_labels()), folds=(1,))
    assert run(["select", str(work.path)]) == 2
    assert "2d: folds [1]" in capsys.readouterr().err
    assert run(["select", str(tmp_path)]) == 2
    assert "no plan.yaml in it" in capsys.readouterr().err


def test_a_mask_that_is_gone_is_named(tmp_path, capsys):
    work = planned(tmp_path)
    validated(work, "2d", dict.fromkeys(CASES, tiny_labels()))
    case = Dataset.load(work.dataset).cases[0].case_id
    fold = next(number for number, cases in enumerate(folds_of(work)) if case in cases)
    mask = work.fold("2d", str(fold)).validation / f"{case}.nii.gz"
    assert (read_labels(mask)[0] == tiny_labels()).all()
    mask.unlink()
    assert run(["select", str(work.path)]) == 3
    assert str(mask) in capsys.readouterr().err


def test_masks_of_other_splits_do_not_count(tmp_path, capsys):
    work = planned(tmp_path)
    validated(work, "2d", dict.fromkeys(CASES, tiny_labels()))
    splits = Splits.load(work.splits)
    splits.model_copy(update={"folds": splits.folds[::-1]}).save(work.splits)
    assert run(["select", str(work.path)]) == 2
    assert "2d: folds []" in capsys.readouterr().err
