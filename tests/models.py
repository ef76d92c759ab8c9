"""Trained folds for tests: random weights in the folders of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from plans import small_plan
from segpipe.core.work import FoldFolder, Work
from segpipe.evaluate.scores import DIAGONAL, IMAGE_LABEL, Score, ScoreTable
from segpipe.networks.build import build
from segpipe.plan.schema import Normalisation, Plan
from segpipe.plan.training_stats import ChannelRange, Span, TrainingStats
from segpipe.train.checkpoint import save_weights


def plan_of(n_channels: int = 1) -> Plan:
    """A small plan with some channels."""
    names = tuple(f"MR{channel}" for channel in range(n_channels))
    schemes = (Normalisation(scheme="zscore"),) * n_channels
    return small_plan().model_copy(update={"channels": names, "normalisation": schemes})


def write_fold(work: Path, plan: Plan, number: int, name: str = "3d_fullres") -> FoldFolder:
    """One fold of a configuration; the weights follow from its number."""
    fold = Work(work).fold(name, str(number))
    fold.path.mkdir(parents=True)
    plan.save(fold.plan)
    torch.manual_seed(number)
    own = plan.configurations[name]
    network = build(own.network, plan.n_inputs(own), plan.labels.n_outputs)
    save_weights(fold.weights, network, {"configuration": name, "fold": str(number), "finished": "1"})
    span, extent = Span(low=1, high=2.5), Span(low=10, high=25)
    seen = ChannelRange(low=50, high=150, min=40)
    TrainingStats(
        n_cases=3 + number,
        orientations=("RAS",),
        spacing_mm=(span,) * 3,
        extent_mm=(extent,) * 3,
        intensities=(seen,) * len(plan.channels),
    ).save(fold.trained_on)
    return fold


def write_work(work: Path, n_folds: int = 2, n_channels: int = 1) -> Path:
    """A work folder with trained folds."""
    plan = plan_of(n_channels)
    for number in range(n_folds):
        write_fold(work, plan, number)
    return work


def write_scores(fold: FoldFolder, number: int, dices: Sequence[float]) -> None:
    """Scores of a fold: one patient for each Dice of label a."""
    rows = []
    for index, value in enumerate(dices):
        case = {"case_id": f"case{number}{index}", "patient_id": f"p{number}{index}", "fold": number, "seed": 0}
        common = {**case, "run": "3d_fullres", "status": "ok", "n_reference_vox": 9, "n_prediction_vox": 9}
        rows.append(Score(label=IMAGE_LABEL, metric=DIAGONAL, value=50.0, unit="mm", **common))
        rows.append(Score(label="a", metric="dice", value=value, unit="1", **common))
    ScoreTable(tuple(rows)).save(fold.scores)
