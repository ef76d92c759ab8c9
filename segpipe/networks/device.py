"""Which device, in which precision it is fast, and what torch finds on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from segpipe.core.errors import ResourceError, SetupError, UsageError, is_out_of_memory
from segpipe.core.machine import Finding, finding, local_rank, n_processes
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
    """Type for autocast; `auto` takes the fastest that is safe on the device, float32 if none is; `nnunet` is as there.

    bf16 needs no loss scaling, so it is preferred; CPUs without bf16 instructions emulate it slowly.
    """
    if device.type == "cpu" and not _trusts_short_types:
        return torch.float32
    if name == "nnunet":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch answers for the current device
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def set_up_cudnn(device: torch.device) -> None:
    """Let cuDNN try which algorithm is fastest for each shape, and compute float32 in float32, not in TF32.

    It holds for the whole process; devices other than CUDA are left alone.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # patches are always of one size
        torch.backends.cudnn.allow_tf32 = False


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
    except (RuntimeError, MemoryError) as fault:
        if not is_out_of_memory(fault):
            raise
        found = next(iter(str(fault).splitlines()), "no details")[-160:]
        raise ResourceError(f"{what}: memory is not enough ({found}). {advice}") from None


_FEW_GPU_BYTES = 4 * 2**30  # below, only small patches fit
_NVIDIA = Path("/proc/driver/nvidia/version")


def torch_findings(nvidia: Path = _NVIDIA) -> list[Finding]:
    """The devices that torch can compute on, each tried with one small convolution.

    Args:
        nvidia: The driver's own account, there if a driver is loaded.
    """
    cuda = torch.version.cuda
    built = f"torch {torch.__version__}, built for {'CUDA ' + cuda if cuda else 'CPU'}"
    devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    findings = [finding("torch", built), *(_gpu(device) for device in devices)]
    if devices:
        return [*findings, _compiler()]
    driver = _driver(nvidia)
    if driver and cuda:
        advice = (
            "The driver may be too old for this torch, or hidden (CUDA_VISIBLE_DEVICES). Update it, or `nvidia-smi`."
        )
    elif driver:
        advice = "This torch was built without CUDA. Install the build for CUDA from pytorch.org."
    else:
        advice = "Training 3D networks takes days; predicting takes minutes an image. Plan with `--preset cpu`."
    own = precision_name("auto", torch.device("cpu"))
    found = f"none{f', though the driver is loaded ({driver})' if driver else ''}; CPU computes in {own}"
    return [*findings, finding("GPU", found, fault=advice if driver else "", warning=advice)]


def _gpu(device: torch.device) -> Finding:
    about = f"GPU {device.index}"
    properties = torch.cuda.get_device_properties(device)
    name = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    try:
        free, total = torch.cuda.mem_get_info(device)
        image = torch.ones(1, 1, 8, 8, 8, device=device)
        torch.nn.functional.conv3d(image, torch.ones(1, 1, 3, 3, 3, device=device)).sum().item()
    except RuntimeError as fault:
        text = str(fault).splitlines()[0]
        return finding(about, f"{name}; a convolution fails: {text}", fault="Update driver or torch, or --device cpu.")
    precision = precision_name("auto", device)
    found = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, computes in {precision}"
    if free < _FEW_GPU_BYTES:
        return finding(about, found, warning="Little memory is free; end other programs on it (`nvidia-smi`).")
    slow = "" if precision == "bf16" else "No fast bf16: training uses fp16 with loss scaling."
    return finding(about, found, warning=slow)


def _compiler() -> Finding:
    has_compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    if has_compiler and find_spec("triton") is not None:
        return finding("compiling", "a C compiler and triton found")
    missing = "triton" if has_compiler else "C compiler"
    return finding("compiling", f"no {missing}", warning="Training is not compiled and slower; install it.")


def _driver(nvidia: Path) -> str:
    return " ".join(nvidia.read_text().splitlines()[0].split()[-8:]) if nvidia.is_file() else ""


def free_device_bytes(name: str) -> int:
    """Free memory of a `--device` option; 0 if it is no CUDA device."""
    device = resolve_device(name)
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
