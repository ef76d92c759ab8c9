"""The scores of one configuration, and what is taken from them once for the whole page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segpipe.core.errors import SegpipeError
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.summary import MEAN_LABEL, SummaryRow, summarise
from segpipe.report.inputs import Run
from segpipe.report.volumes import VolumeAgreement, volume_agreements


@dataclass(frozen=True)
class Scored:
    """A configuration and its scores.

    Args:
        run: The configuration.
        table: Scores of one run; None if there are none.
        rows: Their means; empty if none can be taken.
        volumes: Agreement of volumes, by label.
    """

    run: Run
    table: ScoreTable | None
    rows: tuple[SummaryRow, ...]
    volumes: tuple[VolumeAgreement, ...]

    @property
    def dice(self) -> SummaryRow | None:
        """The mean Dice over labels."""
        return next((row for row in self.rows if (row.label, row.metric) == (MEAN_LABEL, "dice")), None)

    @property
    def dice_of_labels(self) -> Sequence[SummaryRow]:
        """Mean Dice of each label, as the scores name them."""
        return [row for row in self.rows if row.metric == "dice" and row.label != MEAN_LABEL]


def read_scored(run: Run, notes: list[str]) -> Scored:
    """Scores of a configuration; what cannot be used is added to `notes`."""
    table = run.scores if run.scores is not None and run.scores.rows else None
    if table is None:
        return Scored(run, None, (), ())
    if len(table.runs) > 1:
        notes.append(
            f"{run.configuration}: scores.csv holds the runs {', '.join(table.runs)}; only {table.runs[0]!r} is shown."
        )
        table = table.of_run(table.runs[0])
    rows: tuple[SummaryRow, ...] = ()
    try:
        rows = summarise(table)
    except SegpipeError as fault:
        notes.append(f"{run.configuration}: means cannot be taken: {fault}")
    return Scored(run, table, rows, volume_agreements(table))
