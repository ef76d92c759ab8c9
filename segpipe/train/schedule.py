"""The schedule of a training: how far it is, and how its steps or its time are laid out over epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from segpipe.plan.training import Training

_MIN_EPOCHS_IN_BUDGET = 20  # points of the learning curve when trained by time
_MAX_EPOCH_SECONDS = 300.0  # of a long budget: a person waits at most so long for the next point


@dataclass
class Progress:
    """The progress of a training; all of it is in state.pt."""

    iteration: int = 0
    epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, float | int]] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """A training laid over steps (epochs, or a number of iterations) or over a time budget, which comes first."""

    training: Training

    @property
    def n_iterations(self) -> int:
        """Steps of the whole training when it is not limited by time."""
        return self.training.iterations or self.training.epochs * self.training.iterations_per_epoch

    @property
    def n_epochs(self) -> int:
        """Epochs of the whole training; the last one may be shorter."""
        budget = self.training.time_budget_seconds
        if budget:
            return max(_MIN_EPOCHS_IN_BUDGET, math.ceil(budget / _MAX_EPOCH_SECONDS))
        return math.ceil(self.n_iterations / self.training.iterations_per_epoch)

    def progress(self, at: Progress) -> float:
        """Return how far training is, 0 to 1, and above when time was lost."""
        if self.training.time_budget_seconds:
            return at.seconds / self.training.time_budget_seconds
        return at.iteration / self.n_iterations

    def share_of_epoch(self, at: Progress) -> float:
        """Return how far the running epoch is; at 1 or more it is over.

        Counted from where the last one ended, so that a budget which changed in between makes no odd epochs.
        """
        last = at.history[-1] if at.history else {"seconds": 0.0, "iteration": 0}
        if self.training.time_budget_seconds:
            return (at.seconds - last["seconds"]) * self.n_epochs / self.training.time_budget_seconds
        return (at.iteration - last["iteration"]) / self.training.iterations_per_epoch

    def is_over(self, at: Progress, seconds_to_finish: float) -> bool:
        """Return whether one more step, the last validation and saving would not fit."""
        if self.training.time_budget_seconds:
            return at.seconds + seconds_to_finish >= self.training.time_budget_seconds
        return at.iteration >= self.n_iterations

    def validation_iterations(self, n_steps: int) -> int:
        """After an epoch of `n_steps`: the plan's, or as many in proportion when an epoch is a span of time."""
        training = self.training
        if not training.time_budget_seconds:
            return training.validation_iterations
        share = training.validation_iterations / training.iterations_per_epoch
        return min(training.validation_iterations, math.ceil(n_steps * share))

    def seconds_left(self, at: Progress) -> float:
        """Estimate the seconds left at the pace so far; NaN before the first step."""
        done = min(1.0, self.progress(at))
        return at.seconds * (1 - done) / done if done else math.nan
