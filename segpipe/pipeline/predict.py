"""Predict images with trained models, or average predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

from segpipe.core.errors import DataError, ResourceError, SegpipeError, UsageError
from segpipe.core.foreseen import Foreseen, free_disk_bytes
from segpipe.core.grid import Grid
from segpipe.core.itk import series_choice
from segpipe.core.machine import free_bytes
from segpipe.core.text import count, size_text
from segpipe.core.volume import read_header
from segpipe.core.work import FoldFolder
from segpipe.data.dataset import Case
from segpipe.data.inputs import list_inputs
from segpipe.networks.cost import CPU
from segpipe.networks.device import free_device_bytes, resolve_device, set_processors
from segpipe.pipeline.cascade import warn_of_guides
from segpipe.pipeline.requests import PredictRequest
from segpipe.plan.schema import Plan
from segpipe.predict.ensemble_files import ensemble_folders
from segpipe.predict.folds import Members, find_members, postprocessing_for, read_postprocessing, temperature_for
from segpipe.predict.memory import (
    budget_for,
    passes_of,
    passes_text,
    prediction_bytes,
    readable_grids,
    require_usual_size,
    window_bytes,
    windows_of,
)
from segpipe.predict.model import Ensemble, load_model
from segpipe.predict.outputs import CaseFault, PredictionResult, PredictionTable, check_claim, is_done, mask_path
from segpipe.predict.package import open_model
from segpipe.predict.postprocess import NO_POSTPROCESSING, Postprocessing
from segpipe.predict.run import made_with, predict_cases

PROBABILITY_BYTES = 2  # float16
_MASK_BYTES = 0.05  # of a voxel, compressed: of 60 public label maps the largest took 0.036


@dataclass(frozen=True)
class PredictJob:
    """A prediction that was checked: its models are loaded, its images listed.

    Args:
        request: As it was asked.
        ensemble: What predicts.
        postprocessing: Steps for the masks.
        cases: Images.
        left: Those of them that are not predicted yet.
        seconds_per_window: Of each network, as measured on its validation cases; None if that was not recorded.
        faults: Of the images that are known to be unusable, such as those without a channel; they are in no other list.
    """

    request: PredictRequest
    ensemble: Ensemble
    postprocessing: Postprocessing
    cases: tuple[Case, ...]
    left: tuple[Case, ...]
    seconds_per_window: tuple[float | None, ...]
    faults: tuple[CaseFault, ...]


def resolve(request: PredictRequest) -> PredictJob:
    """Find and load the models, list the images, and check that the output folder may take their masks.

    Raises:
        UsageError: If there is no such model, models do not go together, or the output folder holds another model's
            masks.
        PlanError: If the postprocessing is wrong.
        DataError: If there are no images, or channels are missing.
        SetupError: If there is no such device.
    """
    options, device = request.options, resolve_device(request.machine.device)
    with ExitStack() as stack:
        homes = [stack.enter_context(open_model(model)) for model in request.models]
        members = [found for home in homes for found in find_members(home, options.configurations, options.fold_names)]
        _require_distinct(members)
        ensemble = Ensemble(
            tuple(load_model(folders, device) for folders in members), temperature_for(options, members)
        )
        for model, folders in zip(ensemble.members, members, strict=True):
            for folder in folders:
                warn_of_guides(folder, model.configuration.previous)
        steps = postprocessing_for(options, members, ensemble.plan.labels)
        rates = tuple(
            seconds_per(folder, partial(windows_of, model=model))
            for folders, model in zip(members, ensemble.members, strict=True)
            for folder in folders
        )
    faults: list[CaseFault] = []
    note = partial(_note_fault, faults)
    with series_choice(request.series):
        cases = tuple(list_inputs(request.inputs, ensemble.plan.channels, note))
        _, changed = check_claim(request.output, cases, made_with(ensemble, options, steps))
    left = tuple(
        case
        for case in cases
        if case.case_id in changed or not is_done(request.output, case.case_id, options, ensemble.uncertainty_names)
    )
    return PredictJob(request, ensemble, steps, cases, left, rates, tuple(faults))


def _note_fault(faults: list[CaseFault], case_id: str, text: str) -> None:
    faults.append(CaseFault(case_id, text if case_id in text else f"{case_id}: {text}", DataError.exit_code))


def run(job: PredictJob) -> PredictionResult:
    """Predict the images that are not predicted yet; a fault of one of them is in the outcome.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the folder is not writable.
    """
    request = job.request
    set_processors(request.machine.n_workers)
    with series_choice(request.series):
        found = predict_cases(job.ensemble, job.cases, request.output, request.options, job.postprocessing)
    return replace(found, faults=(*job.faults, *found.faults))


def estimate(job: PredictJob) -> Foreseen:
    """Estimate the time, disk and memory that a prediction will take; of the images only headers are read."""
    ensemble, options = job.ensemble, job.request.options
    with series_choice(job.request.series):
        sizing = _Sizing(job)
    n_vox, largest_vox = (of(prod(grid.shape_zyx) for grid in sizing.grids) for of in (sum, partial(max, default=0)))
    counts = [windows_of(grid, model) for model in ensemble.members for _ in model.networks for grid in sizing.grids]
    rates = (rate for rate in job.seconds_per_window for _ in sizing.grids)
    seconds = None
    if None not in job.seconds_per_window:
        seconds = sum(n * rate for n, rate in zip(counts, rates, strict=True) if rate is not None)
        seconds /= 1 if options.mirror else 2 ** len(ensemble.plan.mirror_axes)
    per_output = PROBABILITY_BYTES * ensemble.plan.labels.n_outputs * options.probabilities
    per_vox = _MASK_BYTES + per_output + PROBABILITY_BYTES * 2 * options.uncertainty
    others = "; the other masks exist already" if len(job.left) < len(job.cases) else ""
    return Foreseen(
        command="predict",
        todo=f"{len(job.left)} of {count(len(job.cases), 'image')} with "
        f"{count(len(job.seconds_per_window), 'network')}{others}",
        seconds=seconds,
        seconds_from="no prediction of this model was timed here; predict one image first"
        if seconds is None
        else "at the pace of the folds' validation cases, on the machine that predicted them",
        disk_bytes=round(n_vox * per_vox + largest_vox * per_output),
        free_disk_bytes=free_disk_bytes(job.request.output),
        memory_bytes=CPU.context_bytes + max(sizing.case_bytes, default=0),
        free_memory_bytes=free_bytes(),
        memory_of="CPU",
        notes=tuple(sizing.notes()),
        exit_code=PredictionResult.exit_code_of([*job.faults, *sizing.faults.values()]),
    )


class _Sizing:
    """The images that are left, by their headers: grids, memory, and which of them cannot be predicted."""

    def __init__(self, job: PredictJob) -> None:
        self.job, ensemble, options = job, job.ensemble, job.request.options
        on_host = ensemble.device.type != "cuda"
        self.window_bytes = max(window_bytes(model, 1) for model in ensemble.models)
        budget = budget_for(ensemble.device, options.max_memory_gib)
        readable = readable_grids(job.left)
        self.grids: list[Grid] = []
        self.case_bytes: list[int] = []
        self.faults: dict[str, SegpipeError] = {}
        for case in job.left:
            try:
                grid = readable.get(case.case_id) or read_header(case.image_paths[0]).grid
                if not options.any_size:
                    require_usual_size(case.case_id, grid, ensemble)
                windows = self.window_bytes if on_host else 0
                need = prediction_bytes(grid, ensemble, options, windows_bytes=windows, spools=True)
                budget.require(case.case_id, need)
            except (DataError, ResourceError) as fault:
                self.faults[case.case_id] = fault
            else:
                self.grids.append(grid)
                self.case_bytes.append(need)

    def notes(self) -> Iterable[str]:
        """Yield how much work the images are, which are left out, and what a window takes on a GPU."""
        ensemble, request = self.job.ensemble, self.job.request
        n_passes = [passes_of(grid, ensemble, mirror=request.options.mirror) for grid in self.grids]
        if n_passes:
            yield passes_text(n_passes)
        yield from (f"left out: {fault.text}" for fault in self.job.faults)
        for case_id, fault in self.faults.items():
            yield f"{case_id} would be left out: {str(fault).removeprefix(f'{case_id}: ')}"
        if ensemble.device.type == "cuda":
            free = size_text(free_device_bytes(request.machine.device))
            yield f"a window takes about {size_text(self.window_bytes)} of GPU memory ({free} free)"


def average(folders: Sequence[Path], output: Path, postprocessing: Path | None = None) -> PredictionResult:
    """Average the probabilities in folders of predictions; as `ensemble_folders`, with the steps of a file."""
    steps = NO_POSTPROCESSING if postprocessing is None else read_postprocessing(postprocessing)
    return ensemble_folders(folders, output, steps)


def seconds_per(folder: FoldFolder, size_of: Callable[[Grid], int]) -> float | None:
    """Time of one network on its validation cases, for each unit of their size; None if it was not recorded."""
    if not folder.plan.is_file() or not folder.validation.is_dir():
        return None
    seconds, size = 0.0, 0
    for row in PredictionTable(folder.validation, Plan.load(folder.plan).labels).rows.values():
        mask = mask_path(folder.validation, row.case_id)
        if row.seconds_network is not None and mask.is_file():
            seconds += row.seconds_network + (row.seconds_prepare or 0.0)
            size += size_of(read_header(mask).grid)
    return seconds / size if size else None


def _require_distinct(members: Members) -> None:
    """Refuse a configuration that is given twice: it would count twice.

    Raises:
        UsageError: If one is.
    """
    runs = [folders[0].path.parent.resolve() for folders in members]
    if twice := [run for run in runs if runs.count(run) > 1]:
        raise UsageError(f"{twice[0]}: is given twice; expected each configuration once. Leave one out.")
