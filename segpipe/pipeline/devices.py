"""Training on several devices: a fold on each, side by side, or one fold on all of them together."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from segpipe.core.errors import UsageError
from segpipe.core.machine import n_processes
from segpipe.core.progress import say
from segpipe.networks.device import resolve_devices
from segpipe.pipeline.children import Job, raise_first, run_jobs
from segpipe.pipeline.machine import Machine

_HERE = "127.0.0.1"


def devices_for(folds: Sequence[int], machine: Machine, wanted: str | None) -> list[str]:
    """Devices to train folds on; one: in this process.

    Args:
        folds: To be trained.
        machine: With the device that was asked for.
        wanted: As for `resolve_devices`; None: all CUDA devices for several folds if none is named, else one.

    Raises:
        UsageError: If several are wanted of one, or processes were started already.
        SetupError: If there are not so many.
    """
    if n_processes() > 1:
        if wanted is not None:
            raise UsageError(f"--devices {wanted}: {n_processes()} processes are started already. Leave it out.")
        return [machine.device]
    if wanted is None and len(folds) > 1:
        return resolve_devices(machine.device, "all")
    return resolve_devices(machine.device, wanted)


def train_in_processes(
    run: Path, folds: Sequence[int], devices: Sequence[str], arguments: Sequence[str], machine: Machine
) -> None:
    """Train folds side by side, one on each device; a single one on all devices together.

    Args:
        run: Folder of the configuration's runs, for messages.
        folds: Which.
        devices: On which.
        arguments: Of `segpipe`, for every process.
        machine: Its processors are shared.

    Raises:
        SegpipeError: If a process failed, of the kind that its exit code stands for; the other folds are trained.
        Interrupted, KeyboardInterrupt: If somebody asked to stop; states are saved.
    """
    is_together = len(folds) == 1
    n_beside = len(devices) if is_together else min(len(devices), len(folds))
    common = (*arguments, "-j", str(max(1, machine.n_workers // n_beside)))
    environment = {"LOCAL_WORLD_SIZE": str(n_beside)}
    if is_together:
        environment |= {"WORLD_SIZE": str(n_beside), "MASTER_ADDR": _HERE, "MASTER_PORT": str(_free_port())}
        jobs = [
            Job(
                title=f"process {rank} on {device}",
                arguments=(*common, "-f", str(folds[0])),
                environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                has_prefix=False,
            )
            for rank, device in enumerate(devices)
        ]
    else:
        say(f"{len(folds)} folds, {n_beside} side by side on {', '.join(devices[:n_beside])}.")
        jobs = [Job(f"fold {fold}", (*common, "-f", str(fold)), environment, has_prefix=True) for fold in folds]
    failed = run_jobs(jobs, devices, end_together=is_together)
    what = "all processes of a fold end with one" if is_together else f"{len(failed)} of {len(jobs)} folds failed"
    raise_first(failed, f"{run}: {what}. The same command goes on where each stopped.")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_HERE, 0))
        port: int = found.getsockname()[1]
    return port
