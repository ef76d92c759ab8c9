"""A plan for people, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segpipe.pipeline.planning import Planned
    from segpipe.plan.planned_cost import PlannedCost
    from segpipe.plan.schema import Configuration

_WIDTH = 80
_EXPLAINED = ("preset", "spacing", "normalisation", "mirror_axes")  # the others stand in the plan


def plan_text(planned: Planned) -> str:
    """What was decided, why, and what it will take."""
    plan = planned.plan
    lines = textwrap.wrap(f"Plan {plan.preset} for {plan.dataset}", _WIDTH, subsequent_indent="  ")
    lines += [
        piece
        for key in _EXPLAINED
        if key in plan.reasons
        for piece in textwrap.wrap(f"{key}: {plan.reasons[key]}", _WIDTH, initial_indent="  ", subsequent_indent="    ")
    ]
    for name, configuration in plan.configurations.items():
        lines.append(f"  {name}: {_decided(name, configuration)}")
    if planned.costs:
        lines += ["", *_cost_table(planned.costs)]
    return "\n".join(lines)


def _decided(name: str, own: Configuration) -> str:
    if own.previous is not None:
        return f"like {own.inherits}, guided by {own.previous}"
    n_axes = own.network.n_axes
    spacing = " × ".join(f"{s:.3g}" for s in own.spacing_mm[-n_axes:] if s is not None)
    patch = " × ".join(map(str, own.patch_zyx[-n_axes:]))
    network = own.network
    return (
        f"{spacing} mm, patch {patch}, batch {own.batch_size},\n{' ' * (len(name) + 4)}{network.kind} U-Net, "
        f"{len(network.features)} stages, {network.features[0]}–{network.features[-1]} features"
    )


def _cost_table(costs: Sequence[PlannedCost]) -> list[str]:
    """Predicted costs, one line for each configuration."""
    memory = costs[0].memory
    head = (
        f"  {'predicted':<12}{memory + ' memory':>12}{'parameters':>13}{'TMAC/step':>11}{'time/step':>11}{'disk':>11}"
    )
    return [head, *(_cost_line(taken) for taken in costs)]


def _cost_line(taken: PlannedCost) -> str:
    seconds = "–" if taken.seconds_per_step is None else f"~{taken.seconds_per_step:.2g} s"
    return (
        f"  {taken.configuration:<12}{_size(taken.training_gib):>12}{f'{taken.parameters / 1e6:.1f} M':>13}"
        f"{taken.tera_macs_per_step:>11.3g}{seconds:>11}{'~' + _size(taken.prepared_gib):>11}"
    )


def _size(gigabytes: float) -> str:
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{gigabytes * 1024:.0f} MB"
