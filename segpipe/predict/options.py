"""Options of a prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import UsageError


@dataclass(frozen=True)
class PredictOptions:
    """Choices of the command, of Python and of a dry run alike; a new option is one field here and its use.

    Args:
        configurations: Which of each model, averaged if several; none for what `segpipe select` chose, else the
            default one.
        folds: Which, averaged; none for all that are trained to the end.
        mirror: Average over mirrored copies, along the axes that the plan allows.
        probabilities: Also give probabilities: the command writes `<case_id>_probabilities.npz` (`probabilities`:
            float16 (outputs, Z, Y, X)).
        uncertainty: Also write maps: `uncertainty/<case_id>_entropy.nii.gz`, and with several networks
            `uncertainty/<case_id>_disagreement.nii.gz`, and their means in the table.
        calibrated: Correct probabilities and entropy by the temperature that was fitted on the validation cases of
            the folds; masks stay as they are.
        postprocessing: File with the steps for the masks; None for what `segpipe select` chose for the model.
        postprocesses: Whether to postprocess masks at all. Probabilities are never postprocessed.
        max_memory_gib: The most memory to take, on the host and on a GPU each; None for what is free.
        any_size: Predict images 50 times as large as any training image, or larger. Most often their headers are
            wrong, and they take very long.
        overwrite: Predict images again if their masks exist already; those of another model are still refused.

    Raises:
        UsageError: If a number is out of range, or options contradict each other.
    """

    configurations: Sequence[str] = ()
    folds: Sequence[str | int] = ()
    mirror: bool = True
    probabilities: bool = False
    uncertainty: bool = False
    calibrated: bool = False
    postprocessing: Path | None = None
    postprocesses: bool = True
    max_memory_gib: float | None = None
    any_size: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.postprocessing is not None and not self.postprocesses:
            raise UsageError(
                "--postprocess and --no-postprocess (postprocesses=False in Python) exclude each other. Omit one."
            )
        limit = self.max_memory_gib
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise UsageError(f"max_memory_gib: {limit}, expected a number of GiB above 0.")
        for name in ("configurations", "folds"):
            if isinstance(getattr(self, name), str | int):  # "2d" would be taken for the configurations "2" and "d"
                raise UsageError(f"{name}: {getattr(self, name)!r}, expected a list or tuple.")

    @property
    def fold_names(self) -> list[str]:
        """The folds as their folders are named."""
        return [str(fold) for fold in self.folds or ()]
