"""Train one fold to its end: by epochs, by iterations, or for a given time; resumable at any moment.

By epochs or iterations, a training that was killed and resumed ends with the weights of one that was not, on the CPU
bit for bit. A time budget cannot promise that: how many steps fit depends on the machine.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from segpipe.core.files import make_folder, only_process, remove_leftovers
from segpipe.core.history import MEAN_DICE
from segpipe.core.prefetch import Prefetch
from segpipe.core.progress import say
from segpipe.core.text import count, duration_text
from segpipe.core.work import FoldFolder
from segpipe.networks.build import build
from segpipe.networks.device import memory_faults, resolve_precision
from segpipe.networks.self_test import avoid_wrong_arithmetic
from segpipe.plan.pretraining import compare_with_seen
from segpipe.plan.schema import Plan
from segpipe.prepare.store import content_of_stored
from segpipe.train.checkpoint import (
    Row,
    save_state,
    save_weights,
    set_aside,
    with_own_start,
    write_history,
    write_setting,
)
from segpipe.train.distributed import ALONE, Group
from segpipe.train.divergence import Diverged, are_finite, divergence, note_divergence
from segpipe.train.fold import BATCHES_AHEAD, TRAIN, FoldData, FoldTraining, Hooks, loading_threads
from segpipe.train.optim import learning_rate
from segpipe.train.resume import PROCESSES, changes_text, forget, state_of_same_training
from segpipe.train.running_statistics import renewed_statistics
from segpipe.train.sampling import Batch
from segpipe.train.schedule import Schedule
from segpipe.train.show import (
    CollapseAlarm,
    CurvesFile,
    EpochBar,
    epoch_line,
    epoch_title,
    has_plateaued,
    mean_dice,
    peak_memory_bytes,
    plateau_text,
)
from segpipe.train.signals import Stop, crash_noted, mark_step
from segpipe.train.snapshots import Snapshots
from segpipe.train.tensorboard import SeenPatches, TensorBoard


@dataclass
class Epoch:
    """The epoch that runs, so far: training losses, steps, the time they took and how long they waited for data.

    A step whose loss is infinite or NaN changed nothing (float16, see `FoldTraining.step`) and is not in the sum.
    `interrupted` is 1 if training stopped since the last epoch's end and went on.
    """

    loss_sum: float = 0.0
    n_steps: int = 0
    n_skipped: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    interrupted: int = 0

    def add(self, loss: float, seconds: float, wait_seconds: float) -> None:
        """Take in a step."""
        self.loss_sum += loss if math.isfinite(loss) else 0.0
        self.n_skipped += not math.isfinite(loss)
        self.n_steps += 1
        self.seconds += seconds
        self.wait_seconds += wait_seconds

    @property
    def loss(self) -> float:
        """Mean loss; NaN if no step counts."""
        n_losses = self.n_steps - self.n_skipped
        return self.loss_sum / n_losses if n_losses else math.nan


Watcher = Callable[[Sequence[Row]], None]  # called with the history when an epoch has ended; its row is the last one
SAVING_SHARE = 0.02  # of the time, for saving at the ends of epochs; short ones are not all saved


def train_fold(
    plan: Plan,
    configuration_name: str,
    data: FoldData,
    folder: FoldFolder,
    device: torch.device,
    started: float,
    *,
    tensorboard: bool = False,
    group: Group = ALONE,
    restart: bool = False,
) -> None:
    """Train a fold, or resume it; leaves plan, weights, state, history and log in its folder.

    Args:
        plan: With everything a person chose, the time budget included.
        configuration_name: Which of its configurations.
        data: The fold's cases.
        folder, device: Where to, and where to compute.
        started: time.monotonic() from which the time budget counts.
        tensorboard: Whether to write event files as well; see `wants_tensorboard`.
        group: The processes that train it together, in a folder that all of them see.
        restart: Whether to discard an existing training and start over; its weights are kept as checkpoint_before.

    Raises:
        UsageError: If the folder holds a training with another plan or on other cases.
        DataError: If a prepared case cannot be read.
        PlanError: If the loss or the weights become infinite or NaN; the state of before is kept.
        Interrupted: If it was asked to stop; the state is saved.
        ResourceError: If memory or disk runs out.
    """
    make_folder(folder.path)
    with _alone_in(folder) if group.is_first else nullcontext("") as crash:
        with group.in_turn():
            remove_leftovers(folder.path)
            if restart and group.is_first:
                forget(folder)
            state = _fitting_state(plan, configuration_name, data, folder, group)
            changes = changes_text(Plan.load(folder.plan), plan) if state else ""
        if state and state["finished"]:
            say(f"{folder.path}: already trained ({state['iteration']} iterations).")
            return
        with group.in_turn():  # the first one tries, the others read what it found
            note = _arithmetic_note(plan, configuration_name, device)
        if group.is_first:
            shutil.rmtree(folder.validation, ignore_errors=True)  # what is there was predicted by other weights
            folder.scores.unlink(missing_ok=True)
            if state is None and folder.weights.is_file():
                folder.weights.replace(folder.weights.with_stem("checkpoint_before"))  # not of the plan that follows
                say(f"warning: {folder.path}: weights without a state to resume from are kept as checkpoint_before.")
            write_setting(folder, plan, data.split, device, note)
        with memory_faults(f"training {configuration_name}", "Use a smaller batch_size or patch_zyx (--set)."):
            configuration = with_own_start(plan.configurations[configuration_name], folder)
            patches = SeenPatches(plan, configuration)
            hooks = Hooks(validated=patches.see) if tensorboard and group.is_first else None
            fold = FoldTraining(plan, configuration, data, device, is_new=state is None, group=group, hooks=hooks)
            if state:
                fold.restore(state)
            about = {"segpipe": "1", "configuration": configuration_name, "fold": str(data.fold)}
            about[PROCESSES] = str(group.size)
            loop = _Loop(fold, folder, about, started - fold.at.seconds)
            if state:
                loop.go_on(state, changes)
            else:
                loop.begin()
            if group.is_first:
                loop.show_in(CurvesFile(folder.curves, f"fold {data.fold}", fold.at.history))
                if tensorboard:
                    loop.show_in(TensorBoard(fold, folder.tensorboard, patches))
                if fold.seen is not None:
                    _note_pretraining(fold, folder)
            for text in (crash, note):
                loop.log(text)
            loop.run()


def _note_pretraining(fold: FoldTraining, folder: FoldFolder) -> None:
    """Write which of the cases the first weights have seen, and warn if scores will not be of new patients."""
    weights, data = fold.configuration.network.weights, fold.data
    assert weights is not None and fold.seen is not None
    train, validation = ({c.case_id: content_of_stored(c) for c in cases} for cases in (data.train, data.validation))
    found = compare_with_seen(weights.source, fold.seen, train, validation)
    found.save(folder.pretrained_on)
    say(f"{'warning: ' if found.validation else ''}{folder.path}: {found.text()}")


def _fitting_state(
    plan: Plan, configuration_name: str, data: FoldData, folder: FoldFolder, group: Group
) -> dict[str, Any] | None:
    """The newest state that fits the network; None if there is none. What does not fit is set aside, and said."""
    configuration = plan.configurations[configuration_name]
    with torch.device("meta"):
        network = build(configuration.network, plan.n_inputs(configuration), data.n_outputs(plan))
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    while (state := state_of_same_training(plan, data.split, folder, group.size)) is not None:
        stored = {name: getattr(value, "shape", None) for name, value in state["network"].items()}
        if stored == shapes:
            return state
        set_aside(folder)
    return None


@contextmanager
def _alone_in(folder: FoldFolder) -> Iterator[str]:
    """The fold's lock; what is to be logged of a crash before, and word of the next one."""
    with only_process(folder.path), crash_noted(folder) as crash:
        yield crash


def _arithmetic_note(plan: Plan, configuration_name: str, device: torch.device) -> str:
    """A note on the arithmetic of a bf16 training, if this processor gets the planned one wrong; empty otherwise."""
    if device.type != "cpu" or resolve_precision(plan.training.precision, device) != torch.bfloat16:
        return ""
    chosen = plan.configurations[configuration_name]
    note = avoid_wrong_arithmetic(chosen.network, plan.n_inputs(chosen), chosen.patch_zyx, chosen.batch_size)
    if note:
        say(f"warning: {note}")
    return note


class _Loop:
    """Runs steps until the schedule ends or a signal asks to stop.

    Args:
        fold: In training; changed.
        folder: Where to.
        about: Written into the header of the weights.
        zero: time.monotonic() at which training would have begun, had it never been interrupted.
    """

    def __init__(self, fold: FoldTraining, folder: FoldFolder, about: dict[str, str], zero: float) -> None:
        self.fold, self.folder, self.about, self.zero = fold, folder, about, zero
        self.schedule = Schedule(fold.plan.training)
        self.epoch = Epoch()
        self.finished = False
        self.step_seconds = self.seconds_to_finish = 0.0
        self.saved, self.save_seconds = time.monotonic(), 0.0
        self.saved_iteration = fold.at.iteration
        self.stop, self.bar, self.at_end = Stop(), EpochBar(), ExitStack()
        self.keeps = fold.group.is_first  # files, and what is told
        self.snapshots = Snapshots(folder, self.schedule)
        alarm = CollapseAlarm(fold.plan, fold.configuration, fold.data, self._tell)
        self.watchers: list[Watcher] = [self._tell_epoch, alarm] if self.keeps else []

    def begin(self) -> None:
        """Say what is trained, and remove the history that an older training left."""
        data, precision = self.fold.data, str(self.fold.dtype).removeprefix("torch.")
        cases = f"{count(len(data.train), 'training case')} and {count(len(data.validation), 'validation case')}"
        self._write_history()
        if self.keeps:
            self.snapshots.clear()
            self.snapshots.take(self.fold.network, self.fold.at)
        self._tell(f"{self.folder.path}: starts with {cases} on {self.fold.device}, {precision}.")

    def go_on(self, state: Mapping[str, Any], changes: str) -> None:
        """Resume from a state: history and log drop what will be repeated, and `changes` is printed."""
        at = self.fold.at
        self.epoch = replace(Epoch(**state["running"]), interrupted=1)
        self._write_history()
        if self.keeps:
            self.snapshots.rewind(at)
        if self.keeps and self.folder.log.is_file() and self.folder.log.stat().st_size > state["log_bytes"]:
            os.truncate(self.folder.log, state["log_bytes"])
        done = f"resumes at iteration {at.iteration}, {duration_text(at.seconds)} trained."
        self._tell(f"{self.folder.path}: {done}{changes}")

    def show_in(self, watcher: CurvesFile | TensorBoard) -> None:
        """Add a watcher that is called after every epoch; to be used after `begin` or `go_on`."""
        self.watchers.append(self.at_end.enter_context(closing(watcher)))

    def run(self) -> None:
        """Train to the end.

        Raises:
            PlanError: If the loss or the weights are not finite.
        """
        try:
            self._run()
        except Diverged as fault:
            raise note_divergence(self.folder, fault, self.saved_iteration, keeps=self.keeps) from None
        self.stop.obey(self.folder.path, self.fold.at.iteration)

    def _run(self) -> None:
        fold = self.fold
        batches = Prefetch(
            partial(fold.draw, TRAIN), loading_threads(fold.device), BATCHES_AHEAD, first=fold.at.iteration
        )
        with self.at_end, self.stop.listen(), closing(self.bar), batches:
            while not self.finished:
                if self._is_asked_to_stop():
                    self._save()
                    break
                is_over = self.schedule.is_over(fold.at, self._seconds_to_end())
                if self.epoch.n_steps and (is_over or self.schedule.share_of_epoch(fold.at) >= 1):
                    self._end_epoch(is_over=is_over)
                elif is_over:  # as it went on, e.g. because the time budget is smaller now
                    self.finished = True
                    self._save()
                else:
                    self._step(batches)

    def _seconds_to_end(self) -> float:
        """Time for one more step and for what follows the last one."""
        return self.seconds_to_finish + (1 + self.fold.plan.training.recalibrate) * self.step_seconds

    def _is_asked_to_stop(self) -> bool:
        """Return whether any process was asked to, and set all clocks by the first process's, so that all act alike."""
        at, own_signal = self.fold.at, self.stop.signal or 0
        clocks = (at.seconds, self.step_seconds, self.seconds_to_finish)
        rows = self.fold.group.gather([own_signal, *clocks])
        _, at.seconds, self.step_seconds, self.seconds_to_finish = rows[0]
        asked = int(max(row[0] for row in rows))
        if asked:
            self.stop.signal = asked
        return bool(asked)

    def _step(self, batches: Prefetch[list[Batch]]) -> None:
        at, begun, waited = self.fold.at, time.monotonic(), batches.wait_seconds
        mark_step(at.iteration)
        training, progress = self.fold.plan.training, self.schedule.progress(at)
        rate, freezes = learning_rate(training, progress), progress < training.pretrained_frozen_fraction
        loss = self.fold.step(batches.get(at.iteration), rate, freezes=freezes)
        self.step_seconds = time.monotonic() - begun
        at.seconds = time.monotonic() - self.zero
        self.epoch.add(loss, self.step_seconds, batches.wait_seconds - waited)
        if self.keeps:
            self.snapshots.take(self.fold.network, at)
            self.bar.show(self.schedule.share_of_epoch(at), self._pace)
        if time.monotonic() - self.saved > 60 * self.fold.plan.training.checkpoint_minutes:
            self._save()

    def _end_epoch(self, *, is_over: bool) -> None:
        """Validate, note, tell, save; the time it takes is kept free at the end."""
        at, training, begun = self.fold.at, self.fold.plan.training, time.monotonic()
        self.bar.close()
        loss, dice = self.fold.validate(self.schedule.validation_iterations(self.epoch.n_steps))
        ((at.seconds,), *_) = self.fold.group.gather([time.monotonic() - self.zero])  # goes into every history
        at.epoch += 1
        at.history.append(self._row(loss, dice))
        stops_early = not is_over and has_plateaued(at.history, training.early_stop_epochs)
        at.history[-1]["stopped_early"] = int(stops_early)
        self.finished = is_over or stops_early
        if self.keeps and is_over:
            self.snapshots.take(self.fold.network, at, is_end=True)
        self.epoch = Epoch()
        self._write_history()
        for watcher in self.watchers:
            watcher(at.history)
        validation_seconds = time.monotonic() - begun
        if self.finished or self.save_seconds < SAVING_SHARE * (time.monotonic() - self.saved):
            self._save()
        self.seconds_to_finish = validation_seconds + self.save_seconds
        at.seconds = time.monotonic() - self.zero

    def _row(self, loss: float, dice: Mapping[str, float]) -> Row:
        """The epoch's line in the history."""
        at, epoch = self.fold.at, self.epoch
        return {
            "epoch": at.epoch,
            "iteration": at.iteration,
            "seconds": round(at.seconds, 2),
            "learning_rate": learning_rate(self.fold.plan.training, self.schedule.progress(at)),
            "train_loss": epoch.loss,
            "validation_loss": loss,
            MEAN_DICE: mean_dice(list(dice.values())),
            "iterations_per_second": round(epoch.n_steps / epoch.seconds, 4),
            "wait_share": round(epoch.wait_seconds / epoch.seconds, 4),
            "peak_memory_bytes": peak_memory_bytes(self.fold.device),
            "seconds_left": round(self.schedule.seconds_left(at), 1),
            "interrupted": epoch.interrupted,
            **dice,
            **self.fold.spike_rates(),
        }

    def _save(self) -> None:
        """State last: it says how far training is, so what it speaks of must be there already.

        Raises:
            Diverged: If the weights are not finite; what was saved before stays.
        """
        at, begun, fold = self.fold.at, time.monotonic(), self.fold
        with self._calibrated_predictor():
            if not self.keeps:
                return
            if not are_finite([fold.network, fold.predictor]):
                raise divergence("weights are infinite or NaN", at.iteration, fold.plan.training, fold.dtype)
            about = self.about | {"finished": str(int(self.finished)), "iteration": str(at.iteration)}
            save_weights(self.folder.weights, fold.predictor, about)
        own = {
            "running": asdict(self.epoch),
            "log_bytes": self.folder.log.stat().st_size if self.folder.log.is_file() else 0,
        }
        save_state(self.folder, fold.state(finished=self.finished) | own)
        self.folder.divergence_note.unlink(missing_ok=True)
        self.saved_iteration = at.iteration
        self.saved = time.monotonic()
        self.save_seconds = self.saved - begun

    @contextmanager
    def _calibrated_predictor(self) -> Iterator[None]:
        """At the end of training, the running statistics to predict with are computed again for the body."""
        fold, n_batches = self.fold, self.fold.plan.training.recalibrate if self.finished else 0
        if not n_batches:
            yield
            return
        with renewed_statistics(fold.predictor, fold.calm_passes(n_batches)) as n_norms:
            seen = count(n_batches, "training batch", "training batches")
            self._tell(f"{self.folder.path}: running statistics of {count(n_norms, 'norm')} recalibrated on {seen}.")
            yield

    def _tell_epoch(self, history: Sequence[Row]) -> None:
        self._tell(epoch_line(history[-1], *self._title()))
        if history[-1]["stopped_early"]:
            self._tell(plateau_text(history))

    def _title(self) -> tuple[str, int]:
        return self.about["fold"], self.schedule.n_epochs

    def _pace(self) -> str:
        at, epoch = self.fold.at, self.epoch
        title = epoch_title({"epoch": at.epoch + 1}, *self._title())
        pace = f"{epoch.n_steps / epoch.seconds:.2f} it/s  {duration_text(self.schedule.seconds_left(at))} left"
        return f"{title}  loss {epoch.loss:.3f}  {pace}"

    def _write_history(self) -> None:
        if self.keeps:
            write_history(self.folder.history, self.fold.at.history)

    def _tell(self, text: str) -> None:
        if self.keeps:
            say(text)
            self.log(text)

    def log(self, text: str) -> None:
        """Write a line into the fold's log, if there is something to write."""
        if self.keeps and text:
            with self.folder.log.open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
