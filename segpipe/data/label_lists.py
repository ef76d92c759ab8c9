"""Lists of labels, from `dataset.json` or from the values in the label files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.labels import Label, LabelSet
from segpipe.core.progress import map_threads
from segpipe.core.text import count
from segpipe.core.volume import read_header, read_label_values

_WHITE = 255  # of a picture with 8 bits
_MAX_FOUND = 1000  # more distinct values mean an image used as a label map
_INTEGER = re.compile(r"-?[0-9]+")  # str.isdigit accepts `²`
_TABLE_SPAN = 1 << 20  # values closer together than this are counted in a table, which is faster than sorting


def parse_labels(listed: Any, order: Any, where: str) -> LabelSet:
    """Parse the labels of a `dataset.json`: `{"name": 1}`, `{"name": [1, 2]}` (region), or MSD's `{"1": "name"}`.

    Args:
        listed: Value of the key `labels`.
        order: Value of the key `regions_class_order`; None if it is absent.
        where: File, for messages.

    Returns:
        Labels by ascending value; regions in the order they are written.

    Raises:
        DataError: If the list has none of these forms, or contradicts itself.
    """
    if not isinstance(listed, Mapping) or not listed:
        raise DataError(f'{where}: labels: found {listed!r}; expected {{"background": 0, "name": 1, …}}. Correct it.')
    if all(_is_number(key) for key in listed) and all(isinstance(name, str) for name in listed.values()):
        listed = _by_name(listed, where)
    values = {str(name): _values(name, value, where) for name, value in listed.items()}
    background = _special(values, "background", where)
    ignore = _special(values, "ignore", where)
    if background is None and any(0 in v for v in values.values()):
        raise DataError(
            f"{where}: labels: no 'background', and 0 is a label; expected a value for background. "
            'Add "background" with the value of everything else.'
        )
    has_regions = any(len(v) > 1 for v in values.values())
    if has_regions and not isinstance(order, list):
        found = "is missing" if order is None else f"is {order!r}"
        raise DataError(
            f"{where}: labels has regions (several values), but regions_class_order {found}; expected a list with the "
            "value that each region is painted with, largest region first. Correct it."
        )
    ordered = list(values.items()) if has_regions else sorted(values.items(), key=lambda item: item[1])
    return LabelSet.parse(
        {
            "labels": [{"name": name, "values": list(v)} for name, v in ordered],
            "background_value": background or 0,
            "ignore_value": ignore,
            "paint_values": list(order) if has_regions else [],
        },
        f"{where}: labels",
        DataError,
    )


def labels_of_values(values: Iterable[int]) -> LabelSet:
    """Make labels for the values in label files without a list: `label_<value>`, background 0.

    Raises:
        ValueError: If there is none but 0.
    """
    return LabelSet(labels=tuple(Label(name=f"label_{v}", values=(v,)) for v in sorted(set(values) - {0})))


def labels_in_files(paths: list[Path], n_workers: int) -> LabelSet:
    """Find the labels of a dataset without a list: every value but 0 in its label files.

    Raises:
        DataError: If a file cannot be read, or there is no value but 0, or too many for labels.
    """
    per_file = map_threads(lambda path: set(value_counts_of(path)), paths, "reading label values", n_workers)
    if are_scaled_differently(per_file):
        scaled = next(path for path, values in zip(paths, per_file, strict=True) if _WHITE in values)
        raise DataError(
            f"{scaled}: 0 and {_WHITE} are its only values, where other label maps hold 0 and 1; expected one value "
            "for the structure. `segpipe check DATA --fix OUT` stores 1 in a copy."
        )
    return labels_from_values(set().union(*per_file), paths[0].parent if paths else Path())


def are_scaled_differently(values_of_maps: Sequence[Collection[int]]) -> bool:
    """True if some masks hold 0 and 1 and all others 0 and 255, as a picture does: one structure, not two.

    Example:
        >>> are_scaled_differently([{0, 1}, {0, 255}]), are_scaled_differently([{0, 1}, {0, 1, 255}])
        (True, False)
    """
    found = [set(values) - {0} for values in values_of_maps]
    return {1} in found and {_WHITE} in found and all(values in ({1}, {_WHITE}, set()) for values in found)


def labels_from_values(values: set[int], where: Path) -> LabelSet:
    """Make labels of the values found in all label files of `where`.

    Raises:
        DataError: If there is no value but 0, or too many for labels.
    """
    n_labels = len(values - {0})
    if not 0 < n_labels <= _MAX_FOUND:
        raise DataError(
            f"{where}: {count(n_labels, 'value')} besides 0 in the label maps, expected 1 to {_MAX_FOUND}. "
            "Check that images and label maps are not swapped."
        )
    return labels_of_values(values)


def value_counts_of(path: Path) -> dict[int, int]:
    """Count the voxels of each value in a label file.

    Raises:
        DataError: If it cannot be read or does not hold integers.
    """
    return value_counts(read_label_values(read_header(path)))


def value_counts(values: NDArray[np.integer[Any]]) -> dict[int, int]:
    """Count the voxels of each value, ascending.

    Example:
        >>> value_counts(np.array([3, 0, 3]))
        {0: 1, 3: 2}
    """
    low, high = int(values.min()), int(values.max())
    if high - low < _TABLE_SPAN:
        counts = np.bincount((values - low).ravel())
        return {low + int(i): int(counts[i]) for i in np.flatnonzero(counts)}
    distinct, n_voxels = np.unique(values, return_counts=True)
    return dict(zip(distinct.tolist(), n_voxels.tolist(), strict=True))


def _by_name(listed: Mapping[str, str], where: str) -> dict[str, int]:
    """Invert MSD's mapping of values to names."""
    names = list(listed.values())
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: labels: {twice!r} has two values; expected each name once. Rename one.")
    return {name: int(value) for value, name in listed.items()}


def _values(name: Any, value: Any, where: str) -> tuple[int, ...]:
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(p, int) and not isinstance(p, bool) for p in parts):
        raise DataError(f"{where}: label {name!r}: found {value!r}; expected an integer or a list of them. Correct it.")
    return tuple(parts)


def _special(values: dict[str, tuple[int, ...]], name: str, where: str) -> int | None:
    """Take the value of `background` or `ignore` out of the list; None if it is not in it."""
    key = next((k for k in values if k.strip().lower() == name), None)
    if key is None:
        return None
    taken = values.pop(key)
    if len(taken) != 1:
        raise DataError(f"{where}: label {key!r}: found {list(taken)}; expected one integer. Correct it.")
    return taken[0]


def _is_number(key: Any) -> bool:
    return isinstance(key, str) and _INTEGER.fullmatch(key.strip()) is not None
