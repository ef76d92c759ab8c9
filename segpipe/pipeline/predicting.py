"""Predict images with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.progress import say
from segpipe.data.layouts import list_inputs
from segpipe.networks.device import resolve_device, set_processors
from segpipe.pipeline.machine import Machine
from segpipe.predict.claim import NO_POSTPROCESSING
from segpipe.predict.model import find_folds, load_model
from segpipe.predict.outcome import Outcome
from segpipe.predict.postprocess import POSTPROCESSING_FILE, Postprocessing
from segpipe.predict.run import Wanted, predict_cases


def predict(
    model: Path,
    inputs: Path,
    output: Path,
    machine: Machine,
    *,
    configuration: str | None = None,
    folds: Sequence[str] | None = None,
    mirror: bool = True,
    probabilities: bool = False,
    postprocessing: Path | None = None,
    postprocesses: bool = True,
    max_memory_gb: float | None = None,
) -> Outcome:
    """Predict images with trained folds.

    Args:
        model: A work folder, a configuration's folder or a fold's.
        inputs: A file, a folder of images or a dataset.
        output: Folder for the masks.
        machine: What to compute on.
        configuration: Which; None for the default one.
        folds: Which; None for all that are trained.
        mirror: Average over mirrored copies.
        probabilities: Also write probabilities.
        postprocessing: File of what is done to the masks; None: the one chosen for the model, if there is one.
        postprocesses: Whether anything is done to the masks.
        max_memory_gb: The most memory to take, on the host and on a GPU each; None: what is free.

    Raises:
        UsageError: If there is no such model, or the output folder holds another model's masks.
        PlanError: If the postprocessing is wrong.
        DataError: If there are no images, or channels are missing. What is wrong with one image is in the outcome.
    """
    folders = find_folds(model, configuration, folds)
    set_processors(machine.n_workers)
    loaded = load_model(folders, resolve_device(machine.device))
    cases = list_inputs(inputs, loaded.plan.channels)
    if not cases:
        raise DataError(f"{inputs}: holds no images. Give a file, a folder of images, or a dataset.")
    wanted = NO_POSTPROCESSING
    chosen = postprocessing or folders[0].path.parent / POSTPROCESSING_FILE
    if postprocesses and (postprocessing is not None or chosen.is_file()):
        wanted = Postprocessing.load(chosen)
        wanted.require_known(loaded.plan.labels, chosen)
        say(f"postprocessing: {chosen}")
    return predict_cases(loaded, cases, output, Wanted(mirror, probabilities, wanted, max_memory_gb))
