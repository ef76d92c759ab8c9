"""Tables of results for people, at most 80 columns wide."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from segpipe.evaluate.metrics import METRICS, number_text
from segpipe.evaluate.summary import MEAN_LABEL, SummaryRow

SHOWN = ("dice", "nsd", "hd95", "assd", "volume_difference")  # the others stand in scores.csv
_WIDTH = 80
_N_NAMED = 3
_MIN_NAME = 6
_COUNTS = ["mean", "95 % interval", "ok", "both\nempty", "missed", "spu-\nrious"]


def summary_text(rows: Sequence[SummaryRow], metrics: Sequence[str] = SHOWN) -> str:
    """Means with intervals and counts, one line for each metric and label, and the warnings below.

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
    title_width, label_width, width = _widths(shown, [METRICS[metric].heading for metric in metrics])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("metric", max_width=title_width, no_wrap=True)
    table.add_column("label", max_width=label_width, no_wrap=True)
    for heading in _COUNTS:
        table.add_column(heading, justify="right", no_wrap=True)
    for metric in metrics:
        of_metric = [row for row in shown if row.metric == metric and (n_labels > 1 or row.label != MEAN_LABEL)]
        for index, row in enumerate(of_metric):
            title = METRICS[metric].heading if index == 0 else ""
            table.add_row(title, Text(row.label), *_cells(row), end_section=index == len(of_metric) - 1)
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([*lines, *_notes(shown)])


def _widths(rows: Sequence[SummaryRow], titles: Sequence[str]) -> tuple[int, int, int]:
    """Letters that titles and labels may have, and the width of the table: names are cut, so that numbers fit."""
    cells = [_COUNTS, *(_cells(row) for row in rows)]
    numbers = sum(max(len(line) for row in cells for line in row[column].split("\n")) for column in range(len(_COUNTS)))
    between = 2 * (len(_COUNTS) + 2)  # two spaces after each column
    spare = _WIDTH - between - numbers
    title = max(min(max(map(len, titles), default=0), spare - _MIN_NAME), _MIN_NAME)
    label = max(spare - title, _MIN_NAME)
    return title, label, between + numbers + title + label


def summary_record(rows: Sequence[SummaryRow], policy: str) -> dict[str, Any]:
    """The same for programs."""
    return {"policy": policy, "summary": [row.model_dump() for row in rows]}


def _cells(row: SummaryRow) -> list[str]:
    interval = "–"
    if row.low is not None and row.high is not None:
        interval = f"{number_text(row.low, row.unit)} – {number_text(row.high, row.unit)}"
    counts = (row.n_ok, row.n_both_empty, row.n_missed, row.n_spurious)
    return [number_text(row.mean, row.unit), interval, *(str(n) if n else "·" for n in counts)]


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
    lines += [f"Left out of {METRICS[row.metric].title}, {row.label}: {row.n_left_out} cases." for row in left_out]
    return [piece for line in lines for piece in _wrap(line)]


def _names(rows: Sequence[SummaryRow]) -> str:
    named = [f"{METRICS[row.metric].title}, {row.label}" for row in rows[:_N_NAMED]]
    return "; ".join([*named, f"{len(rows) - _N_NAMED} more"] if len(rows) > _N_NAMED else named)


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, _WIDTH)
