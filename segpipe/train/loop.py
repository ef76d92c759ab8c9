"""Train one fold to its end: by epochs, or for a given time; resumable at any moment."""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from segpipe.core.errors import Interrupted, UsageError
from segpipe.core.files import make_folder, remove_leftovers
from segpipe.core.lock import only_process
from segpipe.core.progress import say
from segpipe.core.work import FoldFolder
from segpipe.data.splits import Fold
from segpipe.networks.device import memory_faults
from segpipe.plan.schema import Plan
from segpipe.plan.training import Training
from segpipe.train.checkpoint import load_state, save_state, save_weights, write_history
from segpipe.train.fold import TRAIN, FoldData, FoldTraining, Progress
from segpipe.train.optim import learning_rate

_EPOCHS_IN_BUDGET = 20  # points of the learning curve when trained by time
_SECONDS_BETWEEN_STATES = 300.0


@dataclass(frozen=True)
class _Schedule:
    """How far training is, by iterations or by the clock."""

    training: Training

    @property
    def n_epochs(self) -> int:
        return _EPOCHS_IN_BUDGET if self.training.time_budget_seconds else self.training.epochs

    def progress(self, at: Progress) -> float:
        """0 to 1, and above when time was lost."""
        if self.training.time_budget_seconds:
            return at.seconds / self.training.time_budget_seconds
        return at.iteration / (self.training.epochs * self.training.iterations_per_epoch)

    def epoch_is_over(self, at: Progress) -> bool:
        if self.training.time_budget_seconds:
            return self.progress(at) * self.n_epochs >= at.epoch + 1
        return at.iteration >= (at.epoch + 1) * self.training.iterations_per_epoch

    def is_over(self, at: Progress, seconds_to_finish: float) -> bool:
        """Whether one more step, the last validation and saving would not fit."""
        if self.training.time_budget_seconds:
            return at.seconds + seconds_to_finish >= self.training.time_budget_seconds
        return at.iteration >= self.training.epochs * self.training.iterations_per_epoch

    def validation_iterations(self, n_steps: int) -> int:
        """After an epoch of `n_steps`: the plan's, or as many in proportion when an epoch is a span of time."""
        training = self.training
        if not training.time_budget_seconds:
            return training.validation_iterations
        share = training.validation_iterations / training.iterations_per_epoch
        return min(training.validation_iterations, math.ceil(n_steps * share))

    def seconds_left(self, at: Progress) -> float:
        done = min(1.0, self.progress(at))
        return at.seconds * (1 - done) / done if done else math.nan


class _Stop:
    """Set by SIGTERM, SIGUSR1 or Ctrl-C; training then stops after the step, with its state saved."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        def note(number: int, _: object) -> None:
            self.signal = number

        try:
            old = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        except ValueError:  # not in the main thread: nobody can ask us to stop
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def train_fold(
    plan: Plan, configuration_name: str, data: FoldData, folder: FoldFolder, device: torch.device, started: float
) -> None:
    """Train a fold, or go on with it; leaves plan, weights, state, history and log in its folder.

    Args:
        plan: With everything a person chose, the time budget included.
        configuration_name: Which of its configurations.
        data: The fold's cases.
        folder: Where to.
        device: Where to compute.
        started: time.monotonic() from which the time budget counts.

    Raises:
        UsageError: If the folder holds a training with another plan or on other cases.
        PlanError: If the loss becomes infinite or NaN.
        Interrupted: If it was asked to stop; the state is saved.
        ResourceError: If memory or disk runs out.
    """
    make_folder(folder.path)
    with only_process(folder.path):
        remove_leftovers(folder.path)
        _train_or_go_on(plan, configuration_name, data, folder, device, started)


def _train_or_go_on(
    plan: Plan, configuration_name: str, data: FoldData, folder: FoldFolder, device: torch.device, started: float
) -> None:
    state = _state_of_same_training(plan, data.split, folder)
    if state and state["finished"]:
        say(f"{folder.path}: is trained already ({state['iteration']} iterations).")
        return
    if state is None:  # what an earlier training predicted is not of this one
        shutil.rmtree(folder.validation, ignore_errors=True)
        folder.scores.unlink(missing_ok=True)
    plan.save(folder.plan)
    data.split.save(folder.split)
    with memory_faults(f"training {configuration_name}", "Use a smaller batch_size or patch_zyx (--set)."):
        fold = FoldTraining(plan, plan.configurations[configuration_name], data, device, is_new=state is None)
        if state:
            fold.restore(state)
            say(f"{folder.path}: goes on at iteration {fold.at.iteration}, {fold.at.seconds:.0f} s trained.")
        about = {"segpipe": "1", "configuration": configuration_name, "fold": str(data.fold)}
        _Loop(fold, folder, about, started - fold.at.seconds).run()


class _Loop:
    """Steps until the schedule is over or somebody asks to stop."""

    def __init__(self, fold: FoldTraining, folder: FoldFolder, about: dict[str, str], zero: float) -> None:
        self.fold, self.folder, self.about, self.zero = fold, folder, about, zero
        self.schedule = _Schedule(fold.plan.training)
        self.losses: list[float] = []
        self.seconds_to_finish = 0.0
        self.saved = time.monotonic()
        self.stop = _Stop()

    def run(self) -> None:
        at, fold = self.fold.at, self.fold
        step_seconds = 0.0
        with self.stop.listening(), ThreadPoolExecutor(1) as ahead:
            batch = ahead.submit(fold.draw, TRAIN, at.iteration)
            while not self.schedule.is_over(at, self.seconds_to_finish + step_seconds):
                drawn, begun = batch.result(), time.monotonic()
                batch = ahead.submit(fold.draw, TRAIN, at.iteration + 1)
                self.losses.append(fold.step(drawn, learning_rate(fold.plan.training, self.schedule.progress(at))))
                at.seconds = time.monotonic() - self.zero
                step_seconds = time.monotonic() - begun
                if self.stop.signal:
                    self._save(finished=False)
                    self._interrupted(self.stop.signal)
                if self.schedule.epoch_is_over(at):
                    self._end_epoch(finished=False)
                elif time.monotonic() - self.saved > _SECONDS_BETWEEN_STATES:
                    self._save(finished=False)
            batch.cancel()
        self._end_epoch(finished=True)

    def _end_epoch(self, *, finished: bool) -> None:
        """Validate, note, save; the time it takes is kept free at the end."""
        at, training, begun = self.fold.at, self.fold.plan.training, time.monotonic()
        if self.losses:
            loss, dice = self.fold.validate(self.schedule.validation_iterations(len(self.losses)))
            at.seconds = time.monotonic() - self.zero
            at.epoch += 1
            at.history.append(
                {
                    "epoch": at.epoch,
                    "iteration": at.iteration,
                    "seconds": round(at.seconds, 2),
                    "learning_rate": learning_rate(training, self.schedule.progress(at)),
                    "train_loss": sum(self.losses) / len(self.losses),
                    "validation_loss": loss,
                    **dice,
                }
            )
            self._tell(at)
            self.losses = []
        self._save(finished=finished)
        self.seconds_to_finish = time.monotonic() - begun
        at.seconds = time.monotonic() - self.zero

    def _save(self, *, finished: bool) -> None:
        """State last: it says how far training is, so what it speaks of must be there already."""
        save_weights(self.folder.weights, self.fold.predictor, self.about | {"finished": str(int(finished))})
        write_history(self.folder.history, self.fold.at.history)
        save_state(self.folder.state, self.fold.state(finished=finished))
        self.saved = time.monotonic()

    def _tell(self, at: Progress) -> None:
        row = at.history[-1]
        dice = " ".join(
            f"{name.removeprefix('dice_')} {value:.3f}" for name, value in row.items() if name[:5] == "dice_"
        )
        n_epochs = max(at.epoch, self.schedule.n_epochs)
        line = (
            f"fold {self.about['fold']}  epoch {at.epoch}/{n_epochs}  loss {row['train_loss']:.3f} "
            f"(validation {row['validation_loss']:.3f})  patch Dice {dice}  {at.iteration / at.seconds:.2f} it/s  "
            f"{self.schedule.seconds_left(at):.0f} s left"
        )
        say(line)
        with self.folder.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def _interrupted(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Interrupted(
            f"{self.folder.path}: stopped by {signal.Signals(number).name} at iteration {self.fold.at.iteration}, "
            "state saved. The same command goes on."
        )


def _state_of_same_training(plan: Plan, split: Fold, folder: FoldFolder) -> dict[str, object] | None:
    """The state to go on from, if it belongs to this plan and these cases.

    The time budget of an unfinished training may change; everything else must be equal.
    """
    state = load_state(folder.state)
    if state is None:
        return None
    if not (folder.plan.is_file() and folder.split.is_file()):
        raise UsageError(
            f"{folder.path}: holds a training, but plan.yaml or split.json is missing, so nobody can tell of what. Put "
            "it back, use another work folder, or delete this fold's folder to train it anew."
        )
    if Fold.load(folder.split) != split:
        raise UsageError(
            f"{folder.path}: was trained on other cases than splits.json now says; validating it on the new ones would "
            "leak. Put the old splits back, use another work folder, or delete this fold's folder."
        )
    old = Plan.load(folder.plan)
    if not state["finished"]:
        training = old.training.model_copy(update={"time_budget_seconds": plan.training.time_budget_seconds})
        old = old.model_copy(update={"training": training})
    if old != plan:
        raise UsageError(
            f"{folder.path}: holds a training with another plan ({_difference(old, plan)}). Use another work "
            "folder, or delete this fold's folder to train it anew."
        )
    return state


def _difference(old: Plan, new: Plan) -> str:
    """The first difference of two plans, as `key: old, now new`."""
    first, second = _flat(old.model_dump()), _flat(new.model_dump())
    for key in [*first, *second]:
        if first.get(key) != second.get(key):
            return f"{key}: {first.get(key)}, now {second.get(key)}"
    return "no difference"


def _flat(values: object, place: str = "") -> dict[str, object]:
    if not isinstance(values, dict):
        return {place: values}
    return {k: v for name, inner in values.items() for k, v in _flat(inner, f"{place}.{name}".lstrip(".")).items()}
