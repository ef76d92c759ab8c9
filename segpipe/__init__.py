"""segpipe: from a folder of labelled scans to a model you can defend."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from segpipe._version import __version__ as __version__

if TYPE_CHECKING:
    from segpipe.evaluate.evaluation import Evaluation
    from segpipe.pipeline.run import Finished
    from segpipe.predict.api import Predictor

# Threads that wait for each other sleep instead of spinning. Beside another busy process spinning made a training step
# up to a hundred times slower, since each of its thousands of small parallel loops lost a time slice. Read by OpenMP
# when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def load(model: str | os.PathLike[str], *, device: str = "auto", **options: Any) -> Predictor:
    """Load a trained model, to segment arrays with it: `segpipe.load(model).predict(array, affine=affine)`.

    The process is left as it is: random generators, threads, signals and the current folder do not change. Only
    `max_memory_gib` on a GPU is a limit that torch keeps for the whole process.

    Args:
        model: A work folder, one of its `runs/<configuration>`, or a file of `segpipe pack`, which is unpacked to a
            temporary folder while it is loaded.
        device: `auto` (CUDA if there is one, else CPU), `cpu`, `cuda`, `cuda:N` or `mps`.
        options: Fields of `segpipe.predict.options.PredictOptions`: `configurations`, `folds`, `mirror`,
            `probabilities`, `uncertainty`, `calibrated`, `postprocessing`, `postprocesses`, `max_memory_gib`,
            `any_size`; `overwrite` changes nothing, as no files are written.

    Raises:
        UsageError: If there is no such model, or the file is damaged.
        PlanError: If its plan is wrong.
        SetupError: If there is no such device.
        TypeError: If there is no such option.
    """
    from segpipe.predict.api import load_predictor
    from segpipe.predict.options import PredictOptions

    if "max_memory_gb" in options:
        old = options.pop("max_memory_gb")
        options["max_memory_gib"] = _current_value(
            "max_memory_gb", old, "max_memory_gib", options.get("max_memory_gib")
        )
    return load_predictor(model, PredictOptions(**options), device)


def _current_value(old: str, old_value: float | None, new: str, value: float | None) -> float | None:
    """The value of a parameter, given by its name or by the one of the version before."""
    if old_value is None:
        return value
    if value is not None:
        raise TypeError(f"{old} is the old name of {new}. Give one of them.")
    warnings.warn(f"{old} is now {new}; the unit, GiB, is the same.", DeprecationWarning, stacklevel=3)
    return old_value


def run(
    data: str | os.PathLike[str],
    work: str | os.PathLike[str],
    *,
    preset: str = "auto",
    configuration: str | None = None,
    folds: Sequence[int] = (),
    time_budget_seconds: float | None = None,
    gpu_memory_gib: float | None = None,
    gpu_memory_gb: float | None = None,
    max_memory_gib: float | None = None,
    edits: Sequence[str] = (),
    n_folds: int = 5,
    folds_by: Literal["patient", "site"] = "patient",
    splits_file: str | os.PathLike[str] | None = None,
    device: str = "auto",
    n_workers: int | None = None,
    seed: int = 0,
) -> Finished:
    """Check a dataset, plan, train, evaluate and report, as `segpipe run` does. Call it again to resume.

    Args:
        data: The dataset.
        work: Folder for all results.
        preset: How to plan: `auto` or the name of a preset.
        configuration: Which to train; None for the default one.
        folds: Which; empty for all.
        time_budget_seconds: Total training time; None for the length in the plan.
        gpu_memory_gib: GPU memory to plan for; None for that of the device.
        gpu_memory_gb: Old name of `gpu_memory_gib`, which goes with the next version.
        max_memory_gib: Memory to plan for on a CPU; None for that of the machine.
        edits: Values of the plan, e.g. `training.epochs=100`.
        n_folds: Number of folds to split into, by patient.
        folds_by: `patient`, or `site` for one fold for each site, which it leaves out of training.
        splits_file: nnU-Net's splits_final.json to use instead.
        device: As for `load`.
        n_workers: Processors to use, which torch keeps for the whole process; None for `OMP_NUM_THREADS`, else all.
        seed: Random seed.

    Raises:
        SegpipeError: The class says of which kind (see core/errors.py).
    """
    from pathlib import Path

    from segpipe.core.machine import default_workers
    from segpipe.pipeline import run as runs
    from segpipe.pipeline.requests import Machine, RunRequest

    request = RunRequest(
        data=Path(data),
        folder=Path(work),
        machine=Machine(device, n_workers or default_workers()),
        preset=preset,
        gpu_memory_gib=_current_value("gpu_memory_gb", gpu_memory_gb, "gpu_memory_gib", gpu_memory_gib),
        max_memory_gib=max_memory_gib,
        edits=tuple(edits),
        n_folds=n_folds,
        folds_by=folds_by,
        splits_file=None if splits_file is None else Path(splits_file),
        seed=seed,
        configuration=configuration,
        folds=tuple(folds),
        time_budget_seconds=time_budget_seconds,
    )
    return runs.run(runs.resolve(request))


def evaluate(
    reference: str | os.PathLike[str],
    predictions: str | os.PathLike[str],
    *,
    labels: str | None = None,
    metrics: str | None = None,
    preset: str | None = None,
    policy: str | None = None,
    nsd_tolerance_mm: float | Mapping[str, float] | None = None,
    allow_missing: bool = False,
    ledger: str | os.PathLike[str] | None = None,
    by: Sequence[str] = (),
    cases: str | os.PathLike[str] | None = None,
    n_workers: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score masks against references, whatever made them, as `segpipe evaluate` does.

    Args:
        reference: Folder of masks, a dataset, or one file.
        predictions: Folder of masks of the same names, whatever their format, or one file.
        labels: `1,2`, `organ,tumour`, `a=1,region=1+2` or a .json file; None: found at the references.
        metrics: `all`, or names such as `dice,hd95`; None: those of the preset, or of whole masks.
        preset: Metrics that belong together, e.g. `lesions`.
        policy: What empty masks count: mr, nnunet, brats or omit; None: that of the preset.
        nsd_tolerance_mm: One for all labels, or by name; None: no NSD.
        allow_missing: Score what there is, though references lack a prediction.
        ledger: Work folder whose ledger notes this scoring; None: the one that the masks lie in, if any.
        by: Columns of the manifest or of `cases` to group cases by, e.g. `site`.
        cases: CSV with `case_id`, these columns, and `patient_id` where known; None for the manifest of the references.
        n_workers: Number of parallel workers; None for one per processor.
        seed: Of the bootstrap.

    Raises:
        UsageError: If a name is unknown.
        DataError: If masks are missing, cannot be read, or do not lie on the grid of their reference.
    """
    from dataclasses import replace
    from pathlib import Path

    from segpipe.core.machine import default_workers
    from segpipe.core.progress import collect_lines
    from segpipe.evaluate import evaluation

    request = evaluation.EvaluateRequest(
        reference=Path(reference),
        predictions=Path(predictions),
        n_workers=n_workers or default_workers(),
        seed=seed,
        labels=labels,
        metrics=metrics,
        preset=preset,
        policy=policy,
        nsd_tolerance_mm=nsd_tolerance_mm,
        allow_missing=allow_missing,
        ledger=None if ledger is None else Path(ledger),
        by=tuple(by),
        cases=None if cases is None else Path(cases),
    )
    with collect_lines() as lines:
        found = evaluation.run(evaluation.resolve(request))
    return replace(found, notes=tuple(lines))
