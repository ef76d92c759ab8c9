"""Choose configuration, ensemble and postprocessing of a work folder by its out-of-fold masks, nested."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.nested_selection import Candidates, NestedChoice, select
from segpipe.core.errors import UsageError
from segpipe.core.foreseen import Foreseen, free_disk_bytes
from segpipe.core.machine import free_bytes
from segpipe.core.progress import say
from segpipe.core.records import Record
from segpipe.core.text import command_text, count
from segpipe.core.volume import read_header
from segpipe.core.work import Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits
from segpipe.evaluate.intervals import Interval
from segpipe.evaluate.ledger import Scoring, append_scoring, file_digest
from segpipe.evaluate.metrics import METRICS
from segpipe.evaluate.summary import DEFAULT_POLICY
from segpipe.networks.device import resolve_device
from segpipe.pipeline.calibration import scored_folds
from segpipe.pipeline.out_of_fold import AVERAGED, STEPS, OutOfFold, ValidatedCase
from segpipe.pipeline.predict import PROBABILITY_BYTES, seconds_per
from segpipe.pipeline.requests import Machine, SelectRequest
from segpipe.plan.training_commands import training_advice
from segpipe.predict.folds import SELECTED_MODEL_FILE, SELECTION, SelectedModel, weights_of
from segpipe.predict.model import load_out_of_fold
from segpipe.predict.options import PredictOptions
from segpipe.predict.postprocess import NO_POSTPROCESSING, POSTPROCESSING_FILE, Postprocessing
from segpipe.predict.run import predict_cases

_WIDTH = 80


class Chosen(Record):
    """A model and its postprocessing.

    Args:
        model: A configuration, or several that are averaged, joined by ` + `.
        postprocessing: By label; labels that stay as they are, are not listed.
    """

    model: str
    postprocessing: Postprocessing


class Worth(Record):
    """A mean over labels of means over cases, with its 95 % interval over patients; None if undefined."""

    mean: float | None
    low: float | None
    high: float | None
    note: str


class SelectionReport(Record):
    """selection.json.

    Args:
        metric, policy: What was chosen by.
        n_cases, folds: What was looked at.
        models: Mean of every model without postprocessing, over all labels and cases.
        left_out: Configurations that are not trained and scored on all of these folds.
        chosen: On all cases.
        without_fold: What was chosen without each fold.
        naive: Of `chosen` on the cases that it was chosen on; too good.
        nested: Each case scored with what was chosen without its fold: the number to report.
    """

    metric: str
    policy: str
    n_cases: int
    folds: tuple[int, ...]
    models: dict[str, float | None]
    left_out: tuple[str, ...]
    chosen: Chosen
    without_fold: dict[str, Chosen]
    naive: Worth
    nested: Worth


@dataclass(frozen=True)
class SelectJob:
    """A selection that was checked.

    Args:
        request: As it was asked.
        masks: Out-of-fold masks.
        names: Configurations that are scored on all folds.
        left_out: Those that are not.
    """

    request: SelectRequest
    masks: OutOfFold
    names: tuple[str, ...]
    left_out: tuple[str, ...]


def resolve(request: SelectRequest) -> SelectJob:
    """Find the out-of-fold masks, and the configurations that are scored on all folds.

    Raises:
        UsageError: If fewer than two folds are scored.
        DataError: If masks or references are missing.
        SetupError: If there is no such device.
    """
    work, folder = Work(request.folder), request.folder
    work.require_plan()
    resolve_device(request.machine.device)
    dataset, splits = Dataset.load(work.dataset), Splits.load(work.splits)
    scored = {path.name: set(scored_folds(work, path.name, splits)) for path in sorted(work.path.glob("runs/*"))}
    folds = sorted(set[int]().union(*scored.values()))
    names = tuple(name for name, of in scored.items() if of == set(folds))
    if len(folds) < 2 or not names:
        raise UsageError(
            f"{folder}: trained and scored: {_folds_text(scored)}; expected two or more folds of one configuration: "
            f"a choice must be scored on another fold than it was made on. Train them: {_advice(work, scored, splits)}."
        )
    left_out = tuple(name for name in scored if name not in names)
    cases = tuple(ValidatedCase(dataset.by_id[case], fold) for fold in folds for case in splits.folds[fold].validation)
    masks = OutOfFold(work, dataset.labels, cases, request.metric, request.machine.n_workers)
    masks.require_files(names)
    return SelectJob(request, masks, names, left_out)


def run(job: SelectJob) -> SelectionReport:
    """Choose; write selection/selection.json, selection/model.yaml and the postprocessing of what was chosen.

    Raises:
        DataError: If masks or references cannot be read.
    """
    if job.left_out:
        say(f"left out, because not all folds are trained and scored: {', '.join(job.left_out)}")
    if job.request.ensembles and len(job.names) > 1:
        _predict_probabilities(job.masks, job.names, job.request.machine)
    models = job.masks.with_ensembles(job.names)
    report = _choose(job.masks, models).model_copy(update={"left_out": job.left_out})
    _keep(job.masks.work, job.names, report)
    cases = {one.case.case_id: file_digest(Path(one.case.label or "")) for one in job.masks.cases}
    chosen = Scoring(event="selection", name=report.chosen.model, cases=cases, scores=report.digest())
    append_scoring(job.masks.work.path, chosen)
    return report


def estimate(job: SelectJob) -> Foreseen:
    """Estimate the time and disk that a selection will take; one case is scored to know how long that takes.

    Raises:
        DataError: If masks or references cannot be read.
    """
    masks, names, machine = job.masks, job.names, job.request.machine
    n_models = len(masks.with_ensembles(names))
    predicted: list[tuple[str, ValidatedCase]] = []
    if job.request.ensembles and len(names) > 1:
        predicted = [(name, one) for name in names for one in masks.cases if not masks.has_probabilities(name, one)]
        n_models = 2 ** len(names) - 1  # each configuration and every set of them
    first = np.arange(len(masks.cases)) == 0
    masks.values(names[0], NO_POSTPROCESSING, first)  # loads what later ones find loaded
    started = time.perf_counter()
    masks.values(names[0], NO_POSTPROCESSING, first)
    seconds = (time.perf_counter() - started) * len(masks.cases) * n_models * len(STEPS) / machine.n_workers
    rates = [seconds_per(masks.fold(name, one), lambda grid: prod(grid.shape_zyx)) for name, one in predicted]
    vox = [prod(read_header(Path(one.case.label or "")).grid.shape_zyx) for _, one in predicted]
    seconds += sum((rate or 0.0) * n for rate, n in zip(rates, vox, strict=True))
    return Foreseen(
        command="select",
        todo=f"{count(n_models, 'model')}, {len(STEPS)} kinds of postprocessing each, "
        f"{count(len(masks.cases), 'case')}; {count(len(predicted), 'prediction')} to repeat for their probabilities",
        seconds=seconds,
        seconds_from="at most: one case was scored, and most kinds change little",
        disk_bytes=PROBABILITY_BYTES * masks.labels.n_outputs * sum(vox),
        free_disk_bytes=free_disk_bytes(job.request.folder),
        memory_bytes=0,
        free_memory_bytes=free_bytes(),
        memory_of="CPU",
        notes=tuple(f"{name} is left out: not all folds are trained and scored" for name in job.left_out),
    )


def selection_text(report: SelectionReport) -> str:
    """Return the choice and both scores, for people."""
    metric = METRICS[report.metric]
    lines = [f"{metric.title} of {report.n_cases} cases in folds {', '.join(map(str, report.folds))}"]
    lines += [f"  {name}: {_number(mean, metric.unit)}" for name, mean in report.models.items()]
    lines.append(f"Chosen: {_choice_text(report.chosen)}")
    lines += [f"  without fold {fold}: {_choice_text(choice)}" for fold, choice in report.without_fold.items()]
    naive, nested = (_worth_text(worth, metric.unit) for worth in (report.naive, report.nested))
    lines.append(f"Naive, on the cases it was chosen on: {naive}")
    lines.append(f"Nested, each fold scored with what the others chose: {nested}")
    lines.append("Report the nested number; the naive one is the best of many and too good.")
    return "\n".join(piece for line in lines for piece in textwrap.wrap(line, _WIDTH, subsequent_indent="    "))


def _predict_probabilities(masks: OutOfFold, names: Sequence[str], machine: Machine) -> None:
    """Predict probabilities of every fold's validation cases; existing ones stay."""
    for name in names:
        for fold in sorted({one.fold for one in masks.cases}):
            folder = masks.work.fold(name, str(fold))
            cases = [one.case for one in masks.cases if one.fold == fold]
            model = load_out_of_fold(folder, resolve_device(machine.device))
            options = PredictOptions(
                probabilities=True, any_size=True
            )  # cases of the dataset: their size is no mistake
            predict_cases(model, cases, folder.validation, options).require_all()


def _choose(masks: OutOfFold, models: tuple[str, ...]) -> SelectionReport:
    kept = masks.work.path / SELECTION / "scores"
    values = np.array([masks.values_of_steps(model, kept / model) for model in models])
    patients = np.unique([one.case.patient_id for one in masks.cases], return_inverse=True)[1]
    folds = np.array([one.fold for one in masks.cases])
    sign = 1 if METRICS[masks.metric].kind == "overlap" else -1

    def as_chosen(choice: NestedChoice) -> Chosen:
        steps = zip(masks.labels.names, (STEPS[number] for number in choice.steps), strict=True)
        wanted = {name: of for name, of in steps if not of.is_nothing}
        return Chosen(model=models[choice.model], postprocessing=Postprocessing(labels=wanted))

    def score(choice: NestedChoice, is_in: NDArray[np.bool_]) -> NDArray[np.float64]:
        return masks.values(as_chosen(choice).model, as_chosen(choice).postprocessing, is_in)

    found = select(Candidates(values, folds, patients, sign), score)
    return SelectionReport(
        metric=masks.metric,
        policy=DEFAULT_POLICY,
        n_cases=len(masks.cases),
        folds=tuple(sorted(set(folds.tolist()))),
        models={model: _mean(values[number, 0]) for number, model in enumerate(models)},
        left_out=(),
        chosen=as_chosen(found.chosen),
        without_fold={str(fold): as_chosen(choice) for fold, choice in found.without_fold.items()},
        naive=_worth(found.naive),
        nested=_worth(found.nested),
    )


def _keep(work: Work, candidates: Sequence[str], report: SelectionReport) -> None:
    """Write the report, which model predicts, and the postprocessing beside it; that of an earlier choice goes."""
    home = work.path / SELECTION
    for earlier in (*(work.run(name) / POSTPROCESSING_FILE for name in candidates), home / POSTPROCESSING_FILE):
        earlier.unlink(missing_ok=True)
    names = report.chosen.model.split(AVERAGED)
    weights = weights_of(work.fold(name, str(fold)) for name in names for fold in report.folds)
    if report.chosen.postprocessing.labels:
        steps = report.chosen.postprocessing.model_copy(update={"weights": weights})
        steps.save((work.run(names[0]) if len(names) == 1 else home) / POSTPROCESSING_FILE)
    report.save(home / "selection.json")
    SelectedModel(configurations=tuple(names), weights=weights).save(home / SELECTED_MODEL_FILE)


def _mean(values: NDArray[np.float64]) -> float | None:
    """Over labels of the means over cases."""
    of_labels = [column[~np.isnan(column)].mean() for column in values.T if not np.isnan(column).all()]
    return float(np.mean(of_labels)) if of_labels else None


def _worth(found: Interval) -> Worth:
    return Worth(mean=None if isnan(found.mean) else found.mean, low=found.low, high=found.high, note=found.note)


def _folds_text(scored: dict[str, set[int]]) -> str:
    return "; ".join(f"{name}: folds {sorted(folds)}" for name, folds in scored.items()) or "none"


def _advice(work: Work, scored: dict[str, set[int]], splits: Splits) -> str:
    """The command that trains the other folds of the configuration with most of them."""
    name = max(scored, key=lambda name: len(scored[name]), default=None)
    if name is None:
        return f"`{command_text('segpipe', 'train', str(work.path))}`"
    return training_advice(work, name, [str(fold) for fold in range(splits.k) if fold not in scored[name]])


def _choice_text(chosen: Chosen) -> str:
    parts = []
    for name, steps in chosen.postprocessing.labels.items():
        done = [f"parts of {steps.min_volume_mm3:g} mm³ or more"] if steps.min_volume_mm3 else []
        done += ["the largest part"] if steps.keep_largest else []
        done += ["holes filled"] if steps.fill_holes else []
        parts.append(f"{name}: {', '.join(done)}")
    return f"{chosen.model}; {'; '.join(parts) or 'no postprocessing'}"


def _worth_text(worth: Worth, unit: str) -> str:
    interval = "" if worth.low is None else f" (95 % {_number(worth.low, unit)} – {_number(worth.high, unit)})"
    return f"{_number(worth.mean, unit)}{interval}{f'; {worth.note}' if worth.note else ''}"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if unit == "1" else f"{value:.2f} {unit}"
