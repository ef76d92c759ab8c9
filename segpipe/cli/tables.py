"""Tables of results for people, at most 80 columns wide."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from segpipe.core.text import MOST_ROWS, N_ENDS, count, fold_middle
from segpipe.core.work import Work
from segpipe.evaluate.groups import GroupGap, GroupRow, gap_text
from segpipe.evaluate.metrics import METRICS, number_text
from segpipe.evaluate.summary import MEAN_LABEL, SummaryRow, worst_first
from segpipe.plan.training_commands import training_advice

SHOWN = ("dice", "nsd", "hd95", "assd", "volume_difference")  # the others stand in scores.csv
_WIDTH = 80
_N_NAMED = 3
_MIN_NAME = 6
_NUMBERS = ["mean", "95 % interval", "failed\npatients"]
_STATUSES = {"n_both_empty": "both\nempty", "n_missed": "missed", "n_spurious": "spu-\nrious"}  # shown if any occurs
_MEDIAN = " median"  # label of the row below that of a distance, whose mean a few cases decide


def summary_text(rows: Sequence[SummaryRow], metrics: Sequence[str] = SHOWN) -> str:
    """Means with intervals and counts, one line for each metric and label, and the warnings below.

    Of very many labels only the worst and the best of the first metric are shown, and of the other metrics the mean.
    Medians of distances have a line of their own. Failed patients are those with a missed or spurious structure or a
    Dice below 0.1; the range beside their number is the 95 % interval of their rate.

    Args:
        rows: As `summarise` gives them.
        metrics: Which to show; those without rows are passed over.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [row for row in rows if row.metric in metrics]
    n_labels = len({row.label for row in shown} - {MEAN_LABEL})
    first = next((metric for metric in metrics if any(row.metric == metric for row in shown)), "")
    statuses = [name for name in _STATUSES if any(getattr(row, name) for row in shown)]
    headings = [*_NUMBERS, *(_STATUSES[name] for name in statuses)]
    cells = {id(row): _cells(row, statuses) for row in shown}
    titles = [METRICS[metric].heading for metric in metrics]
    title_width, label_width, width = _widths([headings, *cells.values()], titles)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("metric", max_width=title_width, no_wrap=True)
    table.add_column("label", max_width=label_width, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for metric in metrics:
        of_metric = [row for row in shown if row.metric == metric and (n_labels > 1 or row.label != MEAN_LABEL)]
        if n_labels > MOST_ROWS:
            of_metric = _fold_labels(of_metric, is_first=metric == first)
        for index, row in enumerate(of_metric):
            title, is_last = METRICS[metric].heading if index == 0 else "", row is of_metric[-1]
            has_median = METRICS[metric].kind == "distance" and row.median is not None
            table.add_row(title, Text(row.label), *cells[id(row)], end_section=is_last and not has_median)
            if n_labels > MOST_ROWS and index == N_ENDS - 1:
                table.add_row("", f"{n_labels - 2 * N_ENDS} more")
            if has_median:
                table.add_row("", Text(_MEDIAN), *_median_cells(row), end_section=is_last)
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    more = f"The worst and the best {N_ENDS} of {n_labels} labels; scores.csv and the report have all."
    return "\n".join([*lines, *([more] if n_labels > MOST_ROWS else []), *_notes(shown)])


def _fold_labels(rows: Sequence[SummaryRow], is_first: bool) -> list[SummaryRow]:
    """The labels at both ends, if this is the first metric, and the mean."""
    low, high = fold_middle(worst_first(row for row in rows if row.label != MEAN_LABEL))
    return [*(low if is_first else []), *(high if is_first else []), *(row for row in rows if row.label == MEAN_LABEL)]


def groups_text(rows: Sequence[GroupRow], gaps: Sequence[GroupGap], metrics: Sequence[str] = SHOWN) -> str:
    """Means of each group with intervals, over labels if there are several, and the largest gap of each metric.

    Args:
        rows, gaps: As `compare_groups` gives them.
        metrics: Which to show; those without rows are passed over.
    """
    lines = []
    for grouping in dict.fromkeys(row.grouping for row in rows):
        own = [row for row in rows if row.grouping == grouping and row.label == MEAN_LABEL and row.metric in metrics]
        width = max(len(grouping), *(len(row.group) for row in own))
        width = min(width, _WIDTH - 58)
        lines.append(
            f"{'metric':16} {grouping[:width]:{width}} {'patients':>8} {'mean':>8} {'95 % interval':>20}  failed"
        )
        for metric in metrics:
            for row in (row for row in own if row.metric == metric):
                interval = _interval_text(row.low, row.high, row.unit)
                numbers = f"{row.n_patients:>8} {number_text(row.mean, row.unit):>8} {interval:>20}"
                lines.append(
                    f"{METRICS[metric].heading:16.16} {row.group:{width}.{width}} {numbers}  {row.n_failed_patients:>6}"
                )
            lines += [
                piece
                for gap in gaps
                if (gap.grouping, gap.metric) == (grouping, metric)
                for piece in textwrap.wrap(f"  Largest gap, {gap_text(gap)}", _WIDTH, subsequent_indent="    ")
            ]
        notes = dict.fromkeys(gap.note for gap in gaps if gap.grouping == grouping and gap.note)
        lines += [piece for note in notes for piece in _wrap(f"{note[:1].upper()}{note[1:]}.")]
        lines.append("")
    return "\n".join(lines).rstrip()


def _widths(cells: Sequence[Sequence[str]], titles: Sequence[str]) -> tuple[int, int, int]:
    """Letters that titles and labels may have, and the width of the table: names are cut, so that numbers fit."""
    n_columns = len(cells[0])
    numbers = sum(max(len(line) for row in cells for line in row[column].split("\n")) for column in range(n_columns))
    between = 2 * (n_columns + 2)  # two spaces after each column
    spare = _WIDTH - between - numbers
    title = max(min(max(map(len, titles), default=0), spare - _MIN_NAME), _MIN_NAME)
    label = max(spare - title, _MIN_NAME)
    return title, label, between + numbers + title + label


def summary_record(rows: Sequence[SummaryRow], policy: str) -> dict[str, Any]:
    """The same for programs."""
    return {"policy": policy, "summary": [row.model_dump() for row in rows]}


def _cells(row: SummaryRow, statuses: Sequence[str]) -> list[str]:
    counts = (getattr(row, name) for name in statuses)
    failed = f"{row.n_failed_patients}/{row.n_patients}, {100 * row.failure_low:.0f}–{100 * row.failure_high:.0f} %"
    mean = [number_text(row.mean, row.unit), _interval_text(row.low, row.high, row.unit)]
    return [*mean, failed, *(str(n) if n else "·" for n in counts)]


def _median_cells(row: SummaryRow) -> list[str]:
    return [number_text(row.median, row.unit), _interval_text(row.median_low, row.median_high, row.unit)]


def _interval_text(low: float | None, high: float | None, unit: str) -> str:
    return "–" if low is None or high is None else f"{number_text(low, unit)} – {number_text(high, unit)}"


def _notes(rows: Sequence[SummaryRow]) -> list[str]:
    """Each note once, with the rows it is about if not with all."""
    about: dict[str, list[SummaryRow]] = {}
    for row in rows:
        if row.note:
            about.setdefault(row.note, []).append(row)
    lines = [
        f"{note[0].upper()}{note[1:]}" + ("." if len(of) == len(rows) else f" ({_names(of)}).")
        for note, of in about.items()
    ]
    left_out = [row for row in rows if row.n_left_out and row.label != MEAN_LABEL]
    if len(left_out) > MOST_ROWS:
        n_cases = sum(row.n_left_out for row in left_out)
        lines.append(f"Left out, over all metrics and labels: {count(n_cases, 'score')}; scores.csv has the reasons.")
    else:
        lines += [
            f"Left out of {METRICS[row.metric].title}, {row.label}: {count(row.n_left_out, 'case')}."
            for row in left_out
        ]
    return [piece for line in lines for piece in _wrap(line)]


def _names(rows: Sequence[SummaryRow]) -> str:
    named = [f"{METRICS[row.metric].title}, {row.label}" for row in rows[:_N_NAMED]]
    return "; ".join([*named, f"{len(rows) - _N_NAMED} more"] if len(rows) > _N_NAMED else named)


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, _WIDTH)


def open_folds_text(work: Work, configuration: str, folds: Sequence[str]) -> str:
    """Folds that are not trained and scored yet, and the command that trains them as the others were."""
    is_one = len(folds) == 1
    names = f"fold{'s' * (not is_one)} {', '.join(folds)} {'is' if is_one else 'are'}"
    return f"{configuration}: {names} not trained yet. Train: {training_advice(work, configuration, folds)}."
