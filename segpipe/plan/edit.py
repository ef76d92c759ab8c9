"""`--set a.b=c`: edits of a plan, checked like the plan itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from segpipe.core.errors import PlanError
from segpipe.core.records import did_you_mean, parse_yaml
from segpipe.plan.schema import Plan


def edited(plan: Plan, assignments: Sequence[str]) -> Plan:
    """The plan with values replaced.

    Args:
        plan: Stays as it is.
        assignments: Such as `training.learning_rate=0.003` or `configurations.2d.batch_size=8`; the value is YAML.

    Raises:
        PlanError: If a key does not exist or the value is not allowed there.
    """
    values = plan.model_dump(mode="json")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise PlanError(f"--set {assignment}: expected KEY=VALUE, e.g. training.learning_rate=0.003.")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as fault:
            raise PlanError(f"--set {assignment}: the value cannot be read ({fault}).") from None
        _assign(values, key.strip(), value)
    return Plan.parse(values, f"--set {' '.join(assignments)}") if assignments else plan


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    place: Any = values
    for step in [*path, last]:
        if not isinstance(place, dict) or step not in place:
            known = list(place) if isinstance(place, dict) else []
            raise PlanError(f"--set {key}: there is no {step!r} in the plan.{did_you_mean(step, known)}")
        if step is last:
            place[step] = value
        else:
            place = place[step]
