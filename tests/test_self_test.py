"""networks/self_test.py: real processes; wrong ones are planted as the command that tries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from specs import SPECS, VIEWS

from segpipe.networks.self_test import PROBE, distinct_convolutions, processor_name, try_convolutions

LAYERS = distinct_convolutions(SPECS["plain"]("anisotropic"), 1, (4, 16, 16), 2)
DIES = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
DIES_WITH_AMX = (
    sys.executable,
    "-c",
    "import os, signal; 'ONEDNN_MAX_CPU_ISA' in os.environ or os.kill(os.getpid(), signal.SIGABRT)",
)
DIFFERS = (sys.executable, "-c", "print('Conv3d: differs'); raise SystemExit(1)")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    return tmp_path


def test_each_form_of_a_network_is_listed_once():
    kernels = [tuple(layer["options"]["kernel_size"]) for layer in LAYERS]
    assert {(1, 3, 3), (3, 3, 3), (1, 1, 1), (1, 2, 2)} <= set(kernels)
    assert len({json.dumps(layer) for layer in LAYERS}) == len(LAYERS)
    assert LAYERS[0]["shape"] == [2, 1, 4, 16, 16]


def test_large_images_are_tried_in_fewer_slices_as_wide_as_they_are():
    spec = SPECS["plain"]("3d").model_copy(update={"features": (64, 128, 256)})
    shapes = [layer["shape"] for layer in distinct_convolutions(spec, 1, (128, 128, 128), 2)]
    inner = next(shape for shape in shapes if shape[1] == 64 and shape[3] == 128)
    assert inner[2:] == [4, 128, 128] and max(shape[2] for shape in shapes) <= 128


def test_this_processor_is_right_and_the_answer_is_kept(own_cache: Path, capfd: pytest.CaptureFixture):
    trial = try_convolutions(LAYERS)
    assert trial.environment == {} and not trial.faults
    assert "self-test: " in capfd.readouterr().err
    assert try_convolutions(LAYERS) == trial and not capfd.readouterr().err
    assert len(list((own_cache / "segpipe" / "self_tests").iterdir())) == 1


def test_a_crash_with_amx_leads_to_bf16_without_it():
    trial = try_convolutions(LAYERS, probe=DIES_WITH_AMX)
    assert trial.environment == {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    assert trial.faults == ("bf16: ended by SIGABRT",)


@pytest.mark.parametrize(("probe", "fault"), [(DIES, "ended by SIGSEGV"), (DIFFERS, "Conv3d: differs")])
def test_what_fails_in_every_way_is_left_to_float32(probe: tuple[str, ...], fault: str):
    trial = try_convolutions(LAYERS, probe=probe)
    assert trial.environment is None
    assert trial.faults == (f"bf16: {fault}", f"bf16 without AMX: {fault}")


AVOIDS = """
import sys, torch
sys.path[:0] = {path!r}
from specs import SPECS
from segpipe.networks.device import resolve_precision
from segpipe.networks.self_test import avoid_wrong_arithmetic
if {used}:
    torch.conv2d(torch.ones(1, 16, 8, 8, dtype=torch.bfloat16), torch.ones(16, 16, 3, 3, dtype=torch.bfloat16))
print(avoid_wrong_arithmetic(SPECS["plain"]("3d"), 1, (16, 16, 16), 2, probe={probe!r}))
print(resolve_precision("bf16", torch.device("cpu")))
"""


def avoided(probe: tuple[str, ...], *, used: bool) -> list[str]:
    """What a process says, and its precision; with `used`, oneDNN has computed in it before."""
    text = AVOIDS.format(path=[str(Path(__file__).parent)], probe=probe, used=used)
    environment = {name: value for name, value in os.environ.items() if name != "SEGPIPE_SELF_TEST"}
    ended = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()


def test_without_amx_a_process_goes_on_in_bf16_and_otherwise_in_float32():
    note, precision = avoided(DIES_WITH_AMX, used=False)
    assert "computing in bf16 without AMX" in note and precision == "torch.bfloat16"
    note, precision = avoided(DIES, used=False)
    assert note.endswith("computing in float32.") and "SIGSEGV" in note and precision == "torch.float32"


@pytest.mark.skipif("amx_bf16" not in processor_name(), reason="a processor without AMX: nothing to be kept from it")
def test_where_amx_is_in_use_already_a_process_goes_on_in_float32():
    note, precision = avoided(DIES_WITH_AMX, used=True)
    assert "in use in this process already" in note and precision == "torch.float32"


DOUBLES = """
from segpipe.networks import self_test

def doubled(layer):
    layer.register_full_backward_hook(lambda module, inputs, outputs: tuple(2 * gradient for gradient in inputs))
    return layer

self_test.guard_convolutions = doubled
raise SystemExit(self_test.main())
"""


def test_a_wrong_gradient_is_found():
    trial = try_convolutions(LAYERS, probe=(sys.executable, "-c", DOUBLES))
    assert trial.environment is None and "differs from float32 by 1" in trial.faults[0]


@pytest.mark.slow
def test_gradients_of_every_network_are_right_in_bf16_under_the_heaps_checks():
    """One process for all kinds, whatever the processor; patches are large enough for rows to go in blocks."""
    layers = {}
    for kind, spec in SPECS.items():
        for view in VIEWS:
            n_slices = {"2d": 2, "3d": 64 if kind == "swin_unetr" else 16, "anisotropic": 4}[view]
            if kind == "swin_unetr" and view == "anisotropic":  # it knows one stride only: the same as in 3D
                continue
            for layer in distinct_convolutions(spec(view), 2, (n_slices, 64, 64), 1):
                layers[json.dumps(layer)] = layer
    wide = distinct_convolutions(SPECS["plain"]("anisotropic"), 1, (2, 144, 112), 1)
    forms = [*layers.values(), *wide]
    checks = {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "85", "LD_PRELOAD": "libc_malloc_debug.so.0"}
    ended = subprocess.run(
        PROBE, input=json.dumps(forms), env=os.environ | checks, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    if "cannot be preloaded" in ended.stderr:
        pytest.skip("no libc_malloc_debug.so.0: computed without checks of the heap")
    assert torch.backends.mkldnn.is_available()
