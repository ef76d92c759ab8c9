"""Turn pictures with a stated voxel size into a dataset of NIfTI files in nnU-Net's layout."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.files import make_folder, remove_leftovers, whole_folder, write_text
from segpipe.core.labels import LabelSet
from segpipe.core.progress import map_threads
from segpipe.core.records import read_mapping
from segpipe.core.text import count
from segpipe.core.volume import write_pixels
from segpipe.data.dataset import CASE_NAME, is_case_name
from segpipe.data.fix import REPAIRS_FILE, Repair, repairs_table, require_separate_folder
from segpipe.data.label_lists import labels_from_values, parse_labels
from segpipe.data.layouts.dataset_json import DESCRIPTION_FILE, channels_of
from segpipe.data.layouts.folders import IMAGE_FOLDERS, LABEL_FOLDERS, subfolder
from segpipe.data.layouts.scan import image_files, list_folder, pair_files
from segpipe.data.load import PATIENTS_FILE
from segpipe.data.picture_units import (
    PictureFacts,
    PictureUnit,
    Spacing,
    is_picture,
    list_units,
    pictures_in,
    read_image_pixels,
    read_label_pixels,
    spacing_of,
    spacing_text,
)

_ENDING = ".nii"
_COLOURS = ("red", "green", "blue")
_MAX_LISTED = 20  # problems in one message
_MAX_SPREAD = 16  # labels that a picture may have spread over its range
_WHITES = (255, 65535)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _PictureCase:
    """A case: its channels in order, and its label map if there is one."""

    case_id: str
    images: tuple[PictureUnit, ...]
    label: PictureUnit | None


def holds_pictures(path: Path) -> bool:
    """True for a picture, and for a folder whose images are pictures or folders of pictures, and no images."""
    if not path.is_dir():
        return is_picture(path)
    images, _ = _folders(path)
    return not image_files(images) and any(is_picture(p) or pictures_in(p) for p in list_folder(images))


def convert_pictures(path: Path, out: Path, spacing_mm: Spacing | None, n_workers: int) -> tuple[Repair, ...]:
    """Write a dataset of pictures as NIfTI, in nnU-Net's layout; pictures without label maps as loose images.

    A picture becomes a 2D image; a TIFF file of several pages, or a folder of numbered slices, a 3D one. Grey values
    are kept as they are stored. If any image is coloured, red, green and blue become three channels. Indices of a
    colour palette are label values. The voxel size comes from `spacing_mm`, the `dataset.json`, or a JSON file beside
    the image, which hold `"spacing": [z, y, x]`; never from the picture, whose resolution is one for printing. Files
    get no orientation. Label values that are spread over the range of a picture (0, 127, 255) become 0, 1, 2.

    Args:
        path: A folder with `images` and `labels` (or `imagesTr` and `labelsTr`), a folder of pictures, or a picture.
        out: The new folder; it must not exist or be empty. It appears when it is whole.
        spacing_mm: Voxel edges along Z, Y, X, or along Y, X for 2D images; None if files state them.
        n_workers: Number of parallel workers; each holds one image in memory.

    Returns:
        One entry for each image and label map, by file.

    Raises:
        UsageError: If `out` is inside the dataset, contains it, or is not empty.
        DataError: With every picture that cannot be converted.
        ResourceError, SetupError: If a file cannot be written.
    """
    path, out = path.absolute(), out.absolute()
    require_separate_folder(path, out)
    file = (path if path.is_dir() else path.parent) / DESCRIPTION_FILE
    description = read_mapping(file, DataError) if file.is_file() and path.is_dir() else {}
    names = channels_of(description["channel_names"], file) if "channel_names" in description else ()
    order = description.get("regions_class_order")
    known = parse_labels(description["labels"], order, str(file)) if "labels" in description else None
    problems: list[str] = []
    images_at, labels_at = _folders(path)
    images, labels = list_units(images_at, problems), [] if labels_at is None else list_units(labels_at, problems)
    facts = _collect(_image_facts, images, "reading pictures", n_workers, problems)
    facts |= _collect(_label_facts, labels, "reading pictures of labels", n_workers, problems)
    spacings = _collect(lambda unit: spacing_of(unit, description, spacing_mm), images, "", 1, problems)
    cases = _pair(images, labels, len(names) or None)
    problems += _disagreements(cases, facts, spacings)
    values = frozenset(value for unit in labels if unit in facts for value in facts[unit].values)
    new_values = _compact_values(values, known)
    problems += _lossy_labels(labels, facts, known, new_values)
    _refuse(path, problems)
    remove_leftovers(out.parent)
    with whole_folder(out) as copy:
        writer = _Writer(path, copy, facts, spacings, new_values, is_loose=labels_at is None)
        written = map_threads(writer.write_case, cases, f"converting {path.name}", n_workers)
        repairs = [one for group in written for one in group]
        repairs += [
            one
            for unit in set(labels) - {case.label for case in cases}
            for one in writer.write_label(unit, unit.stem, None)
        ]
        if labels_at is not None:
            found = {new_values.get(value, value) for value in values}
            _write_description(copy, description, names or writer.channels(cases), found, cases)
        if (patients := file.with_name(PATIENTS_FILE)).is_file():
            shutil.copy2(patients, copy)
        repairs.sort(key=lambda one: one.file)
        write_text(copy / REPAIRS_FILE, repairs_table(repairs))
    return tuple(repairs)


def _folders(path: Path) -> tuple[Path, Path | None]:
    """Find the images and the label maps of a dataset; without label maps, the images alone."""
    if not path.is_dir():
        return path, None
    labels = subfolder(path, LABEL_FOLDERS)
    images = subfolder(path, (*IMAGE_FOLDERS, "imagests")) if labels is None else subfolder(path, IMAGE_FOLDERS)
    others = [p for p in list_folder(path) if p.is_dir() and p != labels] if labels is not None else []
    return images or (others[0] if len(others) == 1 else path), labels


def _pair(images: Sequence[PictureUnit], labels: Sequence[PictureUnit], n_channels: int | None) -> list[_PictureCase]:
    """Pair images with label maps by the rules for image files; what does not fit is a fault of the dataset written."""
    image_of = {unit.path.parent / f"{unit.stem}{_ENDING}": unit for unit in images}
    label_of = {unit.path.parent / f"{unit.stem}{_ENDING}": unit for unit in labels}
    cases, _, _ = pair_files(list(image_of), list(label_of), n_channels)
    return [
        _PictureCase(
            case.case_id,
            tuple(image_of[file] for file in case.images),
            None if case.label is None else label_of[case.label],
        )
        for case in cases
    ]


def _image_facts(unit: PictureUnit) -> PictureFacts:
    return read_image_pixels(unit)[1]


def _label_facts(unit: PictureUnit) -> PictureFacts:
    return read_label_pixels(unit)[1]


def _disagreements(
    cases: Sequence[_PictureCase], facts: dict[PictureUnit, PictureFacts], spacings: dict[PictureUnit, Spacing]
) -> list[str]:
    """Find what cannot be written: names, shapes that differ in a case, axes and bands that differ between cases."""
    problems = []
    known = [facts[unit] for case in cases for unit in case.images if unit in facts]
    is_coloured = any(one.is_coloured for one in known)
    if len({one.n_axes for one in known}) > 1:
        n_flat = sum(one.n_axes == 2 for one in known)
        problems.append(
            f"{count(n_flat, 'single picture')} beside {count(len(known) - n_flat, 'stack')}, expected either. Put the "
            "slices of each case into a folder, or remove the others."
        )
    for case in cases:
        first = case.images[0]
        if not is_case_name(case.case_id):
            problems.append(f"{first.path}: case {case.case_id!r}; expected {CASE_NAME}. Rename it.")
        for unit in [one for one in (*case.images, case.label) if one in facts and first in facts]:
            assert unit is not None
            if facts[unit].shape_zyx != facts[first].shape_zyx:
                sizes = [" × ".join(map(str, facts[one].shape_zyx[::-1])) for one in (unit, first)]
                problems.append(
                    f"{unit.path}: {sizes[0]} pixels, but {first.path.name} has {sizes[1]}. Export it again."
                )
        for unit in [one for one in case.images if one in facts]:
            if is_coloured and (len(case.images) > 1 or facts[unit].n_bands != 3):
                problems.append(
                    f"{unit.path}: {facts[unit].kind}, while some are coloured; expected one coloured picture "
                    "for each case, or grey ones alone. Convert it."
                )
            if unit in spacings and len(spacings[unit]) == 2 and facts[unit].n_axes == 3:
                problems.append(f"{unit.path}: a stack with a spacing along Y, X alone, expected Z,Y,X. Add Z.")
    return problems


def _compact_values(found: frozenset[int], known: LabelSet | None) -> dict[int, int]:
    """Map values that are spread over the range of a picture to the labels that they mean; empty if none are.

    Example:
        >>> _compact_values(frozenset({0, 127, 255}), None), _compact_values(frozenset({0, 1, 255}), None)
        ({0: 0, 127: 1, 255: 2}, {})
    """
    if known is not None and found <= known.known_values:
        return {}
    if not found or (known is None and max(found) not in _WHITES):
        return {}
    sizes = range(2, _MAX_SPREAD + 1) if known is None else [len(known.known_values)]
    for n_values in sizes:
        targets = range(n_values) if known is None else sorted(known.known_values)
        for white in _WHITES:
            spread: dict[int, int] = {}
            for place, target in enumerate(targets):
                exact = place * white / max(1, n_values - 1)
                spread |= {int(exact): target, int(np.ceil(exact)): target}
            if found <= spread.keys():
                return {value: spread[value] for value in sorted(found)}
    return {}


def _lossy_labels(
    labels: Sequence[PictureUnit],
    facts: dict[PictureUnit, PictureFacts],
    known: LabelSet | None,
    new_values: dict[int, int],
) -> list[str]:
    """Refuse label maps in JPEG whose values are smeared; those with exact values are told of when they are written."""
    problems = []
    exact = frozenset(new_values) or (known.known_values if known else frozenset())
    for unit in [one for one in labels if one in facts and facts[one].is_lossy]:
        values = facts[unit].values
        wrong = values - exact if exact else values - set(range(len(values)))
        if wrong:
            problems.append(
                f"{unit.path}: JPEG changes label values when it is written: found "
                f"{', '.join(map(str, sorted(wrong)[:5]))}, … ({count(len(values), 'value')}). Export label maps "
                "again, as PNG."
            )
    return problems


def _collect(
    function: Callable[[Item], Result], items: Iterable[Item], what: str, n_workers: int, problems: list[str]
) -> dict[Item, Result]:
    """Results by item; the message of an item with a fault goes to `problems`."""

    def attempt(item: Item) -> Result | str:
        try:
            return function(item)
        except DataError as problem:
            return str(problem)

    items = list(items)
    results = map_threads(attempt, items, what, n_workers) if what else [attempt(item) for item in items]
    problems += [result for result in results if isinstance(result, str)]
    return {item: result for item, result in zip(items, results, strict=True) if not isinstance(result, str)}


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise DataError(problems[0] if str(path) in problems[0] else f"{path}: {problems[0]}")
    if problems:
        more = [f"… and {len(problems) - _MAX_LISTED} more."] if len(problems) > _MAX_LISTED else []
        lines = [*problems[:_MAX_LISTED], *more]
        raise DataError(f"{path}: {count(len(problems), 'fault')}.\n  " + "\n  ".join(lines))


@dataclass(frozen=True)
class _Writer:
    """Writes the cases of `path` into `copy`; `is_loose`: images alone, without folders."""

    path: Path
    copy: Path
    facts: dict[PictureUnit, PictureFacts]
    spacings: dict[PictureUnit, Spacing]
    new_values: dict[int, int]
    is_loose: bool

    @property
    def _is_coloured(self) -> bool:
        return any(one.is_coloured for one in self.facts.values())

    def channels(self, cases: Sequence[_PictureCase]) -> tuple[str, ...]:
        """Names for channels that no list names."""
        if self._is_coloured:
            return _COLOURS
        n_channels = max(len(case.images) for case in cases)
        return ("image",) if n_channels == 1 else tuple(f"channel_{index}" for index in range(n_channels))

    def write_case(self, case: _PictureCase) -> list[Repair]:
        """Write the channels of a case, and its label map."""
        repairs = []
        folder = self.copy if self.is_loose else make_folder(self.copy / "imagesTr")
        for place, unit in enumerate(case.images):
            pixels, facts = read_image_pixels(unit)
            spacing = self._spacing(unit)
            bands = np.repeat(pixels, 3, -1) if self._is_coloured and pixels.shape[-1] == 1 else pixels
            number = re.search(r"_([0-9]{4})$", unit.stem) if unit.stem != case.case_id else None
            first = int(number[1]) if number else place
            files = [folder / f"{case.case_id}_{first + band:04d}{_ENDING}" for band in range(bands.shape[-1])]
            for band, file in enumerate(files):
                write_pixels(file, bands[..., band], spacing, facts.n_axes)
            names = ", ".join(str(file.relative_to(self.copy)) for file in files)
            done = f"stored as {names}, {spacing_text(spacing[3 - facts.n_axes :])} mm"
            repairs.append(self._repair(unit, case.case_id, "picture", self._content(unit, facts), done))
        if case.label is not None:
            repairs += self.write_label(case.label, case.case_id, case.images[0])
        return repairs

    def write_label(self, unit: PictureUnit, case_id: str, image: PictureUnit | None) -> list[Repair]:
        """Write a label map with the voxel size of its image."""
        values, facts = read_label_pixels(unit)
        spacing = (1.0, 1.0, 1.0) if image is None else self._spacing(image)
        found = self._content(unit, facts)
        if image is not None and image.numbers and unit.numbers and image.numbers != unit.numbers:
            found += f", numbered from {unit.numbers[0]}, its image from {image.numbers[0]}: taken in order"
        if facts.palette:
            found += ", indices of the palette taken as label values"
        file = make_folder(self.copy / "labelsTr") / f"{case_id}{_ENDING}"
        changed = {value: self.new_values[value] for value in sorted(facts.values) if value in self.new_values}
        is_changed = any(old != new for old, new in changed.items())
        stored = np.select([values == old for old in changed], list(changed.values()), values) if is_changed else values
        write_pixels(file, stored.astype(_smallest_type(stored)), spacing, facts.n_axes)
        repairs = [self._repair(unit, case_id, "picture", found, f"stored as {file.relative_to(self.copy)}")]
        if stored is not values:
            old, new = ", ".join(map(str, changed)), ", ".join(map(str, changed.values()))
            repairs.append(self._repair(unit, case_id, "label_scaled", f"values {old}", f"stored as {new}"))
        if facts.is_lossy:
            what = "a label map in JPEG, which may have lost values"
            repairs.append(self._repair(unit, case_id, "label_lossy", what, "values kept", is_repaired=False))
        return repairs

    def _spacing(self, unit: PictureUnit) -> tuple[float, float, float]:
        edges = self.spacings[unit]
        return (edges[0] if len(edges) == 3 else 1.0, edges[-2], edges[-1])

    def _content(self, unit: PictureUnit, facts: PictureFacts) -> str:
        what = f"{count(len(unit.files), 'slice')} " if unit.numbers else ""
        return f"{what}{facts.kind}, {' × '.join(map(str, facts.shape_zyx[::-1][: facts.n_axes]))}"

    def _repair(
        self, unit: PictureUnit, case_id: str, kind: str, found: str, done: str, *, is_repaired: bool = True
    ) -> Repair:
        root = self.path if self.path.is_dir() else self.path.parent
        file = str(unit.path.relative_to(root))
        return Repair(case_id=case_id, file=file, kind=kind, found=found, done=done, is_repaired=is_repaired)


def _smallest_type(values: NDArray[np.int32]) -> type[np.integer[Any]]:
    low, high = int(values.min()), int(values.max())
    kinds = (np.uint8, np.int16, np.int32)
    return next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)


def _write_description(
    copy: Path, source: dict[str, Any], channels: Sequence[str], values: set[int], cases: Sequence[_PictureCase]
) -> None:
    """Write the `dataset.json` of nnU-Net's layout; what the source's says of labels is kept."""
    labels = source.get("labels")
    if labels is None:
        found = labels_from_values(values, copy).labels
        labels = {"background": 0} | {label.name: label.values[0] for label in found}
    content: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": labels,
        "numTraining": sum(case.label is not None for case in cases),
        "file_ending": _ENDING,
    }
    kept = {key: source[key] for key in ("name", "regions_class_order") if key in source}
    write_text(copy / DESCRIPTION_FILE, json.dumps(content | kept, indent=2) + "\n")
