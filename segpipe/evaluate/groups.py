"""Groups of metrics that need a whole case; `Metric.group` names the entry."""

from __future__ import annotations

from collections.abc import Callable

from segpipe.evaluate.case import Case, GroupScores

GROUPS: dict[str, Callable[[Case], GroupScores]] = {}
