"""Stages called with the values of their requests, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segpipe.core.foreseen import Foreseen
from segpipe.pipeline import plan as planning
from segpipe.pipeline import predict as predicting
from segpipe.pipeline import prepare as preparing
from segpipe.pipeline import train as training
from segpipe.pipeline.plan import Planned
from segpipe.pipeline.requests import Machine, PlanRequest, PredictRequest, PrepareRequest, TrainRequest
from segpipe.pipeline.train import TrainResult
from segpipe.predict.options import PredictOptions
from segpipe.predict.outputs import PredictionResult


def plan_data(data: Path, folder: Path, machine: Machine, **more: Any) -> Planned:
    """Plan a dataset."""
    return planning.run(planning.resolve(PlanRequest(folder, machine, data, **more)))


def prepare(folder: Path, configuration: str | None, machine: Machine) -> Path:
    """Prepare the cases of a work folder."""
    return preparing.run(preparing.resolve(PrepareRequest(folder, machine, configuration)))


def train(
    folder: Path, configuration: str | None, folds: Sequence[int] | None, machine: Machine, **more: Any
) -> TrainResult:
    """Train folds of a work folder; None for all."""
    return training.train(TrainRequest(folder, machine, configuration, tuple(folds or ()), **more))


def estimate_training(
    folder: Path, configuration: str | None, folds: Sequence[int] | None, machine: Machine, **more: Any
) -> Foreseen:
    """What the same training would take."""
    request = TrainRequest(folder, machine, configuration, tuple(folds or ()), **more)
    return training.estimate(training.resolve(request))


def predict(
    models: Path | Sequence[Path], inputs: Path, output: Path, machine: Machine, options: PredictOptions | None = None
) -> PredictionResult:
    """Predict images."""
    chosen = [models] if isinstance(models, Path) else models
    request = PredictRequest(chosen, inputs, output, machine, options or PredictOptions())
    return predicting.run(predicting.resolve(request))
