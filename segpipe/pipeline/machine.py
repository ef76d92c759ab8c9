"""What the stages compute on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What to compute on: `--device`, `-j`."""

    device: str
    n_workers: int
