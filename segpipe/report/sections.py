"""The section of one configuration, numbers, charts and cases, and that of the data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from segpipe.core.figures import (
    EDGE_COLOUR,
    FoldCurves,
    drawn_name,
    figure_bytes,
    label_colours,
    learning_curves,
    new_figure,
    tidy,
)
from segpipe.core.history import History
from segpipe.core.probabilities import CalibrationReport, LabelCalibration, Reliability
from segpipe.core.text import MOST_ROWS, count, duration_text
from segpipe.data.faults import FaultGroup, fault_groups
from segpipe.evaluate.groups import CaseTable, compare_groups, gap_text
from segpipe.evaluate.metrics import METRICS, number_text
from segpipe.evaluate.scores import DIAGONAL, Score, ScoreTable
from segpipe.evaluate.summary import DEFAULT_POLICY, FAILED_DICE, MEAN_LABEL, SummaryRow, failure_text, worst_first
from segpipe.report.charts import WIDTH_INCHES, distributions, volume_picture, volume_table
from segpipe.report.methods_text import work_methods
from segpipe.report.overlay_pictures import case_dice, case_pictures
from segpipe.report.page import STATUS_TEXT, Cell, DataCheck, Headline, Picture, Section, Table, failure_rate_text
from segpipe.report.work_contents import Run, Scored, WorkFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_COLUMNS, _MAX_PANELS = 3, 12  # more would be taller than a page
_BEFORE_COLOUR = "#8a97a5"


def calibration_picture(found: CalibrationReport, colours: Mapping[str, str]) -> Picture | None:
    """Reliability diagram of each label, before and after the temperature; of very many the worst.

    Args:
        found: What was counted.
        colours: Of the labels.
    """
    if not found.labels:
        return None
    worst = sorted(found.labels, key=lambda one: -one.before.ece)[:_MAX_PANELS]
    drawn = [one for one in found.labels if one in worst]
    caption = (
        "How often a label is there, by the predicted probability, in voxels near it; patients count equally. Larger "
        "dots stand for more voxels. On the dashed line probabilities are right; below it they are too sure."
    )
    if len(drawn) < len(found.labels):
        caption += f" {len(drawn)} of {len(found.labels)} labels are drawn; the table lists all."
    gaps = [f"{one.label} {one.before.ece:.3f}{f' and {one.after.ece:.3f}' if one.after else ''}" for one in drawn]
    alt = f"Frequency over probability by label. Mean gap before and after correction: {', '.join(gaps)}."
    return Picture("svg", reliability_svg(drawn, colours), alt, caption)


def reliability_svg(labels: Sequence[LabelCalibration], colours: Mapping[str, str]) -> bytes:
    """Frequency over probability, a panel for each label: grey before, in the label's colour after."""
    n_columns = min(_COLUMNS, len(labels))
    n_rows = -(-len(labels) // n_columns)
    figure = new_figure(WIDTH_INCHES, 3.1 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel, one in zip(panels, labels, strict=False):
        panel.plot([0, 1], [0, 1], "--", color="black", linewidth=0.8)
        _draw_reliability(panel, one.before, _BEFORE_COLOUR, "before")
        if one.after is not None:
            _draw_reliability(panel, one.after, colours.get(one.label, EDGE_COLOUR), "after")
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        panel.set_title(drawn_name(one.label), fontsize=10, loc="left")
        panel.set_xlabel("predicted probability", fontsize=8.5)
        panel.set_ylabel("frequency", fontsize=8.5)
        panel.legend(fontsize=8, frameon=False, loc="upper left")
        tidy(panel)
    for panel in panels[len(labels) :]:
        panel.set_axis_off()
    return figure_bytes(figure, "svg")


def _draw_reliability(panel: Axes, curve: Reliability, colour: str, name: str) -> None:
    points = [
        (p, frequency, share)
        for p, frequency, share in zip(curve.probability, curve.frequency, curve.share, strict=True)
        if p is not None and frequency is not None
    ]
    p, frequency, share = np.array(points).T
    panel.plot(p, frequency, "-", color=colour, linewidth=1.3, label=name)
    panel.scatter(p, frequency, 4 + 120 * share, color=colour, alpha=0.7, linewidth=0, clip_on=False, zorder=3)


def calibration_table(found: CalibrationReport) -> Table | None:
    """Calibration error of every label before and after the temperature."""
    if not found.labels:
        return None
    lines = []
    for one in found.labels:
        cells = [cell for curve in (one.before, one.after) for cell in _error_cells(curve)]
        lines.append((Cell(one.label), *cells, Cell(str(one.n_patients), one.n_patients)))
    of_folds = ", ".join(f"{value:.2f}" for value in found.temperature_of_fold.values())
    caption = (
        "ECE: mean gap between predicted probability and frequency. Chance alone adds to it; debiased, it is 0 on "
        "average if probabilities are right. In brackets the 95 % interval of the true gap over patients. "
        f"Temperature {found.temperature_text} from all folds: `segpipe predict --calibrated` divides logits by it, "
        "which changes no mask. "
    )
    caption += (
        f"After: each fold with the temperature of the others ({of_folds})."
        if of_folds
        else "It takes two folds to show how well it works on other patients."
    )
    columns = ("label", "ECE before", "debiased", "ECE after", "debiased", "patients")
    return Table(columns, tuple(lines), caption, is_sortable=True)


def _error_cells(curve: Reliability | None) -> tuple[Cell, Cell]:
    if curve is None:
        return Cell("–"), Cell("–")
    interval = "" if curve.low is None or curve.high is None else f"\n[{curve.low:.3f}, {curve.high:.3f}]"
    debiased = max(0.0, curve.ece_debiased)
    return Cell(f"{curve.ece:.3f}", curve.ece), Cell(f"{debiased:.3f}{interval}", debiased)


_HEADLINES = ("dice", "hd95")
_TABLE_METRICS = ("dice", "hd95", "nsd", "assd", "iou", "sensitivity", "precision")
_MAX_LABELS_BY_CASE = 6  # more would make the table of cases wider than a page


def make_section(work: WorkFolder, scored: Scored, cases: CaseTable, notes: list[str]) -> Section:
    """The section of one configuration with its groups of cases; what cannot be shown is added to `notes`."""
    own_notes: list[str] = []
    run, table, rows = scored.run, scored.table, scored.rows
    names = work.dataset.labels.names if work.dataset else table.labels if table else ()
    colours = label_colours(names)
    section = Section(
        title=run.configuration,
        headlines=_headlines(rows, table),
        warnings=(*_interval_notes(rows), *_plan_changes(run)),
        scores=_score_table(rows),
        curves=learning_picture(run),
        distributions=distributions(table, _HEADLINES, colours) if table is not None else (),
        more_distributions=distributions(table, _others(table), colours) if table is not None else (),
        volumes=volume_picture(scored.volumes, colours),
        volume_table=volume_table(scored.volumes),
        calibration=calibration_picture(run.calibration, colours) if run.calibration else None,
        calibration_table=calibration_table(run.calibration) if run.calibration else None,
        overlays=case_pictures(work, run, table, own_notes) if table is not None else (),
        cases=_case_table(table) if table is not None else None,
        methods=work_methods(work, run, table, _shown_metrics(rows)) if table is not None else None,
        groups=_group_table(table, cases) if table is not None and rows else None,
    )
    notes += [f"{run.configuration}: {note}" for note in own_notes]
    return section


def _others(table: ScoreTable) -> tuple[str, ...]:
    """Metrics that are no headline."""
    return tuple(name for name in table.metrics if name not in _HEADLINES)


def _interval_notes(rows: Sequence[SummaryRow]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"Intervals: {row.note}." for row in rows if row.label == MEAN_LABEL and row.note))


def _plan_changes(run: Run) -> tuple[str, ...]:
    """A sentence for each group of folds whose training differs from plan.yaml."""
    folds_of: dict[tuple[str, ...], list[str]] = {}
    for fold in run.folds:
        folds_of.setdefault(tuple(map(str, fold.changes)), []).append(fold.name)
    return tuple(
        f"{'Fold' if len(names) == 1 else 'Folds'} {', '.join(names)} trained with {'; '.join(changes)}."
        for changes, names in folds_of.items()
        if changes
    )


def _interval(row: SummaryRow) -> str:
    if row.low is None or row.high is None:
        return ""
    return f"[{number_text(row.low, row.unit)}, {number_text(row.high, row.unit)}]"


def _median(row: SummaryRow) -> str:
    """The median of a distance, whose mean a few cases decide, with its interval; empty for other metrics."""
    if METRICS[row.metric].kind != "distance" or row.median is None:
        return ""
    interval = ""
    if row.median_low is not None and row.median_high is not None:
        interval = f"\n[{number_text(row.median_low, row.unit)}, {number_text(row.median_high, row.unit)}]"
    return f"median {number_text(row.median, row.unit)}{interval}"


def _headlines(rows: Sequence[SummaryRow], table: ScoreTable | None) -> tuple[Headline, ...]:
    result = []
    for row in rows:
        if table is not None and row.label == MEAN_LABEL and row.metric in _HEADLINES:
            unit = "" if row.unit == "1" else f" {row.unit}"
            interval = f"95 % interval {_interval(row)}{unit}" if _interval(row) else row.note
            n_cases, n_patients = count(len(table.case_ids), "case"), count(row.n_patients, "patient")
            basis = f"{n_cases} of {n_patients}, {count(len(table.labels), 'label')}"
            name = f"Mean {METRICS[row.metric].title}"
            result.append(Headline(name, number_text(row.mean, row.unit) + unit, interval, basis))
    return tuple(result)


def _shown_metrics(rows: Sequence[SummaryRow]) -> tuple[str, ...]:
    return tuple(name for name in _TABLE_METRICS if any(row.metric == name for row in rows))


def _score_table(rows: Sequence[SummaryRow]) -> Table | None:
    """Labels by metrics, of many the worst first, the mean last; cases are counted in the row of their Dice."""
    metrics = _shown_metrics(rows)
    if not metrics:
        return None
    by_place = {(row.label, row.metric): row for row in rows}
    lines = {}
    for label in dict.fromkeys(row.label for row in rows):
        found = [by_place[label, name] for name in metrics if (label, name) in by_place]
        cells = [
            Cell("\n".join(filter(None, (number_text(row.mean, row.unit), _interval(row), _median(row)))), row.mean)
            for row in found
        ]
        counts = found[0]
        n_bad = counts.n_missed + counts.n_spurious
        number_of = {"ok": counts.n_ok, "both empty": counts.n_both_empty}
        number_of |= {"missed": counts.n_missed, "spurious": counts.n_spurious}
        texts = [f"{n} {name}" for name, n in number_of.items() if n or name == "ok"]
        text = "\n".join(["structures:", *texts] if label == MEAN_LABEL else texts)
        failed = Cell(failure_rate_text(counts), counts.n_failed_patients, is_bad=counts.n_failures > 0)
        name = "mean" if label == MEAN_LABEL else label
        lines[label] = (Cell(name), *cells, Cell(text, n_bad, is_bad=n_bad > 0), failed)
    mean = lines.pop(MEAN_LABEL, ())
    is_long = len(lines) > MOST_ROWS
    if is_long:
        ranked = worst_first(by_place[label, metrics[0]] for label in lines)
        lines = {row.label: lines[row.label] for row in ranked}
    caption = (
        "Means over cases with 95 % intervals over patients. A missed structure or a false alarm counts as the worst "
        "value (0, or the diagonal of the image), two empty masks as the best. "
        f"Failures are structures missed, invented or with a Dice below {FAILED_DICE}."
    )
    columns = ("label", *(METRICS[name].heading for name in metrics), "cases", "patients with\na failure")
    return Table(columns, tuple(lines.values()), caption, is_sortable=is_long, is_folded=True, foot=mean)


def _group_table(table: ScoreTable, cases: CaseTable) -> Table | None:
    """Means of each group for the headlines' metrics, over labels; below them the largest gap."""
    rows = tuple(row for row in table.rows if row.metric in (*_HEADLINES, DIAGONAL))
    groups, gaps = compare_groups(ScoreTable(rows), cases, DEFAULT_POLICY)
    if not groups:
        return None
    metrics = [name for name in _HEADLINES if name in table.metrics]
    by_place = {(row.grouping, row.group, row.metric): row for row in groups if row.label == MEAN_LABEL}
    lines = []
    for grouping, group in dict.fromkeys((row.grouping, row.group) for row in groups):
        found = [by_place[grouping, group, name] for name in metrics]
        cells = [Cell(f"{number_text(row.mean, row.unit)}\n{_interval(row)}".strip(), row.mean) for row in found]
        n_failed = found[0].n_failed_patients
        about = Cell(failure_text(found[0]), n_failed, is_bad=n_failed > 0)
        lines.append((Cell(f"{grouping}: {group}"), *cells, about))
    columns = ("group", *(METRICS[name].heading for name in metrics), "failures")
    texts = [f"Largest gap, {gap_text(gap)}." for gap in gaps if gap.gap is not None]
    notes = dict.fromkeys(f"{gap.note[:1].upper()}{gap.note[1:]}." for gap in gaps if gap.note)
    basis = "Means over labels with 95 % intervals over patients. p-values permute patients and allow for all labels."
    return Table(columns, tuple(lines), " ".join([basis, *texts, *notes]))


def _case_table(table: ScoreTable) -> Table:
    """A row for each case, the worst first; HD95 and Dice of each label if there are few."""
    dice_of = case_dice(table)
    by_place = {(row.case_key, row.label, row.metric): row for row in table.rows}
    labels = table.labels if len(table.labels) <= _MAX_LABELS_BY_CASE else ()
    patient_of = {row.case_key: row.patient_id for row in table.rows}
    metrics = [metric for metric in _HEADLINES if metric in table.metrics]
    lines = []
    for key, mean in dice_of.items():
        fold = Cell("–" if key[2] is None else str(key[2]), key[2])
        found = [by_place.get((key, label, metric)) for label in labels for metric in metrics]
        scores = [_score_cell(row) for row in found]
        lines.append((Cell(key[1]), Cell(patient_of[key]), fold, Cell(f"{mean:.3f}", mean), *scores))
    names = [f"{label}\n{METRICS[metric].heading}" for label in labels for metric in metrics]
    caption = "Lowest mean Dice first. Click a heading to sort."
    return Table(("case", "patient", "fold", "mean Dice", *names), tuple(lines), caption, is_sortable=True)


def _score_cell(row: Score | None) -> Cell:
    if row is None:
        return Cell("–")
    if row.status == "ok":
        return Cell(number_text(row.value, row.unit), row.value)
    return Cell(STATUS_TEXT[row.status], row.value, is_bad=row.status != "both_empty")


_CAPTION = (
    "One row per fold. Patch Dice is measured during training on patches of the validation cases; it only shows "
    "whether training works. Pale lines: measured values. Strong lines: running means."
)


def learning_picture(run: Run) -> Picture | None:
    """Curves of all folds that have finished an epoch; None if there are none."""
    folds = [
        FoldCurves(f"fold {fold.name}", history, in_training=history.is_unfinished and not fold.folder.scores.is_file())
        for fold in run.folds
        if (history := fold.history) is not None and history.n_epochs
    ]
    if not folds:
        return None
    words = " ".join(_in_words(fold) for fold in folds)
    alt = f"Loss, patch Dice and learning rate over epochs of training. {words}"
    unfinished = [f"{fold.name} is still training ({_time_left(fold.history)})" for fold in folds if fold.in_training]
    caption = f"{_CAPTION} {'; '.join(unfinished).capitalize()}." if unfinished else _CAPTION
    return Picture("svg", learning_curves(folds, "svg"), alt, caption)


def _time_left(history: History) -> str:
    return f"about {duration_text(history.seconds_left)} left"


def _in_words(fold: FoldCurves) -> str:
    """A sentence for those who cannot see the picture."""
    history = fold.history
    parts = [f"{fold.name}: {count(history.n_epochs, 'epoch')}"]
    if isfinite(history.seconds[-1]):
        parts[0] += f" in {duration_text(history.seconds[-1])}"
    for column, name in (("train_loss", "training loss"), ("validation_loss", "validation loss")):
        if isfinite(history.column(column)[-1]):
            parts.append(f"{name} ends at {history.column(column)[-1]:.3f}")
    if isfinite(history.mean_dice[-1]):
        parts.append(f"mean patch Dice at {history.mean_dice[-1]:.3f}")
    ends = {name: values[-1] for name, values in history.dice_of_labels.items() if isfinite(values[-1])}
    if len(ends) > 1:
        worst = min(ends, key=lambda name: ends[name])
        parts.append(f"lowest: {worst}, {ends[worst]:.3f}")
    clipped = {name: max(filter(isfinite, v), default=0.0) for name, v in history.spikes_of_layers.items()}
    if clipped:
        most = max(clipped, key=lambda name: clipped[name])
        parts.append(f"gradients clipped most: {most}, {clipped[most]:.2%} in an epoch")
    if history.interruptions:
        parts.append(f"interrupted in epochs {', '.join(f'{epoch:g}' for epoch in history.interruptions)}")
    if history.stopped_early:
        parts.append("stopped early")
    return f"{', '.join(parts)}{f', still training, {_time_left(history)}' if fold.in_training else ''}."


def data_check(work: WorkFolder) -> DataCheck:
    """Faults by kind, and the state of the dataset that was checked."""
    if work.checked is None:
        root = work.dataset.root if work.dataset else "DATA"
        command = shlex.join(["segpipe", "check", root, "-o", str(work.folder.path)])
        return DataCheck(f"This folder has no data check. To add one: `{command}`.", None)
    n_fatal = sum(one.severity == "fatal" for one in work.checked.faults)
    n_warnings = len(work.checked.faults) - n_fatal
    counted = f"Fatal faults: {n_fatal}, warnings: {n_warnings}" if work.checked.faults else "No faults found"
    text = f"All files of {work.checked.path} were read. {counted}."
    if work.dataset and work.checked.dataset and set(work.dataset.by_id) != set(work.checked.dataset.by_id):
        text += " The checked cases differ from the training cases: check again."
    rows = tuple(_row(group) for group in fault_groups(work.checked.faults))
    caption = "Faults by kind, with the first cases affected."
    return DataCheck(text, Table(("fault", "found", "what to do", "count"), rows, caption) if rows else None)


def _row(group: FaultGroup) -> tuple[Cell, ...]:
    is_fatal = group.severity == "fatal"
    kind = Cell(f"{'fatal' if is_fatal else 'warning'}: {group.title}", is_bad=is_fatal)
    return (kind, Cell("; ".join(group.details)), Cell(group.remedy), Cell(str(group.n_faults)))
