"""The first stages: fingerprint, splits and plan into a work folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.bridge.nnunet_fingerprint import read_nnunet_dataset, read_nnunet_fingerprint
from segpipe.bridge.nnunet_plans_read import read_nnunet_plans
from segpipe.core.errors import PlanError, UsageError
from segpipe.core.files import make_folder, write_text
from segpipe.core.labels import LabelSet
from segpipe.core.progress import say
from segpipe.core.records import read_mapping
from segpipe.core.work import Work
from segpipe.data.check import refuse_bad_headers
from segpipe.data.dataset import Dataset
from segpipe.data.load import load_dataset
from segpipe.data.splits import Splits, make_splits, read_nnunet_splits
from segpipe.fingerprint.changes import remeasure
from segpipe.fingerprint.record import Fingerprint
from segpipe.pipeline.machine import Machine
from segpipe.plan.edit import edited
from segpipe.plan.make import make_plan
from segpipe.plan.patch import PredictMemory
from segpipe.plan.planned_cost import PlannedCost
from segpipe.plan.presets import PRESETS
from segpipe.plan.schema import Plan

_NNUNET_SPLITS = "splits_final.json"


@dataclass(frozen=True)
class Choices:
    """What a person may say about a plan.

    Args:
        preset: A preset's name, or `auto`.
        gpu_memory_gb: GPU memory to plan for; None: that of the device.
        edits: Values of the plan to change, as `--set` gives them.
        n_folds: Folds to split into.
        splits_file: nnU-Net's splits_final.json to use instead.
        nnunet_plans: nnU-Net's plans.json to take the decisions from instead of a preset.
        seed: Of everything random.
        predict_costs: Whether memory, time and disk are predicted, which needs torch and a second or two; a plan that
            does not fit the memory is refused then.
        fold_seconds: Time to train one fold, which `auto` plans for; None: enough.
    """

    preset: str = "auto"
    gpu_memory_gb: float | None = None
    edits: Sequence[str] = ()
    n_folds: int = 5
    splits_file: Path | None = None
    nnunet_plans: Path | None = None
    seed: int = 0
    predict_costs: bool = True
    fold_seconds: float | None = None


@dataclass(frozen=True)
class Planned:
    """A plan and what it will take; no costs if they were not asked for."""

    plan: Plan
    costs: Sequence[PlannedCost]


def plan_data(data: Path, folder: Path, machine: Machine, choices: Choices, *, keep: bool = False) -> Planned:
    """Fingerprint, splits and plan of a dataset, into a work folder; an old plan is kept as plan.previous.yaml.

    With `keep`, a plan that is there for the same data and preset stays, edits by hand included.

    Raises:
        DataError: If the dataset cannot be used.
        PlanError: If the preset or an edit is wrong, or the plan does not fit the memory.
    """
    work = Work(folder)
    refuse_foreign(work, data)
    make_folder(folder)
    dataset = load_dataset(data)
    refuse_bad_headers(dataset, machine.n_workers)
    fingerprint = remeasure(work.measured_cases, dataset, machine.n_workers)
    splits = _kept_splits(work, dataset) if keep and choices.splits_file is None else None
    if splits is None:
        splits = _splits(dataset, fingerprint, choices, choices.splits_file or data / _NNUNET_SPLITS)
    plan = _decided(fingerprint, dataset.labels, dataset.name, machine, choices)
    planned = _affordable(edited(_kept(work, plan) if keep else plan, choices.edits), fingerprint, machine, choices)
    fingerprint.save(work.fingerprint)
    dataset.save(work.dataset)
    work.nnunet_dataset.unlink(missing_ok=True)  # of a plan without images that was here before
    _save_keeping(work.splits, splits.to_json())
    _save_keeping(work.plan, planned.plan.to_yaml())
    for warning in splits.warnings:
        say(f"warning: {warning}")
    return planned


def plan_nnunet_files(
    fingerprint_file: Path, dataset_file: Path, folder: Path, machine: Machine, choices: Choices
) -> Planned:
    """The same from nnU-Net's two files, without any image: fingerprint and plan into a work folder.

    Raises:
        UsageError: If the folder holds the plan of a dataset with images.
        DataError: If the files are not nnU-Net's, or belong to different datasets.
        PlanError: If the preset or an edit is wrong, or the plan does not fit the memory.
    """
    work = Work(folder)
    refuse_foreign(work, fingerprint_file.parent)
    if work.dataset.is_file():
        raise UsageError(f"-o {folder}: holds the plan of a dataset with images. Choose another folder.")
    described = read_nnunet_dataset(dataset_file)
    fingerprint = read_nnunet_fingerprint(fingerprint_file, described)
    plan = edited(_decided(fingerprint, described.labels, described.name, machine, choices), choices.edits)
    planned = _affordable(plan, fingerprint, machine, choices)
    make_folder(folder)
    fingerprint.save(work.fingerprint)
    write_text(work.nnunet_dataset, dataset_file.read_text(encoding="utf-8"))
    _save_keeping(work.plan, planned.plan.to_yaml())
    return planned


def _decided(fingerprint: Fingerprint, labels: LabelSet, name: str, machine: Machine, choices: Choices) -> Plan:
    if choices.nnunet_plans is not None:
        orientation, digest = fingerprint.orientation, fingerprint.content_digest()
        plan = read_nnunet_plans(choices.nnunet_plans, fingerprint.channels, labels, orientation, digest)
    else:
        device, memory = _planned_device(machine, choices)
        predict = _predictor(fingerprint, labels, choices)
        plan = make_plan(fingerprint, labels, name, choices.preset, device, memory, predict, choices.fold_seconds)
    return plan.model_copy(update={"training": plan.training.model_copy(update={"seed": choices.seed})})


def _affordable(plan: Plan, fingerprint: Fingerprint, machine: Machine, choices: Choices) -> Planned:
    """What the plan will take. `auto` makes it smaller until it fits; a preset or an edit is refused if it does not.

    Raises:
        PlanError: If it does not fit the memory.
    """
    if not choices.predict_costs:
        return Planned(plan, ())
    from segpipe.pipeline.costs import fitted, misfits, planned_costs, too_large  # late: this needs torch

    costs = planned_costs(plan, fingerprint, machine)
    if not too_large(plan, costs):
        return Planned(plan, costs)
    if choices.preset == "auto" and not choices.edits:
        plan = fitted(plan, costs, machine)
        return Planned(plan, planned_costs(plan, fingerprint, machine))
    faults = misfits(plan, costs, machine)
    if choices.edits or not PRESETS[plan.preset].is_exact:
        raise PlanError("\n  ".join(faults))
    for fault in faults:  # nnU-Net's own figure stays nnU-Net's
        say(f"warning: {fault}")
    return Planned(plan, costs)


def _predictor(fingerprint: Fingerprint, labels: LabelSet, choices: Choices) -> PredictMemory | None:
    """Predicts memory for the presets that are planned by it."""
    preset = PRESETS.get(choices.preset)
    if preset is None or preset.reference_voxels:
        return None
    from segpipe.pipeline.costs import predictor  # late: this needs torch

    return predictor(len(fingerprint.channels), labels, preset.training)


def _planned_device(machine: Machine, choices: Choices) -> tuple[str, float | None]:
    """What `auto` plans for; the other presets stand for a memory of their own, so that torch is not asked."""
    if choices.preset != "auto" or choices.gpu_memory_gb is not None:
        return "cuda", choices.gpu_memory_gb
    from segpipe.networks.device import device_kind, gpu_memory_gib

    return device_kind(machine.device), gpu_memory_gib(machine.device)


def _save_keeping(path: Path, text: str) -> None:
    """Write a file that a person may have edited; what it held before stays beside it."""
    if path.is_file() and (before := path.read_text(encoding="utf-8")) != text:
        previous = path.with_name(f"{path.stem}.previous{path.suffix}")
        write_text(previous, before)
        say(f"{path}: replaced; the one before is {previous.name}.")
    write_text(path, text)


def _kept_splits(work: Work, dataset: Dataset) -> Splits | None:
    """The splits in the work folder if they are of these cases."""
    if not work.splits.is_file():
        return None
    splits = Splits.load(work.splits)
    named = {case_id for fold in splits.folds for case_id in (*fold.train, *fold.validation)}
    return splits if named == set(dataset.by_id) else None


def refuse_foreign(work: Work, data: Path) -> None:
    """Never write a work folder's files over a dataset's.

    Raises:
        UsageError: If the work folder is the dataset, or holds a dataset.json that is not segpipe's.
    """
    if work.path.resolve() == (data.parent if data.is_file() else data).resolve():
        raise UsageError(
            f"-o {work.path}: is the dataset itself. Choose another folder, so that nothing is overwritten."
        )
    if work.dataset.is_file() and "patients_from" not in read_mapping(work.dataset, UsageError):
        raise UsageError(f"{work.dataset}: is not a work folder's. Choose another output folder.")


def _kept(work: Work, plan: Plan) -> Plan:
    """The plan in the work folder if it was made for the same data and preset, else `plan`."""
    if not work.plan.is_file():
        return plan
    old = Plan.load(work.plan)
    return old if (old.fingerprint, old.preset) == (plan.fingerprint, plan.preset) else plan


def _splits(dataset: Dataset, fingerprint: Fingerprint, choices: Choices, file: Path) -> Splits:
    if file.is_file() or choices.splits_file is not None:
        say(f"{file}: its folds are used.")
        return read_nnunet_splits(file, dataset)
    return make_splits(
        dataset, {case.case_id: case.present for case in fingerprint.cases}, choices.seed, choices.n_folds
    )
