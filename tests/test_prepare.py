"""prepare/dataset.py: a dataset is prepared as nnU-Net does it, again only where it changed, and past a faulty case."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import tiny_image, write_nnunet, write_tiny
from stages import plan_data

from plans import small_plan, small_spec
from segpipe.bridge.nnunet_plans import export_nnunet_plans, nnunet_plans
from segpipe.cli.main import run
from segpipe.core.errors import DataError, PlanError, ResourceError
from segpipe.core.work import Work
from segpipe.data.dataset import Case, Dataset, signature_of
from segpipe.data.load import load_dataset
from segpipe.fingerprint.measure import content_of, measure
from segpipe.fingerprint.record import Fingerprint
from segpipe.pipeline.requests import Machine
from segpipe.plan.edit import edit_plan
from segpipe.plan.schema import SCHEMES, NormalisationScheme, Plan
from segpipe.prepare.dataset import prepare_dataset, preparing_bytes
from segpipe.prepare.store import open_cases

CASES = ("c0", "c1", "c2")
_TICK_SECONDS = 0.02  # longer than a tick of the clock that stamps files


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Three tiny cases, measured."""
    dataset = load_dataset(write_nnunet(tmp_path / "data", CASES))
    result = Work(tmp_path / "work")
    measure(dataset, 1).save(result.fingerprint)
    return result


def image_of(work: Work, case_id: str) -> Path:
    return work.path.parent / "data" / "imagesTr" / f"{case_id}_0000.nii.gz"


def prepared(work: Work) -> Path:
    dataset = load_dataset(work.path.parent / "data")
    return prepare_dataset(work, dataset, small_plan(), "3d_fullres", 2)


def times(folder: Path) -> dict[str, int]:
    """When each prepared image was written."""
    return {case.name: (case / "image.b2nd").stat().st_mtime_ns for case in folder.iterdir()}


def test_every_case_is_prepared_once(work, capsys):
    folder = prepared(work)
    assert sorted(path.name for path in folder.iterdir()) == list(CASES)
    assert "to prepare: 3 cases, about 1 MiB on disk" in capsys.readouterr().err
    before = times(folder)
    assert times(prepared(work)) == before
    assert "to prepare" not in capsys.readouterr().err


@pytest.mark.parametrize("touch", [os.utime, lambda path: path.chmod(0o600)])
def test_touched_files_are_compared_and_not_prepared_again(touch, work, capsys):
    folder = prepared(work)
    before = times(folder)
    time.sleep(_TICK_SECONDS)
    touch(image_of(work, "c1"))
    time.sleep(_TICK_SECONDS)
    capsys.readouterr()
    assert times(prepared(work)) == before
    assert "comparing files: 1/1" in capsys.readouterr().err
    prepared(work)
    assert "comparing" not in capsys.readouterr().err  # it was noted that they are the same


def test_other_bytes_of_the_same_size_and_time_are_found(work):
    prepared(work)
    image = image_of(work, "c1")
    content, stat = bytearray(image.read_bytes()), image.stat()
    content[20] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match=r"1 case changed since planning \(c1\)\. Plan again"):
        prepared(work)


def test_cases_that_are_new_are_refused(work):
    prepared(work)
    write_nnunet(work.path.parent / "data", [*CASES, "c3", "c4", "c5", "c6", "c7", "c8"])
    with pytest.raises(DataError, match=r"6 cases changed since planning \(c3, c4, c5, c6, c7 …\)"):
        prepared(work)


def test_planned_anew_only_the_changed_case_is_prepared_again(work):
    folder = prepared(work)
    before = times(folder)
    write_tiny(image_of(work, "c1"), tiny_image(77))
    measure(load_dataset(work.path.parent / "data"), 1).save(work.fingerprint)
    assert prepared(work) == folder
    assert [case for case, at in times(folder).items() if at != before[case]] == ["c1"]


def test_images_that_were_moved_away_are_not_missed(work):
    folder = prepared(work)
    dataset = load_dataset(work.path.parent / "data")
    shutil.rmtree(work.path.parent / "data")
    assert prepare_dataset(work, dataset, small_plan(), "3d_fullres", 1) == folder


def test_faulty_cases_are_named_together_and_the_others_are_prepared(work):
    for case_id in ("c0", "c2"):
        image_of(work, case_id).write_bytes(b"no image")
    dataset = load_dataset(work.path.parent / "data")
    cases = {case.case_id: case for case in Fingerprint.load(work.fingerprint).cases}
    for case in dataset.cases:  # as if they had been so when they were measured
        update = {"content": content_of(case), "signature": signature_of(case)}
        cases[case.case_id] = cases[case.case_id].model_copy(update=update)
    Fingerprint.load(work.fingerprint).model_copy(update={"cases": tuple(cases.values())}).save(work.fingerprint)
    with pytest.raises(DataError, match="2 of 3 cases cannot be prepared; the others are") as fault:
        prepared(work)
    lines = str(fault.value).splitlines()
    assert [line.strip()[:3] for line in lines[1:]] == ["c0:", "c2:"]
    (folder,) = (work.path / "prepared").iterdir()
    assert [path.name for path in folder.iterdir()] == ["c1"]


def test_too_little_memory_names_the_case_and_what_to_do(work):
    plan = small_plan(spacing_mm=(1e-4, 1e-4, 1e-4))  # 14 petabytes
    with pytest.raises(ResourceError, match=r"c\d: not enough memory .* \(-j 1\)"):
        prepare_dataset(work, load_dataset(work.path.parent / "data"), plan, "3d_fullres", 1)


def test_as_many_side_by_side_as_memory_allows(work, monkeypatch, capsys):
    plan = small_plan()
    case = Fingerprint.load(work.fingerprint).cases[0]
    needed = preparing_bytes(case, plan, plan.configurations["3d_fullres"], (0, 1, 2))
    monkeypatch.setattr("segpipe.prepare.dataset.free_bytes", lambda: needed * 2 - 1)
    prepared(work)
    assert "; 1 in parallel, each with up to 30 MiB of memory of 60 MiB free" in capsys.readouterr().err


def test_a_plan_that_nnunet_cannot_hold_is_not_exported(work, monkeypatch):
    monkeypatch.setitem(SCHEMES, "robust", NormalisationScheme(does="scaled by quartiles"))
    fingerprint = Fingerprint.load(work.fingerprint)
    edits = ["normalisation.0={scheme: robust}", f"fingerprint={fingerprint.content_digest()!r}"]
    with pytest.raises(PlanError, match="nothing like the scheme robust, only like ct, zscore"):
        nnunet_plans(edit_plan(small_plan(), edits), fingerprint, "SimpleITKIO")


@pytest.mark.parametrize(("name", "n_cases"), [("hippocampus", 3), ("acdc", 2), ("sts_multi", 2)])
def test_prepared_arrays_are_nnunets(name, n_cases, shared_data, tmp_path):
    """Images to 1e-4 of their SD, labels on 99.9 % of the voxels that either calls foreground."""
    data = copied(shared_data / name, tmp_path / "data", n_cases)
    plan_data(data, tmp_path / "work", Machine("cpu", 1), preset="nnunet", n_folds=2, predicts_costs=False)
    work = Work(tmp_path / "work")
    plan, dataset = Plan.load(work.plan), Dataset.load(work.dataset)
    folder = prepare_dataset(work, dataset, plan, "3d_fullres", 1)
    export_nnunet_plans(work.path, tmp_path / "plans.json")
    same = total = 0
    for case in open_cases(folder, [case.case_id for case in dataset.cases], 1):
        image, labels = with_nnunet(data, dataset.by_id[case.folder.name], tmp_path / "plans.json")
        assert case.image.shape == image.shape
        assert np.abs(case.image - image).max() < 1e-4 * image.std()
        foreground = (case.indices > 0) | (labels > 0)
        same, total = same + (case.indices == labels)[foreground].sum(), total + foreground.sum()
    assert same / total >= 0.999


def copied(source: Path, target: Path, n_cases: int) -> Path:
    """The smallest cases of a dataset in nnU-Net's layout."""
    description = json.loads((source / "dataset.json").read_text("utf-8"))
    chosen = sorted((source / "labelsTr").glob("*.nii.gz"), key=lambda path: path.stat().st_size)[:n_cases]
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
    for label in chosen:
        shutil.copy(label, target / "labelsTr")
        for image in (source / "imagesTr").glob(f"{label.name.removesuffix('.nii.gz')}_*.nii.gz"):
            shutil.copy(image, target / "imagesTr")
    (target / "dataset.json").write_text(json.dumps(description | {"numTraining": n_cases}))
    return target


def with_nnunet(data: Path, case: Case, plans: Path) -> tuple[np.ndarray, np.ndarray]:
    """What nnunetv2 prepares of a case by the same plans: image (C, Z, Y, X), labels (Z, Y, X)."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    turning = {"image_reader_writer": "SimpleITKIOWithReorient"}  # to RAS, as our plans do
    manager = PlansManager(json.loads(plans.read_text("utf-8")) | turning)
    description = json.loads((data / "dataset.json").read_text("utf-8"))
    image, labels, _ = DefaultPreprocessor(verbose=False).run_case(
        list(case.images), case.label, manager, manager.get_configuration("3d_fullres"), description
    )
    return image, labels[0]


def test_a_dry_run_says_what_is_missing_and_prepares_nothing(tmp_path, capsys):
    data, work = write_nnunet(tmp_path / "data", CASES), tmp_path / "work"
    plan_data(data, work, Machine("cpu", 1), n_folds=2, predicts_costs=False)
    assert run(["prepare", str(work), "--dry-run", "-j", "2"]) == 0
    assert capsys.readouterr().out.startswith("to prepare: 3 cases, about 1 MiB on disk")
    assert not (work / "prepared").exists()
    assert run(["prepare", str(work), "--json", "-j", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n_cases"] == 3 and len(list(Path(result["prepared"]).iterdir())) == 3
    assert run(["prepare", str(work), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_cases"] == 0


def slices(work: Work, *, first_mm: float = 2.5) -> tuple[Dataset, Plan]:
    """A plan with slices beside 3D, whose slice distance is given; the cases have 2.5 mm."""
    plan = small_plan(spacing_mm=(first_mm, 1.5, 1.0))
    full = plan.configurations["3d_fullres"]
    changes = {"spacing_mm": (None, 1.5, 1.0), "patch_zyx": (1, 8, 12), "network": small_spec(n_axes=2)}
    both = {"2d": full.model_copy(update=changes), "3d_fullres": full}
    return load_dataset(work.path.parent / "data"), plan.model_copy(update={"configurations": both})


def test_slices_take_the_cases_of_an_equal_3d_configuration(work):
    dataset, plan = slices(work)
    flat = prepare_dataset(work, dataset, plan, "2d", 1)
    before = times(flat)
    assert prepare_dataset(work, dataset, plan, "3d_fullres", 1) == flat and times(flat) == before
    alone = plan.model_copy(update={"configurations": {"2d": plan.configurations["2d"]}})
    own = prepare_dataset(work, dataset, alone, "2d", 1)
    assert own != flat
    for one, other in zip(open_cases(own, CASES, 1), open_cases(flat, CASES, 1), strict=True):
        assert np.array_equal(one.image, other.image) and np.array_equal(one.indices, other.indices)


def test_slices_keep_their_own_distance_where_3d_changes_it(work):
    dataset, plan = slices(work, first_mm=2.0)
    flat, full = (prepare_dataset(work, dataset, plan, name, 1) for name in ("2d", "3d_fullres"))
    assert flat != full
    assert open_cases(flat, ["c0"], 1)[0].shape_zyx == (8, 10, 12)
    assert open_cases(full, ["c0"], 1)[0].shape_zyx == (10, 10, 12)  # 8 slices of 2.5 mm are 10 of 2 mm
