"""Predict images with trained models, or average what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from segpipe.core.errors import DataError, UsageError
from segpipe.core.labels import LabelSet
from segpipe.core.progress import say
from segpipe.data.layouts import list_inputs
from segpipe.networks.device import resolve_device, set_processors
from segpipe.pipeline.guided_by import warn_of_guides
from segpipe.pipeline.machine import Machine
from segpipe.predict.chosen import Members, chosen_postprocessing, find_members
from segpipe.predict.claim import NO_POSTPROCESSING
from segpipe.predict.ensemble import Ensemble
from segpipe.predict.ensemble_files import ensemble_folders
from segpipe.predict.model import load_model
from segpipe.predict.outcome import Outcome
from segpipe.predict.package import opened
from segpipe.predict.postprocess import Postprocessing
from segpipe.predict.run import predict_cases
from segpipe.predict.wanted import Wanted


def predict(
    models: Path | Sequence[Path],
    inputs: Path,
    output: Path,
    machine: Machine,
    *,
    configurations: Sequence[str] = (),
    folds: Sequence[str] | None = None,
    mirror: bool = True,
    probabilities: bool = False,
    uncertainty: bool = False,
    postprocessing: Path | None = None,
    postprocesses: bool = True,
    max_memory_gb: float | None = None,
    any_size: bool = False,
) -> Outcome:
    """Predict images with trained folds.

    Args:
        models: One or several; each is a work folder, a configuration's folder or a fold's, or what `segpipe pack` made
            of one. The probabilities of several are averaged.
        inputs: A file, a folder of images or a dataset.
        output: Folder for the masks.
        machine: What to compute on.
        configurations: Which of each model, to be averaged likewise; none for what `segpipe select` chose, else the
            default one.
        folds: Which; None for all that are trained.
        mirror: Average over mirrored copies.
        probabilities: Also write probabilities.
        uncertainty: Also write maps of uncertainty.
        postprocessing: File of what is done to the masks; None: what was chosen for these models, if anything was.
        postprocesses: Whether anything is done to the masks.
        max_memory_gb: The most memory to take, on the host and on a GPU each; None: what is free.
        any_size: Predict images that are far larger than those trained on as well.

    Raises:
        UsageError: If there is no such model, models do not go together, or the output folder holds another model's
            masks.
        PlanError: If the postprocessing is wrong.
        DataError: If there are no images, or channels are missing. What is wrong with one image is in the outcome.
    """
    set_processors(machine.n_workers)
    with ExitStack() as stack:
        homes = [stack.enter_context(opened(model)) for model in ([models] if isinstance(models, Path) else models)]
        members = [folders for home in homes for folders in find_members(home, configurations, folds)]
        _require_distinct(members)
        ensemble = Ensemble(tuple(load_model(folders, resolve_device(machine.device)) for folders in members))
        for model, folders in zip(ensemble.members, members, strict=True):
            for folder in folders:
                warn_of_guides(folder, model.configuration.previous)
        steps = _given_steps(postprocessing, ensemble.plan.labels)
        if postprocesses and postprocessing is None:
            steps = chosen_postprocessing(members, ensemble.plan.labels)
    cases = list_inputs(inputs, ensemble.plan.channels)
    if not cases:
        raise DataError(f"{inputs}: holds no images. Give a file, a folder of images, or a dataset.")
    wanted = Wanted(mirror, probabilities, steps, max_memory_gb, uncertainty, any_size)
    return predict_cases(ensemble, cases, output, wanted)


def average(folders: Sequence[Path], output: Path, postprocessing: Path | None = None) -> Outcome:
    """Average the probabilities in folders of predictions; as `ensemble_folders`, with the steps of a file."""
    return ensemble_folders(folders, output, _given_steps(postprocessing))


def _given_steps(file: Path | None, labels: LabelSet | None = None) -> Postprocessing:
    if file is None:
        return NO_POSTPROCESSING
    steps = Postprocessing.load(file)
    if labels is not None:
        steps.require_known(labels, file)
    say(f"postprocessing: {file}")
    return steps


def _require_distinct(members: Members) -> None:
    """Refuse a configuration that is given twice: it would count twice.

    Raises:
        UsageError: If one is.
    """
    runs = [folders[0].path.parent.resolve() for folders in members]
    if twice := [run for run in runs if runs.count(run) > 1]:
        raise UsageError(f"{twice[0]}: is given twice, expected each configuration once. Leave one out.")
