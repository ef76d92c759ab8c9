"""Measure whether the loss just after pruning says which pruned network becomes best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.analyse.pruning import RankCorrelation, rank_correlation, sample_combinations, verdict
from segpipe.core.errors import UsageError
from segpipe.core.files import make_folder
from segpipe.core.foreseen import Foreseen
from segpipe.core.progress import say
from segpipe.core.records import Record
from segpipe.core.text import count, duration_text
from segpipe.networks.device import resolve_device, set_processors
from segpipe.networks.pruning import channel_groups, pruned_spec, remove_channels
from segpipe.pipeline.plan import PlannedWork
from segpipe.pipeline.prune import require_rate, require_ratios, with_rate
from segpipe.pipeline.requests import Machine
from segpipe.pipeline.trained_folds import TrainedFold, foreseen_trials, trained_folds
from segpipe.plan.schema import Configuration
from segpipe.predict.folds import weights_digest
from segpipe.prepare.dataset import prepare_dataset
from segpipe.prepare.store import open_cases
from segpipe.train.fold import FoldData
from segpipe.train.retrain import retrain


class Combination(Record):
    """A random set of channels that was removed.

    Args:
        loss_before: Loss on training patches, pruned and not retrained.
        score_before: Mean Dice of validation patches, likewise.
        loss: Loss on training patches after retraining.
        score: Mean Dice of validation patches after retraining.
    """

    loss_before: float
    score_before: float | None
    loss: float
    score: float


class PruningTrials(Record):
    """Measurements in a fold, with the setting that they depend on.

    Args:
        configuration, fold: Whose.
        source: SHA-256 of the weights.
        ratios: Share of channels that goes, for each stage.
        iterations: Steps of retraining.
        learning_rate: At its start.
        seed: Of the combinations.
        combinations: In the order of drawing.
    """

    configuration: str
    fold: str
    source: str
    ratios: tuple[float, ...]
    iterations: int
    learning_rate: float
    seed: int
    combinations: tuple[Combination, ...] = ()


class PruningReport(Record):
    """The analysis of a fold.

    Args:
        trials: What was measured.
        correlation: Of the order by low loss before, and by score after retraining: 1 if the loss is a perfect guide.
        with_score_before: The same with the score before retraining in place of the loss; null if it was not defined.
        verdict: A sentence.
        file: Where the trials are.
    """

    trials: PruningTrials
    correlation: RankCorrelation
    with_score_before: RankCorrelation | None
    verdict: str
    file: str


@dataclass(frozen=True)
class PruningRequest:
    """Combinations to measure.

    Args:
        folder: A work folder with a trained fold.
        machine: What to compute on.
        ratio: Share of channels of each pruned stage that goes, above 0 and below 1.
        stages: Which are pruned, 0 the highest resolution, encoder and decoder; empty for all.
        configuration: Which; None for the default one.
        fold: Which; None for the first that is trained.
        n_combinations: How many.
        iterations: Steps of retraining.
        learning_rate: Of retraining; None for the trained fold's.
        seed: Of the combinations.

    Raises:
        UsageError: If a number is out of range.
    """

    folder: Path
    machine: Machine
    ratio: float = 0.5
    stages: tuple[int, ...] = ()
    configuration: str | None = None
    fold: int | None = None
    n_combinations: int = 20
    iterations: int = 100
    learning_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_ratios([self.ratio])
        require_rate(self.learning_rate)
        if self.n_combinations < 2:
            raise UsageError(f"--combinations {self.n_combinations}: expected 2 or more, to be put in order.")
        if self.iterations < 1:
            raise UsageError(f"--trial-iterations {self.iterations}: expected 1 or more.")


@dataclass(frozen=True, eq=False)
class PruningJob:
    """An analysis that was checked: the fold, and what is left of its network."""

    request: PruningRequest
    planned: PlannedWork
    fold: TrainedFold
    ratios: tuple[float, ...]
    pruned: Configuration


def resolve(request: PruningRequest) -> PruningJob:
    """Find the fold, and plan the smaller network.

    Raises:
        UsageError: If there is no trained fold, or no such stage.
        PlanError: If the network cannot be pruned.
        SetupError: If there is no such device.
    """
    planned = PlannedWork.load(request.folder)
    resolve_device(request.machine.device)
    wanted = [] if request.fold is None else [request.fold]
    fold = trained_folds(planned, request.configuration, wanted)[0]
    own = fold.configuration
    n_stages = len(own.network.features)
    if bad := [stage for stage in request.stages if not 0 <= stage < n_stages]:
        raise UsageError(f"--stage {bad[0]}: the network has stages 0 to {n_stages - 1}, 0 the highest resolution.")
    chosen = request.stages or tuple(range(n_stages))
    ratios = tuple(request.ratio if stage in chosen else 0.0 for stage in range(n_stages))
    spec = pruned_spec(own.network, ratios, f"configurations.{fold.name}.network")
    return PruningJob(request, planned, fold, ratios, own.model_copy(update={"network": spec, "inherits": None}))


def run(job: PruningJob) -> PruningReport:
    """Measure the combinations that are missing; each is kept as soon as it is measured, so a killed analysis resumes.

    Raises:
        DataError: If a prepared case cannot be read.
        PlanError: If a loss is not finite.
        ResourceError: If memory or disk runs out.
    """
    request, fold = job.request, job.fold
    set_processors(request.machine.n_workers)
    plan, trials = with_rate(fold.plan, request.learning_rate), _known_trials(job)
    path = _path_of(job, _trials_of(job))
    make_folder(path.parent)
    if path.is_file():
        say(f"{path}: {count(len(trials.combinations), 'combination')} already measured.")
    weights = fold.weights()
    groups = channel_groups(fold.configuration.network, len(fold.plan.channels), fold.plan.labels.n_outputs)
    sets = list(sample_combinations(groups, job.ratios, request.n_combinations, request.seed))
    if len(sets) < request.n_combinations:
        say(f"warning: only {count(len(sets), 'combination')} differ in so small a network.")
    data = None
    for place in range(len(trials.combinations), len(sets)):
        data = data or _open(job)
        device = resolve_device(request.machine.device)
        pruned = remove_channels(groups, weights, sets[place])
        found = retrain(plan, job.pruned, data, device, pruned, request.iterations)
        one = Combination(
            loss_before=found.loss_before,
            score_before=None if math.isnan(found.score_before) else found.score_before,
            loss=found.loss_after,
            score=found.score,
        )
        trials = trials.model_copy(update={"combinations": (*trials.combinations, one)})
        trials.save(path)
        left = duration_text(found.seconds * (len(sets) - place - 1))
        say(
            f"combination {place + 1}/{len(sets)}: loss {one.loss_before:.3f} as pruned, Dice {one.score:.3f} after "
            f"{count(request.iterations, 'step')}; about {left} left"
        )
    return make_report(trials, path, request.n_combinations)


def estimate(job: PruningJob) -> Foreseen:
    """Estimate the time, disk and memory that the missing combinations will take.

    Raises:
        DataError: If the data are not those that were planned for.
    """
    request, fold = job.request, job.fold
    n_left = max(0, request.n_combinations - len(_known_trials(job).combinations))
    return foreseen_trials(
        command="analyse pruning",
        todo=f"{fold.name} fold {fold.number}, {n_left} of {count(request.n_combinations, 'combination')}, "
        f"{count(request.iterations, 'step')} each",
        n_steps=n_left * request.iterations,
        planned=job.planned,
        fold=fold,
        own=job.pruned,
        written=lambda _: 0,
        folder=request.folder,
        machine=request.machine,
    )


def _trials_of(job: PruningJob) -> PruningTrials:
    """The setting of the trials, without a measurement."""
    request, fold = job.request, job.fold
    return PruningTrials(
        configuration=fold.name,
        fold=fold.number,
        source=weights_digest(fold.folder.weights),
        ratios=job.ratios,
        iterations=request.iterations,
        learning_rate=with_rate(fold.plan, request.learning_rate).training.learning_rate,
        seed=request.seed,
    )


def _known_trials(job: PruningJob) -> PruningTrials:
    """The trials that were measured with this setting."""
    setting = _trials_of(job)
    path = _path_of(job, setting)
    return PruningTrials.load(path) if path.is_file() else setting


def _path_of(job: PruningJob, setting: PruningTrials) -> Path:
    """The file of a setting, named by its digest."""
    return job.fold.folder.pruning_trials / f"{setting.digest()}.json"


def make_report(trials: PruningTrials, path: Path, n_combinations: int) -> PruningReport:
    """Correlate the first `n_combinations` that were measured."""
    rows = trials.combinations[:n_combinations]
    scores = [row.score for row in rows]
    correlation = rank_correlation([-row.loss_before for row in rows], scores)
    before = [row.score_before for row in rows if row.score_before is not None]
    return PruningReport(
        trials=trials,
        correlation=correlation,
        with_score_before=rank_correlation(before, scores) if len(before) == len(rows) else None,
        verdict=verdict(correlation),
        file=str(path),
    )


def _open(job: PruningJob) -> FoldData:
    """The fold's prepared cases."""
    fold, machine = job.fold, job.request.machine
    prepared = prepare_dataset(job.planned.work, job.planned.dataset, fold.plan, fold.name, machine.n_workers)
    device = resolve_device(machine.device)
    train, validation = (
        open_cases(prepared, ids, machine.n_workers, device) for ids in (fold.split.train, fold.split.validation)
    )
    return FoldData(fold=int(fold.number), split=fold.split, train=train, validation=validation)


def report_text(report: PruningReport) -> str:
    """Write an analysis as lines for a terminal."""
    trials, rows = report.trials, report.trials.combinations
    lines = [
        f"{trials.configuration} fold {trials.fold}: {count(report.correlation.n, 'combination')}, ratios "
        f"{_numbers(trials.ratios)}, {count(trials.iterations, 'step')} of retraining"
    ]
    for name, values in (
        ("loss as pruned", [row.loss_before for row in rows]),
        ("loss retrained", [row.loss for row in rows]),
        ("Dice retrained", [row.score for row in rows]),
    ):
        lines.append(f"  {name:<16}{min(values):8.3f} to {max(values):.3f}")
    if report.with_score_before is not None and report.with_score_before.tau is not None:
        lines.append(f"  τ with the Dice as pruned in place of the loss: {report.with_score_before.tau:.2f}")
    return "\n".join(lines)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
