"""Predict cases: one mask for each, on its image's own grid. Runs resume; a case that fails does not end the run."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, ResourceError, SegpipeError, is_out_of_memory
from segpipe.core.files import make_folder, only_process, remove_leftovers
from segpipe.core.grid import Grid
from segpipe.core.prefetch import Prefetch
from segpipe.core.progress import Pace, say, track
from segpipe.core.text import count
from segpipe.core.volume import write_mask, write_shares
from segpipe.data.dataset import Case
from segpipe.predict.input_warnings import warnings_of
from segpipe.predict.memory import (
    budget_for,
    passes_of,
    passes_text,
    prediction_bytes,
    readable_grids,
    require_usual_size,
    steps_of,
    window_bytes,
    windows_at_once,
)
from segpipe.predict.model import Ensemble, Model
from segpipe.predict.options import PredictOptions
from segpipe.predict.outputs import (
    MEMORY_EXIT,
    UNCERTAINTY_FOLDER,
    CaseFault,
    CaseRow,
    MadeWith,
    PredictionResult,
    PredictionTable,
    claim_folder,
    is_done,
    label_sizes,
    mask_path,
    mean_inside,
    probabilities_path,
    row_of_mask,
    uncertainty_paths,
    write_label_table,
)
from segpipe.predict.postprocess import NO_POSTPROCESSING, Postprocessing, postprocess
from segpipe.predict.restore import ProbabilitySpool, Segmentation, Slab, open_spool
from segpipe.predict.segment import Batching, prepare_for, segment
from segpipe.prepare.case import Prepared, Trace, read_case_image

ERROR_LOG = "errors.log"
_OBSERVED_BYTES = 6  # of a voxel: what an observer takes while it encodes a reference


class CaseObserver(Protocol):
    """Takes the slabs of one case while it is predicted."""

    def add(self, slab: Slab, mask_NYX: NDArray[Any]) -> None:
        """Take a slab and its mask of file values; the first slab comes again if the case is begun again."""

    def finish(self) -> None:
        """Keep what was found."""


class Observer(Protocol):
    """Takes what is only known while cases are predicted, such as probabilities that no file keeps."""

    def is_done(self, case_id: str) -> bool:
        """False if a case must be predicted, even if its mask exists."""

    def begin(self, case: Case, grid: Grid, trace: Trace) -> CaseObserver:
        """Get ready for a case that was read."""


def predict_cases(
    model: Model | Ensemble,
    cases: Sequence[Case],
    folder: Path,
    options: PredictOptions | None = None,
    postprocessing: Postprocessing = NO_POSTPROCESSING,
    observer: Observer | None = None,
) -> PredictionResult:
    """Predict the cases that have no mask yet; one that fails does not keep the others from being predicted.

    While a case is predicted, the next one is read and the last one is written.

    Args:
        model: Folds to average, or configurations whose averages are averaged again.
        cases: Images; labels are not read.
        folder: Where the masks go, `<case_id>.nii.gz`, with `predictions.csv`, `dseg.tsv` and, if something unexpected
            happened to a case, `errors.log`.
        options: What to write and how; None for masks alone. The models and `postprocessing` are given, so what the
            options say of them is not read.
        postprocessing: Steps for the masks; probabilities stay as they are.
        observer: Looks on while cases are predicted.

    Raises:
        UsageError: If the folder holds masks of another model or of unknown origin, or is where the images are.
        ResourceError: If the disk is full.
        SetupError: If the folder is not writable.
    """
    ensemble = model if isinstance(model, Ensemble) else Ensemble((model,))
    options = options or PredictOptions()
    make_folder(folder)
    with only_process(folder):
        run = _FolderRun(ensemble, folder, options, postprocessing, observer)
        missing = run.begin(cases)
        reading = Prefetch(lambda n: run.read(missing[n]), 1, 1, stop=len(missing), may_begin=run.holds(missing))
        with ThreadPoolExecutor(1) as writer, reading:
            writing: Future[None] | None = None
            for index, case in enumerate(track(missing, "predicting", len(missing))):
                computed: _Computed | None = None
                with run.noting_faults(case.case_id, is_memory=True):
                    ready = reading.get(index)
                    started = time.monotonic()
                    batching = run.batching_of(case.case_id, ready)
                    with run.spool(ready) as spool:
                        keep = None if spool is None else spool.add
                        observe = None if ready.observer is None else ready.observer.add
                        found, taken = segment(
                            ensemble, ready.prepared, options, case.case_id, batching, keep=keep, observe=observe
                        )
                    run.n_windows = taken.n_windows
                    # Without the prepared image: writing may take as long as the next case, whose memory was counted.
                    ready = replace(ready, prepared=())
                    computed = _Computed(ready, found, spool, time.monotonic() - started)
                if writing:
                    writing.result()  # at most one mask waits, and a full disk ends the run
                writing = None if computed is None else writer.submit(run.write, case, computed)
                del computed
            if writing:
                writing.result()
        return run.result(cases)


def made_with(ensemble: Ensemble, options: PredictOptions, postprocessing: Postprocessing) -> MadeWith:
    """The record of a prediction's folder, without its images."""
    return MadeWith(
        model=ensemble.digest,
        mirrored=options.mirror,
        images={},
        postprocessing=postprocessing,
        labels=ensemble.plan.labels,
        temperature=ensemble.temperature,
    )


@dataclass(frozen=True, eq=False)
class _Ready:
    """A case that is read, and prepared as each member needs it."""

    prepared: tuple[Prepared, ...]
    grid: Grid
    warnings: tuple[str, ...]
    seconds: float
    observer: CaseObserver | None


@dataclass(frozen=True, eq=False)
class _Computed:
    """A predicted case to be written; `spool` holds its probabilities, if they are requested."""

    ready: _Ready
    found: Segmentation
    spool: ProbabilitySpool | None
    seconds: float


class _FolderRun:
    """One command's work on a folder: what is done, and what went wrong."""

    def __init__(
        self,
        ensemble: Ensemble,
        folder: Path,
        options: PredictOptions,
        postprocessing: Postprocessing,
        observer: Observer | None,
    ) -> None:
        self.observer = observer
        self.ensemble, self.folder, self.options, self.postprocessing = ensemble, folder, options, postprocessing
        self.labels = ensemble.plan.labels
        self.budget = budget_for(ensemble.device, options.max_memory_gib)
        self.n_windows, self.window_bytes = 1, 0
        self.grids: dict[str, Grid] = {}
        self.faults: dict[str, CaseFault] = {}

    def begin(self, cases: Sequence[Case]) -> list[Case]:
        """Take the folder over, with the rows of the masks that are there; returns the cases that are to be predicted.

        Raises:
            UsageError: If the folder holds masks of another model or of unknown origin, or is where the images are.
        """
        for place in (self.folder, self.folder / UNCERTAINTY_FOLDER):
            remove_leftovers(place)
        claim_folder(self.folder, cases, made_with(self.ensemble, self.options, self.postprocessing))
        write_label_table(self.folder, self.labels)
        maps = self.ensemble.uncertainty_names
        missing = [case for case in cases if not is_done(self.folder, case.case_id, self.options, maps)]
        if self.observer is not None:
            left = {case.case_id for case in missing}
            missing = [case for case in cases if case.case_id in left or not self.observer.is_done(case.case_id)]
        self._begin_table([case.case_id for case in cases], {case.case_id for case in missing})
        if len(missing) < len(cases):
            say(f"{self.folder}: {len(cases) - len(missing)} of {count(len(cases), 'mask')} exist already.")
        if missing:
            self._begin_work(missing)
        return missing

    def _begin_table(self, case_ids: Sequence[str], missing: set[str]) -> None:
        """Begin with the rows of the masks that are there; a row that is gone is made from its mask."""
        self.table = PredictionTable(self.folder, self.labels)
        kept = [c for c in self.table.rows if c not in missing and mask_path(self.folder, c).is_file()]
        self.table.keep(kept)
        for case_id in case_ids:
            if case_id not in missing and case_id not in self.table.rows:
                with self.noting_faults(case_id):
                    self.table.add(row_of_mask(self.folder, case_id, self.labels))

    def _begin_work(self, cases: Sequence[Case]) -> None:
        """Find how many windows fit at once, what they take, and how much work the cases are."""
        models = self.ensemble.models
        self.n_windows = min(windows_at_once(model, self.budget) for model in models)
        if self.ensemble.device.type == "cpu":
            self.window_bytes = max(window_bytes(model, self.n_windows) for model in models)
        self.grids = readable_grids(cases)
        n_passes = [passes_of(grid, self.ensemble, mirror=self.options.mirror) for grid in self.grids.values()]
        if n_passes:
            say(f"{count(len(cases), 'image')}: {passes_text(n_passes)}.")

    def result(self, cases: Sequence[Case]) -> PredictionResult:
        """Rows and faults in the order of the cases."""
        rows = tuple(self.table.rows[case.case_id] for case in cases if case.case_id in self.table.rows)
        faults = tuple(self.faults[case.case_id] for case in cases if case.case_id in self.faults)
        return PredictionResult(self.folder, rows, faults)

    def read(self, case: Case) -> _Ready:
        """Read and prepare a case.

        Raises:
            DataError: If it cannot be read or is far larger than the training cases.
            ResourceError: If it needs more memory than there is.
        """
        started = time.monotonic()
        if not self.options.any_size and case.case_id in self.grids:
            require_usual_size(case.case_id, self.grids[case.case_id], self.ensemble)
        self.budget.require(case.case_id, self._need_bytes(case))
        volume = read_case_image(case, self.ensemble.plan)
        members = self.ensemble.members
        prepared = [prepare_for(member, volume) for member in members]
        warnings = warnings_of(volume, prepared[0].trace, members[0].plan, members[0].trained_on)
        for warning in warnings:
            say(f"warning: {case.case_id}: {warning}.")
        seconds = time.monotonic() - started
        observer = None if self.observer is None else self.observer.begin(case, volume.grid, prepared[0].trace)
        return _Ready(tuple(prepared), volume.grid, warnings, seconds, observer)

    def holds(self, cases: Sequence[Case]) -> Callable[[int], bool]:
        """A function that is true if memory holds a case beside the one before it, so that it may be read ahead."""
        return lambda n: self.budget.holds(sum(self._need_bytes(case) for case in cases[max(0, n - 1) : n + 1]))

    def _need_bytes(self, case: Case) -> int:
        """Host memory that a case takes; 0 if its header cannot be read, which is reported when the image is read."""
        if case.case_id not in self.grids:
            return 0
        grid = self.grids[case.case_id]
        need = prediction_bytes(grid, self.ensemble, self.options, windows_bytes=self.window_bytes, spools=True)
        return need + (0 if self.observer is None else _OBSERVED_BYTES * prod(grid.shape_zyx))

    def batching_of(self, case_id: str, ready: _Ready) -> Batching:
        """Batching with as many windows as the last case took, which reports the progress of a long case."""
        pace = Pace(f"{case_id}, windows", steps_of(self.ensemble, ready.prepared, self.options))
        return Batching(self.n_windows, on_window=pace.step)

    def spool(self, ready: _Ready) -> AbstractContextManager[ProbabilitySpool | None]:
        """Open a spool for the probabilities of a case; None if they are not requested."""
        if not self.options.probabilities:
            return nullcontext()
        return open_spool(self.folder, ready.prepared[0].trace, self.labels)

    def write(self, case: Case, computed: _Computed) -> None:
        """Write the files and the row of a case; a fault is noted, but a full disk ends the run."""
        with self.noting_faults(case.case_id):
            self._write(case, computed)

    def _write(self, case: Case, computed: _Computed) -> None:
        started, ready, found = time.monotonic(), computed.ready, computed.found
        if computed.spool is not None:
            with closing(computed.spool) as spool:
                spool.write(probabilities_path(self.folder, case.case_id))
        if ready.observer is not None:
            ready.observer.finish()
        for name, shares in found.uncertainty.items():
            write_shares(uncertainty_paths(self.folder, case.case_id)[name], shares, case.image_paths[0])
        mask = found.mask_zyx
        if self.postprocessing.labels:
            mask = postprocess(mask, float(np.prod(ready.grid.spacing_mm)), self.labels, self.postprocessing)
        sizes = label_sizes(mask, ready.grid, self.labels)
        means = {f"mean_{name}": mean_inside(shares, mask, self.labels) for name, shares in found.uncertainty.items()}

        def add_row() -> None:
            """Before the mask has its name: killed in between, the row is dropped and the case predicted again."""
            seconds = (ready.seconds, computed.seconds, time.monotonic() - started)
            self.table.add(CaseRow(case.case_id, *seconds, sizes, ready.warnings, **means))

        write_mask(mask_path(self.folder, case.case_id), mask, case.image_paths[0], add_row)

    @contextmanager
    def noting_faults(self, case_id: str, *, is_memory: bool = False) -> Iterator[None]:
        """Note what goes wrong with a case in the body, instead of ending the run.

        Args:
            case_id: Which.
            is_memory: Whether a ResourceError is of this case; else it is the disk, which no other case would escape.

        Raises:
            SegpipeError: What the machine or the command is not fit for, and would end every other case too.
        """
        try:
            yield
        except DataError as fault:
            self._note(case_id, str(fault), DataError.exit_code)
        except ResourceError as fault:
            if not is_memory:
                raise
            self._note(case_id, str(fault), MEMORY_EXIT)
        except SegpipeError:
            raise
        # The one place where every error is caught (the architecture test names it): what one odd image brings about,
        # here or in a library, must not cost a night's worth of other masks. It is logged whole and counted as failed.
        except Exception as fault:  # noqa: BLE001
            if is_out_of_memory(fault):
                self._note(case_id, f"not enough memory ({fault}). Use a machine with more.", MEMORY_EXIT)
                return
            with (self.folder / ERROR_LOG).open("a", encoding="utf-8") as log:
                log.write(f"{case_id}\n{''.join(traceback.format_exception(fault))}\n")
            text = f"unexpected {type(fault).__name__} ({fault}); see {ERROR_LOG} for its traceback."
            self._note(case_id, text, DataError.exit_code)

    def _note(self, case_id: str, text: str, exit_code: int) -> None:
        line = text if text.startswith(f"{case_id}:") else f"{case_id}: {text}"
        self.faults[case_id] = CaseFault(case_id, line, exit_code)
        say(f"{case_id}: not predicted. The list at the end says why.")
