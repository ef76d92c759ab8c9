"""Every command with the wrong things: an exit code and words of the message, and never a traceback.

The table is of (command, exit code, words). What is wrong is made once; no command of the table changes it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from datasets import write_nnunet
from stages import plan_data, train

import segpipe.core.errors as errors
from segpipe.cli.main import COMMANDS, run
from segpipe.core.files import disk_fault
from segpipe.pipeline.requests import Machine

QUICK = ("training.epochs=1", "training.iterations_per_epoch=1", "training.validation_iterations=1")
NO_PLAN = "no plan.yaml in it. Create one with `segpipe plan DATA"
IS_FILE = "is a file, expected a work folder"
STANDS = "a file is in the way of a folder. Choose another path."
NO_CUDA = "finds no CUDA device. Use cpu or check the driver."


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a work folder with both folds trained, and many things that are neither."""
    here = tmp_path_factory.mktemp("wrong")
    write_nnunet(here / "data", ["p0", "p1", "p2"])
    plan_data(here / "data", here / "work", Machine("cpu", 1), n_folds=2, edits=QUICK)
    train(here / "work", "3d_fullres", None, Machine("cpu", 1))
    for name, text in {
        "file": "x",
        "empty.csv": "",
        "bad.yaml": "a: [1",
        "bad.json": "{",
        "list.json": "[]",
        "two.yaml": "arms: {}\n",
    }.items():
        (here / name).write_text(text)
    (here / "binary.csv").write_bytes(b"\xff\x00abc")
    (here / "empty").mkdir()
    image = (here / "data" / "imagesTr" / "p1_0000.nii.gz").read_bytes()
    for name, content in {"damaged": b"not gzip", "cut": image[: len(image) // 2]}.items():
        (here / name).mkdir()
        (here / name / "p1_0000.nii.gz").write_bytes(content)
    _spoilt(here, "bad-plan", "plan.yaml", lambda text: text.replace("preset:", "presset:", 1))
    _spoilt(here, "no-dataset", "dataset.json", None)
    _spoilt(here, "no-splits", "splits.json", None)
    _spoilt(here, "no-fingerprint", "fingerprint.json", None)
    _spoilt(here, "bad-scores", "runs/3d_fullres/fold_0/scores.csv", lambda _: "a,b\n1,2\n")
    _spoilt(here, "bad-mask", "runs/3d_fullres/fold_0/validation/*.nii.gz", lambda _: "x")
    _spoilt(here, "bad-weights", "runs/3d_fullres/fold_0/*.safetensors", lambda _: "x")
    return here


def _spoilt(here: Path, name: str, pattern: str, change) -> None:
    work = Path(shutil.copytree(here / "work", here / name))
    for file in work.glob(pattern):
        text = "" if file.suffix in {".gz", ".safetensors"} else file.read_text("utf-8")
        file.unlink()
        if change is not None:
            file.write_text(change(text))


WRONG = [  # command, exit code, words of the message
    ("check none", 2, "Path 'none' does not exist"),
    ("check file", 3, "Not ready for prediction"),
    ("check empty", 3, "Not ready for training"),
    ("check damaged", 3, "Not ready for prediction"),
    ("check cut", 3, "Not ready for prediction"),
    ("check empty.csv", 3, "Not ready for training"),
    ("check data --fix file", 2, "exists and is not empty, expected a new folder"),
    ("check data --fix data", 2, "expected a separate folder"),
    ("check data --fix /proc/x", 4, "/proc/x: cannot be written"),
    ("plan none -o new", 3, "none: no such file or folder"),
    ("plan file -o new", 3, "no dataset was recognised (found a file)"),
    ("plan empty -o new", 3, "no dataset was recognised (found nothing)"),
    ("plan data -o file", 4, STANDS),
    ("plan data -o file/x", 4, STANDS),
    ("plan data -o /proc/x", 4, "/proc/x: cannot be written"),
    ("plan data -o data", 2, "is the dataset itself"),
    ("plan -o new", 2, "Give either DATA, or both"),
    ("plan data -o new --preset resenc_n", 2, "preset 'resenc_n' is unknown. Did you mean 'resenc_m'?"),
    ("plan data -o new --set training.epoch=1", 2, "unknown key. Did you mean 'epochs'?"),
    ("plan data -o new --set epochs", 2, "expected KEY=VALUE"),
    ("plan data -o new --splits none", 3, "none: no such file"),
    ("plan data -o new --nnunet-plans bad.json", 2, "bad.json: is not valid JSON"),
    ("plan data -o new --device gpu", 4, "--device gpu: unknown; expected auto, cpu"),
    ("plan data -o new --gpu-memory nan", 2, "nan is not a number of GiB"),
    ("prepare none", 2, NO_PLAN),
    ("prepare file", 2, IS_FILE),
    ("prepare bad-plan", 2, "presset: unknown key. Did you mean 'preset'?"),
    ("prepare no-dataset", 3, "dataset.json: no such file. Check the path, or rerun the command"),
    ("prepare work -c 3d", 2, "-c 3d: the plan has"),
    ("train none", 2, NO_PLAN),
    ("train file", 2, IS_FILE),
    ("train empty", 2, NO_PLAN),
    ("train bad-plan", 2, "preset: missing. Add it."),
    ("train no-splits", 3, "splits.json: no such file."),
    ("train work -f 9", 2, "-f 9: there are 2 folds, counted from 0. Use -f 0 to -f 1."),
    ("train work -f x", 2, "'x' does not name folds; expected all, 0 or 0,1,2."),
    ("train work --time-budget soon", 2, "'soon' is not a time; expected e.g. 90s, 10m or 1h30m."),
    ("train work --time-budget 1s", 2, "the minimum is 5 s"),
    ("train work --set training.epochs=9", 2, "training with another plan (training.epochs: 1, now 9)"),
    ("train work --devices 0", 2, "--devices 0"),
    ("train work --seed 3", 2, "Use --set training.seed=N"),
    ("train no-fingerprint --dry-run", 3, "fingerprint.json: no such file."),
    ("train bad-weights --dry-run", 2, "cannot be read as weights"),
    ("select none", 2, NO_PLAN),
    ("select no-dataset", 3, "dataset.json: no such file."),
    ("select bad-mask", 3, "cannot be read as an image"),
    ("predict -m none -i data/imagesTr -o new", 2, "none: does not exist; expected a work folder"),
    ("predict -m file -i data/imagesTr -o new", 2, "cannot be read as a model of `segpipe pack`"),
    ("predict -m empty -i data/imagesTr -o new", 2, "no trained weights"),
    ("predict -m bad-weights -i data/imagesTr -o new", 2, "cannot be read as weights"),
    ("predict -m work -i none -o new", 3, "none: no such file or folder"),
    ("predict -m work -i empty -o new", 3, "empty: no image; expected files"),
    ("predict -m work -i file -o new", 3, "file: not a format that segpipe reads"),
    ("predict -m work -i damaged -o a", 3, "p1: "),
    ("predict -m work -i cut -o b", 3, "Compressed file ended"),
    ("predict -m work -i data/imagesTr -o file", 4, STANDS),
    ("predict -m work -i data/imagesTr -o new -f 7", 2, "has no trained fold 7 (it has 0, 1)"),
    ("predict -m work -i data/imagesTr -o new -c 2d", 2, "no trained configuration '2d' (found: 3d_fullres)"),
    ("predict -m work -i data/imagesTr -o new --postprocess bad.yaml", 2, "bad.yaml: is not valid YAML"),
    ("predict -m work -i data/imagesTr -o c --max-memory 0.001", 5, "--max-memory leaves"),
    ("predict -m work -i data/imagesTr -o new --max-memory inf", 2, "inf is not a number of GiB"),
    ("ensemble none empty -o new", 3, "none: no such folder"),
    ("ensemble data/labelsTr data/labelsTr -o new", 2, "two or more"),
    ("evaluate -r none -p data/labelsTr", 3, "none: no such file or folder. Check the path."),
    ("evaluate -r data/labelsTr -p none", 3, "none: no such file or folder. Check the path."),
    ("evaluate -r data/labelsTr -p empty", 2, "no mask matches a reference"),
    ("evaluate -r data/labelsTr -p data/labelsTr --metrics dise", 2, "metric 'dise' is unknown. Did you mean 'dice'?"),
    ("evaluate -r data/labelsTr -p data/labelsTr --nsd-tolerance x", 2, "'x' is not a tolerance in mm"),
    ("evaluate -r data/labelsTr -p data/labelsTr -o empty", 4, "empty: is a folder, expected a file to write"),
    ("evaluate -r data/labelsTr -p data/labelsTr -o /proc/x/s.csv", 4, "/proc/x: cannot be written"),
    ("evaluate -r file -p file", 3, "file: not a format that segpipe reads"),
    ("compare none none", 3, "none: no such file or folder. Check the path."),
    ("compare empty file", 3, "empty: neither scores.csv nor summary.json"),
    ("compare empty.csv binary.csv", 3, "empty.csv: has no rows"),
    ("compare work/runs/3d_fullres", 2, "expected two or more"),
    ("compare a=work/runs/3d_fullres b=bad-scores/runs/3d_fullres/fold_0", 3, "columns are a, b; expected case_id"),
    ("compare a=work/runs/3d_fullres b=work/runs/3d_fullres --margin dice=x", 2, "'x' is no margin"),
    ("compare a=work/runs/3d_fullres b=work/runs/3d_fullres --by site", 2, "Give it with --cases"),
    ("compare a=work/runs/3d_fullres b=work/runs/3d_fullres --cases binary.csv", 3, "cannot be read as a table"),
    ("study none -o new", 3, "none: no such file."),
    ("study bad.yaml -o new", 2, "bad.yaml: is not valid YAML"),
    ("study two.yaml -o new", 2, "arms: found {}; 0 arm, expected two or more."),
    ("study empty -o new", 3, "empty: cannot be read (Is a directory), expected a file."),
    ("report none", 2, "none: not a work folder (no such folder)"),
    ("report file", 2, "file: not a work folder"),
    ("export work --to nnunet-plans empty", 4, "empty: is a folder, expected a file to write"),
    ("export none --to nnunet-plans new.json", 2, NO_PLAN),
    ("export work --to nope new.json", 2, "--to nope: expected one of nnunet-plans"),
    ("import none -o new", 2, "none: holds no plans.json"),
    ("import file -o new", 2, "file: holds no plans.json"),
    ("pack none -o new.zip", 2, "none: does not exist"),
    ("pack work -o empty", 4, "empty: is a folder, expected a file to write"),
    ("run none -o new", 3, "none: no such file or folder. Check the path."),
    ("run empty -o new", 3, "1 fatal fault (first: empty: No images, "),
    ("run data -o data", 2, "is the dataset itself"),
    ("run data -o file", 4, STANDS),
    ("run none -o new --dry-run", 3, "none: no such file or folder"),
    ("size none --half-width 0.02", 3, "none: "),
    ("pretrain data -o new --for none", 2, NO_PLAN),
    ("pretrain none -o new --for work", 3, "none: "),
    ("pretrain empty -o new --for work", 3, "empty: "),
    ("pretrain data/imagesTr/p1_0000.nii.gz -o new --for work", 3, "1 image, expected at least 2"),
    ("pretrain data -o new --for work -c x", 2, "-c x: the plan has"),
    ("pretrain data -o new --for work --iterations 1 --epochs 1", 2, "--epochs"),
    ("analyse trajectory none", 2, NO_PLAN),
    ("analyse trajectory work -c x", 2, "-c x: the plan has"),
    ("analyse trajectory work -f 7", 2, "has no trained fold 7"),
    ("analyse trajectory work", 2, "0 snapshots, expected at least 3. Training keeps them"),
    ("analyse variance none", 2, NO_PLAN),
    ("analyse variance work -f 7", 2, "has no trained fold 7"),
    ("analyse variance work", 2, "norm 'instance' computes its statistics anew"),
    ("analyse variance work --batches 0", 2, "0 is not in the range x>=2"),
    ("analyse sites none", 2, NO_PLAN),
    ("analyse sites work", 2, "validation cases are of one site ((unknown)), expected two or more"),
    ("analyse sites work --by scanner", 2, "--by scanner: the dataset knows sites alone. Add --cases"),
    ("analyse pruning none", 2, NO_PLAN),
    ("analyse pruning work --ratio 1", 2, "--ratio 1: expected a share of channels to remove, 0 to below 1"),
    ("analyse pruning work --ratio nan", 2, "--ratio nan: expected a share"),
    ("analyse pruning work -f 7", 2, "has no trained fold 7"),
    ("analyse pruning work --stage 99", 2, "--stage 99: the network has stages 0 to"),
    ("prune none -o new --ratio 0.5", 2, NO_PLAN),
    ("prune work -o new --ratio much", 2, "'much' is no share of channels; expected e.g. 0.5"),
    ("prune work -o new --ratio 0.5 --learning-rate 0", 2, "--learning-rate 0: expected a number above 0"),
    ("prune work -o new --ratio 1.5", 2, "--ratio 1.5: expected a share of channels to remove"),
    ("prune work -o file --ratio 0.5 -f 0", 2, "-o file: is a file, expected a new folder"),
    ("prune bad-weights -o new --ratio 0.5", 2, "cannot be read as weights"),
    ("analyse nothing", 2, "No such command 'nothing'."),
    ("info none", 2, "none: no such file or folder. Give a work folder"),
    ("info empty", 2, "holds no plan.yaml and no trained fold"),
    ("info bad-weights", 2, "cannot be read as weights"),
    ("doctor /proc", 4, "not writable"),
    ("demo -o file", 4, STANDS),
    ("view none --no-browser", 3, "none: no such file or folder"),
    ("view empty --no-browser", 3, "empty: no image"),
    ("completion tcsh", 2, "'tcsh' is not one of 'bash', 'zsh', 'fish'."),
]


@pytest.mark.parametrize(("command", "code", "words"), WRONG, ids=[command for command, *_ in WRONG])
def test_what_is_wrong_is_said(here, command, code, words, monkeypatch, capsys):
    monkeypatch.chdir(here)
    assert run(command.split()) == code
    out, err = capsys.readouterr()
    assert words in " ".join((out + err).split()) and "Traceback" not in err


def test_every_command_is_tried():
    assert {command.split()[0] for command, *_ in WRONG} == set(COMMANDS)


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SegpipeError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_class_of_error_is_shown_with_its_message_and_code(kind, capsys):
    import click

    @click.command()
    def failing() -> None:
        raise kind("a.nii.gz: found 2, expected 3. Do this.")

    assert run([], failing) == kind.exit_code
    headline, _, message = capsys.readouterr().err.strip().partition(": ")
    assert message == "a.nii.gz: found 2, expected 3. Do this."
    assert (
        headline
        == {1: "Error", 2: "Error", 3: "Data error", 4: "Setup error", 5: "Memory or disk error", 75: "Interrupted"}[
            kind.exit_code
        ]
    )


def test_with_json_what_is_wrong_is_json_too(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    assert run(["train", "work", "-f", "9", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found == {"error": "UsageError", "message": found["message"], "exit_code": 2} and "-f 9" in found["message"]


@pytest.mark.parametrize("number", [13, 17, 20, 21, 28, 30, 5])  # EACCES EEXIST ENOTDIR EISDIR ENOSPC EROFS EIO
def test_what_the_disk_refuses_names_the_place_and_what_to_do(number, tmp_path):
    text = str(disk_fault(OSError(number, os.strerror(number)), tmp_path / "x"))
    assert text.startswith(f"{tmp_path / 'x'}: ") and any(words in text for words in ("hoose another", "Free space"))


def test_a_full_disk_ends_with_exit_code_5_and_leaves_nothing_half_written(here):
    """On a file system of 64 KiB, if one may be mounted in a name space of one's own; as a full device otherwise."""
    with tempfile.TemporaryDirectory() as place:
        script = (
            f"mount -t tmpfs -o size=64k none {place} && {sys.executable} -m segpipe pack {here}/work -o {place}/m.zip"
            f"; code=$?; ls -A {place}; exit $code"
        )
        own = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
        if own.returncode:
            pytest.skip("no name space of one's own may be made here, so no small disk")
        done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "the disk is full" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
