"""A planned work folder, where every later stage begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import UsageError
from segpipe.core.work import Work, preferred_configuration
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits
from segpipe.fingerprint.record import Fingerprint
from segpipe.plan.schema import Plan


@dataclass(frozen=True)
class PlannedWork:
    """The results of planning, as a work folder has them; a dry run holds them in memory only.

    Args:
        work: The work folder.
        dataset: The dataset as it was understood.
        fingerprint: What was measured.
        splits: The folds.
        plan: What was decided.
    """

    work: Work
    dataset: Dataset
    fingerprint: Fingerprint
    splits: Splits
    plan: Plan

    @classmethod
    def load(cls, folder: Path) -> PlannedWork:
        """Read a work folder.

        Raises:
            UsageError: If the folder holds no plan.
            PlanError, DataError: If a file in it is damaged or missing.
        """
        work = Work(folder)
        work.require_plan()
        return cls(
            work=work,
            dataset=Dataset.load(work.dataset),
            fingerprint=Fingerprint.load(work.fingerprint),
            splits=Splits.load(work.splits),
            plan=Plan.load(work.plan),
        )


def default_configuration(plan: Plan, name: str | None) -> str:
    """`name` if the plan has it; without a name the `preferred_configuration`.

    Raises:
        UsageError: If the plan has no configuration of that name.
    """
    chosen = name or preferred_configuration(plan.configurations)
    if chosen is None or chosen not in plan.configurations:
        raise UsageError(f"-c {chosen}: the plan has {', '.join(plan.configurations)}.")
    return chosen
