"""Predict cases: one mask for each, on its image's own grid; resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, UsageError
from segpipe.core.files import make_folder, remove_leftovers, whole_file
from segpipe.core.progress import say, track
from segpipe.core.records import Record
from segpipe.core.volume import write_mask
from segpipe.data.dataset import Case, signature_of
from segpipe.networks.device import memory_faults, resolve_precision
from segpipe.predict.model import Model
from segpipe.predict.postprocess import Postprocessing, postprocess
from segpipe.predict.window import mirrors_of, sliding_logits
from segpipe.prepare.case import Prepared, prepare_case
from segpipe.prepare.restore import restore_mask, restore_probabilities

_ABOUT = "prediction.json"
NO_POSTPROCESSING = Postprocessing()


class _Made(Record):
    """What the masks of a folder were made with and of; another model must not go on in it.

    Args:
        model: Digest of the weights.
        mirrored: Whether mirrored copies were averaged.
        images: Signature of each case's image files.
        postprocessing: What was done to the masks afterwards.
    """

    model: str
    mirrored: bool
    images: dict[str, str]
    postprocessing: Postprocessing = NO_POSTPROCESSING


def mask_path(folder: Path, case_id: str) -> Path:
    """Where the mask of a case lies."""
    return folder / f"{case_id}.nii.gz"


def probabilities_path(folder: Path, case_id: str) -> Path:
    """Where the probabilities of a case lie."""
    return folder / f"{case_id}_probabilities.npz"


def predict_cases(
    model: Model,
    cases: Sequence[Case],
    folder: Path,
    *,
    mirror: bool = True,
    probabilities: bool = False,
    postprocessing: Postprocessing = NO_POSTPROCESSING,
) -> list[Path]:
    """Predict cases that are not there yet.

    Args:
        model: Folds to average.
        cases: Images; labels are not read.
        folder: Where the masks go, `<case_id>.nii.gz`.
        mirror: Average over mirrored copies.
        probabilities: Also write `<case_id>_probabilities.npz` (`probabilities`: float16 (outputs, Z, Y, X)).
        postprocessing: What is done to the masks; probabilities stay as they are.

    Returns:
        The masks, in the order of the cases.

    Raises:
        DataError: At the end, naming every case that could not be predicted; the others are done.
        UsageError: If the folder holds masks of another model or of unknown origin, or is where the images lie.
        ResourceError: If memory or disk runs out.
    """
    make_folder(folder)
    remove_leftovers(folder)
    made = _Made(model=model.digest, mirrored=mirror, images={}, postprocessing=postprocessing)
    _claim(folder, cases, made)
    missing = [c for c in cases if not _is_done(folder, c, probabilities=probabilities)]
    if len(missing) < len(cases):
        say(f"{folder}: {len(cases) - len(missing)} of {len(cases)} masks are there already.")
    faults = []
    for case, prepared in track(_prepared_ahead(missing, model), "predicting", len(missing)):
        try:
            _predict_case(model, case, prepared.result(), folder, made, probabilities=probabilities)
        except DataError as fault:
            faults.append(str(fault) if str(fault).startswith(case.case_id) else f"{case.case_id}: {fault}")
            say(faults[-1])
    if faults:
        raise DataError(f"{len(faults)} of {len(cases)} cases could not be predicted:\n  " + "\n  ".join(faults))
    return [mask_path(folder, case.case_id) for case in cases]


def _predict_case(
    model: Model, case: Case, prepared: Prepared, folder: Path, made: _Made, *, probabilities: bool
) -> None:
    patch = model.configuration.patch_zyx
    device = next(model.networks[0].parameters()).device
    advice = "Use --no-tta, a smaller image, or another device."
    with memory_faults(f"predicting {case.case_id}", advice):
        logits = sliding_logits(
            model.networks,
            prepared.image_czyx,
            patch,
            mirrors_of(model.plan.mirror_axes if made.mirrored else (), patch),
            resolve_precision(model.plan.training.precision, device),
        )
    if probabilities:
        _write_probabilities(folder, case, restore_probabilities(logits, prepared.trace, model.plan.labels))
    mask = restore_mask(logits, prepared.trace, model.plan.labels)
    if made.postprocessing.labels:
        voxel_mm3 = float(np.prod(prepared.trace.spacing_mm))
        mask = postprocess(mask, voxel_mm3, model.plan.labels, made.postprocessing)
    write_mask(mask_path(folder, case.case_id), mask, case.image_paths[0])


def _prepared_ahead(cases: Sequence[Case], model: Model) -> Iterator[tuple[Case, Future[Prepared]]]:
    """Read and prepare the next case while one is predicted."""
    with ThreadPoolExecutor(1) as ahead:

        def submit(case: Case) -> Future[Prepared]:
            unlabelled = case.model_copy(update={"label": None})
            return ahead.submit(prepare_case, unlabelled, model.plan, model.configuration)

        upcoming = submit(cases[0]) if cases else None
        for index, case in enumerate(cases):
            assert upcoming is not None
            current = upcoming
            current.exception()  # wait, so that at most one prepared case is held ahead
            if index + 1 < len(cases):
                upcoming = submit(cases[index + 1])
            yield case, current


def _write_probabilities(folder: Path, case: Case, values: NDArray[np.float16]) -> None:
    with whole_file(probabilities_path(folder, case.case_id)) as temporary:
        np.savez_compressed(temporary, probabilities=values)


def _is_done(folder: Path, case: Case, *, probabilities: bool) -> bool:
    extra = probabilities_path(folder, case.case_id)
    return mask_path(folder, case.case_id).is_file() and (extra.is_file() or not probabilities)


def _claim(folder: Path, cases: Sequence[Case], made: _Made) -> None:
    """Note what the folder's masks are made with and of; masks of images that changed since are removed.

    Raises:
        UsageError: If the folder holds masks of another model or of unknown origin, or is where the images lie.
    """
    about = folder / _ABOUT
    places = {Path(image).resolve().parent for case in cases for image in case.images}
    if folder.resolve() in places:
        raise UsageError(f"{folder}: the images lie there. Choose another output folder, so that none is overwritten.")
    known = _Made.load(about) if about.is_file() else made
    if known.model_copy(update={"images": {}}) != made:
        raise UsageError(
            f"{folder}: holds masks of another model (or with other mirroring or postprocessing). Choose another "
            "output folder."
        )
    current = {case.case_id: _images_signature(case) for case in cases}
    there = [case_id for case_id in current if mask_path(folder, case_id).exists()]
    if foreign := [case_id for case_id in there if case_id not in known.images]:
        raise UsageError(
            f"{mask_path(folder, foreign[0])}: is there already, and not from this command ({len(foreign)} such files)."
            " Choose another output folder."
        )
    for case_id in there:
        if known.images[case_id] != current[case_id]:
            say(f"{mask_path(folder, case_id)}: was made of another image of this name; it is made anew.")
            mask_path(folder, case_id).unlink()
            probabilities_path(folder, case_id).unlink(missing_ok=True)
    known.model_copy(update={"images": known.images | current}).save(about)


def _images_signature(case: Case) -> str:
    return signature_of(case.model_copy(update={"label": None}))
