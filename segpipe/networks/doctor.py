"""Findings of torch about this machine: its version, devices, memory and precision."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import torch

from segpipe.core.doctor import Finding, finding
from segpipe.networks.device import precision_name, resolve_device

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
