"""`segpipe train --profile`: where the time of a training would go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segpipe.core.work import Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits
from segpipe.networks.device import memory_faults, resolve_device, set_processors
from segpipe.pipeline.guiding import guides_for
from segpipe.pipeline.machine import Machine
from segpipe.pipeline.stages import default_configuration
from segpipe.pipeline.training import open_fold
from segpipe.plan.edit import edited
from segpipe.plan.schema import Plan
from segpipe.prepare.dataset import prepare_dataset
from segpipe.train.fold import FoldTraining
from segpipe.train.profile import Profile, profile_fold


def profile(
    folder: Path, configuration: str | None, machine: Machine, edits: Sequence[str] = (), fold: int = 0
) -> Profile:
    """Prepare the cases, as training does, and measure some steps of a fold; no training is touched.

    Args:
        folder: A work folder with a plan.
        configuration: Which; None for the default one.
        machine: What to compute on.
        edits: As for `plan`.
        fold: Which.

    Raises:
        UsageError: If the folder holds no plan, or no such configuration or fold.
        ResourceError: If memory or disk runs out.
    """
    work = Work(folder)
    work.require_plan()
    plan = edited(Plan.load(work.plan), edits)
    splits = Splits.load(work.splits)
    (fold,) = splits.select([fold])
    name = default_configuration(plan, configuration)
    device = resolve_device(machine.device)
    set_processors(machine.n_workers)
    dataset = Dataset.load(work.dataset)
    prepared = prepare_dataset(work, dataset, plan, name, machine.n_workers)
    guides = guides_for(work, dataset, plan, name, splits, machine)
    data = open_fold(prepared, splits, fold, machine, guides)
    with memory_faults(f"training {name}", "Use a smaller batch_size or patch_zyx (--set)."):
        return profile_fold(FoldTraining(plan, plan.configurations[name], data, device, is_new=True), name, folder)
