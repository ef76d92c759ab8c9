"""A training whose loss or weights are no longer finite: what it tells, and what it notes for the next start."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from segpipe.core.errors import PlanError
from segpipe.core.files import write_text
from segpipe.core.work import FoldFolder
from segpipe.plan.training import Training


class Diverged(PlanError):
    """The loss or the weights are not finite; the message says what to change."""


def divergence(what: str, iteration: int, training: Training, dtype: torch.dtype) -> Diverged:
    """Make the fault that says what was found, where, and what to change."""
    rate = training.learning_rate
    wider = "" if dtype == torch.float32 else " or train with --set training.precision=fp32"
    return Diverged(
        f"training.learning_rate: {what} at iteration {iteration}. Lower it "
        f"(now {rate:g}, e.g. --set training.learning_rate={rate / 3:.2g}){wider}."
    )


def are_finite(networks: Iterable[nn.Module]) -> bool:
    """Return whether all weights and statistics are: a gradient can spoil them while the loss is still finite."""
    tensors = [value for network in networks for value in network.state_dict().values()]
    return bool(torch.stack([value.isfinite().all() for value in tensors if value.is_floating_point()]).all())


def note_divergence(folder: FoldFolder, fault: Diverged, saved_iteration: int, *, keeps: bool) -> PlanError:
    """Remember it in the folder, so that the next start may change what can mend it.

    Args:
        folder: Of the training.
        fault: What happened.
        saved_iteration: Of the newest state, in which all is finite; 0: nothing was saved.
        keeps: Whether this process writes files.

    Returns:
        The fault, and where training can go on, which only the process that writes knows.
    """
    if not keeps:
        return fault
    if not saved_iteration:
        return PlanError(f"{fault} No earlier state was saved: rerun the command with such a change to start over.")
    write_text(folder.divergence_note, f"{fault}\n")
    return PlanError(
        f"{fault} The state of iteration {saved_iteration}, where all was finite, is kept: rerun the command with such "
        "a change to resume from there, or with --restart to start over."
    )
