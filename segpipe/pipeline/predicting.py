"""Predict images with trained models, or average what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from segpipe.core.errors import DataError, UsageError
from segpipe.data.inputs import list_inputs
from segpipe.networks.device import resolve_device, set_processors
from segpipe.pipeline.guided_by import warn_of_guides
from segpipe.pipeline.machine import Machine
from segpipe.predict.ensemble_files import ensemble_folders
from segpipe.predict.model import Ensemble, load_model
from segpipe.predict.options import PredictOptions
from segpipe.predict.package import opened
from segpipe.predict.postprocess import NO_POSTPROCESSING
from segpipe.predict.result import PredictionResult
from segpipe.predict.run import predict_cases
from segpipe.predict.selected_model import Members, find_members, given_postprocessing, postprocessing_for


def predict(
    models: Path | Sequence[Path],
    inputs: Path,
    output: Path,
    machine: Machine,
    options: PredictOptions | None = None,
) -> PredictionResult:
    """Predict images with trained folds.

    Args:
        models: One or several; each is a work folder, a configuration's folder or a fold's, or what `segpipe pack` made
            of one. The probabilities of several are averaged.
        inputs: A file, a folder of images or a dataset.
        output: Folder for the masks.
        machine: What to compute on.
        options: Which configurations and folds, how, and what to write; None for the defaults.

    Raises:
        UsageError: If there is no such model, models do not go together, or the output folder holds another model's
            masks.
        PlanError: If the postprocessing is wrong.
        DataError: If there are no images, or channels are missing. What is wrong with one image is in the outcome.
    """
    options = options or PredictOptions()
    set_processors(machine.n_workers)
    with ExitStack() as stack:
        homes = [stack.enter_context(opened(model)) for model in ([models] if isinstance(models, Path) else models)]
        members = [
            folders for home in homes for folders in find_members(home, options.configurations, options.fold_names)
        ]
        _require_distinct(members)
        ensemble = Ensemble(tuple(load_model(folders, resolve_device(machine.device)) for folders in members))
        for model, folders in zip(ensemble.members, members, strict=True):
            for folder in folders:
                warn_of_guides(folder, model.configuration.previous)
        steps = postprocessing_for(options, members, ensemble.plan.labels)
    cases = list_inputs(inputs, ensemble.plan.channels)
    if not cases:
        raise DataError(f"{inputs}: holds no images. Give a file, a folder of images, or a dataset.")
    return predict_cases(ensemble, cases, output, options, steps)


def average(folders: Sequence[Path], output: Path, postprocessing: Path | None = None) -> PredictionResult:
    """Average the probabilities in folders of predictions; as `ensemble_folders`, with the steps of a file."""
    steps = NO_POSTPROCESSING if postprocessing is None else given_postprocessing(postprocessing)
    return ensemble_folders(folders, output, steps)


def _require_distinct(members: Members) -> None:
    """Refuse a configuration that is given twice: it would count twice.

    Raises:
        UsageError: If one is.
    """
    runs = [folders[0].path.parent.resolve() for folders in members]
    if twice := [run for run in runs if runs.count(run) > 1]:
        raise UsageError(f"{twice[0]}: is given twice, expected each configuration once. Leave one out.")
