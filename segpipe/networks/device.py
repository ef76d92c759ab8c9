"""Which device, and in which precision it is fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from segpipe.core.errors import ResourceError, SetupError, UsageError
from segpipe.core.machine import local_rank, n_processes
from segpipe.core.text import count


def resolve_device(name: str) -> torch.device:
    """`auto` (CUDA if there is one, else CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Of several processes that work together each has the CUDA device of its number on this machine, unless one is named.

    Raises:
        SetupError: If there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and not number and n_processes() > 1:
        number = str(local_rank())
    if kind == "cpu" and not number:
        return torch.device("cpu")
    if kind == "cuda" and (not number or number.isdigit()):
        if not torch.cuda.is_available():
            raise SetupError(
                f"--device {name}: torch {torch.__version__} finds no CUDA device. Use cpu or check the driver."
            )
        if number and int(number) >= torch.cuda.device_count():
            raise SetupError(
                f"--device {name}: found {count(torch.cuda.device_count(), 'CUDA device')}, counted from 0."
            )
        return torch.device(kind, int(number)) if number else torch.device(kind)
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise SetupError("--device mps: torch finds no Metal device. Use --device cpu.")
        return torch.device(name)
    raise SetupError(f"--device {name}: unknown; expected auto, cpu, cuda, cuda:N or mps.")


def resolve_devices(name: str, wanted: str | None) -> list[str]:
    """Devices that compute side by side, each as for `--device`.

    Args:
        name: As for `--device`.
        wanted: How many (on a CPU: processes), `all` CUDA devices, or names such as `cuda:0,cuda:2`; None: one.

    Raises:
        UsageError: If none are wanted, or one device is asked for and several.
        SetupError: If so many are not there.
    """
    if wanted is None:
        return [name]
    if not (wanted == "all" or wanted.isdecimal()):
        names = wanted.split(",")
        return [str(resolve_device(each)) for each in names]
    if wanted.isdecimal() and int(wanted) == 0:
        raise UsageError(f"--devices {wanted}: expected 1 or more, all, or names such as cuda:0,cuda:2.")
    device = resolve_device(name)
    if device == torch.device("cuda"):  # and none of them named
        n_there = torch.cuda.device_count()
        if wanted != "all" and int(wanted) > n_there:
            raise SetupError(f"--devices {wanted}: found {count(n_there, 'CUDA device')}.")
        return [f"cuda:{number}" for number in range(n_there if wanted == "all" else int(wanted))]
    if wanted in ("all", "1"):
        return [str(device)]
    if device.type != "cpu":
        raise UsageError(f"--devices {wanted}: --device {name} is one device. Leave one option out.")
    return [str(device)] * int(wanted)


def device_kind(name: str) -> str:
    """`cpu`, `cuda` or `mps` of a `--device` option."""
    return resolve_device(name).type


def device_text(device: torch.device) -> str:
    """Describe a device: the GPU's name, or the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n_threads = torch.get_num_threads()
    return f"{device.type}, {n_threads} thread{'s' * (n_threads != 1)}"


def gpu_memory_gib(name: str) -> float | None:
    """Memory of a `--device` option in GiB; None if it is no CUDA device."""
    device = resolve_device(name)
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1) if device.type == "cuda" else None


def set_processors(n_processors: int) -> None:
    """Let torch compute on this many processors."""
    torch.set_num_threads(n_processors)


_trusts_short_types = True  # on the CPU, in this process


def distrust_short_types() -> None:
    """From now on this process computes in float32 on the CPU, whatever a plan says."""
    global _trusts_short_types
    _trusts_short_types = False


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Type for autocast; `auto` takes the fastest that is safe on the device, float32 if none is.

    bf16 needs no loss scaling, so it is preferred; CPUs without bf16 instructions emulate it slowly.
    """
    if device.type == "cpu" and not _trusts_short_types:
        return torch.float32
    if name != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def precision_name(name: str, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The name of what `resolve_precision` gives."""
    found: dict[torch.dtype, Literal["fp32", "bf16", "fp16"]]
    found = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return found[resolve_precision(name, device)]


def _cpu_has_bf16() -> bool:
    # private in torch, so each may be missing in some version; then bf16 is simply not chosen
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test() for test in tests if test is not None)


@contextmanager
def memory_faults(what: str, advice: str) -> Iterator[None]:
    """Turn a real out-of-memory error of torch into one for people; every other error passes.

    Raises:
        ResourceError: If torch could not get memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as fault:
        raise ResourceError(f"{what}: the GPU's memory is not enough ({str(fault).split('.')[0]}). {advice}") from None
    except RuntimeError as fault:
        if "DefaultCPUAllocator" not in str(fault):
            raise
        raise ResourceError(f"{what}: memory is not enough ({str(fault).splitlines()[0][-160:]}). {advice}") from None
