"""The protocol in words, ready for a paper: plain text, and the same in LaTeX."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segpipe._version import __version__
from segpipe.compare.comparison_records import Comparison, MetricComparison
from segpipe.compare.permutation import MAX_EXACT_PATIENTS
from segpipe.compare.verdict_sentences import quantity
from segpipe.core.text import count, list_names
from segpipe.data.splits import leaks
from segpipe.evaluate.intervals import FEWEST_PATIENTS, N_RESAMPLES
from segpipe.evaluate.metrics import METRICS, SHOWN_UNITS
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.summary import DEFAULT_POLICY, FAILED_DICE, MEAN_LABEL
from segpipe.plan.training_commands import PlanChange
from segpipe.report.work_contents import Run, WorkFolder

_POLICIES = {
    "mr": "the best value if both masks of a structure were empty, and the worst if one was: 0, or the diagonal of the "
    "image for a distance (Metrics Reloaded)",
    "nnunet": "nothing if both masks of a structure were empty (the case was left out), and the worst value if one "
    "was: 0, or the diagonal of the image for a distance (nnU-Net)",
    "brats": "the best value if both masks of a structure were empty, and 0 or 374 mm if one was (BraTS)",
    "omit": "nothing: cases in which either mask of a structure was empty were left out of its mean and counted",
}
_LATEX: dict[str, str | int | None] = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": "$|$",
    "<": "$<$", ">": "$>$", "–": "--", "−": "$-$", "±": r"$\pm$", "×": r"$\times$",
    "²": r"\textsuperscript{2}", "³": r"\textsuperscript{3}",
}  # fmt: skip
_FOREIGN = "Scores computed by another program follow its own definitions."
_PACKAGES = ("numpy", "scipy")


@dataclass(frozen=True)
class MethodsText:
    """Paragraphs, each a heading and its text; both forms are made of the same words."""

    paragraphs: tuple[tuple[str, str], ...]

    @property
    def plain(self) -> str:
        """For any editor."""
        return "\n\n".join(f"{heading}. {text}" for heading, text in self.paragraphs)

    @property
    def latex(self) -> str:
        """For LaTeX with UTF-8, its default; needs no package and no bibliography."""
        return "\n\n".join(
            f"\\paragraph{{{_escape_latex(heading)}.}} {_escape_latex(text)}" for heading, text in self.paragraphs
        )


def _escape_latex(text: str) -> str:
    return text.translate(str.maketrans(_LATEX)).replace(" \\%", "\\,\\%")


def metrics_text(metrics: Iterable[str]) -> str:
    """Define the metrics, with their sources."""
    rows = [METRICS[name] for name in metrics]
    units = [f", in {SHOWN_UNITS[row.unit]}" if SHOWN_UNITS[row.unit] else "" for row in rows]
    sources = [f" ({row.source})" if row.source else "" for row in rows]
    parts = [
        f"{row.title} is {row.description}{unit}{source}"
        for row, unit, source in zip(rows, units, sources, strict=True)
    ]
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def policy_text(policy: str) -> str:
    """State what empty masks counted."""
    return f"In means a score counted {_POLICIES[policy]}."


def interval_text(n_patients: int, seed: int) -> str:
    """Describe the intervals and their limits."""
    means = "Means were taken over cases for each label, then over labels."
    exact = (
        "A patient failed if a structure was missed, invented or had a Dice below "
        f"{FAILED_DICE}; intervals of failure rates are exact (Clopper and Pearson 1934), those of medians lie between "
        "order statistics."
    )
    if n_patients < FEWEST_PATIENTS:
        return f"{means} {count(n_patients, 'patient')} give{'s' * (n_patients == 1)} no interval of a mean. {exact}"
    return (
        f"{means} 95 % confidence intervals of means are bootstrap-t intervals (Efron 1982, levels expanded as by "
        f"Hesterberg 2015) from {N_RESAMPLES} resamples of patients with all their cases (seed {seed}). {exact}"
    )


def software_text() -> str:
    """Versions of what computed the statistics."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    return f"Statistics were computed with segpipe {__version__} ({', '.join(versions)})."


def comparison_methods(comparison: Comparison) -> MethodsText:
    """The protocol of a comparison."""
    names, metrics = comparison.methods, comparison.metrics
    data = f"{', '.join(names[:-1])} and {names[-1]} were compared on the same cases. "
    data += " ".join(dict.fromkeys(_counts(found) for found in metrics))
    n_patients = min(found.n_patients for found in metrics)
    return MethodsText((
        ("Data", data),
        ("Metrics", f"{metrics_text(found.metric for found in metrics)} {_FOREIGN} {policy_text(comparison.policy)}"),
        ("Intervals", interval_text(n_patients, comparison.seed)),
        ("Tests", _tests(comparison)),
        ("Claims", " ".join(_claims(comparison))),
        ("Software", software_text()),
    ))  # fmt: skip


def _counts(found: MetricComparison) -> str:
    folds = f" validated in {found.n_folds} common folds," if found.n_folds else ""
    seeds = "a single training seed" if found.n_seeds == 1 else f"{found.n_seeds} training seeds"
    cases = f"{count(found.n_cases, 'case')} of {count(found.n_patients, 'patient')}"
    text = f"There were {cases},{folds} and {seeds} for each method."
    return " ".join([text, *found.notes])


def _tests(comparison: Comparison) -> str:
    rows = [row for found in comparison.metrics for row in found.rows]
    declared = [row for row in rows if row.is_declared]
    labels = ", ".join(dict.fromkeys("the mean over labels" if r.label == MEAN_LABEL else r.label for r in declared))
    margins = ", ".join(dict.fromkeys(f"{quantity(r.margin, METRICS[r.metric])} ({r.metric})" for r in declared))
    first = comparison.methods[0]
    is_against_first = len(comparison.methods) > 2 and all(row.baseline == first for row in declared)
    pairs = f"each other method with {first}" if is_against_first else "every pair of methods"
    n_patients = max((row.n_patients for row in rows), default=0)
    patterns = (
        "all patterns of signs" if n_patients <= MAX_EXACT_PATIENTS else f"{comparison.n_permutations} drawn patterns"
    )
    return (
        "Differences were paired by case. The p-value is that of a two-sided sign-flip permutation test, in which the "
        f"cases of a patient flipped together ({patterns}; {MAX_EXACT_PATIENTS} patients or fewer: exact); the "
        "95 % interval of the difference of trained models holds what this test does not reject. Wilcoxon's signed-rank"
        " test of patients' means is secondary. Equivalence was tested by two one-sided t-tests with "
        f"variances clustered by patient (Schuirmann 1987); the equivalence margin was {margins}. "
        f"The family of {count(len(declared), 'declared comparison')} ({labels}, {pairs}) was corrected by Holm's "
        f"method at 5 %; the {len(rows) - len(declared)} others are exploratory and were corrected by "
        "Benjamini and Hochberg's."
    )


def _claims(comparison: Comparison) -> list[str]:
    """State the subject of the verdicts and the basis of the rankings."""
    bases = dict.fromkeys(r.methods_basis for found in comparison.metrics for r in found.rows if r.is_declared)
    is_told = any(r.methods is not None for found in comparison.metrics for r in found.rows)
    claims = ["Verdicts on trained models allow for other patients, not for other trainings."]
    if is_told:
        claims.append(
            f"Verdicts on methods rest on {', '.join(bases)}: their variance has a term for trainings beside that for "
            "patients, or is that of Nadeau and Bengio (2003) where each seed had its own folds."
        )
    else:
        claims.append(f"No claim is made about the methods themselves ({', '.join(bases)}).")
    if any(found.rankings for found in comparison.metrics):
        claims.append(
            f"Rankings were repeated on {N_RESAMPLES} resamples of patients; their agreement with the ranking by all "
            "patients is Kendall's tau-b."
        )
    if any(found.suitability for found in comparison.metrics):
        claims.append(
            "Suitability of the data is the SD between methods of their means over folds divided by the SD within a "
            "method over folds (Isensee et al. 2024), beside a generalisability coefficient without the folds' own "
            "difficulty."
        )
    return claims


_OWN_GRID = "Masks were scored on the grid of their image."
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
        "training.augmentation": "augmentation {}",
        "training.foreground_fraction": "a fraction of {} of the patches centred on a label",
        "training.seed": "training seed {}",
    }
    said = []
    for key, text in phrases.items():
        values = [value for value in _values(work.plan, run, key) if value is not None]
        if values:
            said.append(text.format(" or ".join(dict.fromkeys(map(_value_text, values)))))
    said += _named_parts(_values(work.plan, run, f"{own}.network.parts"))
    said += training_length(work, run)
    preset = f" (preset {work.plan['preset']})" if "preset" in work.plan else ""
    return f"Configuration {run.configuration}{preset}: {', '.join(said)}." if said else ""


def _named_parts(values: Iterable[Any]) -> list[str]:
    """Parts of the network that were chosen by name, as `bottleneck attention botnet`; of all folds."""
    named = [
        f"{name.replace('_', ' ')} {part}"
        for parts in values
        if isinstance(parts, Mapping)
        for name, part in parts.items()
        if isinstance(part, str)
    ]
    return list(dict.fromkeys(named))


def training_length(work: WorkFolder, run: Run) -> list[str]:
    """Phrases on how long the validated folds were trained: epochs only where all of them ran to their planned end.

    Where a clock, an early stop or an interruption ended a training, the steps that were taken are its length, and the
    planned ones are named as what they are.
    """
    folds = [fold for fold in run.folds if fold.name != "all"]
    budgets = list(_values(work.plan, run, "training.time_budget_seconds"))
    planned = [_planned_steps(work.plan, run, number) for number in range(len(budgets))]
    whole = _range([n for n in planned if n is not None], "planned step")
    taken = [fold.n_steps for fold in folds]
    if not any(taken):
        return [f"{whole}, of which the number taken is not recorded"] if whole and not any(budgets) else []
    if taken == planned:
        epochs, steps = (_values(work.plan, run, f"training.{key}") for key in ("epochs", "iterations_per_epoch"))
        by_epochs = all(n is None for n in _values(work.plan, run, "training.iterations"))
        is_one = by_epochs and len({*epochs}) == len({*steps}) == 1
        return [f"{count(epochs[0], 'epoch')} of {count(steps[0], 'step')}"] * is_one + [
            _range([n for n in taken if n], "step")
        ]
    said = [f"{_range([n for n in taken if n], 'step')} taken{' per fold' if len(folds) > 1 else ''}"]
    seconds = dict.fromkeys(_value_text(budget) for budget in budgets if budget is not None)
    if seconds:
        said.append(f"as many as a time budget of {' or '.join(seconds)} s per fold allowed")
    stopped = [fold.name for fold in folds if fold.history and fold.history.stopped_early]
    short = [
        fold.name
        for fold, n, of, budget in zip(folds, taken, planned, budgets, strict=True)
        if budget is None and fold.name not in stopped and n != of
    ]
    if stopped:
        said.append(f"stopped early in {_fold_names(stopped)} because the patch Dice no longer rose")
    if short:
        said.append(f"not to the planned end in {_fold_names(short)} ({whole})")
    return said


def _fold_names(names: Sequence[str]) -> str:
    return f"fold{'s' * (len(names) > 1)} {', '.join(names)}"


def _range(numbers: Sequence[int], noun: str) -> str:
    """`9 steps`, `9 to 13 steps`; empty without numbers."""
    low, high = min(numbers, default=0), max(numbers, default=0)
    return "" if not numbers else count(low, noun) if low == high else f"{low} to {count(high, noun)}"


def _planned_steps(plan: Mapping[str, Any], run: Run, fold: int) -> int | None:
    """Steps that a fold was to take; None where a clock rules, or the plan does not say."""
    names = ("time_budget_seconds", "iterations", "epochs", "iterations_per_epoch")
    budget, steps, epochs, per_epoch = (_values(plan, run, f"training.{name}")[fold] for name in names)
    if budget is not None:
        return None
    if isinstance(steps, int):
        return steps
    return epochs * per_epoch if isinstance(epochs, int) and isinstance(per_epoch, int) else None


def _values(plan: Mapping[str, Any], run: Run, key: str) -> list[Any]:
    """The value of a key of the plan in each fold that was validated."""
    planned: Any = plan
    for step in key.split("."):
        planned = planned.get(step) if isinstance(planned, Mapping) else None
    return [_apply_changes(planned, key, fold.changes) for fold in run.folds if fold.name != "all"] or [planned]


def _apply_changes(planned: Any, key: str, changes: Iterable[PlanChange]) -> Any:
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
