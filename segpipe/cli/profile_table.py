"""Where the time of a training goes, for people and for programs."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segpipe.train.profile import Profile

_WIDTH = 80
_BAR = 30


def profile_text(profile: Profile) -> str:
    """A line for each part of a step with its share, and what to do about the largest."""
    about = f"{profile.configuration} on {profile.device}, {profile.precision}, mean of {profile.n_steps} steps"
    lines = [about, f"  {'part of a step':<18}{'ms':>10}{'share':>8}"]
    for phase, seconds in profile.seconds.items():
        bar = "█" * round(_BAR * profile.share(phase))
        lines.append(f"  {phase:<18}{1000 * seconds:>10.2f}{profile.share(phase):>8.1%}  {bar}".rstrip())
    total = profile.step_seconds
    lines.append(f"  {'all':<18}{1000 * total:>10.2f}{1:>8.1%}  {1 / total:.3g} it/s")
    threads = "1 thread" if profile.n_threads == 1 else f"{profile.n_threads} threads"
    lines.append(
        f"  Beside the steps, {threads} drew batches: {1000 * profile.draw_seconds:.2f} ms for a batch on one."
    )
    return "\n".join([*lines, *textwrap.wrap(f"{profile.bottleneck}: {profile.advice}", _WIDTH)])


def profile_record(profile: Profile) -> dict[str, Any]:
    """The same as JSON takes it."""
    return {
        "configuration": profile.configuration,
        "device": profile.device,
        "precision": profile.precision,
        "n_steps": profile.n_steps,
        "seconds": dict(profile.seconds),
        "shares": {phase: profile.share(phase) for phase in profile.seconds},
        "step_seconds": profile.step_seconds,
        "draw_seconds": profile.draw_seconds,
        "n_threads": profile.n_threads,
        "bottleneck": profile.bottleneck,
        "advice": profile.advice,
    }
