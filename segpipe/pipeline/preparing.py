"""What preparing a work folder would take, without doing it."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.work import Work
from segpipe.data.dataset import Dataset
from segpipe.pipeline.machine import Machine
from segpipe.pipeline.stages import default_configuration
from segpipe.plan.schema import Plan
from segpipe.prepare.current import states_of
from segpipe.prepare.dataset import Needs, needs_of, prepared_folder


def preparing_needs(folder: Path, configuration: str | None, machine: Machine) -> Needs:
    """Cases of a work folder that are not prepared yet, and the disk and memory they will take.

    Raises:
        UsageError: If the folder holds no plan.
        DataError: If the data are not those that were planned for.
    """
    work = Work(folder)
    work.require_plan()
    plan = Plan.load(work.plan)
    chosen = plan.configurations[default_configuration(plan, configuration)]
    states = states_of(work, Dataset.load(work.dataset), prepared_folder(work, plan, chosen), machine.n_workers)
    return needs_of(work, [state for state in states if not state.is_current], plan, chosen, machine.n_workers)
