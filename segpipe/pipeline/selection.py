"""Choose configuration, ensemble and postprocessing of a work folder by its out-of-fold masks, nested."""

from __future__ import annotations

import textwrap
from math import isnan
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.compare.nested_selection import Candidates, Choice, select
from segpipe.core.errors import UsageError
from segpipe.core.progress import say
from segpipe.core.records import Record
from segpipe.core.work import Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Fold, Splits
from segpipe.evaluate.intervals import Interval
from segpipe.evaluate.metrics import METRICS
from segpipe.evaluate.summary import DEFAULT_POLICY
from segpipe.networks.device import resolve_device
from segpipe.pipeline.candidates import AVERAGED, STEPS, OutOfFold, Validated
from segpipe.pipeline.machine import Machine
from segpipe.predict.model import load_out_of_fold
from segpipe.predict.options import PredictOptions
from segpipe.predict.postprocess import POSTPROCESSING_FILE, Postprocessing
from segpipe.predict.run import predict_cases
from segpipe.predict.selected_model import SELECTED_MODEL_FILE, SELECTION, SelectedModel, weights_of

_WIDTH = 80


class Chosen(Record):
    """A model and its postprocessing.

    Args:
        model: A configuration, or several that are averaged, joined by ` + `.
        postprocessing: By label; what stays as it is, is not named.
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


def select_model(folder: Path, metric: str, machine: Machine, *, ensembles: bool = False) -> SelectionReport:
    """Choose; write selection/selection.json, selection/model.yaml and the postprocessing of what was chosen.

    Args:
        folder: A work folder with at least two folds trained and scored.
        metric: What to choose by; one that every label of every case has, such as dice or hd95.
        machine: What to compute on.
        ensembles: Also predict the probabilities that ensembles need; without, those that are there are used.

    Raises:
        UsageError: If fewer than two folds are scored.
        DataError: If masks or references cannot be read.
    """
    masks, names, left_out = candidates_of(folder, metric, machine)
    if ensembles and len(names) > 1:
        _predict_probabilities(masks, names, machine)
    report = _chosen(masks, masks.with_ensembles(names)).model_copy(update={"left_out": left_out})
    _keep(masks.work, names, report)
    return report


def candidates_of(folder: Path, metric: str, machine: Machine) -> tuple[OutOfFold, list[str], tuple[str, ...]]:
    """The out-of-fold masks, the configurations that are scored on all folds, and those that are not.

    Raises:
        UsageError: If fewer than two folds are scored.
    """
    work = Work(folder)
    work.require_plan()
    dataset, splits = Dataset.load(work.dataset), Splits.load(work.splits)
    scored = {path.name: _scored_folds(work, path.name, splits) for path in sorted(work.path.glob("runs/*"))}
    folds = sorted(set[int]().union(*scored.values()))
    names = [name for name, of in scored.items() if of == set(folds)]
    if len(folds) < 2 or not names:
        raise UsageError(
            f"{folder}: trained and scored are {_folds_text(scored)}; expected two or more folds of one configuration: "
            f"what is chosen must be scored on another fold. Train them: `segpipe train {folder}`."
        )
    left_out = tuple(name for name in scored if name not in names)
    if left_out:
        say(f"left out, since not all of the folds {folds} are trained and scored: {', '.join(left_out)}")
    cases = tuple(Validated(dataset.by_id[case], fold) for fold in folds for case in splits.folds[fold].validation)
    masks = OutOfFold(work, dataset.labels, cases, metric, machine.n_workers)
    return masks, names, left_out


def selection_text(report: SelectionReport) -> str:
    """What was chosen and both numbers, for people."""
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


def _scored_folds(work: Work, name: str, splits: Splits) -> set[int]:
    """Folds whose scores are of the present splits."""
    folders = [work.fold(name, str(number)) for number in range(splits.k)]
    return {
        number
        for number, (folder, split) in enumerate(zip(folders, splits.folds, strict=True))
        if folder.scores.is_file() and folder.split.is_file() and Fold.load(folder.split) == split
    }


def _predict_probabilities(masks: OutOfFold, names: list[str], machine: Machine) -> None:
    """Of every fold's validation cases; what is there stays."""
    for name in names:
        for fold in sorted({one.fold for one in masks.cases}):
            folder = masks.work.fold(name, str(fold))
            cases = [one.case for one in masks.cases if one.fold == fold]
            model = load_out_of_fold(folder, resolve_device(machine.device))
            options = PredictOptions(
                probabilities=True, any_size=True
            )  # cases of the dataset: their size is no mistake
            predict_cases(model, cases, folder.validation, options).require_all()


def _chosen(masks: OutOfFold, models: tuple[str, ...]) -> SelectionReport:
    kept = masks.work.path / SELECTION / "scores"
    values = np.array([masks.values_of_steps(model, kept / model) for model in models])
    patients = np.unique([one.case.patient_id for one in masks.cases], return_inverse=True)[1]
    folds = np.array([one.fold for one in masks.cases])
    sign = 1 if METRICS[masks.metric].kind == "overlap" else -1

    def named(choice: Choice) -> Chosen:
        steps = zip(masks.labels.names, (STEPS[number] for number in choice.steps), strict=True)
        wanted = {name: of for name, of in steps if not of.is_nothing}
        return Chosen(model=models[choice.model], postprocessing=Postprocessing(labels=wanted))

    def score(choice: Choice, is_in: NDArray[np.bool_]) -> NDArray[np.float64]:
        return masks.values(named(choice).model, named(choice).postprocessing, is_in)

    found = select(Candidates(values, folds, patients, sign), score)
    return SelectionReport(
        metric=masks.metric,
        policy=DEFAULT_POLICY,
        n_cases=len(masks.cases),
        folds=tuple(sorted(set(folds.tolist()))),
        models={model: _mean(values[number, 0]) for number, model in enumerate(models)},
        left_out=(),
        chosen=named(found.chosen),
        without_fold={str(fold): named(choice) for fold, choice in found.without_fold.items()},
        naive=_worth(found.naive),
        nested=_worth(found.nested),
    )


def _keep(work: Work, candidates: list[str], report: SelectionReport) -> None:
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
