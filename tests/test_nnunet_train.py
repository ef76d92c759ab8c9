"""nnunetv2 on a dataset of any layout: names, links, labels, folds; and a whole training of two steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import tiny_image, tiny_labels, write_cases, write_json, write_nnunet, write_tiny
from published import REPOSITORY

from segpipe.bridge.nnunet_raw import file_ending, link_dataset, nnunet_labels, read_folds
from segpipe.core.errors import DataError
from segpipe.core.volume import read_labels, write_image
from segpipe.data.load import load_dataset
from segpipe.data.splits import Fold, Splits

CASES = ["p1", "p2", "p3", "p4"]


def test_two_folders_become_what_nnunet_reads(tmp_path):
    write_cases(tmp_path / "data", CASES, n_channels=2, subfolders=("images", "labels"))
    link_dataset(load_dataset(tmp_path / "data"), tmp_path / "raw")
    link_dataset(load_dataset(tmp_path / "data"), tmp_path / "raw")  # a second fold
    images = sorted(path.name for path in (tmp_path / "raw" / "imagesTr").iterdir())
    assert images == sorted(f"{case}_{channel:04d}.nii.gz" for case in CASES for channel in range(2))
    mask = tmp_path / "raw" / "labelsTr" / "p1.nii.gz"
    assert mask.is_symlink() and np.array_equal(read_labels(mask)[0], tiny_labels())
    described = json.loads((tmp_path / "raw" / "dataset.json").read_text("utf-8"))
    assert described["file_ending"] == ".nii.gz" and described["numTraining"] == 4
    assert list(described["labels"].values()) == [0, 1, 2] and list(described["channel_names"]) == ["0", "1"]


def test_regions_and_ignore_are_said_as_nnunet_says_them(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    dataset = load_dataset(write_nnunet(tmp_path, CASES, labels=labels, regions_class_order=[1, 2]))
    wanted = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    assert nnunet_labels(dataset) == {"labels": wanted, "regions_class_order": [1, 2]}


def test_what_nnunet_cannot_read_is_refused(tmp_path):
    gaps = load_dataset(write_nnunet(tmp_path / "gaps", CASES, labels={"background": 0, "a": 1, "b": 5}))
    with pytest.raises(DataError, match=r"label values \[0, 1, 5\]"):
        nnunet_labels(gaps)
    write_cases(tmp_path / "mixed", CASES[:1])
    write_tiny(tmp_path / "mixed" / "imagesTr" / "p2_0000.nii", tiny_image(1))
    write_tiny(tmp_path / "mixed" / "labelsTr" / "p2.nii", tiny_labels())
    with pytest.raises(DataError, match="formats"):
        file_ending(load_dataset(tmp_path / "mixed"))
    packed = tmp_path / "packed"
    for case in CASES:
        stack = np.stack([tiny_image(1), tiny_image(2)])
        write_image(packed / "images" / f"{case}.nii.gz", stack, np.diag([1.0, 1.5, 2.5, 1.0]))
        write_tiny(packed / "labels" / f"{case}.nii.gz", tiny_labels(), np.diag([1.0, 1.5, 2.5, 1.0]))
    with pytest.raises(DataError, match="1 files for 2 channels"):
        file_ending(load_dataset(packed))


def test_folds_come_from_either_tool_and_only_of_this_dataset(tmp_path):
    dataset = load_dataset(write_nnunet(tmp_path / "data", CASES))
    folds = [{"train": ["p1", "p2"], "val": ["p3", "p4"]}, {"train": ["p3", "p4"], "val": ["p1", "p2"]}]
    theirs = write_json(tmp_path / "splits_final.json", folds)
    ours = tmp_path / "splits.json"
    parts = tuple(Fold(train=tuple(fold["train"]), validation=tuple(fold["val"])) for fold in folds)
    Splits(k=2, seed=0, source="a test", folds=parts).save(ours)
    assert read_folds(theirs, dataset) == read_folds(ours, dataset) == folds
    other = load_dataset(write_nnunet(tmp_path / "other", CASES[:3]))
    for file in (theirs, ours):
        with pytest.raises(DataError, match="p4"):
            read_folds(file, other)


FORKS = """
import multiprocessing, os, signal
from segpipe.bridge.nnunet_train import end_in_order

def wait():
    begun.set()
    lock.acquire()

end_in_order()
fork = multiprocessing.get_context("fork")
lock, begun = fork.Lock(), fork.Event()
lock.acquire()
child = fork.Process(target=wait)
child.start()
begun.wait()
child.terminate()
child.join(20)
print(child.exitcode, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_worker_ends_by_sigterm_and_the_training_in_order():
    """The worker by the signal itself, though it waits for a lock; the process that forked it with code 143."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.returncode) == (["-15"], 143), done.stderr


@pytest.mark.slow
def test_the_benchmark_trains_nnunetv2_and_leaves_masks_and_a_report(tmp_path):
    write_nnunet(tmp_path / "data", CASES)
    folds = [{"train": ["p1", "p2"], "val": ["p3", "p4"]}]
    splits = write_json(tmp_path / "splits_final.json", folds)
    command = [
        sys.executable,
        str(REPOSITORY / "benchmarks" / "nnunet_baseline.py"),
        str(tmp_path / "data"),
        str(splits),
    ]
    command += ["--steps", "2", "-o", str(tmp_path / "out"), "--threads", "1", "--workers", "0", "--pilot-seconds", "0"]
    done = subprocess.run(command, env=os.environ | {"PYTHONWARNINGS": "default"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    masks = sorted(path.name for path in (tmp_path / "out" / "validation").iterdir())
    assert masks == ["p3.nii.gz", "p4.nii.gz"]
    report = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    assert report["iterations"] == 2 and report["seed"] == 0 and "nnunetv2" in report["versions"]
    assert not Path(tmp_path / "data" / "nnunet").exists()
