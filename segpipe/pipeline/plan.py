"""Plan a dataset: fingerprint, splits and plan into a work folder, where every later stage begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from segpipe.bridge.nnunet_fingerprint import NnunetDataset, read_nnunet_dataset, read_nnunet_fingerprint
from segpipe.bridge.nnunet_plans_read import read_nnunet_plans
from segpipe.core.errors import PlanError, UsageError
from segpipe.core.files import make_folder, write_text
from segpipe.core.machine import total_bytes
from segpipe.core.progress import say
from segpipe.core.records import read_mapping
from segpipe.core.work import Work, preferred_configuration
from segpipe.data.check import refuse_bad_headers
from segpipe.data.dataset import Dataset
from segpipe.data.load import load_dataset
from segpipe.data.splits import (
    FoldRow,
    Splits,
    fold_table,
    label_gaps,
    make_splits,
    read_nnunet_splits,
    split_by_site,
)
from segpipe.fingerprint.changes import remeasure
from segpipe.fingerprint.record import Fingerprint
from segpipe.pipeline.requests import PlanRequest
from segpipe.plan.edit import check_edits, edit_plan, mirrored_sides, parse_assignments, warn_of_sides
from segpipe.plan.laterality import ORIENTATION, order_in
from segpipe.plan.make import CpuMemory, make_plan
from segpipe.plan.patch import PredictMemory
from segpipe.plan.planned_cost import PlannedCost
from segpipe.plan.presets import CPU_PRESETS, PRESETS, SHARE_OF_RAM, find_preset
from segpipe.plan.reasons import plan_warnings
from segpipe.plan.schema import CONFIGURATIONS, Plan, PlanCommand
from segpipe.plan.training import Training

NNUNET_SPLITS = "splits_final.json"
_SET = "--set="


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


@dataclass(frozen=True)
class PlanJob:
    """Planning that was checked.

    Args:
        request: As it was asked.
        work: Folder for the plan.
        source: The dataset; or what nnU-Net's dataset.json says of one whose images are not needed.
        known_splits: Folds of the work folder or of nnU-Net's file; None to split the dataset.
    """

    request: PlanRequest
    work: Work
    source: Dataset | NnunetDataset
    known_splits: Splits | None


@dataclass(frozen=True)
class Planned:
    """A plan and what it will take; no costs if they were not asked for.

    Args:
        plan: What was decided.
        costs: One for each configuration.
        folds_source: Where the folds come from, one sentence; empty without images.
        folds: What each fold validates and trains on, by label and site.
    """

    plan: Plan
    costs: tuple[PlannedCost, ...]
    folds_source: str = ""
    folds: tuple[FoldRow, ...] = ()


def resolve(request: PlanRequest) -> PlanJob:
    """Find the dataset and read what is read without measuring images.

    Raises:
        UsageError: If the work folder is the dataset itself, or belongs to something else.
        DataError: If the dataset or a file of nnU-Net cannot be used.
        PlanError: If the preset is unknown, or an edit cannot be one.
        SetupError: If there is no such device.
    """
    check_options(request)
    work = Work(request.folder)
    if request.data is None:
        assert request.nnunet_dataset is not None
        if work.dataset.is_file():
            raise UsageError(f"-o {work.path}: holds the plan of a dataset with images. Choose another folder.")
        return PlanJob(request, work, read_nnunet_dataset(request.nnunet_dataset), None)
    dataset = load_dataset(request.data)
    if request.folds_by == "site":
        return PlanJob(request, work, dataset, split_by_site(dataset))
    splits = _kept_splits(work, dataset) if request.keeps_plan and request.splits_file is None else None
    file = request.splits_file or request.data / NNUNET_SPLITS
    if splits is None and (file.is_file() or request.splits_file is not None):
        splits = read_nnunet_splits(file, dataset)
        say(f"{file}: its folds are used.")
    return PlanJob(request, work, dataset, splits)


def check_options(request: PlanRequest) -> None:
    """Check what can be checked without the dataset.

    Raises:
        UsageError: If the work folder is the dataset itself, or belongs to something else.
        PlanError: If the preset is unknown, or an edit cannot be one.
        SetupError: If there is no such device.
    """
    work = Work(request.folder)
    kept = Plan.load(work.plan) if request.keeps_plan and work.plan.is_file() else None
    recipes = _recipes(request)
    if kept is not None:
        recipes.append(kept.training)
    is_free = request.nnunet_plans is not None or kept is not None
    check_edits(request.edits, recipes, () if is_free else CONFIGURATIONS)
    source = request.data or request.nnunet_fingerprint
    assert source is not None
    _refuse_foreign(work, source)
    if request.predicts_costs:
        from segpipe.networks.device import resolve_device  # late: this needs torch

        resolve_device(request.machine.device)


def _recipes(request: PlanRequest) -> list[Training]:
    """The trainings that a plan may begin with, before it is edited."""
    if request.nnunet_plans is not None:
        return [Training()]
    presets = PRESETS.values() if request.preset == "auto" else [find_preset(request.preset)]
    return [preset.training for preset in presets]


def run(job: PlanJob) -> Planned:
    """Measure, decide, and write it all into the work folder; an old plan is kept as plan.previous.yaml.

    Raises:
        DataError: If the dataset cannot be used.
        PlanError: If an edit is wrong, or the plan does not fit into memory.
    """
    if isinstance(job.source, NnunetDataset):
        return _plan_without_images(job, job.source)
    make_folder(job.work.path)
    planned, costs = decide(job, job.work.measured_cases)
    work = planned.work
    planned.fingerprint.save(work.fingerprint)
    planned.dataset.save(work.dataset)
    work.nnunet_dataset.unlink(missing_ok=True)  # of a plan without images that was here before
    _save_keeping(work.splits, planned.splits.to_json())
    _save_keeping(work.plan, planned.plan.to_yaml())
    table = fold_table(planned.splits.folds, planned.dataset, label_presence(planned.fingerprint))
    return Planned(planned.plan, costs, planned.splits.source, table)


def decide(job: PlanJob, measured_cases: Path) -> tuple[PlannedWork, tuple[PlannedCost, ...]]:
    """Measure the images and decide everything; nothing but measurements is written.

    Args:
        job: With images.
        measured_cases: File for the measurements; those in it that still hold are not repeated.

    Raises:
        DataError: If the dataset cannot be used.
        PlanError: If an edit is wrong, or the plan does not fit into memory.
    """
    request, dataset = job.request, job.source
    assert isinstance(dataset, Dataset)
    n_workers = request.machine.n_workers
    refuse_bad_headers(dataset, n_workers)
    fingerprint = remeasure(measured_cases, dataset, n_workers)
    splits = job.known_splits
    presence = label_presence(fingerprint)
    if splits is None:
        splits = make_splits(dataset, presence, request.seed, request.n_folds)
    else:
        gaps = (gap for gap in label_gaps(splits.folds, dataset, presence) if gap not in splits.warnings)
        splits = splits.model_copy(update={"warnings": (*splits.warnings, *gaps)})
    plan = _make_plan(fingerprint, dataset, request, splits.k)
    if request.keeps_plan:
        plan = _kept_plan(job.work, plan)
    planned = _affordable(edit_plan(plan, request.edits), fingerprint, request)
    planned = replace(planned, plan=_with_command(planned.plan, plan, request))
    _warn_of_mirroring(plan, planned.plan)
    for warning in (*splits.warnings, *plan_warnings(planned.plan, fingerprint)):
        say(f"warning: {warning}")
    return PlannedWork(job.work, dataset, fingerprint, splits, planned.plan), planned.costs


def label_presence(fingerprint: Fingerprint) -> dict[str, frozenset[str]]:
    return {case.case_id: case.present for case in fingerprint.cases}


def _plan_without_images(job: PlanJob, described: NnunetDataset) -> Planned:
    request, work = job.request, job.work
    assert request.nnunet_fingerprint is not None and request.nnunet_dataset is not None
    fingerprint = read_nnunet_fingerprint(request.nnunet_fingerprint, described)
    plan = _make_plan(fingerprint, described, request, request.n_folds)
    planned = _affordable(edit_plan(plan, request.edits), fingerprint, request)
    planned = replace(planned, plan=_with_command(planned.plan, plan, request))
    _warn_of_mirroring(plan, planned.plan)
    make_folder(work.path)
    fingerprint.save(work.fingerprint)
    write_text(work.nnunet_dataset, request.nnunet_dataset.read_text(encoding="utf-8"))
    _save_keeping(work.plan, planned.plan.to_yaml())
    return planned


def _make_plan(fingerprint: Fingerprint, source: Dataset | NnunetDataset, request: PlanRequest, n_folds: int) -> Plan:
    labels, budget = source.labels, request.time_budget_seconds
    fold_seconds = None if budget is None else budget / (request.n_trained_folds or n_folds)
    if request.nnunet_plans is not None:
        stored, digest = fingerprint.orientation, fingerprint.content_digest()
        plan = read_nnunet_plans(request.nnunet_plans, fingerprint.channels, labels, stored, digest)
        order = order_in(ORIENTATION, stored, plan.axis_order)
        plan = plan.model_copy(update={"orientation": ORIENTATION, "axis_order": order})
    else:
        device, memory_gib = _planned_device(request)
        predict = _memory_predictor(fingerprint, source, request)
        for_cpu = _planned_cpu_memory(request, device)
        plan = make_plan(
            fingerprint, labels, source.name, request.preset, device, memory_gib, predict, fold_seconds, for_cpu
        )
    plan = plan.model_copy(update={"training": plan.training.model_copy(update={"seed": request.seed})})
    return plan.model_copy(update={"command": PlanCommand(options=_options(request, n_folds), plan_digest="")})


def _options(request: PlanRequest, n_folds: int) -> tuple[str, ...]:
    device, memory_gib = ("cuda", None) if request.nnunet_plans is not None else _planned_device(request)
    return request.options(device, memory_gib, n_folds)


def _with_command(plan: Plan, before: Plan, request: PlanRequest) -> Plan:
    """The plan with the command that makes it; of one that was kept, the old command with the new edits.

    Args:
        plan: After the edits.
        before: New, without a digest of its command; or the one that was kept.
        request: What was asked now.
    """
    command = before.command
    if command is None or (command.plan_digest and before.is_edited):
        return plan  # made by an older version, or edited by hand: no command makes it
    if command.plan_digest:
        kept = [text for text in command.options if not text.startswith(_SET)]
        old = [text.removeprefix(_SET) for text in command.options if text.startswith(_SET)]
        keys = {edit.partition("=")[0].strip() for edit in request.edits}
        edits = [edit for edit in old if edit.partition("=")[0].strip() not in keys] + list(request.edits)
        try:
            parse_assignments(edits)
        except PlanError:  # an edit of a part of what an older edit replaced: two commands, not one
            return plan
        command = PlanCommand(options=(*kept, *(f"{_SET}{edit}" for edit in edits)), plan_digest="")
    made = command.model_copy(update={"plan_digest": plan.decisions.digest()})
    return plan.model_copy(update={"command": made})


def _affordable(plan: Plan, fingerprint: Fingerprint, request: PlanRequest) -> Planned:
    """The plan and what it will take. `auto` shrinks it until it fits; a preset or an edit that does not is refused.

    Raises:
        PlanError: If it does not fit into memory.
    """
    if not request.predicts_costs:
        return Planned(plan, ())
    from segpipe.pipeline.costs import (  # late: this needs torch
        fit_to_memory,
        memory_limit_gib,
        misfits,
        planned_costs,
        too_large,
    )

    machine, most_gib = request.machine, request.max_memory_gib
    limit_gib = memory_limit_gib(plan, most_gib)
    costs = planned_costs(plan, fingerprint, machine, most_gib)
    if not too_large(costs, limit_gib):
        return Planned(plan, tuple(costs))
    if request.preset == "auto" and not request.edits:
        plan = fit_to_memory(plan, costs, machine, limit_gib)
        return Planned(plan, tuple(planned_costs(plan, fingerprint, machine, most_gib)))
    faults = misfits(plan, costs, machine, limit_gib)
    if request.edits or not PRESETS[plan.preset].is_exact:
        raise PlanError("\n  ".join(faults))
    for fault in faults:  # nnU-Net's own figure stays nnU-Net's
        say(f"warning: {fault}")
    return Planned(plan, tuple(costs))


def _memory_predictor(
    fingerprint: Fingerprint, source: Dataset | NnunetDataset, request: PlanRequest
) -> PredictMemory | None:
    """Predicts memory for the presets that are planned by it."""
    preset = PRESETS.get(request.preset)
    if preset is None or preset.reference_voxels:
        return None
    from segpipe.pipeline.costs import predictor  # late: this needs torch

    return predictor(len(fingerprint.channels), source.labels, preset.training)


def _planned_device(request: PlanRequest) -> tuple[str, float | None]:
    """Device and memory that `auto` plans for; other presets have a memory of their own, so torch is not needed."""
    if request.preset != "auto" or request.gpu_memory_gib is not None:
        return "cuda", request.gpu_memory_gib
    from segpipe.networks.device import device_kind, gpu_memory_gib

    return device_kind(request.machine.device), gpu_memory_gib(request.machine.device)


def _planned_cpu_memory(request: PlanRequest, device: str) -> CpuMemory | None:
    """Memory of a CPU that `auto` plans for, or that was asked for; None: the preset's own.

    Raises:
        UsageError: If it is asked for, and the plan is for a GPU.
    """
    is_for_cpu = request.preset in CPU_PRESETS or (request.preset == "auto" and device == "cpu")
    if request.max_memory_gib is not None:
        if not is_for_cpu or request.nnunet_plans is not None:
            raise UsageError(
                f"--max-memory {request.max_memory_gib:g}: is the memory of a CPU, and this plan is for a GPU. Use "
                "--gpu-memory, or add --device cpu to preset auto."
            )
        return CpuMemory(request.max_memory_gib, is_limit=True)
    found = SHARE_OF_RAM * total_bytes() / 2**30
    return CpuMemory(found, is_limit=False) if request.preset == "auto" and is_for_cpu and found else None


def _warn_of_mirroring(before: Plan, edited: Plan) -> None:
    """Tell of mirrored sides that the preset brings; `edit_plan` tells of those that edits bring."""
    if mirrored_sides(before):
        warn_of_sides(edited)


def _save_keeping(path: Path, text: str) -> None:
    """Write a file that a person may have edited; its former content stays beside it."""
    if path.is_file() and (before := path.read_text(encoding="utf-8")) != text:
        previous = path.with_name(f"{path.stem}.previous{path.suffix}")
        write_text(previous, before)
        say(f"{path}: replaced; the old one is kept as {previous.name}.")
    write_text(path, text)


def _kept_splits(work: Work, dataset: Dataset) -> Splits | None:
    """The splits in the work folder if they are of these cases."""
    if not work.splits.is_file():
        return None
    splits = Splits.load(work.splits)
    named = {case_id for fold in splits.folds for case_id in (*fold.train, *fold.validation)}
    return splits if named == set(dataset.by_id) else None


def _kept_plan(work: Work, plan: Plan) -> Plan:
    """The plan in the work folder if it was made for the same data and preset, else `plan`."""
    if not work.plan.is_file():
        return plan
    old = Plan.load(work.plan)
    return old if (old.fingerprint, old.preset) == (plan.fingerprint, plan.preset) else plan


def _refuse_foreign(work: Work, data: Path) -> None:
    """Never write a work folder's files over a dataset's.

    Raises:
        UsageError: If the work folder is the dataset, or holds a dataset.json that is not segpipe's.
    """
    if work.path.resolve() == (data.parent if data.is_file() else data).resolve():
        raise UsageError(f"-o {work.path}: is the dataset itself. Choose another folder, so nothing is overwritten.")
    if work.dataset.is_file() and "patients_from" not in read_mapping(work.dataset, UsageError):
        raise UsageError(f"{work.dataset}: does not belong to a work folder. Choose another output folder.")
