"""What `segpipe doctor` finds, one line each."""

from __future__ import annotations

from typing import Literal

from segpipe.core.records import Record


class Finding(Record):
    """One thing that was looked at.

    Args:
        about: What, e.g. `memory`.
        state: `ok`; `warning` (works, but slowly or with limits); `fault` (something will fail).
        found: What is there, with units.
        advice: What to do; empty if there is nothing to do.
    """

    about: str
    state: Literal["ok", "warning", "fault"]
    found: str
    advice: str = ""


def finding(about: str, found: str, *, fault: str = "", warning: str = "") -> Finding:
    """A finding whose state follows from the advice that is given: the worse of the two counts."""
    return Finding(
        about=about,
        state="fault" if fault else "warning" if warning else "ok",
        found=found,
        advice=fault or warning,
    )
