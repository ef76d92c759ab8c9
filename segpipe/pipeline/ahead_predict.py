"""What predicting would take: time as measured on validation cases, disk, memory by headers. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from segpipe.core.errors import DataError
from segpipe.core.foreseen import Foreseen, free_disk_bytes
from segpipe.core.grid import Grid
from segpipe.core.machine import free_bytes
from segpipe.core.volume import read_header
from segpipe.core.work import FoldFolder
from segpipe.data.dataset import Case
from segpipe.data.inputs import list_inputs
from segpipe.networks.cost import CPU
from segpipe.networks.device import resolve_device
from segpipe.networks.doctor import free_device_bytes
from segpipe.pipeline.candidates import STEPS, OutOfFold, Validated
from segpipe.pipeline.machine import Machine
from segpipe.pipeline.selection import candidates_of
from segpipe.plan.schema import Plan
from segpipe.predict.memory import prediction_bytes, window_bytes
from segpipe.predict.model import Ensemble, load_model
from segpipe.predict.options import PredictOptions
from segpipe.predict.outputs import PredictionTable, is_done, mask_path, probabilities_path
from segpipe.predict.package import opened
from segpipe.predict.postprocess import NO_POSTPROCESSING
from segpipe.predict.selected_model import find_members
from segpipe.predict.size import passes_of, passes_text, readable_grids, require_usual_size, windows_of

_SHARE_BYTES = 2  # of a probability, float16
_MASK_BYTES = 0.05  # of a voxel, compressed: of 60 public label maps the largest took 0.036


def prediction_ahead(
    models: Sequence[Path],
    inputs: Path,
    output: Path,
    machine: Machine,
    options: PredictOptions | None = None,
) -> Foreseen:
    """What `predict` with the same arguments would take; of the images only headers are read.

    Raises:
        UsageError, PlanError, DataError: As `predict` does before it begins.
    """
    options, device = options or PredictOptions(), resolve_device(machine.device)
    with ExitStack() as stack:
        homes = [stack.enter_context(opened(model)) for model in models]
        members = [found for home in homes for found in find_members(home, options.configurations, options.fold_names)]
        ensemble = Ensemble(tuple(load_model(found, device) for found in members))
        rates = [
            _seconds_per(folder, partial(windows_of, model=model))
            for found, model in zip(members, ensemble.members, strict=True)
            for folder in found
        ]
    cases = list_inputs(inputs, ensemble.plan.channels)
    if not cases:
        raise DataError(f"{inputs}: holds no images. Give a file, a folder of images, or a dataset.")
    left = [case for case in cases if not is_done(output, case.case_id, options, ensemble.uncertainty_names)]
    grids, notes = _predictable(left, ensemble, options)
    n_vox, largest_vox = (of(prod(grid.shape_zyx) for grid in grids) for of in (sum, partial(max, default=0)))
    counts = [windows_of(grid, model) for model in ensemble.members for _ in model.networks for grid in grids]
    windows = zip(counts, (rate for rate in rates for _ in grids), strict=True)
    seconds = None if None in rates else sum(n * rate for n, rate in windows if rate is not None)
    if seconds is not None and not options.mirror:
        seconds /= 2 ** len(ensemble.plan.mirror_axes)
    per_vox = _MASK_BYTES + _SHARE_BYTES * (
        ensemble.plan.labels.n_outputs * options.probabilities + 2 * options.uncertainty
    )
    spooled = _SHARE_BYTES * ensemble.plan.labels.n_outputs * options.probabilities
    on_gpu = device.type == "cuda"
    return Foreseen(
        command="predict",
        todo=f"{len(left)} of {len(cases)} images with {len(rates)} networks"
        + ("; the other masks are there" if len(left) < len(cases) else ""),
        seconds=seconds,
        seconds_from="no predicted case tells: predict one first" if seconds is None else
        "at the pace of the folds' validation cases, where they were predicted",
        disk_bytes=round(n_vox * per_vox + largest_vox * spooled),
        free_disk_bytes=free_disk_bytes(output),
        memory_bytes=_memory_bytes(grids, ensemble, options, on_gpu=on_gpu),
        free_memory_bytes=free_bytes(),
        memory_of="CPU",
        notes=(*notes, *(_gpu_note(ensemble, machine) if on_gpu else ())),
    )  # fmt: skip


def _predictable(
    cases: Sequence[Case], ensemble: Ensemble, options: PredictOptions
) -> tuple[list[Grid], tuple[str, ...]]:
    """Grids of the cases that would be predicted, and a note on how much work they are and on each of the others."""
    grids, notes = readable_grids(cases), []
    for case in cases:
        try:
            if case.case_id not in grids:
                read_header(case.image_paths[0])
            elif not options.any_size:
                require_usual_size(case.case_id, grids[case.case_id], ensemble)
        except DataError as fault:
            grids.pop(case.case_id, None)
            notes.append(f"{case.case_id} would be left out: {fault}")
    n_passes = [passes_of(grid, ensemble, mirror=options.mirror) for grid in grids.values()]
    return list(grids.values()), ((passes_text(n_passes),) if n_passes else ()) + tuple(notes)


def selection_ahead(folder: Path, metric: str, machine: Machine, *, ensembles: bool = False) -> Foreseen:
    """What `select_model` with the same arguments would take; one case is scored to know how long that takes.

    Raises:
        UsageError: As `select_model` does before it begins.
    """
    masks, names, left_out = candidates_of(folder, metric, machine)
    n_models = len(masks.with_ensembles(names))
    predicted: list[tuple[str, Validated]] = []
    if ensembles and len(names) > 1:
        predicted = [(name, one) for name in names for one in masks.cases if not _has_probabilities(masks, name, one)]
        n_models = 2 ** len(names) - 1  # each configuration and every set of them
    first = np.arange(len(masks.cases)) == 0
    masks.values(names[0], NO_POSTPROCESSING, first)  # loads what later ones find loaded
    started = time.perf_counter()
    masks.values(names[0], NO_POSTPROCESSING, first)
    seconds = (time.perf_counter() - started) * len(masks.cases) * n_models * len(STEPS) / machine.n_workers
    rates = [_seconds_per(masks.fold(name, one), _voxels) for name, one in predicted]
    vox = [prod(read_header(Path(one.case.label or "")).grid.shape_zyx) for _, one in predicted]
    seconds += sum((rate or 0.0) * n for rate, n in zip(rates, vox, strict=True))
    return Foreseen(
        command="select",
        todo=f"{n_models} models, {len(STEPS)} ways of postprocessing each, {len(masks.cases)} cases; "
        f"{len(predicted)} predictions to make again for their probabilities",
        seconds=seconds,
        seconds_from="at most: one case was scored, and most ways change little",
        disk_bytes=_SHARE_BYTES * masks.labels.n_outputs * sum(vox),
        free_disk_bytes=free_disk_bytes(folder),
        memory_bytes=0,
        free_memory_bytes=free_bytes(),
        memory_of="CPU",
        notes=tuple(f"{name} is left out: not all folds are trained and scored" for name in left_out),
    )


def _has_probabilities(masks: OutOfFold, name: str, one: Validated) -> bool:
    return probabilities_path(masks.fold(name, one).validation, one.case.case_id).is_file()


def _memory_bytes(grids: Sequence[Grid], ensemble: Ensemble, options: PredictOptions, *, on_gpu: bool) -> int:
    """On the host, of the largest case."""
    windows = 0 if on_gpu else max(window_bytes(model, 1) for model in ensemble.models)
    cases = [prediction_bytes(grid, ensemble, options, windows_bytes=windows, spools=True) for grid in grids]
    return CPU.context_bytes + max(cases, default=0)


def _gpu_note(ensemble: Ensemble, machine: Machine) -> tuple[str, ...]:
    need, free = (
        n / 2**30 for n in (max(window_bytes(m, 1) for m in ensemble.models), free_device_bytes(machine.device))
    )
    return (f"a window takes about {need:.1f} GiB of GPU memory ({free:.1f} GiB free)",)


def _voxels(grid: Grid) -> int:
    return prod(grid.shape_zyx)


def _seconds_per(folder: FoldFolder, size_of: Callable[[Grid], int]) -> float | None:
    """Of one network on its validation cases, for each unit of their size; None if nobody noted it."""
    if not folder.plan.is_file() or not folder.validation.is_dir():
        return None
    seconds, size = 0.0, 0
    for row in PredictionTable(folder.validation, Plan.load(folder.plan).labels).rows.values():
        mask = mask_path(folder.validation, row.case_id)
        if row.seconds_network is not None and mask.is_file():
            seconds += row.seconds_network + (row.seconds_prepare or 0.0)
            size += size_of(read_header(mask).grid)
    return seconds / size if size else None
