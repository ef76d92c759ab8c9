"""Ownership of a folder of masks: those of one model, of known images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segpipe.core.errors import DataError, UsageError
from segpipe.core.labels import LabelSet
from segpipe.core.progress import say
from segpipe.core.records import Record
from segpipe.core.text import count
from segpipe.data.dataset import Case, signature_of
from segpipe.predict.outputs import mask_path, probabilities_path, uncertainty_paths
from segpipe.predict.postprocess import NO_POSTPROCESSING, Postprocessing

ABOUT = "prediction.json"


class MadeWith(Record):
    """The model and the images that the masks of a folder were made with; another model must not go on in it.

    Args:
        model: Digest of the weights.
        mirrored: Whether mirrored copies were averaged.
        images: Signature of each case's image files.
        postprocessing: What was done to the masks afterwards.
        labels: The structures; None if an earlier version did not note them.
    """

    model: str
    mirrored: bool
    images: dict[str, str]
    postprocessing: Postprocessing = NO_POSTPROCESSING
    labels: LabelSet | None = None


def check_claim(folder: Path, cases: Sequence[Case], made: MadeWith) -> tuple[MadeWith, list[str]]:
    """Check that masks of these cases may be written into a folder; nothing is changed.

    Returns:
        What the folder's masks will be made with and of, and the cases whose masks are of images that changed since.

    Raises:
        UsageError: If the folder holds masks of another model or of unknown origin, or holds the images.
    """
    about = folder / ABOUT
    images = [path.resolve() for case in cases for path in case.image_paths]
    if folder.resolve() in {*images, *(image.parent for image in images)}:  # a DICOM series is a folder itself
        raise UsageError(f"{folder}: holds the images. Choose another output folder, so that none is overwritten.")
    known = MadeWith.load(about) if about.is_file() else made
    if known.labels is None:
        known = known.model_copy(update={"labels": made.labels})
    if known.model_copy(update={"images": {}}) != made:
        raise UsageError(
            f"{folder}: holds masks of another model (or with other mirroring or postprocessing). Choose another "
            "output folder."
        )
    current = {case.case_id: _images_signature(case) for case in cases}
    existing = [case_id for case_id in current if mask_path(folder, case_id).exists()]
    if foreign := [case_id for case_id in existing if case_id not in known.images]:
        others = f" ({count(len(foreign), 'such file')})" if len(foreign) > 1 else ""
        raise UsageError(
            f"{mask_path(folder, foreign[0])}: exists already, and not from this command{others}. Choose another "
            "output folder."
        )
    changed = [case_id for case_id in existing if known.images[case_id] != current[case_id]]
    return known.model_copy(update={"images": known.images | current}), changed


def claim_folder(folder: Path, cases: Sequence[Case], made: MadeWith) -> None:
    """Record what the folder's masks are made with and of; masks of images that changed since are removed.

    Raises:
        UsageError: As `check_claim`.
    """
    record, changed = check_claim(folder, cases, made)
    for case_id in changed:
        say(f"{mask_path(folder, case_id)}: was made from another image of this name; it is predicted again.")
        mask_path(folder, case_id).unlink()
        for extra in (probabilities_path(folder, case_id), *uncertainty_paths(folder, case_id).values()):
            extra.unlink(missing_ok=True)
    record.save(folder / ABOUT)


def _images_signature(case: Case) -> str:
    """Signature of the image files; empty if one is missing, which is reported when it is read."""
    try:
        return signature_of(case.model_copy(update={"label": None}))
    except DataError:
        return ""
