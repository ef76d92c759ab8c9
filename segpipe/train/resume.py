"""Check that the training in a folder is the one that is asked for, so that it may resume."""

from __future__ import annotations

from typing import Any

from segpipe.core.errors import UsageError
from segpipe.core.text import count
from segpipe.core.work import FoldFolder, Work
from segpipe.data.splits import Fold, Splits
from segpipe.plan.schema import Plan
from segpipe.plan.training import Training
from segpipe.plan.training_commands import PlanChange, plan_changes, train_commands, training_advice
from segpipe.train.checkpoint import load_state, save_state
from segpipe.train.schedule import Progress, Schedule
from segpipe.train.show import has_plateaued
from segpipe.train.weights_header import about_weights

PROCESSES = "processes"  # that trained together: written beside weights
_WATCHES = ("checkpoint_minutes", "snapshots", "early_stop_epochs", "collapse_epochs")
_LENGTH = ("epochs", "iterations", "time_budget_seconds")
_AFTER_DIVERGENCE = ("learning_rate", "warmup_fraction", "gradient_clip", "precision")
_RESTART = "Use another work folder, or add --restart to `segpipe train` to discard this training and start over."


def state_of_same_training(plan: Plan, split: Fold, folder: FoldFolder, n_processes: int = 1) -> dict[str, Any] | None:
    """Load the state to resume from, if it belongs to this plan and these cases; `finished` if nothing is left to do.

    A finished training that is made longer is no longer finished, in its folder too.

    Raises:
        UsageError: As `require_same_training`.
    """
    state = load_state(folder)
    if state is not None:
        require_same_training(plan, split, folder, is_finished=bool(state["finished"]), n_processes=n_processes)
        at = Progress(state["iteration"], state["epoch"], state["seconds"], state["history"])
        is_over = Schedule(plan.training).is_over(at, 0.0) or has_plateaued(at.history, plan.training.early_stop_epochs)
        if state["finished"] and not is_over and has_other_length(Plan.load(folder.plan), plan):
            state["finished"] = False
            save_state(folder, state)
    return state


def require_same_training(
    plan: Plan, split: Fold, folder: FoldFolder, *, is_finished: bool, n_processes: int = 1
) -> None:
    """Refuse to resume a training that belongs to another plan or to other cases.

    What only watches or saves may change, and the time budget of an unfinished training. Where the learning rate does
    not depend on the length (constant, without a warm-up) the length may change too: the result is that of a training
    which was as long from the first. After a loss that was not finite so may what can mend it. Reasons are not
    compared: they train nothing.

    Raises:
        UsageError: If it does.
    """
    if not (folder.plan.is_file() and folder.split.is_file()):
        raise UsageError(
            f"{folder.path}: holds a training, but plan.yaml or split.json is missing, so its plan and cases are "
            f"unknown. Put the file back. {_RESTART}"
        )
    if Fold.load(folder.split) != split:
        raise UsageError(
            f"{folder.path}: was trained on other cases than splits.json lists now; validating on the new ones would "
            f"leak training cases. Put the old splits back. {_RESTART}"
        )
    old = Plan.load(folder.plan)
    free = _may_change(old.training, is_finished=is_finished, has_diverged=folder.divergence_note.is_file())
    changed = {name: getattr(plan.training, name) for name in free}
    same = old.model_copy(update={"training": old.training.model_copy(update=changed)})
    if changes := _changes(same, plan):
        key, before, now = changes[0].key, changes[0].value, changes[0].planned
        where = f"{folder.path}: holds a training with another plan ({key}: {before}, now {now})."
        processes = int(about_weights(folder.weights).get(PROCESSES, 1)) if folder.weights.is_file() else 1
        if key.endswith(".batch_size") and processes != n_processes:
            way = _by_devices(key, int(str(before)), processes, n_processes)
        else:
            way = _by_length(old.training) if key.removeprefix("training.") in _LENGTH else ""
            way = " ".join(filter(None, (_as_begun(folder), way, _RESTART)))
        raise UsageError(f"{where} {way}")


def has_other_length(old: Plan, plan: Plan) -> bool:
    """Return whether two plans of one training end it at different lengths."""
    names = (*_LENGTH, "early_stop_epochs")
    return any(getattr(old.training, name) != getattr(plan.training, name) for name in names)


def changes_text(old: Plan, plan: Plan) -> str:
    """Describe what changes on the way, for the log; empty if nothing does."""
    found = [f"{change.key} {change.planned} instead of {change.value}" for change in _changes(old, plan)]
    return f" From here on {', '.join(found)}." if found else ""


def forget(folder: FoldFolder) -> None:
    """Delete the states that a training could resume from."""
    for path in (folder.state, folder.previous_state, folder.divergence_note):
        path.unlink(missing_ok=True)


def _may_change(old: Training, *, is_finished: bool, has_diverged: bool) -> tuple[str, ...]:
    if old.schedule == "constant" and not old.warmup_fraction:
        length: tuple[str, ...] = _LENGTH
    else:
        length = () if is_finished else ("time_budget_seconds",)
    return (*_WATCHES, *length, *(_AFTER_DIVERGENCE if has_diverged else ()))


def _as_begun(folder: FoldFolder) -> str:
    """Say which commands train this fold and the others as it was begun; empty if none does."""
    work = Work(folder.path.parent.parent.parent)
    if not (work.plan.is_file() and work.splits.is_file()):
        return ""
    name, number = folder.path.parent.name, folder.path.name.removeprefix("fold_")
    if not train_commands(work, name, [number]):
        return ""
    folds = [str(fold) for fold in range(Splits.load(work.splits).k)]
    return f"To continue as it was begun: {training_advice(work, name, folds)}."


def _by_devices(key: str, whole: int, before: int, now: int) -> str:
    """Say what to do about a batch that another number of devices shared."""
    each, rest = divmod(whole, now)
    same = f", or with --set {key}={each} for the same batch on {now}" if not rest else ""
    return (
        f"It was trained on {count(before, 'device')} with {count(whole // before, 'patch', 'patches')} each; now "
        f"there {'is' if now == 1 else 'are'} {now}. Resume with --devices {before}{same}, or add --restart to "
        "start over."
    )


def _by_length(old: Training) -> str:
    """Say why a training cannot be made longer, and what to do."""
    return (
        f"Its learning rate depends on its length ({old.schedule}{', warm-up' if old.warmup_fraction else ''}), so its "
        "length cannot change; only a training with training.schedule=constant and no warm-up can be made longer."
    )


def _changes(trained: Plan, planned: Plan) -> tuple[PlanChange, ...]:
    return plan_changes(planned.model_dump(), trained.model_dump())
