"""Pictures as images: which file or folder of slices is one, its pixels or labels, and its voxel size."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.header import PICTURE_ENDINGS
from segpipe.core.pictures import Colour, read_picture, without_bands
from segpipe.core.records import read_mapping
from segpipe.core.text import nfc
from segpipe.core.volume import whole_numbers
from segpipe.data.label_lists import value_counts
from segpipe.data.layouts.dataset_json import DESCRIPTION_FILE
from segpipe.data.layouts.scan import list_folder

_MAX_VALUES = 64  # of a label map; more are shades of an interpolation or of JPEG
_SPACING_KEY = "spacing"  # of nnU-Net's JSON file beside a TIFF: along Z, Y, X
Spacing = tuple[float, ...]


@dataclass(frozen=True)
class PictureUnit:
    """One image or label map: a picture, or a folder with a picture for each slice, whose numbers are `numbers`."""

    path: Path
    files: tuple[Path, ...]
    numbers: tuple[int, ...] = ()

    @property
    def stem(self) -> str:
        return nfc(self.path.name if self.numbers else self.path.stem)


@dataclass(frozen=True)
class PictureFacts:
    """The content of the pictures of a unit: `values` are those of a label map, `palette` colours of indices."""

    shape_zyx: tuple[int, int, int]
    n_axes: int
    n_bands: int
    is_coloured: bool
    is_lossy: bool
    kind: str
    palette: tuple[tuple[int, Colour], ...] = ()
    values: frozenset[int] = frozenset()


def is_picture(path: Path) -> bool:
    """True for a file with the ending of a picture."""
    return path.suffix.lower() in PICTURE_ENDINGS and not path.is_dir()


def pictures_in(path: Path) -> list[Path]:
    """List the pictures in a folder; nothing for a file."""
    return [file for file in list_folder(path) if is_picture(file)] if path.is_dir() else []


def list_units(path: Path, problems: list[str]) -> list[PictureUnit]:
    """List the images of a folder: pictures, and folders of slices; or the picture at a path."""
    if not path.is_dir():
        return [PictureUnit(path, (path,))]
    units: dict[str, PictureUnit] = {}
    for entry in list_folder(path):
        slices = pictures_in(entry)
        if not slices and not is_picture(entry):
            continue
        try:
            unit = _stack(entry, slices) if slices else PictureUnit(entry, (entry,))
        except DataError as problem:
            problems.append(str(problem))
            continue
        if unit.stem in units:
            problems.append(f"{entry}: has the name of {units[unit.stem].path.name}, expected one of them. Remove one.")
        units[unit.stem] = unit
    return list(units.values())


def _stack(folder: Path, slices: list[Path]) -> PictureUnit:
    """Put slices in the order of the last number of their names.

    Raises:
        DataError: If a name has no number, or numbers are double or missing.
    """
    numbered = []
    for file in slices:
        found = re.findall(r"[0-9]{1,12}", file.stem)
        if not found:
            raise DataError(f"{file}: no number in the name, expected one in each slice, for their order. Rename it.")
        numbered.append((int(found[-1]), file))
    numbered.sort(key=lambda one: (one[0], one[1].name))
    numbers = [number for number, _ in numbered]
    steps = np.diff(numbers)
    if (steps == 0).any():
        place = int(np.argmin(steps))
        names = f"{numbered[place][1].name} and {numbered[place + 1][1].name}"
        raise DataError(f"{folder}: {names} have the same number, expected one slice each. Remove one.")
    step = int(steps.min()) if len(steps) else 1
    if (steps != step).any():  # an even step is another spacing, which the user states
        missing = sorted(set(range(numbers[0], numbers[-1], step)) - set(numbers))
        text = f"without {', '.join(map(str, missing[:5]))}" if missing else f"in uneven steps ({step} and more)"
        raise DataError(
            f"{folder}: slices {numbers[0]} to {numbers[-1]} {text}, expected even steps. Add what is missing."
        )
    return PictureUnit(folder, tuple(file for _, file in numbered), tuple(numbers))


def _read(unit: PictureUnit) -> tuple[NDArray[Any], PictureFacts]:
    """Read the pixels (Z, Y, X, bands) of a unit.

    Raises:
        DataError: If a picture cannot be read, or slices differ in size, type, bands or colours.
    """
    pages = [read_picture(file) for file in unit.files]
    first = pages[0]
    palette: dict[int, Colour] = {}
    for file, one in zip(unit.files, pages, strict=True):
        shape, expected = (*one.pixels_zyxb.shape[1:],), first.pixels_zyxb.shape[1:]
        if len(pages) > 1 and len(one.pixels_zyxb) > 1:
            raise DataError(
                f"{file}: {len(one.pixels_zyxb)} pages, expected one slice in each file of a folder. Split it."
            )
        if (
            shape != expected
            or one.pixels_zyxb.dtype != first.pixels_zyxb.dtype
            or bool(one.palette) != bool(first.palette)
        ):
            found, wanted = (
                f"{p.pixels_zyxb.shape[2]} × {p.pixels_zyxb.shape[1]} pixels ({p.kind})" for p in (one, first)
            )
            raise DataError(
                f"{file}: {found}, but {unit.files[0].name} has {wanted}. Slices must be alike: convert them."
            )
        palette = _joined_palette(palette, one.palette, file)
    pixels = np.concatenate([one.pixels_zyxb for one in pages])
    n_axes = 3 if unit.numbers or len(pixels) > 1 else 2
    depth, height, width, bands = pixels.shape
    return pixels, PictureFacts(
        (depth, height, width), n_axes, bands, False, first.is_lossy, first.kind, tuple(sorted(palette.items()))
    )


def _joined_palette(one: dict[int, Colour], other: dict[int, Colour], where: Path) -> dict[int, Colour]:
    """Join palettes.

    Raises:
        DataError: If they give an index two colours, so that it does not mean the same.
    """
    for index in sorted(one.keys() & other.keys()):
        if one[index] != other[index]:
            raise DataError(
                f"{where}: index {index} has the colour {other[index]}, {one[index]} in another picture, expected one "
                "palette. Store label values as grey values."
            )
    return one | other


def read_image_pixels(unit: PictureUnit) -> tuple[NDArray[Any], PictureFacts]:
    """Read an image; its palette is written out, and what is grey has one band."""
    pixels, facts = _read(unit)
    if facts.palette:
        table = np.zeros((256, 3), np.uint8)
        table[[index for index, _ in facts.palette]] = [colour for _, colour in facts.palette]
        pixels, facts = table[pixels[..., 0]], replace(facts, n_bands=3)
    grey = without_bands(pixels)
    pixels = pixels if grey is None else grey[..., None]
    return pixels, replace(facts, is_coloured=grey is None, palette=())


def read_label_pixels(unit: PictureUnit) -> tuple[NDArray[np.int32], PictureFacts]:
    """Read a label map (Z, Y, X): grey values, or the indices of a palette of colours.

    Raises:
        DataError: If it is coloured, or its values are not whole or too many.
    """
    pixels, facts = _read(unit)
    values = without_bands(pixels)
    if values is None:
        raise DataError(
            f"{unit.path}: colours as labels, expected a value for each label. Store label values as grey values, or "
            "as the indices of a palette."
        )
    if facts.palette and all(red == green == blue for _, (red, green, blue) in facts.palette):
        table = np.zeros(256, np.uint8)
        table[[index for index, _ in facts.palette]] = [colour[0] for _, colour in facts.palette]
        values, facts = table[values], replace(facts, palette=())
    whole = whole_numbers(values, unit.path)
    found = frozenset(value_counts(whole))
    if len(found) > _MAX_VALUES:
        how = "JPEG changes values" if facts.is_lossy else "it was probably interpolated, or is no label map"
        raise DataError(
            f"{unit.path}: {len(found)} different values, expected {_MAX_VALUES} labels at most; {how}. Export label "
            "maps again, as PNG."
        )
    return whole, replace(facts, values=found)


def spacing_of(unit: PictureUnit, description: dict[str, Any], given: Spacing | None) -> Spacing:
    """Find the voxel edges of an image, along Z, Y, X or Y, X.

    Raises:
        DataError: If none are stated, two places contradict each other, or they are not lengths.
    """
    stems = dict.fromkeys((unit.stem, re.sub(r"_[0-9]{4}$", "", unit.stem)))
    files = [file for stem in stems if (file := unit.path.with_name(f"{stem}.json")).is_file()]
    stated = {file.name: read_mapping(file, DataError).get(_SPACING_KEY) for file in files}
    stated[DESCRIPTION_FILE] = description.get(_SPACING_KEY)
    stated["--spacing"] = None if given is None else list(given)
    found = {where: _edges(value, unit.path, where) for where, value in stated.items() if value is not None}
    if len(set(found.values())) > 1:
        raise DataError(
            f"{unit.path}: the voxel size is {' and '.join(f'{spacing_text(v)} mm in {w}' for w, v in found.items())}, "
            "expected one. Remove what is wrong."
        )
    if not found:
        raise DataError(
            f"{unit.path}: no voxel size, which pictures do not have; expected --spacing Z,Y,X in mm, or a file "
            f'{unit.stem}.json with {{"spacing": [z, y, x]}}. Add one.'
        )
    return next(iter(found.values()))


def _edges(value: Any, path: Path, where: str) -> Spacing:
    is_list = isinstance(value, list) and len(value) in (2, 3)
    if not is_list or not all(isinstance(v, int | float) and isfinite(v) and v > 0 for v in value):
        raise DataError(f"{path}: {where}: spacing {value!r}, expected [z, y, x] or [y, x] in mm, above 0. Correct it.")
    return tuple(map(float, value))


def spacing_text(spacing: Spacing) -> str:
    """Voxel edges for people."""
    return " × ".join(f"{edge:g}" for edge in spacing)
