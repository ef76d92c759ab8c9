"""Findings of `segpipe doctor`, one line each."""

from __future__ import annotations

from typing import Literal

from segpipe.core.records import Record


class Finding(Record):
    """One thing that was examined.

    Args:
        about: What, e.g. `memory`.
        state: `ok`; `warning` (works, but slowly or with limits); `fault` (something will fail).
        found: The finding, with units.
        advice: The remedy; empty if nothing needs to be done.
    """

    about: str
    state: Literal["ok", "warning", "fault"]
    found: str
    advice: str = ""


def finding(about: str, found: str, *, fault: str = "", warning: str = "") -> Finding:
    """Make a finding whose state follows from the advice: `fault` outranks `warning`."""
    return Finding(
        about=about,
        state="fault" if fault else "warning" if warning else "ok",
        found=found,
        advice=fault or warning,
    )
