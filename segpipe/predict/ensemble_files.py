"""Average probabilities in files of segpipe or nnU-Net; one output is in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, UsageError
from segpipe.core.files import make_folder, only_process, remove_leftovers
from segpipe.core.grid import require_same_grid
from segpipe.core.header import stem_of
from segpipe.core.labels import LabelSet
from segpipe.core.probabilities import probabilities_beside, read_outputs
from segpipe.core.progress import track
from segpipe.core.records import read_mapping
from segpipe.core.volume import read_header, write_mask
from segpipe.data.dataset import Case
from segpipe.data.label_lists import parse_labels
from segpipe.data.layouts.dataset_json import DESCRIPTION_FILE
from segpipe.data.layouts.scan import image_files
from segpipe.predict.outputs import (
    ABOUT,
    CaseFault,
    CaseRow,
    MadeWith,
    PredictionResult,
    PredictionTable,
    claim_folder,
    label_sizes,
    mask_path,
    row_of_mask,
    write_label_table,
)
from segpipe.predict.postprocess import NO_POSTPROCESSING, Postprocessing, postprocess


def mean_mask(files: Sequence[Path], labels: LabelSet, shape_zyx: tuple[int, ...]) -> NDArray[Any]:
    """The mask of averaged probabilities: the most likely output, of equal ones the first, or regions above one half.

    Args:
        files: Of probabilities, one for each model.
        labels: The structures of all of them.
        shape_zyx: Of the image.

    Returns:
        (Z, Y, X) file values of `labels.mask_dtype`.

    Raises:
        DataError: If a file is not what it should be.
    """
    values = labels.paint_values if labels.has_regions else (labels.background_value, *labels.values)
    mask = np.full(shape_zyx, labels.background_value, labels.mask_dtype)
    best = np.full(shape_zyx, 0.5 if labels.has_regions else -1.0, np.float32)
    for value, shares in zip(values, _mean_outputs(files, labels, shape_zyx), strict=True):
        wins = shares > best
        mask[wins] = value
        if not labels.has_regions:
            np.maximum(best, shares, out=best)
    return mask


def _mean_outputs(files: Sequence[Path], labels: LabelSet, shape_zyx: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    for of_files in zip(*(read_outputs(file, labels, shape_zyx) for file in files), strict=True):
        total = np.zeros(shape_zyx, np.float32)
        for shares in of_files:
            total += shares
        yield total / np.float32(len(files))


def ensemble_folders(
    folders: Sequence[Path], output: Path, steps: Postprocessing = NO_POSTPROCESSING
) -> PredictionResult:
    """Average the probabilities of folders of predictions; one mask for each case that is not there yet.

    Args:
        folders: Two or more of `segpipe predict --save-probabilities` or of nnU-Net's `--save_probabilities` (with a
            reader that turns no image): masks and probabilities beside them, of the same cases.
        output: Where the masks go.
        steps: What is done to the masks.

    Raises:
        UsageError: If there are fewer than two folders, or the output is one of them or holds other masks.
        DataError: If cases or labels differ, or probabilities are missing. What is wrong with one case is in the
            outcome.
        PlanError: If a label of `steps` does not exist.
    """
    if len({folder.resolve() for folder in folders}) < 2:
        raise UsageError(f"{len(folders)} folders, each once, expected two or more to average.")
    labels = _common_labels(folders)
    steps.require_known(labels, "the postprocessing")
    masks = _common_masks(folders)
    cases = _cases_of(masks)
    make_folder(output)
    with only_process(output):
        remove_leftovers(output)
        claim_folder(
            output, cases, MadeWith(model="ensemble", mirrored=False, images={}, postprocessing=steps, labels=labels)
        )
        write_label_table(output, labels)
        table, faults = PredictionTable(output, labels), []
        table.keep([case_id for case_id in table.rows if mask_path(output, case_id).is_file()])
        for case in track(cases, "averaging", len(cases)):
            try:
                if not mask_path(output, case.case_id).is_file():
                    _average_case(case, masks[case.case_id], table, labels, steps)
                elif case.case_id not in table.rows:
                    table.add(row_of_mask(output, case.case_id, labels))
            except DataError as fault:
                faults.append(CaseFault(case.case_id, f"{case.case_id}: {fault}", DataError.exit_code))
        rows = tuple(table.rows[case.case_id] for case in cases if case.case_id in table.rows)
        return PredictionResult(output, rows, tuple(faults))


def _common_labels(folders: Sequence[Path]) -> LabelSet:
    labels = [_labels_of(folder) for folder in folders]
    for folder, other in zip(folders[1:], labels[1:], strict=True):
        if other != labels[0]:
            raise DataError(
                f"{folder}: labels {_text(other)}; {folders[0]} has {_text(labels[0])}. Expected the same names and "
                "values in the same order: probabilities of different structures cannot be averaged."
            )
    return labels[0]


def _text(labels: LabelSet) -> str:
    return ", ".join(f"{label.name} {'/'.join(map(str, label.values))}" for label in labels.labels)


def _labels_of(folder: Path) -> LabelSet:
    """Labels of a folder, from the record of segpipe or from nnU-Net's copy of dataset.json."""
    if (folder / ABOUT).is_file() and (known := MadeWith.load(folder / ABOUT).labels):
        return known
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one of `segpipe predict --save-probabilities`.")
    file = folder / DESCRIPTION_FILE
    if not file.is_file():
        raise DataError(
            f"{folder}: says nothing of its labels; expected {ABOUT} of segpipe with them, or {DESCRIPTION_FILE} of "
            "nnU-Net. Predict again, or copy the dataset's file there."
        )
    values = read_mapping(file, DataError)
    return parse_labels(values.get("labels"), values.get("regions_class_order"), str(file))


def _common_masks(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The masks of each case, one from each folder."""
    found = [{stem_of(path): path for path in image_files(folder)} for folder in folders]
    case_ids = sorted(set[str]().union(*found))
    pairs = list(zip(folders, found, strict=True))
    gone = [f"{folder}: no mask of {case_id}" for case_id in case_ids for folder, of in pairs if case_id not in of]
    if gone or not case_ids:
        raise DataError(
            f"{len(case_ids)} cases in {len(folders)} folders, {len(gone)} masks are missing; expected one or more "
            f"cases, the same in each folder. Predict them.{_lines_text(gone)}"
        )
    return {case_id: [of[case_id] for of in found] for case_id in case_ids}


def _cases_of(masks: Mapping[str, Sequence[Path]]) -> list[Case]:
    """Cases whose images are the files of probabilities; every file that is missing is named."""
    cases, gone = [], []
    for case_id, of_case in masks.items():
        files = []
        for mask in of_case:
            try:
                files.append(str(probabilities_beside(mask)))
            except DataError as fault:
                gone.append(str(fault))
        cases.append(Case(case_id=case_id, patient_id=case_id, images=tuple(files) or ("",)))
    if gone:
        raise DataError(f"{len(gone)} masks lack probabilities:{_lines_text(gone)}")
    return cases


def _lines_text(lines: Sequence[str]) -> str:
    return "\n  ".join(["", *lines[:20], *(["…"] if len(lines) > 20 else [])])


def _average_case(
    case: Case, masks: Sequence[Path], table: PredictionTable, labels: LabelSet, steps: Postprocessing
) -> None:
    started = time.monotonic()
    grid = read_header(masks[0]).grid
    for mask in masks[1:]:
        require_same_grid(grid, read_header(mask).grid, f"{mask} against {masks[0]}")
    values = mean_mask(case.image_paths, labels, grid.shape_zyx)
    if steps.labels:
        values = postprocess(values, float(np.prod(grid.spacing_mm)), labels, steps)
    sizes = label_sizes(values, grid, labels)

    def add_row() -> None:
        table.add(CaseRow(case.case_id, None, None, time.monotonic() - started, sizes, ()))

    write_mask(mask_path(table.path.parent, case.case_id), values, masks[0], add_row)
