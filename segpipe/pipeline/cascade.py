"""Guides of a cascade: labels of every case, predicted by the fold of the coarser network that did not train on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, UsageError
from segpipe.core.files import remove_leftovers
from segpipe.core.progress import say, track
from segpipe.core.records import Record
from segpipe.core.work import FoldFolder, Work
from segpipe.data.splits import Fold
from segpipe.networks.device import resolve_device
from segpipe.pipeline.plan import PlannedWork
from segpipe.pipeline.requests import Machine
from segpipe.plan.schema import Plan
from segpipe.plan.training_commands import training_advice
from segpipe.predict.folds import weights_of
from segpipe.predict.memory import budget_for, windows_at_once
from segpipe.predict.model import Ensemble, Model, load_model, require_same_view
from segpipe.predict.options import PredictOptions
from segpipe.predict.restore import trace_onto
from segpipe.predict.segment import Batching, segment
from segpipe.prepare.case import Prepared, Trace
from segpipe.prepare.dataset import prepare_dataset, prepared_folder
from segpipe.prepare.store import StoredCase, StoredGuide, has_guide, open_case, store_guide
from segpipe.train.weights_header import about_weights


class GuidedBy(Record):
    """guided_by.json beside the weights of a cascade.

    Args:
        weights: Of each fold of the coarser configuration, as `weights_of` gives it.
    """

    weights: dict[str, str]


def note_guides(folder: FoldFolder, previous: str | None, *, begins: bool) -> None:
    """Record the guides of a fold that begins, or warn if one resumes with others; nothing outside of a cascade."""
    if previous is None:
        return
    if begins or not folder.guided_by.is_file():
        GuidedBy(weights=_weights_now(folder, previous)).save(folder.guided_by)
    else:
        warn_of_guides(folder, previous)


def warn_of_guides(folder: FoldFolder, previous: str | None) -> None:
    """Warn if a fold of the coarser configuration was trained again since it guided this one."""
    if previous is None or not folder.guided_by.is_file():
        return
    now = _weights_now(folder, previous)
    known = GuidedBy.load(folder.guided_by).weights
    again = [fold for fold, digest in known.items() if now.get(fold, digest) != digest]
    if again:
        work, name = Work(folder.path.resolve().parents[2]), folder.path.resolve().parent.name
        advice = training_advice(work, name, [folder.path.name.removeprefix("fold_")], "--restart")
        say(
            f"warning: {folder.path}: {', '.join(again)} was trained again since it guided this cascade, which may "
            f"rely on it wrongly. Train the cascade again: {advice}."
        )


def _weights_now(folder: FoldFolder, previous: str) -> dict[str, str]:
    run = folder.path.resolve().parent.parent / previous
    return weights_of(FoldFolder(path) for path in sorted(run.glob("fold_*")))


def guides_for(planned: PlannedWork, name: str, machine: Machine) -> Path | None:
    """Predict the guides of a configuration, for the prepared cases that lack them or have those of other weights.

    Args:
        planned: The work folder; its cases are prepared. Each case is predicted by the fold that validates it.
        name: Name of the configuration.
        machine: What to compute on.

    Returns:
        Folder of the labels; None if the configuration is no cascade.

    Raises:
        UsageError: If the coarser configuration is not trained on every fold, or with another plan.
        DataError: If a case cannot be prepared or predicted.
        ResourceError: If memory or disk runs out.

    Source:
        nnU-Net, whose folds predict their validation cases for the next stage when they are trained.
    """
    work, plan, splits = planned.work, planned.plan, planned.splits
    configuration = plan.configurations[name]
    if configuration.previous is None:
        return None
    require_trained_guides(planned, name)
    folders = [work.fold(configuration.previous, str(number)) for number in range(splits.k)]
    seen = prepare_dataset(work, planned.dataset, plan, configuration.previous, machine.n_workers)
    prepared = prepared_folder(work, plan, configuration)
    guides = work.guides(prepared, configuration.previous)
    remove_leftovers(guides)
    for folder, split in zip(folders, splits.folds, strict=True):
        (weights,) = weights_of([folder]).values()
        wanted = [
            StoredGuide(case_id=c, model=weights, content=_stored_case(prepared, c).content, seen_as=seen.name)
            for c in split.validation
        ]
        missing = [about for about in wanted if not has_guide(guides, about)]
        if not missing:
            continue
        model = load_model([folder], resolve_device(machine.device))
        for about in track(missing, f"guiding {name} by {configuration.previous}, {folder.path.name}", len(missing)):
            labels = _predict_guide(model, seen, about.case_id, _stored_case(prepared, about.case_id).trace)
            store_guide(guides, about, labels, plan.labels, configuration.patch_zyx)
    return guides


def require_trained_guides(planned: PlannedWork, name: str) -> None:
    """Refuse a cascade whose coarser configuration is not trained on every fold; nothing outside of a cascade.

    Raises:
        UsageError: If a fold is missing, or was trained with another plan.
    """
    work, splits, previous = planned.work, planned.splits, planned.plan.configurations[name].previous
    if previous is None:
        return
    folders = [work.fold(previous, str(number)) for number in range(splits.k)]
    lacking = [
        str(number)
        for number, (folder, split) in enumerate(zip(folders, splits.folds, strict=True))
        if not folder.weights.is_file()
        or about_weights(folder.weights).get("finished") == "0"
        or not folder.split.is_file()
        or Fold.load(folder.split) != split
    ]
    if lacking:
        raise UsageError(
            f"-c {name}: needs all {splits.k} folds of {previous}, each to predict the cases that it was not trained "
            f"on; not trained on the current splits: {', '.join(lacking)}. Train them: "
            f"{training_advice(work, previous, lacking)}."
        )
    for folder in folders:
        require_same_view(planned.plan, previous, Plan.load(folder.plan), work.plan)


def _stored_case(prepared: Path, case_id: str) -> StoredCase:
    return StoredCase.load(prepared / case_id / "case.json")


def _predict_guide(model: Model, seen: Path, case_id: str, onto: Trace) -> NDArray[np.int16]:
    """Inside labels of a case on the grid that it is prepared on for the cascade."""
    image = open_case(seen / case_id).image.whole()
    coarse = Prepared(image, None, trace_onto(_stored_case(seen, case_id).trace, onto))
    batching = Batching(windows_at_once(model, budget_for(model.device, None)))
    try:
        found, _ = segment(Ensemble((model,)), (coarse,), PredictOptions(), case_id, batching)
    except DataError as fault:
        raise DataError(f"{case_id}: {fault}") from None
    return model.plan.labels.encode(found.mask_zyx, case_id)
