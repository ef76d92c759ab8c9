"""Commands that train folds of a work folder as its folds were trained before, and what those changed in the plan."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segpipe.core.errors import PlanError, SegpipeError
from segpipe.core.records import parse_yaml, read_mapping
from segpipe.core.text import command_text
from segpipe.core.work import FoldFolder, Work
from segpipe.plan.edit import edit_plan
from segpipe.plan.schema import Plan

_IN_WORDS = {  # by key of the plan; others are named by their key
    "training.epochs": "{} epochs",
    "training.iterations": "{} steps",
    "training.time_budget_seconds": "a time budget of {} s",
    "training.learning_rate": "a learning rate of {}",
    "training.seed": "seed {}",
}


@dataclass(frozen=True)
class PlanChange:
    """A value of a fold's plan that is not the one in the work folder's plan."""

    key: str
    value: Any
    planned: Any

    def __str__(self) -> str:
        """The change for people, e.g. `50 epochs (plan.yaml: 1000)`."""
        planned = "not set in plan.yaml" if self.planned is None else f"plan.yaml: {_value_text(self.planned)}"
        words = _IN_WORDS.get(self.key) if self.value is not None else None
        return f"{(words or f'{self.key} {{}}').format(_value_text(self.value))} ({planned})"

    @property
    def assignment(self) -> str:
        """The change as `--set` takes it."""
        is_plain = isinstance(self.value, str) and parse_yaml(self.value) == self.value
        return f"{self.key}={self.value if is_plain else json.dumps(self.value)}"


def plan_changes(planned: Mapping[str, Any], trained: Mapping[str, Any], place: str = "") -> tuple[PlanChange, ...]:
    """Differences of the plan of a fold by key; reasons are not compared."""
    changes: list[PlanChange] = []
    for key in dict.fromkeys([*planned, *trained]):
        ours, theirs, name = planned.get(key), trained.get(key), f"{place}{key}"
        if isinstance(ours, dict) and isinstance(theirs, dict):
            changes += plan_changes(ours, theirs, f"{name}.") if name != "reasons" else ()
        elif name == "command":
            continue  # of `segpipe plan`; a fold has none
        elif ours != theirs:
            changes.append(PlanChange(name, theirs, ours))
    return tuple(changes)


def train_commands(work: Work, configuration: str, folds: Iterable[str]) -> tuple[str, ...]:
    """Commands that train folds: each as it was begun, and the others as the first fold that was.

    The length of a fold's training is given for each fold (`--set training.…`), not as a budget that folds and devices
    share, so that the commands hold for any number of them.

    Args:
        work: The work folder, with a plan.
        configuration: Whose folds.
        folds: Their numbers.

    Returns:
        A command for each group of folds that are trained alike. Folds whose plan no `--set` leads to are left out:
        plan.yaml was made again since.
    """
    begun = {path.name.removeprefix("fold_"): FoldFolder(path) for path in work.run(configuration).glob("fold_*")}
    known = {name: edits for name in sorted(begun, key=_place) if (edits := _edits_of(work, begun[name])) is not None}
    usual = next((edits for name, edits in known.items() if name.isdecimal()), ())
    groups: dict[tuple[str, ...], list[str]] = {}
    for fold in folds:
        has_plan = fold in begun and begun[fold].plan.is_file()
        if fold in known or not has_plan:
            groups.setdefault(known.get(fold, usual), []).append(fold)
    return tuple(
        command_text(
            *("segpipe", "train", str(work.path), "-c", configuration, "-f", ",".join(names)),
            *(word for edit in edits for word in ("--set", edit)),
        )
        for edits, names in groups.items()
    )


def training_advice(work: Work, configuration: str, folds: Sequence[str], *options: str) -> str:
    """The commands of `train_commands` for a message: in backticks, joined by `and`.

    Args:
        work, configuration, folds: As for `train_commands`.
        options: Added to each command, e.g. `--restart`.
    """
    plain = command_text("segpipe", "train", str(work.path), "-c", configuration, "-f", ",".join(folds))
    commands = train_commands(work, configuration, folds) or (plain,)
    return " and ".join(f"`{' '.join((command, *options))}`" for command in commands)


def _edits_of(work: Work, fold: FoldFolder) -> tuple[str, ...] | None:
    """The edits that make the plan of a fold of the work folder's; None if there are none, or no plan."""
    if not fold.plan.is_file():
        return None
    try:
        changes = plan_changes(read_mapping(work.plan, PlanError), read_mapping(fold.plan, PlanError))
        planned, trained = Plan.load(work.plan), Plan.load(fold.plan)
    except SegpipeError:
        return None
    # a key that only the other plan has is set to null, or is gone because nothing reads it any more
    for kept in (changes, [change for change in changes if change.value is not None]):
        edits = tuple(change.assignment for change in kept)
        try:
            if edit_plan(planned, edits, warns=False).decisions == trained.decisions:
                return edits
        except PlanError:  # a value that `--set` cannot give
            continue
    return None


def _place(fold: str) -> tuple[bool, int]:
    return (not fold.isdecimal(), int(fold) if fold.isdecimal() else 0)


def _value_text(value: Any) -> str:
    """A value of the plan for people: 85 s for seconds is said by the key, so numbers lose their `.0`."""
    return "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
