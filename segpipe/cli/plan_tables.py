"""A plan for people, at most 80 columns wide."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segpipe.plan.schema import Plan


def plan_text(plan: Plan) -> str:
    """What was decided, and why."""
    lines = [f"Plan {plan.preset} for {plan.dataset}: {plan.reasons.get('preset', '')}"]
    for name, found in plan.configurations.items():
        spacing = " × ".join("own" if s is None else f"{s:.3g}" for s in found.spacing_mm)
        patch = " × ".join(map(str, found.patch_zyx))
        network = found.network
        lines.append(
            f"  {name}: {spacing} mm, patch {patch}, batch {found.batch_size}, {network.kind} U-Net, "
            f"{len(network.features)} stages, {network.features[0]}–{network.features[-1]} features"
        )
    return "\n".join(lines)
