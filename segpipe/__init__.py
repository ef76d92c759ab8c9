"""segpipe: from a folder of labelled scans to a model whose worth you can defend."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segpipe.predict.api import Predictor

__version__ = "0.1.0"

# Threads that wait for each other sleep instead of spinning. Beside another busy process spinning made a training step
# up to a hundred times slower, since each of its thousands of small parallel loops lost a time slice. Read by OpenMP
# when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def load(
    model: str | os.PathLike[str],
    *,
    configurations: Sequence[str] = (),
    folds: Sequence[int] | None = None,
    device: str = "auto",
    mirror: bool = True,
    postprocesses: bool = True,
    max_memory_gb: float | None = None,
) -> Predictor:
    """Load a trained model, to segment arrays with it: `segpipe.load(model).predict(array, affine=affine)`.

    Nothing of the process is changed: random generators, threads, signals and the current folder stay as they are.
    Only `max_memory_gb` on a GPU is a limit that torch keeps for the whole process. What is unusual about the model is
    said on stderr.

    Args:
        model: A work folder, one of its `runs/<configuration>`, or a file of `segpipe pack`, whose parts lie in a
            temporary folder while they are loaded.
        configurations: Which, averaged if several; none for what `segpipe select` chose, else the default one.
        folds: Which, averaged; None for all that are trained to the end.
        device: `auto` (CUDA if there is one, else CPU), `cpu`, `cuda`, `cuda:N` or `mps`.
        mirror: Average over mirrored copies, along the axes that the plan allows.
        postprocesses: Whether to do to the masks what was chosen for the model.
        max_memory_gb: The most memory to take, on the host and on a GPU each; None: what is free.

    Raises:
        UsageError: If there is no such model, or the file is damaged.
        PlanError: If its plan is wrong.
        SetupError: If there is no such device.
    """
    from segpipe.predict.api import load_predictor

    return load_predictor(
        model,
        configurations=configurations,
        folds=folds,
        device=device,
        mirror=mirror,
        postprocesses=postprocesses,
        max_memory_gb=max_memory_gb,
    )
