"""Groups of metrics that need a whole case; `Metric.group` names the entry."""

from __future__ import annotations

from collections.abc import Callable

from segpipe.evaluate.calibration import calibration_group
from segpipe.evaluate.case import Case, GroupScores
from segpipe.evaluate.centreline import centreline_group
from segpipe.evaluate.lesion_table import lesion_group

GROUPS: dict[str, Callable[[Case], GroupScores]] = {
    "centreline": centreline_group,
    "lesions": lesion_group,
    "calibration": calibration_group,
}
