"""What was found in the data before they were trained on."""

from __future__ import annotations

import shlex

from segpipe.data.fault_groups import FaultGroup, fault_groups
from segpipe.report.html import Cell, DataCheck, Table
from segpipe.report.inputs import WorkFolder


def data_check(work: WorkFolder) -> DataCheck:
    """Faults by kind, and of which state of the dataset they are."""
    if work.checked is None:
        root = work.dataset.root if work.dataset else "DATA"
        command = shlex.join(["segpipe", "check", root, "-o", str(work.folder.path)])
        return DataCheck(f"No check of the data is kept in this folder. `{command}` makes one.", None)
    n_fatal = sum(one.severity == "fatal" for one in work.checked.faults)
    n_warnings = len(work.checked.faults) - n_fatal
    counted = f"Fatal faults: {n_fatal}, warnings: {n_warnings}" if work.checked.faults else "No fault was found"
    text = f"Every file of {work.checked.path} was read. {counted}."
    if work.dataset and work.checked.dataset and set(work.dataset.by_id) != set(work.checked.dataset.by_id):
        text += " The cases were not those that are trained on: check again."
    rows = tuple(_row(group) for group in fault_groups(work.checked.faults))
    caption = "Faults by kind, with the first cases that have them."
    return DataCheck(text, Table(("fault", "found", "what to do", "n"), rows, caption) if rows else None)


def _row(group: FaultGroup) -> tuple[Cell, ...]:
    is_fatal = group.severity == "fatal"
    kind = Cell(f"{'fatal' if is_fatal else 'warning'}: {group.title}", is_bad=is_fatal)
    return (kind, Cell("; ".join(group.details)), Cell(group.remedy), Cell(str(group.n_faults)))
