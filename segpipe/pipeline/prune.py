"""Prune the channels of trained folds into a new work folder, in which they are trained on as any other network."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import UsageError
from segpipe.core.files import make_folder
from segpipe.core.foreseen import Foreseen
from segpipe.core.progress import say
from segpipe.core.records import Record, finite_or_none
from segpipe.core.text import count
from segpipe.core.work import Work
from segpipe.networks.cost import cost
from segpipe.networks.device import resolve_device, set_processors
from segpipe.networks.parts import FROM_FOLD, InitialWeights
from segpipe.networks.pruning import (
    CRITERIA,
    channel_groups,
    choose_dropped,
    pruned_spec,
    remove_channels,
)
from segpipe.pipeline.estimates import weights_bytes
from segpipe.pipeline.plan import PlannedWork
from segpipe.pipeline.requests import Machine
from segpipe.pipeline.trained_folds import TrainedFold, foreseen_trials, trained_folds
from segpipe.plan.schema import Configuration, Plan
from segpipe.predict.folds import weights_digest
from segpipe.prepare.dataset import prepare_dataset
from segpipe.prepare.store import open_cases
from segpipe.train.checkpoint import save_state_dict
from segpipe.train.fold import FoldData
from segpipe.train.retrain import Retrained, retrain

_HELD_OUT = 5  # every fifth training case judges the candidates: validation cases must not, their scores are reported
_COPIED = ("dataset", "fingerprint", "splits", "data_check", "measured_cases")  # of `Work`


class Candidate(Record):
    """A choice of channels.

    Args:
        criterion: How they were chosen, a row of `networks.pruning.CRITERIA`.
        seed: Of a random choice.
        loss_before: Loss on training patches before retraining.
        score_before: Patch Dice of held-out training cases before retraining.
        score: The same after the short retraining: what decides.
    """

    criterion: str
    seed: int
    loss_before: float | None
    score_before: float | None
    score: float


class FoldPruning(Record):
    """pruning.json of a fold.

    Args:
        fold: Name of the fold.
        source: SHA-256 of the weights that were pruned.
        ratios: Share of channels that went, for each stage.
        seed, trial_iterations: Of the candidates.
        candidates: What was tried.
        chosen: Place of the one that was taken: the best score after the short retraining.
        new_weights: The same network with new weights, trained for as many steps: what pruning must beat.
    """

    fold: str
    source: str
    ratios: tuple[float, ...]
    seed: int
    trial_iterations: int
    candidates: tuple[Candidate, ...]
    chosen: int
    new_weights: Candidate


class NetworkSize(Record):
    """Size of a network.

    Args:
        features: Channels of the encoder's stages, the highest resolution first.
        n_parameters: Numbers in its parameters.
        n_macs: Multiplications with addition to predict one patch.
    """

    features: tuple[int, ...]
    n_parameters: int
    n_macs: int


class PruneReport(Record):
    """Pruned folds.

    Args:
        output: The new work folder.
        configuration: Of the folds.
        before, after: The networks.
        folds: What was chosen in each.
    """

    output: str
    configuration: str
    before: NetworkSize
    after: NetworkSize
    folds: tuple[FoldPruning, ...]


@dataclass(frozen=True)
class PruneRequest:
    """Folds to prune.

    Args:
        folder: A work folder with trained folds.
        output: The new work folder.
        machine: What to compute on.
        ratios: Share of channels that goes: one for all stages, or one for each; 0 to below 1.
        configuration: Which; None for the default one.
        folds: Which; empty for all that are trained.
        n_candidates: Choices of channels to try.
        trial_iterations: Steps for which each is retrained.
        learning_rate: Of the trials, and of the new plan; None for the trained fold's.
        seed: Of random choices.

    Raises:
        UsageError: If a number is out of range.
    """

    folder: Path
    output: Path
    machine: Machine
    ratios: tuple[float, ...]
    configuration: str | None = None
    folds: Sequence[int] = ()
    n_candidates: int = 4
    trial_iterations: int = 100
    learning_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_ratios(self.ratios)
        require_rate(self.learning_rate)
        for option, value in (("--candidates", self.n_candidates), ("--trial-iterations", self.trial_iterations)):
            if value < 1:
                raise UsageError(f"{option} {value}: expected 1 or more.")


def require_ratios(ratios: Sequence[float]) -> None:
    """Refuse shares that leave nothing or take nothing.

    Raises:
        UsageError: If one is out of range, or all are 0.
    """
    if bad := [ratio for ratio in ratios if not 0 <= ratio < 1]:
        raise UsageError(f"--ratio {bad[0]:g}: expected a share of channels to remove, 0 to below 1, e.g. 0.5.")
    if not any(ratios):
        raise UsageError("--ratio 0: removes nothing. Give a share above 0, e.g. 0.5.")


def require_rate(learning_rate: float | None) -> None:
    """Refuse a learning rate of 0 and less.

    Raises:
        UsageError: If it is one.
    """
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise UsageError(f"--learning-rate {learning_rate:g}: expected a number above 0, e.g. 0.001.")


def with_rate(plan: Plan, learning_rate: float | None) -> Plan:
    """The plan with another learning rate; None: with its own."""
    if learning_rate is None:
        return plan
    return plan.model_copy(update={"training": plan.training.model_copy(update={"learning_rate": learning_rate})})


def ratios_of_stages(ratios: Sequence[float], configuration: Configuration) -> tuple[float, ...]:
    """Repeat a single ratio for every stage.

    Raises:
        UsageError: If there are neither one nor as many as stages.
    """
    n_stages = len(configuration.network.features)
    if len(ratios) not in (1, n_stages):
        raise UsageError(f"--ratio: {count(len(ratios), 'number')}, expected 1, or {n_stages}: one for each stage.")
    return tuple(ratios) if len(ratios) == n_stages else tuple(ratios) * n_stages


@dataclass(frozen=True)
class PruneJob:
    """A pruning that was checked.

    Args:
        request: As it was asked.
        planned: The work folder.
        folds: Those to prune.
        ratios: Share of channels that goes, for each stage.
        plan: Of what is left.
        done: What is pruned already, by fold.
    """

    request: PruneRequest
    planned: PlannedWork
    folds: tuple[TrainedFold, ...]
    ratios: tuple[float, ...]
    plan: Plan
    done: Mapping[str, FoldPruning]


def resolve(request: PruneRequest) -> PruneJob:
    """Find the folds, and plan the smaller network.

    Raises:
        UsageError: If there is no trained fold, or the new folder holds something else or folds pruned otherwise.
        PlanError: If the network cannot be pruned, or not by these ratios.
        SetupError: If there is no such device.
    """
    planned = PlannedWork.load(request.folder)
    resolve_device(request.machine.device)
    if request.output.resolve() == request.folder.resolve():
        raise UsageError(f"-o {request.output}: is the work folder itself. Choose another folder.")
    folds = trained_folds(planned, request.configuration, request.folds)
    name, own = folds[0].name, folds[0].configuration
    ratios = ratios_of_stages(request.ratios, own)
    spec = pruned_spec(own.network, ratios, f"configurations.{name}.network")
    start = InitialWeights(source=FROM_FOLD)
    smaller = own.model_copy(update={"network": spec.model_copy(update={"weights": start}), "inherits": None})
    removed = f"{_list(own.network.features)} to {_list(spec.features)}"
    reason = f"Features are pruned from a trained network (from {removed}); each fold starts from its own weights."
    plan = with_rate(folds[0].plan, request.learning_rate).model_copy(
        update={
            "configurations": {name: smaller},
            "command": None,
            "reasons": folds[0].plan.reasons | {"pruning": reason},
        }
    )
    if request.output.is_file():
        raise UsageError(f"-o {request.output}: is a file, expected a new folder. Choose another path.")
    there = Work(request.output)
    if there.plan.is_file() and Plan.load(there.plan) != plan:
        raise UsageError(f"{request.output}: holds another plan. Choose another folder, or delete it.")
    if not there.plan.is_file() and request.output.is_dir() and any(request.output.iterdir()):
        raise UsageError(f"{request.output}: is not empty, expected a new folder. Choose another one.")
    known = {fold.number: _find_pruned(request, fold, ratios) for fold in folds}
    done = {number: found for number, found in known.items() if found is not None}
    return PruneJob(request, planned, tuple(folds), ratios, plan, done)


def _find_pruned(request: PruneRequest, fold: TrainedFold, ratios: tuple[float, ...]) -> FoldPruning | None:
    """Find what the new folder holds of a fold; None if it is still to be pruned.

    Raises:
        UsageError: If it was pruned otherwise.
    """
    target = Work(request.output).fold(fold.name, fold.number)
    if not (target.pruning_report.is_file() and target.initial.is_file()):
        return None
    known = FoldPruning.load(target.pruning_report)
    settings = (known.source, known.ratios, known.seed, known.trial_iterations, len(known.candidates))
    wanted = (weights_digest(fold.folder.weights), ratios, request.seed, request.trial_iterations, request.n_candidates)
    if settings != wanted:
        raise UsageError(f"{target.path}: was pruned otherwise. Choose another folder with -o.")
    return known


def run(job: PruneJob) -> PruneReport:
    """Choose channels in each fold, write the new work folder; folds that are there already are kept.

    Raises:
        DataError: If a prepared case cannot be read.
        ResourceError: If memory or disk runs out.
    """
    request, name = job.request, job.folds[0].name
    set_processors(request.machine.n_workers)
    prepared = prepare_dataset(
        job.planned.work, job.planned.dataset, job.folds[0].plan, name, request.machine.n_workers
    )
    work = Work(make_folder(request.output))
    results = []
    for fold in job.folds:
        target = work.fold(name, fold.number)
        if fold.number in job.done:
            say(f"{target.path}: already pruned.")
            results.append(job.done[fold.number])
            continue
        found, best, control = _try_candidates(job, fold, prepared)
        result = FoldPruning(
            fold=fold.number,
            source=weights_digest(fold.folder.weights),
            ratios=job.ratios,
            seed=request.seed,
            trial_iterations=request.trial_iterations,
            candidates=found,
            chosen=max(range(len(found)), key=lambda place: found[place].score),
            new_weights=control,
        )
        make_folder(target.path)
        save_state_dict(target.initial, best.weights, {"configuration": name, "fold": fold.number})
        result.save(target.pruning_report)
        results.append(result)
    for part in _COPIED:
        source, place = getattr(job.planned.work, part), getattr(work, part)
        if source.is_file() and not place.is_file():
            shutil.copyfile(source, place)
    job.plan.save(work.plan)  # last: with it the folder is a work folder
    before, after = (_size(plan, name) for plan in (job.folds[0].plan, job.plan))
    return PruneReport(output=str(request.output), configuration=name, before=before, after=after, folds=tuple(results))


def estimate(job: PruneJob) -> Foreseen:
    """Estimate the time, disk and memory that pruning will take; retraining afterwards is not part of it.

    Raises:
        DataError: If the data are not those that were planned for.
    """
    request, first = job.request, job.folds[0]
    n_folds = len(job.folds) - len(job.done)
    n_trials = n_folds * (request.n_candidates + 1)  # the last with new weights
    return foreseen_trials(
        command="prune",
        todo=f"{first.name}, {n_folds} of {count(len(job.folds), 'fold')}, {count(n_trials, 'trial')} of "
        f"{count(request.trial_iterations, 'step')}",
        n_steps=n_trials * request.trial_iterations,
        planned=job.planned,
        fold=first,
        own=job.plan.configurations[first.name],
        written=lambda cost: n_folds * weights_bytes(cost),
        folder=request.output,
        machine=request.machine,
    )


def _try_candidates(
    job: PruneJob, fold: TrainedFold, prepared: Path
) -> tuple[tuple[Candidate, ...], Retrained, Candidate]:
    """Retrain each choice on some training cases, new weights last; the other training cases score them."""
    request, own = job.request, job.plan.configurations[fold.name]
    held = fold.split.train[::_HELD_OUT]
    rest = [case for case in fold.split.train if case not in held] or held
    device = resolve_device(request.machine.device)
    cases = [open_cases(prepared, ids, request.machine.n_workers, device) for ids in (rest, held)]
    data = FoldData(fold=int(fold.number), split=fold.split, train=cases[0], validation=cases[1])
    weights = fold.weights()
    groups = channel_groups(fold.configuration.network, len(fold.plan.channels), fold.plan.labels.n_outputs)
    found: list[Candidate] = []
    best: Retrained | None = None
    for place, (criterion, seed) in enumerate(_criteria(request)):
        dropped = choose_dropped(groups, weights, job.ratios, criterion, seed)
        pruned = remove_channels(groups, weights, dropped)
        trial = retrain(job.plan, own, data, device, pruned, request.trial_iterations)
        found.append(_candidate(criterion, seed, trial))
        say(
            f"fold {fold.number}, candidate {place + 1}/{request.n_candidates} ({criterion}): loss "
            f"{trial.loss_before:.3f} as pruned, Dice {trial.score:.3f} after "
            f"{count(request.trial_iterations, 'step')} ({trial.seconds:.0f} s)"
        )
        if best is None or trial.score > best.score:
            best = trial
    assert best is not None
    control = retrain(job.plan, own, data, device, None, request.trial_iterations)
    say(f"fold {fold.number}, new weights: Dice {control.score:.3f} after {count(request.trial_iterations, 'step')}")
    return tuple(found), best, _candidate("new weights", job.plan.training.seed, control)


def _candidate(criterion: str, seed: int, trial: Retrained) -> Candidate:
    return Candidate(
        criterion=criterion,
        seed=seed,
        loss_before=finite_or_none(trial.loss_before),
        score_before=finite_or_none(trial.score_before),
        score=trial.score,
    )


def _criteria(request: PruneRequest) -> list[tuple[str, int]]:
    """One of each, then random ones."""
    first = list(CRITERIA)[: request.n_candidates]
    more = request.n_candidates - len(first)
    return [(criterion, request.seed) for criterion in first] + [("random", request.seed + 1 + k) for k in range(more)]


def _size(plan: Plan, name: str) -> NetworkSize:
    own = plan.configurations[name]
    found = cost(own.network, plan.n_inputs(own), plan.labels.n_outputs, own.patch_zyx, 1, precision="fp32")
    return NetworkSize(features=own.network.features, n_parameters=found.n_parameters, n_macs=found.n_macs_forward)


def prune_text(report: PruneReport) -> str:
    """Write what was done as lines for a terminal."""
    before, after = report.before, report.after
    lines = [f"{report.configuration}: features {_list(before.features)} become {_list(after.features)}"]
    counts = {
        "parameters": (before.n_parameters, after.n_parameters),
        "multiplications for a patch": (before.n_macs, after.n_macs),
    }
    lines += [f"  {name:<27} {old:>15,} {new:>15,} {new / old:7.1%}" for name, (old, new) in counts.items()]
    lines.append(f"  {'fold':<6}{'channels':<12}{'loss as pruned':>15}{'Dice then':>11}{'retrained':>11}")
    for fold in report.folds:
        for place, one in enumerate((*fold.candidates, fold.new_weights)):
            loss, score = ("–" if each is None else f"{each:.3f}" for each in (one.loss_before, one.score_before))
            mark = "  taken" if place == fold.chosen else ""
            lines.append(f"  {fold.fold:<6}{one.criterion:<12}{loss:>15}{score:>11}{one.score:11.3f}{mark}")
    worse = [fold.fold for fold in report.folds if fold.candidates[fold.chosen].score <= fold.new_weights.score]
    if worse:
        lines.append(
            f"In fold {', '.join(worse)} new weights did as well after as many steps: retrain for longer, remove fewer "
            "channels, or train the small network from new weights (--set configurations."
            f"{report.configuration}.network.weights=null)."
        )
    return "\n".join(lines)


def _list(features: Sequence[int]) -> str:
    return ", ".join(map(str, features))
