"""The methods paragraph of a work folder: data, folds, training and scoring, as recorded in its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from segpipe.core.text import count
from segpipe.data.splits import leaks
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.summary import DEFAULT_POLICY
from segpipe.report.methods_text import MethodsText, interval_text, metrics_text, policy_text, software_text
from segpipe.report.plan_page_tables import list_names
from segpipe.report.work_contents import Change, Run, WorkFolder

_OWN_GRID = "Masks were scored on the grid of their image."
_LENGTHS = ("training.iterations_per_epoch", "training.epochs", "training.iterations")
_SEED = 0  # of the report's own bootstrap, the default of `summarise`


def work_methods(work: WorkFolder, run: Run, table: ScoreTable, metrics: Iterable[str]) -> MethodsText:
    """The protocol of one configuration; what its folder does not record is left out.

    Args:
        work: The folder.
        run: The configuration.
        table: Its scores, of one run.
        metrics: Those whose means are shown.
    """
    n_patients = len({row.patient_id for row in table.rows})
    agreement = (
        " Volumes were compared by bias and 95 % limits of agreement (Bland and Altman 1986) with intervals that are "
        "exact for normal differences, with patients as independent units."
        if "volume_difference" in table.metrics
        else ""
    )
    paragraphs = (
        ("Data and splits", " ".join(filter(None, (_data(work), _folds(work, run, table))))),
        ("Training", _training(work, run)),
        ("Metrics", f"{metrics_text(metrics)} {_OWN_GRID} {policy_text(DEFAULT_POLICY)}"),
        ("Statistics", interval_text(n_patients, _SEED) + agreement),
        ("Software", software_text()),
    )
    return MethodsText(tuple(paragraph for paragraph in paragraphs if paragraph[1]))


def _data(work: WorkFolder) -> str:
    if work.dataset is None:
        return ""
    cases = work.dataset.cases
    n_sites = len({case.site for case in cases if case.site})
    sites = f" from {n_sites} sites" if n_sites > 1 else ""
    n_patients = len({case.patient_id for case in cases})
    return (
        f"{work.dataset.name} has {count(len(cases), 'case')} of {count(n_patients, 'patient')}{sites}, channels "
        f"{list_names(work.dataset.channels)}, and labels {list_names(work.dataset.labels.names)}."
    )


def _folds(work: WorkFolder, run: Run, table: ScoreTable) -> str:
    n_patients = len({row.patient_id for row in table.rows})
    scored = f"{count(len(table.case_ids), 'case')} of {count(n_patients, 'patient')} were scored"
    if work.splits is None:
        return f"{scored}."
    names = [fold.name for fold in run.folds if fold.name != "all"]
    if len(names) < work.splits.k:
        scored += f", validated in fold{'s' * (len(names) != 1)} {', '.join(names)} (counted from 0) of {work.splits.k}"
    drawn = "" if work.splits.seed is None else f", drawn with seed {work.splits.seed}"
    parts = [f"Cross-validation used {work.splits.source}{drawn}."]
    if work.dataset is not None:
        is_mixed = bool(leaks(work.splits.folds, work.dataset))
        parts.append(
            "SOME PATIENTS HAD CASES IN BOTH TRAINING AND VALIDATION, so the scores are too optimistic."
            if is_mixed
            else "No patient had cases in both training and validation of a fold."
        )
    return " ".join([*parts, f"{scored}, each predicted by a model that was not trained on it."])


def _training(work: WorkFolder, run: Run) -> str:
    """Network and recipe, with every value that any fold was trained with, and the steps that were really taken."""
    own = f"configurations.{run.configuration}"
    phrases = {  # by key of the plan
        f"{own}.network.kind": "network {}",
        f"{own}.patch_zyx": "patches of {} voxels (Z×Y×X)",
        f"{own}.spacing_mm": "voxels of {} mm",
        f"{own}.batch_size": "{} patches per step",
        "training.optimizer": "optimizer {}",
        "training.learning_rate": "learning rate {}",
        "training.weight_decay": "weight decay {}",
        "training.schedule": "schedule {}",
        "training.iterations_per_epoch": "epochs of {} steps",
        "training.epochs": "{} epochs planned",
        "training.iterations": "{} steps planned",
        "training.time_budget_seconds": "a time budget of {} s per fold",
        "training.augmentation": "augmentation {}",
        "training.foreground_fraction": "a fraction of {} of the patches centred on a label",
        "training.seed": "training seed {}",
    }
    said = []
    budgets = _values(work.plan, run, "training.time_budget_seconds")
    for key, text in phrases.items():
        values = [value for value in _values(work.plan, run, key) if value is not None]
        # where the clock ruled, lengths in the plan were void: an epoch was a share of the time budget
        if values and not (key in _LENGTHS and all(budget is not None for budget in budgets)):
            said.append(text.format(" or ".join(dict.fromkeys(map(_value_text, values)))))
    by_clock = all(budget is not None for budget in budgets)
    n_epochs = {len(fold.history.columns["epoch"]) for fold in run.folds if fold.history and fold.name != "all"}
    if n_epochs and not by_clock:
        low, high = min(n_epochs), max(n_epochs)
        said.append(f"{count(low, 'epoch')} run" if low == high else f"{low} to {high} epochs run")
    n_steps = {fold.n_steps for fold in run.folds if fold.n_steps and fold.name != "all"}
    if n_steps:
        low, high = min(n_steps), max(n_steps)
        said.append(f"{count(low, 'step')} taken" if low == high else f"{low} to {high} steps taken per fold")
    preset = f" (preset {work.plan['preset']})" if "preset" in work.plan else ""
    return f"Configuration {run.configuration}{preset}: {', '.join(said)}." if said else ""


def _values(plan: Mapping[str, Any], run: Run, key: str) -> list[Any]:
    """The value of a key of the plan in each fold that was validated."""
    planned: Any = plan
    for step in key.split("."):
        planned = planned.get(step) if isinstance(planned, Mapping) else None
    return [_apply_changes(planned, key, fold.changes) for fold in run.folds if fold.name != "all"] or [planned]


def _apply_changes(planned: Any, key: str, changes: Iterable[Change]) -> Any:
    """A value of the plan with a fold's changes, to the whole or to its parts."""
    value = planned
    for change in changes:
        if change.key == key:
            value = change.value
        elif change.key.startswith(f"{key}.") and isinstance(value, Mapping):
            value = {**value, change.key.removeprefix(f"{key}."): change.value}
    return value


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return "×".join("any" if part is None else _value_text(part) for part in value)
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_value_text(part)}" for key, part in value.items() if part is not None)
    return f"{value:g}" if isinstance(value, float) else str(value)
