"""Prepare the cases of a planned work folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segpipe.pipeline.plan import PlannedWork, default_configuration
from segpipe.pipeline.requests import PrepareRequest
from segpipe.prepare.dataset import Needs, needs_of, prepare_dataset, prepared_folder, states_of


@dataclass(frozen=True)
class PrepareJob:
    """Preparing that was checked.

    Args:
        planned: The work folder.
        configuration: Name of the one to prepare.
        n_workers: Number of cases to prepare at the same time.
    """

    planned: PlannedWork
    configuration: str
    n_workers: int


def resolve(request: PrepareRequest) -> PrepareJob:
    """Check a request.

    Raises:
        UsageError: If the folder holds no plan, or the plan no such configuration.
        PlanError, DataError: If a file of the folder is damaged or missing.
    """
    planned = PlannedWork.load(request.folder)
    return PrepareJob(planned, default_configuration(planned.plan, request.configuration), request.machine.n_workers)


def run(job: PrepareJob) -> Path:
    """Prepare the cases; returns their folder.

    Raises:
        DataError: If a case cannot be prepared, or the data are not those that were planned for.
        ResourceError: If memory or disk runs out.
    """
    planned = job.planned
    return prepare_dataset(planned.work, planned.dataset, planned.plan, job.configuration, job.n_workers)


def estimate(job: PrepareJob) -> Needs:
    """Count the cases that are not prepared yet, and the disk and memory they will take.

    Raises:
        DataError: If the data are not those that were planned for.
    """
    planned, own = job.planned, job.planned.plan.configurations[job.configuration]
    folder = prepared_folder(planned.work, planned.plan, own, planned.fingerprint)
    states = states_of(planned.work, planned.dataset, folder, job.n_workers, planned.fingerprint)
    missing = [state for state in states if not state.is_current]
    return needs_of(planned.work, missing, planned.plan, own, job.n_workers, planned.fingerprint)
