"""What every stage of a planned work folder begins with: its configuration, its prepared cases."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.errors import UsageError
from segpipe.core.work import Work, preferred_configuration
from segpipe.data.dataset import Dataset
from segpipe.pipeline.machine import Machine
from segpipe.plan.schema import Plan
from segpipe.prepare.dataset import prepare_dataset


def default_configuration(plan: Plan, name: str | None) -> str:
    """`name` if the plan has it; without a name 3d_fullres, or 2d if the data are flat.

    Raises:
        UsageError: If the plan has no configuration of that name.
    """
    chosen = name or preferred_configuration(plan.configurations)
    if chosen is None or chosen not in plan.configurations:
        raise UsageError(f"-c {chosen}: the plan has {', '.join(plan.configurations)}.")
    return chosen


def prepare(folder: Path, configuration: str | None, machine: Machine) -> Path:
    """Prepare all cases of a work folder; returns where they lie.

    Raises:
        UsageError: If the folder holds no plan.
        DataError: If a case cannot be prepared.
    """
    work = Work(folder)
    work.require_plan()
    plan = Plan.load(work.plan)
    name = default_configuration(plan, configuration)
    return prepare_dataset(work, Dataset.load(work.dataset), plan, name, machine.n_workers)
