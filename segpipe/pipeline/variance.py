"""Compare the running statistics of trained folds with what their norms are given in prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.analyse.variance import LayerVariance, measure_variance
from segpipe.core.errors import UsageError
from segpipe.core.records import Record
from segpipe.core.text import count
from segpipe.core.work import FoldFolder
from segpipe.networks.device import resolve_device
from segpipe.networks.parts import NORMS
from segpipe.pipeline.plan import PlannedWork, default_configuration
from segpipe.pipeline.requests import Machine
from segpipe.pipeline.train import numbered_folds, open_fold, prepared_cases
from segpipe.plan.schema import Plan
from segpipe.train.checkpoint import load_weights
from segpipe.train.fold import FoldTraining


class FoldVariance(Record):
    """The norms of a fold's network.

    Args:
        configuration, fold: Whose.
        n_batches: Augmented training batches that were seen.
        layers: The norms, in the network's order.
        notes: Sentences for a person.
    """

    configuration: str
    fold: str
    n_batches: int
    layers: tuple[LayerVariance, ...]
    notes: tuple[str, ...]


class VarianceReport(Record):
    """The analyses of all folds, which are also in each fold's `variance.json`."""

    folds: tuple[FoldVariance, ...]


@dataclass(frozen=True)
class VarianceRequest:
    """Trained folds to look into.

    Args:
        folder: A work folder.
        configuration: Which; None for the default one.
        folds: Names of folds; empty for all that are trained.
        n_batches: Training batches to measure on.
        machine: Where to compute.
    """

    folder: Path
    configuration: str | None
    folds: tuple[str, ...]
    n_batches: int
    machine: Machine


@dataclass(frozen=True)
class VarianceJob:
    """An analysis that was checked."""

    request: VarianceRequest
    planned: PlannedWork
    configuration: str
    folders: dict[str, FoldFolder]


def resolve(request: VarianceRequest) -> VarianceJob:
    """Find the trained folds.

    Raises:
        UsageError: If there is no such folder, configuration or trained fold, or its norms keep no running statistics.
    """
    planned = PlannedWork.load(request.folder)
    name = default_configuration(planned.plan, request.configuration)
    folders = numbered_folds(planned.work, name, request.folds)
    for folder in folders.values():
        norm = Plan.load(folder.plan).configurations[name].network.parts.norm
        if not NORMS[norm].keeps_running:
            known = ", ".join(key for key, row in NORMS.items() if row.keeps_running)
            raise UsageError(
                f"{folder.plan}: norm {norm!r} computes its statistics anew for every patch, so none can be "
                f"wrong; this analysis is for {known}."
            )
    return VarianceJob(request, planned, name, folders)


def run(job: VarianceJob) -> VarianceReport:
    """Measure each fold and write its `variance.json`.

    Raises:
        UsageError: If weights are damaged or of another network.
        DataError: If a case cannot be read.
    """
    name, machine, n_batches = job.configuration, job.request.machine, job.request.n_batches
    cases, guides = prepared_cases(job.planned, name, machine)
    found = []
    for fold, folder in job.folders.items():
        trained = Plan.load(folder.plan)
        recipe = trained.training.model_copy(update={"weight_average": 0.0, "compiled": False})
        plan = trained.model_copy(update={"training": recipe})
        data = open_fold(cases, job.planned.splits, int(fold), machine, guides)
        device = resolve_device(machine.device)
        training = FoldTraining(plan, plan.configurations[name], data, device, is_new=False)
        load_weights(folder.weights, training.network)
        layers = measure_variance(training.network, training.calm_passes(n_batches))
        one = FoldVariance(
            configuration=name, fold=fold, n_batches=n_batches, layers=tuple(layers), notes=_notes(trained, layers)
        )
        one.save(folder.variance)
        found.append(one)
    return VarianceReport(folds=tuple(found))


def _notes(plan: Plan, layers: Sequence[LayerVariance]) -> tuple[str, ...]:
    shifted = [layer for layer in layers if layer.is_shifted]
    if not shifted:
        return ("Running and real variance agree in every norm, within 5 % or 4 standard errors.",)
    worst = max(shifted, key=lambda layer: abs(layer.ratio - 1))
    lines = [
        f"In {count(len(shifted), 'norm')} of {len(layers)} real and running variance differ, most in "
        f"{worst.layer} ({worst.ratio:.2f}): prediction scales these maps wrongly."
    ]
    if not plan.training.recalibrate:
        lines.append("`--set training.recalibrate=100` computes the statistics again at the end of a training.")
    return tuple(lines)


def variance_text(found: FoldVariance) -> str:
    """Write an analysis as lines for a terminal."""
    width = max((len(layer.layer) for layer in found.layers), default=0)
    lines = [
        f"{found.configuration} fold {found.fold}: {count(len(found.layers), 'norm')} on "
        f"{count(found.n_batches, 'training batch', 'training batches')}; real over running variance",
        f"  {'norm':<{width}}  median  ± error  lowest  highest  mean shifts by (SD)",
    ]
    for layer in found.layers:
        lines.append(
            f"  {layer.layer:<{width}}  {layer.ratio:6.3f}  {layer.standard_error:7.3f}  {layer.lowest:6.3f}  "
            f"{layer.highest:7.3f}  {layer.mean_shift:6.3f}" + ("  shifted" if layer.is_shifted else "")
        )
    return "\n".join(lines)
