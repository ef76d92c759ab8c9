"""Whether the training in a folder is the one that is asked for, so that it may go on."""

from __future__ import annotations

from typing import Any

from segpipe.core.errors import UsageError
from segpipe.core.work import FoldFolder
from segpipe.data.splits import Fold
from segpipe.plan.schema import Plan
from segpipe.train.checkpoint import load_state

_MAY_CHANGE = ("time_budget_seconds", "checkpoint_minutes", "early_stop_epochs", "collapse_epochs")


def state_of_same_training(plan: Plan, split: Fold, folder: FoldFolder) -> dict[str, Any] | None:
    """The state to go on from, if it belongs to this plan and these cases.

    In an unfinished training the time budget and what only watches or saves may change; all else must be equal.

    Raises:
        UsageError: If it belongs to another plan or to other cases.
    """
    state = load_state(folder)
    if state is not None:
        require_same_training(plan, split, folder, is_finished=bool(state["finished"]))
    return state


def require_same_training(plan: Plan, split: Fold, folder: FoldFolder, *, is_finished: bool) -> None:
    """Refuse to go on with a training that is there, if it belongs to another plan or to other cases.

    Raises:
        UsageError: If it does.
    """
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
    if not is_finished:
        changed = {name: getattr(plan.training, name) for name in _MAY_CHANGE}
        old = old.model_copy(update={"training": old.training.model_copy(update=changed)})
    if old != plan:
        raise UsageError(
            f"{folder.path}: holds a training with another plan ({_difference(old, plan)}). Use another work "
            "folder, or delete this fold's folder to train it anew."
        )


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
