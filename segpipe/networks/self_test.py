"""A test of a network's convolutions on this processor, before a training in 16 bits relies on them.

A fault of a library may write past its memory, so the trial runs in a process of its own, under the C library's checks
of its heap where it has them. What fails is tried again with oneDNN kept from AMX; float32 is left if that fails too.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from segpipe.core.progress import say
from segpipe.core.records import Record
from segpipe.core.text import count, duration_text
from segpipe.networks.build import build
from segpipe.networks.convolutions import guard_convolutions, memory_format
from segpipe.networks.device import distrust_short_types
from segpipe.networks.spec import NetworkSpec

PROBE = (sys.executable, "-m", "segpipe.networks.self_test")
SWITCH = "SEGPIPE_SELF_TEST"  # `off` leaves the trial out
_ISA, _WITHOUT_AMX = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16"
_HEAP_CHECKS = {  # of glibc; elsewhere they are not known and do nothing
    "MALLOC_CHECK_": "3",
    "MALLOC_PERTURB_": "85",  # memory that was never written holds no zeros by chance
    "LD_PRELOAD": "libc_malloc_debug.so.0",  # where the first is since glibc 2.34
}
_LAYERS = {"Conv2d": nn.Conv2d, "Conv3d": nn.Conv3d, "ConvTranspose2d": nn.ConvTranspose2d}
_LAYERS["ConvTranspose3d"] = nn.ConvTranspose3d
_MAX_DIFFERENCE = 0.02  # relative, of a whole tensor; rounding makes it 0.002
_MAX_BATCH = 2  # more repeats the same and takes longer
_MAX_MACS = 2e9  # of a layer: a tenth of a second or so, forward and backward, in float32 on one slow core
_MIN_SLICES = 4
_SECONDS = 600  # a trial that takes longer says nothing, perhaps others use the processor


class Trial(Record):
    """The finding about a network's convolutions on this processor.

    Args:
        environment: Variables that a process needs so that 16 bits are right; None if no way was found.
        faults: What was wrong in the ways that were tried before; empty if all is well.
    """

    environment: dict[str, str] | None
    faults: tuple[str, ...]


def distinct_convolutions(
    spec: NetworkSpec, n_channels: int, patch_zyx: Sequence[int], batch_size: int
) -> list[dict[str, Any]]:
    """Every convolution of a network in training, those that are alike once: what `PROBE` reads."""
    with torch.device("meta"):
        network = build(spec, n_channels, 2).train()
    order = memory_format(spec.kind, spec.n_axes, torch.device("cpu"), trains=True)
    found: dict[str, dict[str, Any]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entry = _describe(layer, inputs[0], channels_last=order != torch.contiguous_format)
        found[json.dumps(entry)] = entry

    for module in network.modules():
        if isinstance(module, tuple(_LAYERS.values())):
            module.register_forward_pre_hook(note)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fake = {
            name: torch.empty(value.shape, dtype=value.dtype, device="cpu")
            for name, value in (*network.named_parameters(), *network.named_buffers())
        }
        image = torch.empty(min(batch_size, _MAX_BATCH), n_channels, *patch_zyx, device="cpu")
        torch.func.functional_call(network, fake, (image,))
    return list(found.values())


def _describe(layer: Any, x: Tensor, *, channels_last: bool) -> dict[str, Any]:
    options = {
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": list(layer.kernel_size),
        "stride": list(layer.stride),
        "padding": layer.padding if isinstance(layer.padding, str) else list(layer.padding),
        "dilation": list(layer.dilation),
        "groups": layer.groups,
        "bias": layer.bias is not None,
    }
    kind = next(name for name, known in _LAYERS.items() if isinstance(layer, known))
    n_macs_per_slice = layer.weight[0].numel() * layer.weight.shape[0] * x[0, 0].numel() / x.shape[-3]
    shape = _shorten(x.shape, n_macs_per_slice, options) if x.dim() == 5 else [min(_MAX_BATCH, len(x)), *x.shape[1:]]
    return {"kind": kind, "options": options, "shape": shape, "channels_last": channels_last}


def _shorten(shape: Sequence[int], n_macs_per_slice: float, options: Mapping[str, Any]) -> list[int]:
    """Shape of an image with fewer slices where all take long: what is done in a slice is what differs."""
    n_batch, n_channels, n_slices, *edges = shape
    least = options["dilation"][0] * (options["kernel_size"][0] - 1) + options["stride"][0]
    n_tried = max(_MIN_SLICES, least, int(_MAX_MACS / (n_batch * n_macs_per_slice)))
    return [n_batch, n_channels, min(n_slices, n_tried), *edges]


def try_convolutions(layers: Sequence[Mapping[str, Any]], *, probe: Sequence[str] = PROBE) -> Trial:
    """Try convolutions in 16 bits, forward and backward, against float32; the answer is kept for this processor.

    Args:
        layers: Of `distinct_convolutions`.
        probe: The command that tries them: it reads them as JSON from its standard input, and ends with 0 if all is
            well. Its last line says what is wrong.
    """
    kept = _kept_in(layers, probe)
    if kept.is_file():
        try:
            return Trial.load(kept)
        except (ValueError, ValidationError):  # of another version
            kept.unlink()
    say(f"self-test: {count(len(layers), 'convolution')} in bf16, once for this network and processor: up to a minute")
    begun, faults, works = time.monotonic(), [], None
    for name, variables in (("bf16", {}), ("bf16 without AMX", {_ISA: _WITHOUT_AMX})):
        try:
            fault = _fault(layers, variables, probe)
        except subprocess.TimeoutExpired:  # says nothing of what is right, so it is not kept
            say(f"warning: the self-test of bf16 took more than {_SECONDS} s and was stopped; bf16 is used without it.")
            return Trial(environment={}, faults=())
        if not fault:
            works = variables
            break
        faults.append(f"{name}: {fault}")
    trial = Trial(environment=works, faults=tuple(faults))
    say(f"self-test: {'; '.join(faults) or 'passed'}, in {duration_text(time.monotonic() - begun)}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        trial.save(kept)
    except OSError:  # no folder to keep it in: it is tried again next time
        pass
    return trial


def avoid_wrong_arithmetic(
    spec: NetworkSpec,
    n_channels: int,
    patch_zyx: Sequence[int],
    batch_size: int,
    *,
    probe: Sequence[str] = PROBE,
) -> str:
    """Choose arithmetic that computes a network right on this CPU: bf16, bf16 without AMX, or float32.

    Args:
        spec, n_channels, patch_zyx, batch_size: Of a training in bf16.
        probe: As for `try_convolutions`.

    Returns:
        What is wrong here and what is done instead; empty if nothing is.
    """
    if os.environ.get(SWITCH) == "off":
        return ""
    trial = try_convolutions(distinct_convolutions(spec, n_channels, patch_zyx, batch_size), probe=probe)
    if not trial.faults:
        return ""
    found = f"the self-test of bf16 on this processor failed ({'; '.join(trial.faults)})"
    if trial.environment is not None:
        os.environ.update(trial.environment)  # for the processes that this one starts, too
        if not _uses_amx():
            return f"{found}: computing in bf16 without AMX."
        found = f"{found}, and AMX is in use in this process already ({_ISA}={_WITHOUT_AMX} keeps it from it)"
    distrust_short_types()
    return f"{found}: computing in float32."


def _uses_amx() -> bool:
    """True if oneDNN still uses AMX: it reads its environment before its first operation, and never again."""
    with tempfile.TemporaryFile() as told:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(told.fileno(), 1)  # oneDNN itself prints what it runs
        try:
            with torch.backends.mkldnn.verbose(1), torch.no_grad():  # type: ignore[no-untyped-call]
                torch.conv2d(
                    torch.ones(1, 16, 8, 8, dtype=torch.bfloat16), torch.ones(16, 16, 3, 3, dtype=torch.bfloat16)
                )
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        told.seek(0)
        return b"amx" in told.read()


def _fault(layers: Sequence[Mapping[str, Any]], variables: Mapping[str, str], probe: Sequence[str]) -> str:
    """The fault that happens in a process with these variables; empty if nothing does."""
    ended = subprocess.run(
        probe,
        input=json.dumps(list(layers)),
        env={**os.environ, **_HEAP_CHECKS, **variables},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if ended.returncode < 0:
        return f"ended by {signal.Signals(-ended.returncode).name}"
    lines = (ended.stdout or ended.stderr).strip().splitlines()
    return "" if ended.returncode == 0 else lines[-1] if lines else f"exit code {ended.returncode}"


def _kept_in(layers: Sequence[Mapping[str, Any]], probe: Sequence[str]) -> Path:
    """The file in which the answer for this processor, torch and these layers is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    threads = os.environ.get("OMP_NUM_THREADS", "")
    own = json.dumps([processor_name(), torch.__version__, threads, os.environ.get(_ISA, ""), layers, list(probe)])
    return cache / "segpipe" / "self_tests" / f"{sha256(own.encode()).hexdigest()[:32]}.json"


def processor_name(table: Path = Path("/proc/cpuinfo")) -> str:
    """Model and instructions of the processor; the name of the system where there is no such table."""
    if not table.is_file():
        return platform.platform()
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features")
    lines = table.read_text(encoding="utf-8").split("\n\n")[0].splitlines()  # of the first processor
    return "\n".join(line for line in lines if line.split("\t")[0].strip() in wanted)


def main() -> int:
    """Try the layers on standard input; say what is wrong."""
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads())))
    for entry in json.load(sys.stdin):
        differs = _difference(entry)
        if not differs <= _MAX_DIFFERENCE:
            what = f"{entry['kind']} {entry['options']} of {entry['shape']}"
            sys.stdout.write(f"{what}: differs from float32 by {differs:.2g}\n")
            return 1
    return 0


def _difference(entry: Mapping[str, Any]) -> float:
    """Largest relative difference of result and gradients from float32, of numbers that 16 bits hold."""
    torch.manual_seed(0)
    layer = _LAYERS[entry["kind"]](**entry["options"])
    x = torch.randn(entry["shape"]).bfloat16().float()
    if entry["channels_last"]:
        order: Any = {4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()]
        layer, x = layer.to(memory_format=order), x.contiguous(memory_format=order)
    with torch.no_grad():
        for values in layer.parameters():
            values.copy_(values.bfloat16())
    expected, of_result = _gradients(layer, x, None)
    layer.zero_grad()
    found, _ = _gradients(guard_convolutions(layer), x, of_result)
    return max(
        float((mine.float() - right).norm() / right.norm().clamp_min(1e-9))
        for mine, right in zip(found, expected, strict=True)
    )


def _gradients(layer: nn.Module, x: Tensor, of_result: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Result and gradients, in float32 if there is no gradient of the result yet, which is made."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=of_result is not None):
        y = layer(x)
    if of_result is None:
        of_result = torch.randn_like(y).bfloat16().float()
    y.backward(of_result.to(y.dtype))
    gradients = [value.grad.clone() for value in (x, *layer.parameters()) if value.grad is not None]
    return [y.detach(), *gradients], of_result


if __name__ == "__main__":
    sys.exit(main())
