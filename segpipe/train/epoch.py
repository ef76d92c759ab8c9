"""The epoch that runs, so far."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Epoch:
    """The epoch that runs, so far: training losses, steps, the time they took and how long they waited for data.

    A step whose loss is infinite or NaN changed nothing (float16, see `FoldTraining.step`) and is not in the sum.
    `interrupted` is 1 if training stopped since the last epoch's end and went on.
    """

    loss_sum: float = 0.0
    n_steps: int = 0
    n_skipped: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    interrupted: int = 0

    def add(self, loss: float, seconds: float, wait_seconds: float) -> None:
        """Take in a step."""
        self.loss_sum += loss if math.isfinite(loss) else 0.0
        self.n_skipped += not math.isfinite(loss)
        self.n_steps += 1
        self.seconds += seconds
        self.wait_seconds += wait_seconds

    @property
    def loss(self) -> float:
        """Mean loss; NaN if no step counts."""
        n_losses = self.n_steps - self.n_skipped
        return self.loss_sum / n_losses if n_losses else math.nan
