"""A study as a file: arms, folds, seeds and one budget, fixed before anything is trained."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from segpipe.compare.comparison import DEFAULT_MARGIN
from segpipe.core.records import Record, did_you_mean
from segpipe.core.work import Work
from segpipe.data.dataset import CASE_NAME, is_case_name
from segpipe.evaluate.metrics import METRICS

_MAX_EPOCHS = 20  # points of the learning curve
_WIDTH = 80
STUDY_FILE = "study.yaml"  # in the study's folder
TRAINING_SHARES = (0.25, 0.5, 0.75, 1.0)  # quarters, since a stratified quarter is still like the whole
SEED_MARK = "{seed}"  # in the path of an arm of masks


class Base(Record):
    """Settings that all arms trained by segpipe share.

    Args:
        preset: As for `segpipe plan`.
        set: Values of the plan by their keys, as for `--set`.
        configuration: Which of the plan's is trained; None: the default one.
    """

    preset: str = "auto"
    set: dict[str, Any] = Field(default_factory=dict)
    configuration: str | None = None


class Arm(Record):
    """One method of a study: what differs from the base, or nnunetv2 itself, or masks that are there already.

    Args:
        preset: Another preset than the base's, whose `set` then does not count here.
        set: Values of the plan that differ from the base's; a key replaces the base's keys inside it.
        configuration: Another than the base's.
        nnunetv2: Train nnunetv2 with its own plan on the same splits.
        training_patients: Share of the training patients of each fold, 0.25, 0.5, 0.75 or 1: arms of a learning curve.
            Smaller sets lie within larger ones and are stratified by labels and sites.
        masks: A folder of masks `<case_id>…`; `{seed}` in it stands for the seed. Without it the masks are of one
            training, for all seeds of the study.
    """

    preset: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    configuration: str | None = None
    training_patients: float = 1.0
    nnunetv2: bool = False
    masks: str | None = None

    @field_validator("training_patients")
    @classmethod
    def _quarters(cls, share: float) -> float:
        if share not in TRAINING_SHARES:
            raise ValueError(f"{share:g}, expected one of {', '.join(map(str, TRAINING_SHARES))}")
        return share

    @model_validator(mode="after")
    def _one_kind(self) -> Arm:
        is_planned = bool(self.preset or self.set or self.configuration or self.training_patients < 1)
        if is_planned + self.nnunetv2 + (self.masks is not None) > 1:
            raise ValueError(
                "expected one of: plan values (preset, set, configuration, training_patients), nnunetv2: true, masks"
            )
        return self

    def mask_folders(self, seeds: Sequence[int]) -> list[Path]:
        """Folders of masks: one for each seed if the path names it, else one; none for an arm that is trained."""
        if self.masks is None:
            return []
        chosen = seeds if SEED_MARK in self.masks else seeds[:1]
        return [Path(self.masks.replace(SEED_MARK, str(seed))) for seed in chosen]

    @property
    def is_trained_here(self) -> bool:
        """True if segpipe trains it."""
        return not self.nnunetv2 and self.masks is None


class Study(Record):
    """Methods × folds × seeds under one budget, and what is asked of them.

    Args:
        name: For people.
        question: What the study is to answer, in words.
        data: The dataset, relative to the study's file; None: named on the command line.
        base: What all arms share.
        arms: By name; the first is the baseline: what is declared beforehand is that the others are compared with it.
        n_folds: Folds that the data are split into.
        split_seed: Of the split, the same for all arms and seeds.
        folds: Which of them are trained.
        seeds: Of trainings. A verdict on methods needs two or more.
        minutes: Wall-clock time of one training, that is of one arm, fold and seed.
        steps: Instead: optimizer steps of one training.
        processor_minutes: Instead: processor time of the steps of one training, all cores added up, on a CPU. It is
            turned into steps before the first training, by what a step of each arm takes (`StepCosts`). So other work
            on the machine takes nothing from any arm, and the trainings can be repeated.
        margins: Metrics to compare, each with the largest difference that counts as none, in its unit.
    """

    name: str
    question: str
    data: str | None = None
    base: Base = Field(default_factory=Base)
    arms: dict[str, Arm]
    n_folds: int = Field(default=5, ge=2)
    split_seed: NonNegativeInt = 0
    folds: tuple[NonNegativeInt, ...]
    seeds: tuple[NonNegativeInt, ...]
    minutes: PositiveFloat | None = None
    steps: PositiveInt | None = None
    processor_minutes: PositiveFloat | None = None
    margins: dict[str, PositiveFloat] = Field(default_factory=lambda: {"dice": DEFAULT_MARGIN})

    @field_validator("arms")
    @classmethod
    def _comparable(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        if len(arms) < 2:
            raise ValueError(f"{len(arms)} arm, expected two or more")
        wrong = [name for name in arms if not is_case_name(name)]
        if wrong:
            raise ValueError(f"arm {wrong[0]!r}, expected {CASE_NAME}")
        return arms

    @field_validator("folds", "seeds")
    @classmethod
    def _distinct(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if not numbers or len(set(numbers)) != len(numbers):
            raise ValueError("expected at least one number, none twice")
        return numbers

    @field_validator("margins")
    @classmethod
    def _refuse_unknown_metrics(cls, margins: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in margins if name not in METRICS]
        if unknown or not margins:
            raise ValueError(
                f"metric {(unknown or [''])[0]!r} is unknown.{did_you_mean((unknown or [''])[0], METRICS)}"
            )
        return margins

    @model_validator(mode="after")
    def _own_keys(self) -> Study:
        for name, values in {"base": self.base.set, **{name: arm.set for name, arm in self.arms.items()}}.items():
            taken = [key for key in values if key in ("training.seed", *self._budget_values())]
            if taken:
                raise ValueError(f"{name} sets {taken[0]}, which follows from seeds and the budget; leave it out")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> Study:
        if [self.minutes, self.steps, self.processor_minutes].count(None) != 2:
            raise ValueError("expected one of minutes, steps and processor_minutes: the budget of one training")
        if self.processor_minutes and any(arm.nnunetv2 for arm in self.arms.values()):
            raise ValueError("processor_minutes cannot be the budget of nnunetv2; expected minutes or steps")
        if max(self.folds) >= self.n_folds:
            raise ValueError(f"fold {max(self.folds)}, but there are {self.n_folds} folds, counted from 0")
        return self

    @property
    def trainings(self) -> tuple[StudyTraining, ...]:
        """Every training, those that are compared with each other next to each other."""
        return tuple(
            StudyTraining(name, fold, seed)
            for seed in self.seeds
            for fold in self.folds
            for name, arm in self.arms.items()
            if arm.masks is None
        )

    @property
    def budget(self) -> str:
        """The time budget of one training, for people."""
        if self.processor_minutes is not None:
            return f"{self.processor_minutes:g} min of processor time"
        return f"{self.steps} steps" if self.minutes is None else f"{self.minutes:g} min"

    def assignments(self, arm: Arm, seed: int, n_steps: int | None = None) -> tuple[str, ...]:
        """The edits of an arm's plan for one seed, as `edit_plan` takes them.

        Args:
            arm: One of the study's.
            seed: Of the training.
            n_steps: What the arm's processor time suffices for, once it is measured.
        """
        shared = {} if arm.preset else self.base.set
        kept = {key: value for key, value in shared.items() if not any(_is_inside(key, own) for own in arm.set)}
        values = kept | arm.set | self._budget_values(n_steps) | {"training.seed": seed}
        return tuple(f"{key}={json.dumps(value)}" for key, value in values.items())

    def _budget_values(self, n_steps: int | None = None) -> dict[str, Any]:
        if self.minutes is not None:
            return {"training.time_budget_seconds": 60.0 * self.minutes}
        n_steps = n_steps or self.steps or _MAX_EPOCHS
        n_epochs = max(n for n in range(1, _MAX_EPOCHS + 1) if n_steps % n == 0)
        return {
            "training.time_budget_seconds": None,
            "training.epochs": n_epochs,
            "training.iterations_per_epoch": n_steps // n_epochs,
        }


class StepCost(Record):
    """Processor time of a step of an arm.

    Args:
        edits: Of the arm's plan when it was measured.
        seconds: Processor time, all cores added up, drawing batches included.
    """

    edits: tuple[str, ...]
    seconds: PositiveFloat

    def n_steps(self, processor_minutes: float) -> int:
        """Steps that a processor time suffices for, whole epochs of `_MAX_EPOCHS`."""
        return _MAX_EPOCHS * max(1, round(60 * processor_minutes / self.seconds / _MAX_EPOCHS))


class StepCosts(Record):
    """Processor time of a step of each arm of a study, by arm."""

    arms: dict[str, StepCost]


@dataclass(frozen=True)
class StudyTraining:
    """One training of a study."""

    arm: str
    fold: int
    seed: int


def _is_inside(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


class StudyEstimate(Study):
    """A study with the number of its trainings.

    Args:
        n_trainings: All of them.
        n_finished: Those that are scored.
    """

    n_trainings: NonNegativeInt
    n_finished: NonNegativeInt

    def text(self) -> str:
        """For people, at most 80 columns wide except for long values."""
        return "\n".join([*describe_study(self), f"{self.n_finished} of them are finished."])


def describe_study(study: Study) -> Iterator[str]:
    """Describe what a study will do, in lines of at most 80 columns except for long values."""
    yield from textwrap.wrap(f"{study.name}: {study.question}", _WIDTH)
    for number, (name, arm) in enumerate(study.arms.items()):
        yield f"  {name}{' (baseline)' if number == 0 else ''}: {_about(study, arm)}"
        yield from (f"    {key} = {json.dumps(value)}" for key, value in arm.set.items())
    n_trainings = len(study.trainings)
    folds, seeds = (", ".join(map(str, numbers)) for numbers in (study.folds, study.seeds))
    minutes = study.minutes or study.processor_minutes
    time = "" if minutes is None else f", {_hours(n_trainings * minutes)} of training in all"
    total = f"{n_trainings} trainings: folds {folds} of {study.n_folds}, seeds {seeds}, {study.budget} each{time}."
    yield from textwrap.wrap(total, _WIDTH)
    if len(study.seeds) < 2:
        alone = "One seed: the verdict is on these trained models; one on the methods needs two or more seeds."
        yield from textwrap.wrap(alone, _WIDTH)


def _about(study: Study, arm: Arm) -> str:
    if arm.nnunetv2:
        return "nnunetv2 itself, on the same splits"
    if arm.masks is not None:
        return f"masks in {arm.masks}"
    name = arm.configuration or study.base.configuration
    share = f", {100 * arm.training_patients:.0f} % of the training patients" if arm.training_patients < 1 else ""
    return f"preset {arm.preset or study.base.preset}{f', {name}' if name else ''}{share}"


def _hours(minutes: float) -> str:
    return f"{minutes:.3g} min" if minutes < 120 else f"{minutes / 60:.3g} h"


def read_study(path: Path) -> Study:
    """A study from its file; data and masks are found from where it lies.

    Raises:
        PlanError: If it is no study.
    """
    study, home = Study.load(path), path.absolute().parent
    arms = {
        name: arm if arm.masks is None else arm.model_copy(update={"masks": str(home / arm.masks)})
        for name, arm in study.arms.items()
    }
    data = None if study.data is None else str(home / study.data)
    return study.model_copy(update={"arms": arms, "data": data})


@dataclass(frozen=True)
class StudyFolder:
    """Paths in a study's folder."""

    path: Path

    @property
    def step_costs(self) -> Path:
        """Processor time of a step of each arm, if the budget is one."""
        return self.path / "step_costs.json"

    @property
    def base(self) -> Work:
        """Fingerprint, splits, prepared data, and the plan before any arm changes it."""
        return Work(self.path / "base")

    def seed(self, arm: str, seed: int) -> Work:
        """One seed of an arm: a work folder that every command takes."""
        return Work(self.path / "arms" / arm / f"seed_{seed}")

    def scores(self, arm: str) -> Path:
        """Scores of all folds and seeds of an arm."""
        return self.path / "arms" / arm / "scores.csv"
