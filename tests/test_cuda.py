"""Training and prediction on a stand-in for CUDA (tests/cuda): values as on the CPU, and no waiting in the hot loop."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cuda.stand_in import NotHere, build

TESTS = Path(__file__).parent
RUNS = TESTS / "cuda" / "scenario.py"
RECIPES = ("plain", "residual", "convnext", "2d", "strong bf16", "nnunet fp16", "light bf16", "averaged")
_MOST_BYTES = 40 << 30  # of addresses: torch's CUDA libraries take many, and a run that does not end takes memory


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Environment of a process on the stand-in."""
    try:
        return build(tmp_path_factory.mktemp("cuda") / "stand_in")
    except NotHere as fault:
        pytest.skip(f"no stand-in for CUDA: {fault}")


def run(stand_in: dict[str, str], *names: str, **variables: str) -> dict[str, Any]:
    """What scenarios found, by name; they share a process, since torch for CUDA takes seconds to start."""
    done = subprocess.run(
        [sys.executable, str(RUNS), *names],
        env={**os.environ, **stand_in, **variables, "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent)))},
        capture_output=True,
        text=True,
        timeout=600,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES)),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def found(stand_in):
    """Takes the scenarios of one device with memory enough."""
    everything = run(stand_in, "mixed", "waiting", "predict", "ct", "ct counted", *RECIPES)

    def of(name: str) -> Any:
        assert "failure" not in everything[name], everything[name]["failure"]
        return everything[name]

    return of


def test_the_stand_in_refuses_mixed_devices_and_sees_waits(found):
    assert "operands on ['cpu', 'cuda:0']" in found("mixed")["fault"]
    seen = found("waiting")
    assert (seen["total"], seen["chosen"], seen["copied"]) == (6.0, [2.0, 3.0], [1.0, 2.0])
    reasons = {place.split(": ")[1].split(" at ")[0] for place in seen["where"]}
    assert reasons == {"_local_scalar_dense", "index of booleans", "copy to cuda", "copy to cpu"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_waits_for_nothing_and_computes_what_the_cpu_does(found, name):
    seen = found(name)
    assert seen["hot"] == {}
    assert seen["step_waits"] <= (2 if name == "averaged" else 1), "each loss is waited for, when it has been computed"
    assert seen["validation_waits"] == 1, "a validation of two batches is read once"
    assert seen["resumed"]
    if name in ("plain", "residual", "convnext", "2d"):  # float32 without augmentation: the same numbers
        assert seen["losses"] == pytest.approx(seen["expected"], rel=1e-3)
        assert seen["validation"] == pytest.approx(seen["expected_validation"], rel=1e-2, nan_ok=True)
    else:
        assert all(0 < abs(loss) < 10 for loss in seen["losses"])


def test_a_prediction_of_many_labels_equals_the_cpus_and_waits_a_few_times(found):
    seen = found("predict")
    assert seen["labels"] > 20 and seen["equal"] == 1
    assert seen["waits"] + sum(seen["where"].values()) < 20, seen[
        "where"
    ]  # of 24 rows, 8 windows, 40 rows of the image


def test_a_ct_of_many_labels_waits_a_few_times_for_its_mask(found):
    seen = found("ct")
    assert seen["slabs"] == 38 and seen["labels"] > 1
    assert seen["waits"] <= 10, seen["where"]  # the image, each block of finished rows, the mask


def test_windows_are_uploaded_and_calibration_is_counted_without_waiting_for_each(found):
    seen = found("ct counted")
    assert seen["slabs"] == 38 and seen["windows"] > 20
    assert seen["waits"] <= 10 + seen["slabs"], seen["where"]  # the mask of each slab says which voxels are chosen


def test_each_device_is_asked_what_it_can(stand_in):
    found = run(stand_in, "two_devices", CUDA_STAND_IN_DEVICES="2")["two_devices"]
    assert found == {"n": 2, "0": "torch.bfloat16", "1": "torch.float16"}


def test_too_little_memory_is_said(stand_in):
    found = run(stand_in, "too_small", CUDA_STAND_IN_BYTES="100000")["too_small"]
    assert "training: the GPU's memory is not enough" in found["fault"]
