"""A comparison for people, at most 80 columns wide, and as a table for other programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from math import nan
from pathlib import Path

from segpipe.compare.comparison_records import (
    Comparison,
    ComparisonRow,
    Description,
    FoldTest,
    MetricComparison,
    Ranking,
    Suitability,
    Verdict,
)
from segpipe.compare.verdict_sentences import p_text, quantity
from segpipe.core.files import write_text
from segpipe.core.records import Record
from segpipe.core.text import count, csv_text
from segpipe.evaluate.metrics import METRICS, Metric
from segpipe.evaluate.summary import MEAN_LABEL, failure_text

WIDTH = 80
JSON_FILE, CSV_FILE, TEXT_FILE = "comparison.json", "comparisons.csv", "comparison.txt"
_NESTED: dict[str, type[Record]] = {"models": Verdict, "methods": Verdict, "folds": FoldTest}


def save(comparison: Comparison, folder: Path) -> None:
    """Write the record, its rows as CSV and its text into a folder.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the place is not writable.
    """
    comparison.save(folder / JSON_FILE)
    write_text(folder / CSV_FILE, rows_as_csv(comparison))
    write_text(folder / TEXT_FILE, comparison_text(comparison) + "\n")


def rows_as_csv(comparison: Comparison) -> str:
    """One line for each row; nested values as `models_p_value`, nothing where undefined."""
    lines = []
    for row in (row for metric in comparison.metrics for row in metric.rows):
        line = {name: value for name, value in row.model_dump().items() if name not in _NESTED}
        for name, kind in _NESTED.items():
            found = getattr(row, name)
            line |= {f"{name}_{field}": getattr(found, field, None) for field in kind.model_fields}
        lines.append(line)
    return csv_text([list(lines[0]) if lines else [], *(line.values() for line in lines)])


def comparison_text(comparison: Comparison) -> str:
    """Verdicts, tables and what they rest on."""
    n_declared = sum(row.is_declared for metric in comparison.metrics for row in metric.rows)
    blocks = [line for metric in comparison.metrics for line in _metric_lines(metric)]
    close = (
        f"Empty masks: policy {comparison.policy}. p-values of {count(n_declared, 'declared comparison')} are "
        "corrected by Holm, those of the others by Benjamini-Hochberg; intervals are not corrected. Intervals of "
        "differences: what the permutation test does not reject for trained models, t for methods and for 90 %. "
        "Differences are second minus first."
    )
    notes = [line for note in comparison.notes for line in _wrap(note)]
    return "\n".join([*blocks, *notes, *_wrap(close)])


def _metric_lines(found: MetricComparison) -> Iterator[str]:
    metric = METRICS[found.metric]
    direction = "more is better" if metric.kind == "overlap" else "less is better"
    counts = [(found.n_cases, "case"), (found.n_patients, "patient"), (found.n_folds, "fold"), (found.n_seeds, "seed")]
    head = ", ".join(count(n, name) for n, name in counts if n)
    yield from _wrap(f"{metric.title} ({direction}): {head}.")
    for note in found.notes:
        yield from _wrap(note)
    yield ""
    yield from _description_lines(found.descriptions, metric)
    declared = [row for row in found.rows if row.is_declared]
    yield "These trained models (patients vary, trainings do not)"
    for row in declared:
        yield from _bullet_lines(row.models.sentence, _beside_models(row))
    yield ""
    is_told = any(row.methods for row in declared)
    yield ("The methods (trainings vary too)" if is_told else f"The methods: no verdict ({declared[0].methods_basis})")
    for row in declared:
        beside = _beside_methods(row)
        pair = f"{row.method} against {row.baseline}" + (f", {row.label}" if row.label != MEAN_LABEL else "")
        if row.methods or beside:  # with one seed there is nothing to say of a pair
            yield from _bullet_lines(row.methods.sentence if row.methods else f"{pair}:", beside)
    yield ""
    yield from _row_lines([row for row in found.rows if not row.is_declared], metric)
    yield from _ranking_lines(found.rankings)
    yield from _suitability_lines(found.suitability, declared, metric)
    yield ""


def _description_lines(rows: Sequence[Description], metric: Metric) -> Iterator[str]:
    """A table for all cases, then one for each group."""
    for place in dict.fromkeys((row.grouping, row.group) for row in rows):
        if place[0]:
            yield f"{place[0]} {place[1]}"
        yield f"{'method':18} {'label':11}    mean   95 % interval   median worst 5%  failed"
        for row in rows:
            if (row.grouping, row.group) == place:
                numbers = (row.mean, row.low, row.high, row.median, row.worst_5_percent)
                mean, low, high, median, worst = (_short(value, metric) for value in numbers)
                names = f"{_cut(row.method, 18)} {_cut(row.label, 11)}"
                failed = f"{row.n_failed_patients}/{row.n_patients}"
                yield f"{names} {mean:>7}  {low:>6} – {high:<6} {median:>7} {worst:>8} {failed:>7}"
        yield ""
    yield from _wrap(_failures(rows))
    left_out = {(row.method, row.label): row.n_left_out for row in rows if row.n_left_out and not row.grouping}
    for (method, label), n_cases in left_out.items():
        yield from _wrap(f"Left out by the policy: {count(n_cases, 'score')} of {method}, {label}.")
    for note in dict.fromkeys(row.note for row in rows if row.note and not row.grouping):
        yield from _wrap(f"{note[0].upper()}{note[1:]}.")


def _failures(rows: Sequence[Description]) -> str:
    """The rates of patients with a failure, of each method and the last label, all cases."""
    own = {row.method: row for row in rows if not row.grouping}  # the mean over labels comes last
    text = "; ".join(f"{name}: {failure_text(row)}" for name, row in own.items())
    return f"{text}."


def _bullet_lines(sentence: str, beside: Sequence[str]) -> list[str]:
    """A sentence, and below it what else was found."""
    lines = textwrap.wrap(sentence, WIDTH, initial_indent="* ", subsequent_indent="  ")
    text = "; ".join(part for part in beside if part)
    return lines + textwrap.wrap(f"{text}.", WIDTH, initial_indent="  ", subsequent_indent="  ") if text else lines


def _beside_models(row: ComparisonRow) -> list[str]:
    share, delta, standardised = row.probability_of_improvement, row.cliffs_delta, row.standardised
    return [
        f"permutation {p_text(row.models.p_value)}, Wilcoxon {p_text(row.p_wilcoxon)} before correction",
        "" if standardised is None else f"standardised {standardised:+.2f}",
        "" if share is None else f"improves {100 * share:.0f} % of patients",
        "" if delta is None else f"Cliff's delta {delta:+.2f}",
        fold_text(row),
    ]


def _beside_methods(row: ComparisonRow) -> list[str]:
    parts = []
    if row.methods is not None:
        parts.append(f"from {row.methods_basis}, {p_text(row.methods.p_value)} before correction")
    if row.folds is not None:
        worse, equal, better = row.folds.worse, row.folds.equivalent, row.folds.better
        parts.append(f"Nadeau-Bengio {p_text(row.folds.p_value)}")
        parts.append(f"worse, equal, better with probability {worse:.2f}, {equal:.2f}, {better:.2f}")
    return parts


def _row_lines(rows: Sequence[ComparisonRow], metric: Metric) -> Iterator[str]:
    """Exploratory rows, one line each."""
    if not rows:
        return
    yield "Exploratory, trained models: second minus first"
    yield f"{'':20} {'label':11} {'diff.':>8} {'low':>8} {'high':>8} {'p':>6} verdict"
    place = ("", "")
    for row in rows:
        if (row.grouping, row.group) != place:
            place = (row.grouping, row.group)
            yield f"{row.grouping} {row.group}"
        numbers = (row.difference, row.models.low, row.models.high)
        shown = " ".join(f"{_short(value, metric, signed=True):>8}" for value in numbers)
        half = 9
        pair = f"{_cut(row.method, half)}-{_cut(row.baseline, half)}"
        p_value = row.models.p_adjusted
        p_shown = "–" if p_value is None else f"{p_value:.4f}" if p_value >= 1e-4 else "<.0001"
        yield f"{pair:20} {_cut(row.label, 11)} {shown} {p_shown:>6} {row.models.answer}"
    yield ""


def _ranking_lines(rankings: Sequence[Ranking]) -> Iterator[str]:
    for ranking in rankings:
        yield f"Ranking, {ranking.order}; Kendall's tau with resampled patients {ranking.kendall_tau:.2f}"
        order = sorted(range(len(ranking.methods)), key=lambda method: ranking.ranks[method])
        for method in order:
            low, high = ranking.low[method], ranking.high[method]
            yield (
                f"  {ranking.ranks[method]:g}. {_cut(ranking.methods[method], 30)} "
                f"95 % of ranks {low:g} to {high:g}, first in {100 * ranking.first_fraction[method]:.0f} %"
            )


def _suitability_lines(found: Suitability | None, rows: Sequence[ComparisonRow], metric: Metric) -> Iterator[str]:
    if found is not None:
        ratio = "undefined" if found.ratio is None else f"{100 * found.ratio:.0f} %"
        share = generalisability_text(found)
        yield from _wrap(
            f"Suitability: SD between {found.n_methods} methods {quantity(found.between_methods, metric)}, SD within a "
            f"method over {found.n_folds} folds {quantity(found.within_method, metric)}: ratio {ratio}; "
            f"generalisability without the folds' own difficulty {share}."
        )
    for row in rows:
        pair = f"{row.method} against {row.baseline}" + (f", {row.label}" if row.label != MEAN_LABEL else "")
        models, methods = row.models.detectable, row.methods.detectable if row.methods else None
        text = f"This dataset can show (power 80 %), {pair}: {quantity(nan if models is None else models, metric)}"
        if methods is not None:
            text += f" for trained models, {quantity(methods, metric)} for methods"
        yield from _wrap(f"{text}.")


def fold_text(row: ComparisonRow) -> str:
    """The difference in each fold, and the folds that decide the verdict; empty without folds."""
    if not row.fold_differences:
        return ""
    differences = [_short(value, METRICS[row.metric], signed=True) for value in row.fold_differences]
    text = f"by fold {', '.join(differences)}"
    if row.rests_on_folds:
        folds = ", ".join(map(str, row.rests_on_folds))
        return f"{text}: the verdict rests on fold {folds}"
    return text if row.models.answer == "cannot tell" else f"{text}: the verdict holds without any one fold"


def generalisability_text(found: Suitability) -> str:
    """The coefficient as people read it."""
    share = found.generalisability
    return "undefined" if share is None else f"{share:.2f}" if share > 0 else "0 (no signal)"


def _short(value: float | None, metric: Metric, *, signed: bool = False) -> str:
    """A number without its unit."""
    return "–" if value is None else quantity(value, metric, signed=signed).split(" ")[0]


def _cut(name: str, width: int) -> str:
    return f"{name if len(name) <= width else name[: width - 1] + '…':{width}}"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)
