"""nnU-Net's own two files as ours: `dataset_fingerprint.json` and `dataset.json`, no image needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.core.errors import DataError
from segpipe.core.labels import LabelSet
from segpipe.core.progress import say
from segpipe.core.records import read_mapping
from segpipe.data.label_lists import parse_labels
from segpipe.data.layouts.dataset_json import channels_of
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint, Intensities

_INTENSITIES = "foreground_intensity_properties_per_channel"
_KEPT = "median_relative_size_after_cropping"
_FOLDER = re.compile(r"Dataset[0-9]{3}_.+")
_UNKNOWN_ORIENTATION = "RAS"  # nnU-Net turns no image; the axes of its lists are those of the stored arrays


@dataclass(frozen=True)
class NnunetDataset:
    """The parts of `dataset.json` that planning needs."""

    name: str
    channels: tuple[str, ...]
    labels: LabelSet
    n_training: int | None


def read_nnunet_dataset(path: Path, *, has_cases: bool = True) -> NnunetDataset:
    """Read a `dataset.json`; one that lies beside a model need not say how many cases there are.

    Raises:
        DataError: If it is not one.
    """
    values = read_mapping(path, DataError)
    key = "channel_names" if "channel_names" in values else "modality"
    n_training = values.get("numTraining")
    is_number = isinstance(n_training, int) and not isinstance(n_training, bool) and n_training >= 1
    if not is_number and (has_cases or n_training is not None):
        raise DataError(f"{path}: numTraining: found {n_training!r}; expected the number of training cases. Add it.")
    return NnunetDataset(
        name=_name(path, values),
        channels=channels_of(values.get(key), path),
        labels=parse_labels(values.get("labels"), values.get("regions_class_order"), str(path)),
        n_training=n_training,
    )


def _name(path: Path, values: Mapping[str, Any]) -> str:
    """`Dataset003_Liver`, if the folder is called so; nnU-Net goes by that."""
    folder = path.resolve().parent.name
    return folder if _FOLDER.fullmatch(folder) else str(values.get("name") or folder or "dataset")


def read_nnunet_fingerprint(path: Path, dataset: NnunetDataset) -> Fingerprint:
    """Read a `dataset_fingerprint.json` of nnunetv2.

    Args:
        path: The file.
        dataset: What the other file says.

    Returns:
        A fingerprint with cases called `case_0`, `case_1`, …, since the file has no names; labels, whole shapes and
        histograms are not known.

    Raises:
        DataError: If it is not one, or belongs to another dataset.
    """
    values = read_mapping(path, DataError)
    missing = [key for key in ("spacings", "shapes_after_crop", _KEPT) if key not in values]
    if missing:
        raise DataError(
            f"{path}: {missing[0]} is missing; found the keys {', '.join(values) or 'none'}. Give the "
            "dataset_fingerprint.json of nnunetv2."
        )
    channels = range(len(dataset.channels))
    properties = _mapping(values.get(_INTENSITIES, {}), path, _INTENSITIES)
    if properties and set(properties) != {str(c) for c in channels}:
        raise DataError(
            f"{path}: has intensities of {len(properties)} channels ({', '.join(sorted(properties))}), but the dataset "
            f"has {len(dataset.channels)} ({', '.join(dataset.channels)}). The two files belong to different datasets."
        )
    cases = _cases(values, path)
    if dataset.n_training not in (None, len(cases)):
        say(
            f"warning: {path}: {len(cases)} cases, but dataset.json says numTraining {dataset.n_training}; nnU-Net's "
            "presets use the latter, `auto` counts the cases."
        )
    record = {
        "orientation": _UNKNOWN_ORIENTATION,
        "channels": list(dataset.channels),
        "cases": cases,
        "intensities": [_intensities(properties[str(c)], path, c) for c in channels] if properties else [],
        _KEPT: values[_KEPT],
        "declared_cases": dataset.n_training,
    }
    return Fingerprint.parse(record, str(path), DataError)


def _cases(values: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    spacings, shapes = values["spacings"], values["shapes_after_crop"]
    for key, rows in (("spacings", spacings), ("shapes_after_crop", shapes)):
        if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and len(row) == 3 for row in rows):
            raise DataError(f"{path}: {key}: expected a list of triples (z, y, x), one for each case. Correct it.")
    if len(spacings) != len(shapes):
        raise DataError(f"{path}: {len(spacings)} spacings, but {len(shapes)} shapes_after_crop; expected one of each.")
    unknown: dict[str, Any] = {"site": None, "orientation": _UNKNOWN_ORIENTATION, "shape_zyx": None, "labels": {}}
    return [
        CaseFingerprint.parse(
            {
                **unknown,
                "case_id": f"case_{number}",
                "spacing_mm": spacing,
                "cropped_shape_zyx": [int(n) if isinstance(n, float) and n.is_integer() else n for n in shape],
                "content": "",
                "signature": "",
            },
            f"{path}: case {number}",
            DataError,
        ).model_dump(mode="json")
        for number, (spacing, shape) in enumerate(zip(spacings, shapes, strict=True))
    ]


def _intensities(values: Any, path: Path, channel: int) -> dict[str, Any]:
    found = _mapping(values, path, f"{_INTENSITIES}.{channel}")
    return Intensities.parse(found, f"{path}: {_INTENSITIES}.{channel}", DataError).model_dump(mode="json")


def _mapping(values: Any, path: Path, key: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise DataError(f"{path}: {key}: found {str(values)[:60]!r}, expected keys and values. Correct it.")
    return values
