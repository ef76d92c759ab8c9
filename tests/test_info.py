"""`segpipe info`: what lies in a work folder, a run and a packed model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from datasets import write_nnunet
from stages import plan_data, train

from segpipe.cli.info import info_text
from segpipe.cli.main import run
from segpipe.core.errors import DataError, PlanError, UsageError
from segpipe.core.work import Work
from segpipe.pipeline.info import Info, info
from segpipe.pipeline.requests import Machine

MACHINE = Machine("cpu", 1)
QUICK = ("training.epochs=2", "training.iterations_per_epoch=2", "training.validation_iterations=1")
CASES = ["p0_scan1", "p0_scan2", "p1", "p2"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dataset, planned for two folds, the first of them trained."""
    folder = tmp_path_factory.mktemp("info")
    write_nnunet(folder / "data", CASES)
    plan_data(folder / "data", folder / "work", MACHINE, n_folds=2, edits=QUICK)
    train(folder / "work", "3d_fullres", [0], MACHINE)
    return folder / "work"


def test_a_work_folder_is_described(work):
    found = info(work)
    assert (found.kind, found.dataset, found.labels) == ("work", "tiny", ("a", "b"))
    assert (found.n_cases, found.n_patients, found.n_folds) == (4, 3, 2)
    assert "3d_fullres" in [own.name for own in found.configurations]
    (fold,) = found.folds
    weights = Work(work).fold("3d_fullres", "0").weights
    assert (fold.fold, fold.state, fold.epochs) == ("0", "trained", 2)
    assert fold.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    assert fold.seconds is not None and fold.seconds > 0 and fold.dice is not None and 0 <= fold.dice <= 1
    assert found.size_bytes["runs"] == sum(f.stat().st_size for f in (work / "runs").rglob("*") if f.is_file())


def test_its_text_fits_and_its_json_is_the_record(work, capsys):
    assert run(["info", str(work)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{work}: a work folder" and max(map(len, lines[1:])) <= 80
    assert any(line.split()[:4] == ["3d_fullres", "0", "trained", "2"] for line in lines)
    assert run(["info", str(work), "--json"]) == 0
    assert Info.parse(json.loads(capsys.readouterr().out), "stdout") == info(work)


def test_nothing_is_changed(work):
    before = {file: file.stat().st_mtime_ns for file in work.rglob("*")}
    info(work)
    assert {file: file.stat().st_mtime_ns for file in work.rglob("*")} == before


def test_a_planned_folder_has_no_folds_yet(work, tmp_path):
    shutil.copytree(work, tmp_path / "work", ignore=shutil.ignore_patterns("runs"))
    found = info(tmp_path / "work")
    assert found.folds == () and "no trained folds yet" in info_text(found)


def test_a_run_and_a_fold_are_models(work):
    for path in (work / "runs" / "3d_fullres", work / "runs" / "3d_fullres" / "fold_0"):
        found = info(path)
        assert (found.kind, [fold.fold for fold in found.folds], found.n_cases) == ("run", ["0"], None)


def test_a_fold_without_weights_has_begun(work, tmp_path):
    fold = Work(shutil.copytree(work, tmp_path / "work")).fold("3d_fullres", "0")
    fold.weights.unlink()
    fold.scores.unlink()
    (found,) = info(tmp_path / "work").folds
    assert (found.state, found.sha256, found.dice, found.n_scored) == ("begun", None, None, 0)


def test_a_packed_model_is_described_and_compared_with_its_hashes(work, tmp_path, capsys):
    packed = tmp_path / "m.segpipe.zip"
    assert run(["pack", str(work), "-o", str(packed), "--licence", "CC-BY-4.0"]) == 0
    capsys.readouterr()
    assert run(["info", str(packed)]) == 0
    out = capsys.readouterr().out
    assert "a packed model" in out and "licence CC-BY-4.0" in out and "all matching their SHA-256" in out
    found = info(packed)
    assert found.kind == "package" and found.package is not None and found.folds[0].state == "trained"
    assert found.size_bytes == {packed.name: packed.stat().st_size}
    content = bytearray(packed.read_bytes())
    content[content.find(b"patch_zyx")] ^= 1  # within a plan.yaml, which is stored as it is
    packed.write_bytes(content)
    with pytest.raises(UsageError, match="damaged"):
        info(packed)


WRONG = [  # what is done to a copy of the work folder, error, words
    (lambda work: work / "none", UsageError, "no such file or folder"),
    (lambda work: work / "prepared", UsageError, "holds no plan.yaml and no trained fold"),
    (lambda work: work / "dataset.json", UsageError, "cannot be read as a model"),
    (lambda work: (work / "plan.yaml").write_text("a: 1") and work, PlanError, "unknown key"),
    (lambda work: (work / "splits.json").write_text("[]") and work, DataError, "splits.json"),
    (lambda work: Work(work).fold("3d_fullres", "0").weights.write_text("x") and work, UsageError, "as weights"),
    (lambda work: Work(work).fold("3d_fullres", "0").history.write_text("x") and work, DataError, "column `epoch`"),
]


@pytest.mark.parametrize(("spoil", "kind", "words"), WRONG)
def test_what_is_no_work_folder_or_damaged_is_named(work, tmp_path, spoil, kind, words):
    with pytest.raises(kind, match=words):
        info(spoil(shutil.copytree(work, tmp_path / "work")))
