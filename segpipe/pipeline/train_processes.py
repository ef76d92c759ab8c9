"""Training on several devices, in processes of their own: a fold on each, or one fold on all of them together.

Whatever ends this process ends them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from segpipe.core.errors import DataError, Interrupted, ResourceError, SegpipeError, SetupError, UsageError
from segpipe.core.machine import n_processes
from segpipe.core.progress import say
from segpipe.core.text import count
from segpipe.networks.device import resolve_devices
from segpipe.pipeline.requests import Machine
from segpipe.train.signals import Stop

_HERE = "127.0.0.1"
_SIGKILL = 9  # its number: Windows lacks the name
_PAUSE_SECONDS = 0.05
_GRACE_SECONDS = 10.0  # for processes that wait for one which is gone; what they would save is saved already
_FAULTS: dict[int, type[SegpipeError]] = {
    kind.exit_code: kind for kind in (UsageError, DataError, SetupError, ResourceError, Interrupted)
}


@dataclass(frozen=True)
class Job:
    """A command of segpipe.

    Args:
        title: Whose lines these are.
        arguments: Of `segpipe`, without the device.
        environment: Variables beside this process's own.
        has_prefix: Whether its lines are told with the title before them, by this process.
    """

    title: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    has_prefix: bool


@dataclass
class _Child:
    """A job that runs."""

    job: Job
    device: str
    process: subprocess.Popen[str]
    last_line: str = ""
    reader: Thread | None = None

    def read(self) -> None:
        """Pass lines on as they come, until the process ends."""
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.last_line = line.rstrip()
                say(f"{self.job.title} | {self.last_line}")


@dataclass(frozen=True)
class Ended:
    """A job that did not succeed.

    Args:
        title: Of the job.
        code: Its exit code; negative: the signal that ended it.
        last_line: Of what it said, if it was told with a prefix.
    """

    title: str
    code: int
    last_line: str

    def __str__(self) -> str:
        if self.code < 0:
            return f"{self.title}: ended by {signal.Signals(-self.code).name}; perhaps the system had no more memory"
        return f"{self.title}: {self.last_line or f'exit code {self.code}, its message is above'}"


def run_jobs(jobs: Sequence[Job], devices: Sequence[str], *, end_together: bool) -> list[Ended]:
    """Run jobs, as many at a time as there are devices.

    Requests to stop (see `Stop`) are passed on to all that run, and no other one begins.

    Args:
        jobs: In their order; each gets the first device that is free.
        devices: As for `--device`; each takes one job at a time.
        end_together: Whether one that fails ends all others.

    Returns:
        Those that failed; last those that lost another one (a SetupError), or were asked to end.

    Raises:
        Interrupted, KeyboardInterrupt: If somebody asked to stop; all have ended.
    """
    run = _Run(jobs, devices, end_together=end_together)
    stop = Stop()
    with stop.listen():
        try:
            while run.goes_on:
                run.start()
                time.sleep(_PAUSE_SECONDS)
                run.look()
                if stop.signal:
                    run.asked, stop.signal = stop.signal, None
                    run.end(run.asked)
        finally:
            run.kill()
    if run.asked == signal.SIGINT:
        raise KeyboardInterrupt
    if run.asked:
        name = signal.Signals(run.asked).name
        raise Interrupted(f"stopped by {name}, and so were all processes. Rerun the same command to resume.")
    return sorted(
        run.failed, key=lambda ended: (ended.code == Interrupted.exit_code, ended.code == SetupError.exit_code)
    )


class _Run:
    """Jobs that wait, run, and have failed."""

    def __init__(self, jobs: Sequence[Job], devices: Sequence[str], *, end_together: bool) -> None:
        self.waiting, self.free = deque(jobs), deque(devices)
        self.running: list[_Child] = []
        self.failed: list[Ended] = []
        self.end_together = end_together
        self.asked: int | None = None
        self.deadline: float | None = None

    @property
    def goes_on(self) -> bool:
        return bool(self.running or (self.waiting and not self.asked))

    def start(self) -> None:
        """Begin what a device is free for."""
        while self.waiting and self.free and not self.asked:
            job, device = self.waiting.popleft(), self.free.popleft()
            process = subprocess.Popen(
                [sys.executable, "-m", "segpipe", *job.arguments, "--device", device],
                env=os.environ | job.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE if job.has_prefix else None,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # so that Ctrl-C comes to it once, from here
            )
            child = _Child(job, device, process)
            if job.has_prefix:
                child.reader = Thread(target=child.read, daemon=True)
                child.reader.start()
            self.running.append(child)

    def look(self) -> None:
        """Note what has ended."""
        for child in [c for c in self.running if c.process.poll() is not None]:
            self.running.remove(child)
            self.free.append(child.device)
            if child.reader:
                child.reader.join()
            if child.process.returncode:
                self.failed.append(Ended(child.job.title, child.process.returncode, child.last_line))
        if self.failed and self.end_together and self.deadline is None:
            self.waiting.clear()
            self.end(signal.SIGTERM)
            self.deadline = time.monotonic() + _GRACE_SECONDS
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.end(None)

    def end(self, number: int | None) -> None:
        """Send a signal to all that run; None kills them. Windows knows no signals: there any one kills them."""
        for child in self.running:
            if number is None or os.name == "nt":
                child.process.kill()
            else:
                child.process.send_signal(number)

    def kill(self) -> None:
        """Leave nothing behind."""
        self.end(None)
        for child in self.running:
            child.process.wait()


def raise_first(failed: Sequence[Ended], text: str) -> None:
    """End this process as the first of them has ended; nothing if there is none.

    Raises:
        SegpipeError: Of the kind that the exit code stands for.
        KeyboardInterrupt: If it was stopped by Ctrl-C.
    """
    if not failed:
        return
    if failed[0].code == 130:
        raise KeyboardInterrupt
    kind = ResourceError if failed[0].code == -_SIGKILL else _FAULTS.get(failed[0].code, SegpipeError)
    raise kind(f"{text}\n" + "\n".join(f"  {ended}" for ended in failed))


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
        say(f"{len(folds)} folds, {n_beside} in parallel on {', '.join(devices[:n_beside])}.")
        jobs = [Job(f"fold {fold}", (*common, "-f", str(fold)), environment, has_prefix=True) for fold in folds]
    failed = run_jobs(jobs, devices, end_together=is_together)
    what = (
        "one process of the fold failed, so all ended"
        if is_together
        else f"{len(failed)} of {count(len(jobs), 'fold')} failed"
    )
    raise_first(failed, f"{run}: {what}. Rerun the same command to resume.")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_HERE, 0))
        port: int = found.getsockname()[1]
    return port
