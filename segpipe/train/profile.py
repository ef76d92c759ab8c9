"""Measure where the time of a training goes, on a few of its steps, and say what to do about it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from segpipe.core.files import TEMPORARY_PREFIX
from segpipe.core.prefetch import Prefetch
from segpipe.core.progress import track
from segpipe.core.records import Record
from segpipe.core.work import FoldFolder
from segpipe.train.checkpoint import save_state, save_weights
from segpipe.train.fold import BATCHES_AHEAD, TRAIN, FoldTraining, Hooks, loading_threads
from segpipe.train.loop import SAVING_SHARE
from segpipe.train.optim import learning_rate
from segpipe.train.schedule import Schedule

PHASES = (  # of a step, in order; validation and saving are spread over the steps between them
    "waiting for data",
    "copy",
    "augmentation",
    "forward",
    "loss",
    "backward",
    "optimizer",
    "validation",
    "saving",
)
_N_WARM_UP = 3  # steps that are not measured: compiling, choosing algorithms, the first allocations
_N_STEPS = 30
_N_TIMED, _N_TIMED_STEPS = 3, 4  # spans, and steps in each, by processor time
_MOST_SECONDS = 60.0  # of measured steps; slower ones are fewer
_FEWEST_STEPS = 3
_NETWORK = ("forward", "backward")
_FAIR_SHARE = 0.15  # a part that takes less cannot make training much faster
_ADVICE = {
    "waiting for data": "Loading is slower than the steps. Use more processors (-j), a faster disk, or enough memory "
    "to hold the prepared cases, which are then read once.",
    "copy": "Copying batches to the device is slow. Use a smaller batch_size or patch_zyx, or a device with memory for "
    "the prepared cases.",
    "augmentation": "Use less of it (--set training.augmentation=light), or compute it on the device of the network.",
    "loss": "Use a loss with fewer or simpler terms (training.loss), or fewer labels.",
    "optimizer": "A larger batch_size or training.gradient_accumulation gives it less to do; sgd does the least.",
    "validation": "Validate on fewer patches (training.validation_iterations) or less often "
    "(training.iterations_per_epoch).",
    "saving": "Save to a faster disk or less often (training.checkpoint_minutes).",
    "network": "Most of the time goes into the network, as it should. Make it faster with a lower precision "
    "(training.precision), compilation (training.compiled), a GPU, or a smaller network (plan with another --preset).",
}


MakeFold = Callable[[Hooks], FoldTraining]  # a new fold with these hooks


class Profile(Record):
    """Time of an average training step by its parts, as `segpipe train --profile` prints it.

    Args:
        configuration: Name of the configuration.
        device: Device of the network.
        precision: Type in which the network computes, e.g. `bfloat16`.
        n_steps: Number of measured steps.
        seconds, shares: Time of each phase, and its share of the step; all of `PHASES`.
        step_seconds: Sum of all phases.
        draw_seconds, n_threads: Time to draw a batch on one thread, beside the steps, and number of threads that draw.
        bottleneck, advice: The largest part beside the network, or `network` if that takes most, and what to do.
    """

    configuration: str
    device: str
    precision: str
    n_steps: int
    seconds: dict[str, float]
    shares: dict[str, float]
    step_seconds: float
    draw_seconds: float
    n_threads: int
    bottleneck: str
    advice: str

    @classmethod
    def of(cls, seconds: Mapping[str, float], **measured: Any) -> Profile:
        """Judge what was measured.

        Args:
            seconds: By phase, all of `PHASES`.
            measured: The fields that do not follow from these.
        """
        total = sum(seconds.values())
        shares = {phase: value / total for phase, value in seconds.items()}
        largest = max((phase for phase in PHASES if phase not in _NETWORK), key=shares.__getitem__)
        bottleneck = largest if shares[largest] >= _FAIR_SHARE else "network"
        return cls(
            seconds=dict(seconds),
            shares=shares,
            step_seconds=total,
            bottleneck=bottleneck,
            advice=_ADVICE[bottleneck],
            **measured,
        )


class _Watch:
    """Adds up the time between laps; each waits until the device has done what it was asked."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.restart()

    def restart(self) -> None:
        """Forget what was measured."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.last = time.monotonic()

    def lap(self, phase: str | None) -> None:
        """The time since the last lap went into `phase`; None: it does not count."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.monotonic()
        if phase is not None:
            self.seconds[phase] += now - self.last
        self.last = now


def profile_fold(make_fold: MakeFold, name: str, folder: Path) -> Profile:
    """Train some steps and measure their parts; a training that is there stays as it is.

    Parts are measured one after the other, so on a GPU, where they overlap, they add up to a little more than a step.

    Args:
        make_fold: Makes a new fold with these hooks.
        name: Of its configuration.
        folder: On the disk where trainings are saved; nothing is left in it.
    """
    watch = _Watch()
    fold = make_fold(Hooks(lap=watch.lap))
    watch.device = fold.device
    training, n_threads = fold.plan.training, loading_threads(fold.device)
    with Prefetch(partial(fold.draw, TRAIN), n_threads, BATCHES_AHEAD) as batches:
        for _ in range(_N_WARM_UP):
            fold.step(batches.get(fold.at.iteration), learning_rate(training, 0))
        watch.restart()
        n_steps, begun = 0, time.monotonic()
        for _ in track(range(_N_STEPS), f"profiling {name}", _N_STEPS):
            watch.lap(None)
            batch = batches.get(fold.at.iteration)
            watch.lap("waiting for data")
            fold.step(batch, learning_rate(training, 0))
            n_steps += 1
            if time.monotonic() - begun > _MOST_SECONDS and n_steps >= _FEWEST_STEPS:
                break
    seconds = {phase: taken / n_steps for phase, taken in watch.seconds.items()}
    return Profile.of(
        configuration=name,
        device=str(fold.device),
        precision=str(fold.dtype).removeprefix("torch."),
        n_steps=n_steps,
        seconds=seconds | _between_steps(fold, folder, sum(seconds.values())),
        draw_seconds=_seconds_of(lambda index: fold.draw(TRAIN, index), _FEWEST_STEPS),
        n_threads=n_threads,
    )


def processor_seconds(make_fold: MakeFold) -> float:
    """Train some steps on a CPU, and return the processor time of one: all threads, drawing batches included.

    The least of several spans of steps: what shares the processor's caches and units only adds to it.
    """
    fold = make_fold(Hooks())
    rate = learning_rate(fold.plan.training, 0)
    with Prefetch(partial(fold.draw, TRAIN), loading_threads(fold.device), BATCHES_AHEAD) as batches:
        for _ in range(_N_WARM_UP):
            fold.step(batches.get(fold.at.iteration), rate)
        ends = [time.process_time()]
        for _ in range(_N_TIMED):
            for _ in range(_N_TIMED_STEPS):
                fold.step(batches.get(fold.at.iteration), rate)
            ends.append(time.process_time())
        return min(end - begun for begun, end in pairwise(ends)) / _N_TIMED_STEPS


def _between_steps(fold: FoldTraining, folder: Path, step_seconds: float) -> dict[str, float]:
    """Validation and saving for each step, as often as the plan asks for them."""
    training = fold.plan.training
    n_steps: float = training.iterations_per_epoch
    if training.time_budget_seconds:  # epochs are spans of time
        n_steps = max(1.0, training.time_budget_seconds / Schedule(training).n_epochs / step_seconds)
    n_validation = Schedule(training).validation_iterations(math.ceil(n_steps))
    fold.validate(1)  # a first time chooses algorithms
    validation = _seconds_of(lambda _: fold.validate(1), _FEWEST_STEPS) * n_validation if n_validation else 0.0
    with TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as place:
        saving = _seconds_of(lambda _: _save(fold, FoldFolder(Path(place))), 1)
    at_ends = min(saving / n_steps, SAVING_SHARE * step_seconds)
    by_clock = saving * step_seconds / (60 * training.checkpoint_minutes)
    return {"validation": validation / n_steps, "saving": max(at_ends, by_clock)}


def _save(fold: FoldTraining, place: FoldFolder) -> None:
    save_weights(place.weights, fold.predictor, {})
    save_state(place, fold.state(finished=False))


def _seconds_of(work: Callable[[int], object], n_times: int) -> float:
    """Return the seconds of one call, on average."""
    begun = time.monotonic()
    for index in range(n_times):
        work(index)
    return (time.monotonic() - begun) / n_times
