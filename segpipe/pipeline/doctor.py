"""`segpipe doctor`: whether this machine is ready, looked at piece by piece."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from segpipe.core.errors import SegpipeError, SetupError, UsageError
from segpipe.core.files import TEMPORARY_PREFIX, disk_fault, only_process, write_text
from segpipe.core.machine import Finding, cpu_count, finding, free_bytes
from segpipe.core.text import count
from segpipe.core.work import Work
from segpipe.networks.device import precision_name, resolve_device, torch_findings
from segpipe.networks.self_test import SWITCH, distinct_convolutions, try_convolutions
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.schema import Plan

_GB = 2**30
_FEW_BYTES = 4 * _GB  # preparing one large CT takes about as much
_FEW_DISK_BYTES = 10 * 2**30  # the prepared cases of a middling dataset
_NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p", "afs", "fuse.sshfs", "fuse.s3")
_FEW_SHARED_BYTES = 2**28  # processes that train together exchange gradients there
_USUAL_NETWORK = NetworkSpec(  # anisotropic, of nnU-Net's width, without its deepest stages
    kind="plain",
    features=(32, 64, 128),
    strides_zyx=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    kernels_zyx=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    blocks=(2, 2, 2),
    decoder_convolutions=(2, 2),
)
_USUAL_PATCH = (8, 128, 112)
_BUSY = 1.5  # tasks a processor


def examine(folder: Path) -> list[Finding]:
    """Look at Python and packages, processors, memory, devices and the file system of a folder.

    Args:
        folder: Where results are to lie. Small files are written into it and removed again.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return [
        finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        package_finding(requirements()),
        extras_finding(requirements()),
        processor_finding(cpu_count(), os.cpu_count() or 1, load, threads),
        memory_finding(),
        shared_memory_finding(),
        *torch_findings(),
        *self_test_findings(folder),
        *folder_findings(folder),
    ]


def self_test_findings(folder: Path) -> list[Finding]:
    """Findings on whether networks are computed right in bf16 on this processor; nothing where a CPU trains in float32.

    Args:
        folder: Of a planned work folder the networks are tried that train there; elsewhere a usual one.
    """
    if precision_name("auto", resolve_device("cpu")) != "bf16" or os.environ.get(SWITCH) == "off":
        return []
    layers: list[Any] = []
    if Work(folder).plan.is_file():
        plan = Plan.load(Work(folder).plan)
        for chosen in plan.configurations.values():
            inputs = (chosen.network, plan.n_inputs(chosen), chosen.patch_zyx, chosen.batch_size)
            layers += distinct_convolutions(*inputs)
    else:
        layers = distinct_convolutions(_USUAL_NETWORK, 1, _USUAL_PATCH, 2)
    trial = try_convolutions(layers)
    if not trial.faults:
        return [finding("bf16", f"{count(len(layers), 'convolution')} and their gradients are right on this processor")]
    instead = "float32" if trial.environment is None else "bf16 without AMX"
    return [finding("bf16", "; ".join(trial.faults), warning=f"Training computes in {instead}. Try another torch.")]


def requirements() -> list[str]:
    """Requirements of segpipe's own package, e.g. `numpy>=2.0`; empty where it is not installed as a package."""
    try:
        return requires("segpipe") or []
    except PackageNotFoundError:
        return []


def package_finding(needed: Sequence[str]) -> Finding:
    """Check that every package is installed, and neither too old nor too new.

    Args:
        needed: Requirements; those of extras are passed over.
    """
    always = [text for text in needed if "extra ==" not in text]
    if not always:
        return finding("packages", "segpipe is not installed as a package", warning="Install it: pip install segpipe.")
    wrong = [text for text in map(_mismatch, always) if text]
    found = "; ".join(wrong) if wrong else f"all {len(always)} are there, in versions that fit"
    return finding("packages", found, fault="Install what fits: pip install --upgrade segpipe." if wrong else "")


def extras_finding(needed: Sequence[str]) -> Finding:
    """List the optional parts that are usable; missing ones are not a fault."""
    by_extra: dict[str, list[str]] = {}
    for text in needed:
        requirement, _, marker = text.partition(";")
        if match := re.search(r"extra == [\"'](\w+)[\"']", marker):
            by_extra.setdefault(match[1], []).append(requirement)
    usable = {name: not any(map(_mismatch, texts)) for name, texts in by_extra.items() if name != "test"}
    return finding("extras", ", ".join(f"{name}: {'yes' if is_in else 'no'}" for name, is_in in usable.items()) or "–")


def _mismatch(requirement: str) -> str:
    """Describe the fault of an installed package; empty if there is none.

    Example:
        >>> _mismatch("numpy>=999"), _mismatch("no-such-thing>=1")  # doctest: +ELLIPSIS
        ('numpy ... (needed >=999)', 'no-such-thing is missing (needed >=1)')
    """
    match = re.match(r"([\w.-]+)\s*([^;]*)", requirement)
    assert match is not None
    name, bounds = match[1], match[2].strip()
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is missing (needed {bounds or 'any'})"
    for operator, bound in re.findall(r"(>=|<)\s*([\d.]+)", bounds):
        if (_numbers(found) >= _numbers(bound)) != (operator == ">="):
            return f"{name} {found} (needed {bounds})"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    """`2.11.0+cpu` as (2, 11); zeros at the end say nothing."""
    numbers = [int(part) for part in re.match(r"[\d.]*", text)[0].split(".") if part]  # type: ignore[index]  # matches ""
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def processor_finding(usable: int, there: int, load: float, threads: str) -> Finding:
    """Count the processors that may be used, and check whether others use them.

    Args:
        usable: By this process.
        there: In the machine.
        load: Tasks that wanted to compute, mean of the last minute; 0 where the system does not say, as on Windows.
        threads: What OMP_NUM_THREADS says, or nothing.
    """
    found = f"{usable} of {there} usable, load {load:.1f}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    if load > _BUSY * there:
        return finding("processors", found, warning="Others compute here now; training will be slower.")
    if threads.isdecimal() and int(threads) > usable:
        return finding("processors", found, warning=f"More threads than processors: export OMP_NUM_THREADS={usable}.")
    return finding("processors", found)


def memory_finding(groups: Path = Path("/sys/fs/cgroup")) -> Finding:
    """Memory of the machine, of its container, and what is free."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_limit(groups / name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    limit = min((limit for limit in limits if limit and limit < total), default=None)
    free = free_bytes(groups=groups)
    found = f"{total / _GB:.1f} GiB" + (f", container limited to {limit / _GB:.1f} GiB" if limit else "")
    if not free:  # the system does not say
        return finding("memory", found)
    few = "Preparing large images may not fit: end other programs, use -j 1, or give the container more."
    return finding("memory", f"{found}, {free / _GB:.1f} GiB free", warning=few if free < _FEW_BYTES else "")


def _limit(path: Path) -> int | None:
    text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None


def shared_memory_finding(folder: Path = Path("/dev/shm")) -> Finding:
    """Shared memory, which containers are given little of; one process does not use it."""
    if not folder.is_dir():
        return finding("shared memory", "none")
    size = shutil.disk_usage(folder).total
    few = "Too little to train on several GPUs: docker run --shm-size=1g (one process does not use it)."
    return finding("shared memory", f"{size / 2**20:.0f} MiB", warning=few if size < _FEW_SHARED_BYTES else "")


def folder_findings(folder: Path, mounts: Path = Path("/proc/mounts")) -> list[Finding]:
    """Look at a folder by writing small files into it, which are removed again.

    Args:
        folder: Where results are to lie; it, or the nearest folder above it that exists, is tried.
        mounts: The system's table of file systems.
    """
    folder = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    about = f"folder {folder}"
    try:
        probe = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder))
    except OSError as fault:
        return [finding(about, f"not writable ({fault.strerror})", fault="Choose another folder for results.")]
    try:
        return [_space(about, folder), _rename_finding(probe), _locks(probe), _cases(probe), _kind(folder, mounts)]
    except OSError as fault:
        return [finding(about, "small files cannot be written", fault=str(disk_fault(fault, folder)))]
    except SegpipeError as fault:
        return [finding(about, "small files cannot be written", fault=str(fault))]
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _space(about: str, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    few = "Little for a dataset of 3D images; `segpipe prepare WORK --dry-run` says how much is needed."
    return finding(about, f"writable, {free / 2**30:.1f} GiB free", warning=few if free < _FEW_DISK_BYTES else "")


def _rename_finding(probe: Path) -> Finding:
    """A reader keeps the old file while a new one takes its name."""
    write_text(probe / "file", "old")
    with (probe / "file").open(encoding="utf-8") as reader:
        write_text(probe / "file", "new")
        is_whole = (reader.read(), (probe / "file").read_text(encoding="utf-8")) == ("old", "new")
    return finding(
        "renaming",
        "a file is replaced at once" if is_whole else "a file that is read changes while another takes its name",
        fault="" if is_whole else "Results could be half-written when a run is killed. Choose a local disk.",
    )


def _locks(probe: Path) -> Finding:
    try:
        with only_process(probe):
            try:
                with only_process(probe):
                    pass
            except UsageError:
                return finding("locks", "hold")
    except SetupError as fault:
        return finding("locks", f"not possible ({fault})", fault="Runs need them. Choose a local disk.")
    return finding("locks", "do not hold", fault="Two runs in one folder would spoil it. Choose a local disk.")


def _cases(probe: Path) -> Finding:
    (probe / "case").touch()
    if not (probe / "CASE").exists():
        return finding("names", "capital and small letters differ")
    return finding("names", "capital and small letters are one", warning="Cases `a` and `A` would share their files.")


def _kind(folder: Path, mounts: Path) -> Finding:
    kind = file_system(folder, mounts)
    if not kind.startswith(_NETWORK):
        return finding("file system", kind)
    slow = "Over a network training may wait for files; keep WORK on a local disk and copy it afterwards."
    return finding("file system", kind, warning=slow)


def file_system(folder: Path, mounts: Path) -> str:
    """Kind of the file system that holds a folder, e.g. `ext4`; `unknown` where the system does not say."""
    if not mounts.is_file():
        return "unknown"
    lines = [line.split() for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    real = os.path.realpath(folder)
    kinds = {  # the last of two on one place hides the first
        place: fields[2]
        for fields in lines
        if (place := fields[1].replace("\\040", " ")) == "/" or real == place or real.startswith(place + "/")
    }
    return kinds[max(kinds, key=len)] if kinds else "unknown"
