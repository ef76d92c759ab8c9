"""What guides a cascade in training: labels of every case, predicted by the fold of the coarser network that it was
not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, UsageError
from segpipe.core.files import remove_leftovers
from segpipe.core.progress import track
from segpipe.core.work import FoldFolder, Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Fold, Splits
from segpipe.networks.device import resolve_device
from segpipe.pipeline.machine import Machine
from segpipe.plan.schema import Plan
from segpipe.predict.memory import budget_for, windows_at_once
from segpipe.predict.model import Ensemble, Model, load_model, require_same_view
from segpipe.predict.options import PredictOptions
from segpipe.predict.restore import trace_onto
from segpipe.predict.segment import Batching, segment
from segpipe.predict.selected_model import weights_of
from segpipe.prepare.cascade import StoredGuide, has_guide, store_guide
from segpipe.prepare.case import Prepared, Trace
from segpipe.prepare.dataset import prepare_dataset, prepared_folder
from segpipe.prepare.store import StoredCase, open_case
from segpipe.train.checkpoint import about_weights


def guides_for(work: Work, dataset: Dataset, plan: Plan, name: str, splits: Splits, machine: Machine) -> Path | None:
    """Predict what guides a configuration, for the prepared cases that lack it or have that of other weights.

    Args:
        work: Its prepared cases are there.
        dataset: The cases.
        plan: What is trained.
        name: Of the configuration.
        splits: Each case is predicted by the fold that keeps it for validation.
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
    configuration = plan.configurations[name]
    if configuration.previous is None:
        return None
    folders = [work.fold(configuration.previous, str(number)) for number in range(splits.k)]
    _require_trained(work, configuration.previous, name, folders, splits)
    seen = prepare_dataset(work, dataset, plan, configuration.previous, machine.n_workers)
    prepared = prepared_folder(work, plan, configuration)
    guides = work.guides(prepared, configuration.previous)
    remove_leftovers(guides)
    for folder, split in zip(folders, splits.folds, strict=True):
        (weights,) = weights_of([folder]).values()
        wanted = [
            StoredGuide(case_id=c, model=weights, content=_stored(prepared, c).content, seen_as=seen.name)
            for c in split.validation
        ]
        missing = [about for about in wanted if not has_guide(guides, about)]
        if not missing:
            continue
        model = load_model([folder], resolve_device(machine.device))
        require_same_view(plan, configuration.previous, model.plan, work.plan)
        for about in track(missing, f"guiding {name} by {configuration.previous}, {folder.path.name}", len(missing)):
            labels = _predicted(model, seen, about.case_id, _stored(prepared, about.case_id).trace)
            store_guide(guides, about, labels, plan.labels, configuration.patch_zyx)
    return guides


def _require_trained(work: Work, previous: str, name: str, folders: Sequence[FoldFolder], splits: Splits) -> None:
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
            f"-c {name}: is guided by what {previous} predicts of cases it was not trained on, so all {splits.k} folds "
            f"of it are needed; not trained on the present splits: {', '.join(lacking)}. Train them: `segpipe train "
            f"{work.path} -c {previous} -f {','.join(lacking)}`."
        )


def _stored(prepared: Path, case_id: str) -> StoredCase:
    return StoredCase.load(prepared / case_id / "case.json")


def _predicted(model: Model, seen: Path, case_id: str, onto: Trace) -> NDArray[np.int16]:
    """Inside labels of a case on the grid that it is prepared on for the cascade."""
    image = open_case(seen / case_id).image.whole()
    coarse = Prepared(image, None, trace_onto(_stored(seen, case_id).trace, onto))
    batching = Batching(windows_at_once(model, budget_for(model.device, None)))
    try:
        found, _ = segment(Ensemble((model,)), (coarse,), PredictOptions(), case_id, batching)
    except DataError as fault:
        raise DataError(f"{case_id}: {fault}") from None
    return model.plan.labels.encode(found.mask_zyx, case_id)
