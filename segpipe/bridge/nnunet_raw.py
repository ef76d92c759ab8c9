"""A dataset as nnunetv2 wants it on disk: names and links; and its folds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from segpipe.core.errors import DataError
from segpipe.core.files import make_folder, read_text, write_text
from segpipe.core.header import ending_of
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits, read_nnunet_splits


def read_folds(path: Path, dataset: Dataset) -> list[dict[str, list[str]]]:
    """Folds as nnU-Net writes them (`train`, `val`), from its file or from segpipe's.

    Raises:
        DataError: If the file is no splits, or names cases that the dataset lacks.
    """
    is_list = path.is_file() and read_text(path).lstrip().startswith("[")
    splits = read_nnunet_splits(path, dataset) if is_list else Splits.load(path)
    folds = [{"train": list(fold.train), "val": list(fold.validation)} for fold in splits.folds]
    unknown = sorted({case for fold in folds for side in fold.values() for case in side} - set(dataset.by_id))
    if unknown:
        raise DataError(f"{path}: names cases that the dataset lacks: {', '.join(unknown[:5])}. Give its own splits.")
    return folds


def link_dataset(dataset: Dataset, raw: Path) -> None:
    """The dataset under the names that nnU-Net wants, in links.

    Args:
        dataset: In any layout.
        raw: Folder for dataset.json, imagesTr and labelsTr.

    Raises:
        DataError: If nnunetv2 cannot read the files or the labels.
    """
    ending = file_ending(dataset)
    for name in ("imagesTr", "labelsTr"):
        if (raw / name).exists():
            shutil.rmtree(raw / name)  # links alone
        make_folder(raw / name)
    for case in dataset.cases:
        for channel, image in enumerate(case.images):
            (raw / "imagesTr" / f"{case.case_id}_{channel:04d}{ending}").symlink_to(image)
        (raw / "labelsTr" / f"{case.case_id}{ending}").symlink_to(case.label or "")
    write_text(raw / "dataset.json", json.dumps(nnunet_description(dataset)))


def nnunet_description(dataset: Dataset) -> dict[str, Any]:
    """nnU-Net's `dataset.json`.

    Raises:
        DataError: If nnunetv2 cannot read the files or the labels.
    """
    return {
        "channel_names": {str(number): name for number, name in enumerate(dataset.channels)},
        **nnunet_labels(dataset),
        "numTraining": len(dataset.cases),
        "file_ending": file_ending(dataset),
    }


def file_ending(dataset: Dataset) -> str:
    """The ending of all files of a dataset that nnunetv2 can read.

    Raises:
        DataError: If a case has not one file for each channel, or formats are mixed.
    """
    n_channels = len(dataset.channels)
    endings = {ending_of(Path(file)) for case in dataset.cases for file in (*case.images, case.label or "")}
    packed = [case for case in dataset.cases if len(case.images) != n_channels]
    found = [f"case {case.case_id} has {len(case.images)} files for {n_channels} channels" for case in packed[:1]]
    found += [f"formats {', '.join(sorted(endings))}"] if len(endings) > 1 else []
    if found:
        raise DataError(
            f"{dataset.root}: {found[0]}; nnunetv2 expects one file for each channel, all in one format. "
            "Convert a copy."
        )
    return endings.pop()


def nnunet_labels(dataset: Dataset) -> dict[str, Any]:
    """Labels as nnU-Net's dataset.json lists them.

    Raises:
        DataError: If their values are not 0, 1, 2, …, which nnunetv2 needs.
    """
    labels = dataset.labels
    values = sorted(labels.known_values)
    if values != list(range(len(values))) or labels.background_value != 0:
        raise DataError(f"{dataset.root}: label values {values}; nnunetv2 expects 0, 1, 2, … Renumber them in a copy.")
    named: dict[str, int | list[int]] = {"background": 0}
    for label in labels.labels:
        named[label.name] = list(label.values) if labels.has_regions else label.values[0]
    if labels.ignore_value is not None:
        named["ignore"] = labels.ignore_value
    order = {"regions_class_order": list(labels.paint_values)} if labels.has_regions else {}
    return {"labels": named, **order}
