"""Predict cases: one mask for each, on its image's own grid; resumable, and no case ends the others."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, ResourceError
from segpipe.core.files import disk_fault, make_folder, only_process, remove_leftovers
from segpipe.core.grid import Grid
from segpipe.core.progress import Pace, say, track
from segpipe.core.volume import write_mask, write_shares
from segpipe.data.dataset import Case
from segpipe.predict.ensemble import Ensemble
from segpipe.predict.input_warnings import warnings_of
from segpipe.predict.memory import budget_for, case_bytes, segment_in_memory, window_bytes, windows_at_once
from segpipe.predict.model import Model
from segpipe.predict.options import PredictOptions
from segpipe.predict.outputs import (
    UNCERTAINTY_FOLDER,
    CaseRow,
    PredictionTable,
    is_done,
    label_sizes,
    mask_path,
    mean_inside,
    probabilities_path,
    row_of_mask,
    uncertainty_paths,
    write_label_table,
)
from segpipe.predict.ownership import MadeWith, claim_folder
from segpipe.predict.postprocess import NO_POSTPROCESSING, Postprocessing, postprocess
from segpipe.predict.probability_spool import ProbabilitySpool
from segpipe.predict.result import MEMORY_EXIT, CaseFault, PredictionResult
from segpipe.predict.segment import Segmentation, SegmentOptions, prepared_for
from segpipe.predict.size import passes_of, passes_text, readable_grids, require_usual_size, steps_of
from segpipe.prepare.case import Prepared, read_case_image

Result = TypeVar("Result")
ERROR_LOG = "errors.log"
# What one image can bring about, in segpipe or in a library; what a machine or a command is not fit for ends the run.
_UNEXPECTED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def predict_cases(
    model: Model | Ensemble,
    cases: Sequence[Case],
    folder: Path,
    options: PredictOptions | None = None,
    postprocessing: Postprocessing = NO_POSTPROCESSING,
) -> PredictionResult:
    """Predict the cases that are not there yet; one that cannot be predicted does not keep the others from it.

    The next case is read and the last one written while one is predicted.

    Args:
        model: Folds to average, or configurations whose averages are averaged again.
        cases: Images; labels are not read.
        folder: Where the masks go, `<case_id>.nii.gz`, with `predictions.csv`, `dseg.tsv` and, if something
            unforeseen happened to a case, `errors.log`.
        options: What to write and how; None for masks alone. The models and `postprocessing` are given, so what the
            options say of them is not read.
        postprocessing: Steps for the masks; probabilities stay as they are.

    Raises:
        UsageError: If the folder holds masks of another model or of unknown origin, or is where the images lie.
        ResourceError: If the disk is full.
        SetupError: If the folder is not writable.
    """
    ensemble = model if isinstance(model, Ensemble) else Ensemble((model,))
    options = options or PredictOptions()
    make_folder(folder)
    with only_process(folder):
        for place in (folder, folder / UNCERTAINTY_FOLDER):
            remove_leftovers(place)
        labels = ensemble.plan.labels
        made = MadeWith(
            model=ensemble.digest,
            mirrored=options.mirror,
            images={},
            postprocessing=postprocessing,
            labels=labels,
        )
        claim_folder(folder, cases, made)
        write_label_table(folder, labels)
        run = _Run(ensemble, folder, options, postprocessing)
        missing = [case for case in cases if not is_done(folder, case.case_id, options, ensemble.uncertainty_names)]
        run.take_up([case.case_id for case in cases], {case.case_id for case in missing})
        if len(missing) < len(cases):
            say(f"{folder}: {len(cases) - len(missing)} of {len(cases)} masks are there already.")
        run.predict(missing)
        rows = tuple(run.table.rows[case.case_id] for case in cases if case.case_id in run.table.rows)
        faults = tuple(run.faults[case.case_id] for case in cases if case.case_id in run.faults)
        return PredictionResult(folder, rows, faults)


@dataclass(frozen=True, eq=False)
class _Ready:
    """A case that is read, and prepared as each member needs it."""

    prepared: tuple[Prepared, ...]
    grid: Grid
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class _Computed:
    """A case that is predicted and is to be written; `spool` holds its probabilities, if they are wanted."""

    ready: _Ready
    found: Segmentation
    spool: ProbabilitySpool | None
    seconds: float


class _Run:
    """One command's work on a folder: what is done, and what went wrong."""

    def __init__(
        self, ensemble: Ensemble, folder: Path, options: PredictOptions, postprocessing: Postprocessing
    ) -> None:
        self.ensemble, self.folder, self.options, self.postprocessing = ensemble, folder, options, postprocessing
        self.budget = budget_for(ensemble.device, options.max_memory_gib)
        self.segmenting = SegmentOptions(mirror=options.mirror, with_uncertainty=options.uncertainty)
        self.window_bytes = 0
        self.grids: dict[str, Grid] = {}
        self.table = PredictionTable(folder, ensemble.plan.labels)
        self.faults: dict[str, CaseFault] = {}

    def take_up(self, case_ids: Sequence[str], missing: set[str]) -> None:
        """Begin with the rows of the masks that are there; a row that is gone is made of its mask."""
        there = [c for c in self.table.rows if c not in missing and mask_path(self.folder, c).is_file()]
        self.table.keep(there)
        for case_id in case_ids:
            if case_id not in missing and case_id not in self.table.rows:
                row = self._attempt(case_id, partial(row_of_mask, self.folder, case_id, self.ensemble.plan.labels))
                if row is not None:
                    self.table.add(row)

    def predict(self, cases: Sequence[Case]) -> None:
        """Predict cases one after the other."""
        if not cases:
            return
        models = self.ensemble.models
        n_windows = min(windows_at_once(model, self.budget) for model in models)
        self.segmenting = replace(self.segmenting, batch_windows=n_windows)
        if self.ensemble.device.type == "cpu":
            self.window_bytes = max(window_bytes(model, n_windows) for model in models)
        self.grids = readable_grids(cases)
        n_passes = [passes_of(grid, self.ensemble, mirror=self.options.mirror) for grid in self.grids.values()]
        if n_passes:
            say(f"{len(cases)} image{'s' * (len(cases) > 1)}: {passes_text(n_passes)}.")
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            for case, reading in track(self._read_ahead(cases), "predicting", len(cases)):
                computed = self._attempt(case.case_id, partial(self._compute, case.case_id, reading), is_memory=True)
                if writing:
                    writing.result()  # at most one mask waits, and a full disk ends the run
                writing = None
                if computed is not None:
                    write = partial(self._write, case, computed)
                    writing = writer.submit(self._attempt, case.case_id, write)
            if writing:
                writing.result()

    def _compute(self, case_id: str, reading: Future[_Ready]) -> _Computed:
        ready = reading.result()
        started = time.monotonic()
        pace = Pace(f"{case_id}, windows", steps_of(self.ensemble, ready.prepared, self.segmenting))
        options, spool = replace(self.segmenting, on_window=pace.step), None
        if self.options.probabilities:
            spool = ProbabilitySpool(self.folder, ready.prepared[0].trace, self.ensemble.plan.labels)
            options = replace(options, keep=spool.add)
        try:
            found, taken = segment_in_memory(self.ensemble, ready.prepared, options, case_id)
        except BaseException as fault:
            if spool is not None:
                spool.close()
                if isinstance(fault, OSError):  # of the spool: nothing else writes here
                    raise disk_fault(fault, self.folder) from fault
            raise
        self.segmenting = replace(self.segmenting, batch_windows=taken.batch_windows)
        # the prepared image is not needed any more; writing may take as long as the next case, whose memory was counted
        return _Computed(replace(ready, prepared=()), found, spool, time.monotonic() - started)

    def _write(self, case: Case, computed: _Computed) -> None:
        started, ready, found = time.monotonic(), computed.ready, computed.found
        labels = self.ensemble.plan.labels
        if computed.spool is not None:
            with closing(computed.spool) as spool:
                spool.write(probabilities_path(self.folder, case.case_id))
        for name, shares in found.uncertainty.items():
            write_shares(uncertainty_paths(self.folder, case.case_id)[name], shares, case.image_paths[0])
        mask = self._postprocessed(found.mask_zyx, ready.grid)
        write_mask(mask_path(self.folder, case.case_id), mask, case.image_paths[0])
        self.table.add(
            CaseRow(
                case_id=case.case_id,
                seconds_prepare=ready.seconds,
                seconds_network=computed.seconds,
                seconds_export=time.monotonic() - started,
                sizes=label_sizes(mask, ready.grid, labels),
                warnings=ready.warnings,
                **{f"mean_{name}": mean_inside(shares, mask, labels) for name, shares in found.uncertainty.items()},
            )
        )

    def _postprocessed(self, mask_zyx: NDArray[Any], grid: Grid) -> NDArray[Any]:
        if not self.postprocessing.labels:
            return mask_zyx
        voxel_mm3 = float(np.prod(grid.spacing_mm))
        return postprocess(mask_zyx, voxel_mm3, self.ensemble.plan.labels, self.postprocessing)

    def _read_ahead(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Future[_Ready]]]:
        """Read and prepare the next case while one is predicted, or after it where memory does not hold both."""
        with ThreadPoolExecutor(1) as reader:
            upcoming: Future[_Ready] | None = None
            for case, after in zip_longest(cases, cases[1:]):
                current = upcoming or reader.submit(self._read, case)
                upcoming = None
                current.exception()  # wait, so that at most one prepared case is held ahead
                if after is not None and self.budget.holds(self._need_bytes(case) + self._need_bytes(after)):
                    upcoming = reader.submit(self._read, after)
                yield case, current

    def _need_bytes(self, case: Case) -> int:
        """Host memory that a case will take; 0 if its header cannot be read, which is said when the image is."""
        if case.case_id not in self.grids:
            return 0
        grid = self.grids[case.case_id]
        return case_bytes(grid, self.ensemble, self.options, windows_bytes=self.window_bytes, spools=True)

    def _read(self, case: Case) -> _Ready:
        started = time.monotonic()
        if not self.options.any_size and case.case_id in self.grids:
            require_usual_size(case.case_id, self.grids[case.case_id], self.ensemble)
        self.budget.require(case.case_id, self._need_bytes(case))
        volume = read_case_image(case, self.ensemble.plan)
        members = self.ensemble.members
        prepared = [prepared_for(member, volume) for member in members]
        warnings = warnings_of(volume, prepared[0].trace, members[0].plan, members[0].trained_on)
        for warning in warnings:
            say(f"warning: {case.case_id}: {warning}.")
        return _Ready(tuple(prepared), volume.grid, warnings, time.monotonic() - started)

    def _attempt(self, case_id: str, work: Callable[[], Result], *, is_memory: bool = False) -> Result | None:
        """What `work` on a case gives; None if it failed, which is noted instead of ending the run.

        Args:
            case_id: Which.
            work: What to do.
            is_memory: Whether a ResourceError is of this case; else it is the disk, which no other case would escape.
        """
        try:
            return work()
        except DataError as fault:
            self._note(case_id, str(fault), DataError.exit_code)
        except MemoryError as fault:
            self._note(case_id, f"memory is not enough ({fault}). Use a machine with more.", MEMORY_EXIT)
        except ResourceError as fault:
            if not is_memory:
                raise
            self._note(case_id, str(fault), MEMORY_EXIT)
        except _UNEXPECTED as fault:
            with (self.folder / ERROR_LOG).open("a", encoding="utf-8") as log:
                log.write(f"{case_id}\n{''.join(traceback.format_exception(fault))}\n")
            text = f"unexpected {type(fault).__name__} ({fault}); the whole of it is in {ERROR_LOG}."
            self._note(case_id, text, DataError.exit_code)
        return None

    def _note(self, case_id: str, text: str, exit_code: int) -> None:
        line = text if text.startswith(f"{case_id}:") else f"{case_id}: {text}"
        self.faults[case_id] = CaseFault(case_id, line, exit_code)
        say(line)
