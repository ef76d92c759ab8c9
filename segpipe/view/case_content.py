"""Content of a case for the page: the image as NIfTI, label maps as numbered colours, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects, label

from segpipe.core.errors import DataError
from segpipe.core.figures import ERROR_COLOURS, label_colour
from segpipe.core.grid import Grid, require_same_grid
from segpipe.core.labels import Label, LabelSet
from segpipe.core.volume import nifti_bytes, read_header, read_image, read_labels
from segpipe.data.label_lists import value_counts
from segpipe.view.gallery import Gallery, GalleryCase

_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True, eq=False)
class _Map:
    """A label map as indices into `Masks.values` counted from 1, 0 for background; (Z, Y, X) uint8 or int16."""

    indices_zyx: NDArray[Any]
    grid: Grid


@dataclass(frozen=True, eq=False)
class Masks:
    """Label maps of a case, as far as they can be read.

    Args:
        maps: `reference`, `prediction`, `difference` (index into `ERROR_COLOURS`): those there are.
        values: Label values that occur, ascending, without background.
        error: The largest error; None if there is none, or nothing to compare.
        notes: What could not be read or compared, a sentence each.
    """

    maps: Mapping[str, _Map]
    values: tuple[int, ...]
    error: LargestError | None
    notes: tuple[str, ...]


@lru_cache(maxsize=1)  # the page asks for four things of one case
def read_masks(case: GalleryCase, background_value: int, ignore_value: int | None) -> Masks:
    """Read the label maps of a case and compare them; faults of files become notes, so that the rest is shown.

    Voxels that the reference says to ignore are not wrong, whatever was predicted.
    """
    read: dict[str, tuple[NDArray[np.int32], Grid]] = {}
    notes: list[str] = []
    for name, path in (("reference", case.reference), ("prediction", case.prediction)):
        if path is not None:
            try:
                read[name] = read_labels(path)
            except DataError as fault:
                notes.append(str(fault))
    notes += _other_places(case, read)
    values = sorted({v for values_zyx, _ in read.values() for v in value_counts(values_zyx)} - {background_value})
    maps = {name: _Map(_indices(array, values, background_value), grid) for name, (array, grid) in read.items()}
    error = None
    if len(read) == 2 and read["reference"][1].corner_gap_mm(read["prediction"][1]) < np.inf:
        ignored = values.index(ignore_value) + 1 if ignore_value in values else None
        difference = _difference(maps["reference"].indices_zyx, maps["prediction"].indices_zyx, ignored)
        grid = maps["reference"].grid
        maps["difference"] = _Map(difference, grid)
        error = largest_error(difference > 0, grid)
    return Masks(maps, tuple(values), error, tuple(notes))


def _other_places(case: GalleryCase, read: Mapping[str, tuple[Any, Grid]]) -> list[str]:
    """A sentence for each label map that does not lie on the image's grid."""
    notes: list[str] = []
    for _, grid in read.values():
        try:
            require_same_grid(read_header(case.images[0]).grid, grid, f"{case.case_id}: label map against image")
        except DataError as fault:
            notes.append(str(fault))
    return list(dict.fromkeys(notes))


def _indices(array: NDArray[np.int32], values: list[int], background_value: int) -> NDArray[Any]:
    if not values:
        return np.zeros(array.shape, np.uint8)
    labels = LabelSet(labels=tuple(Label(name=str(v), values=(v,)) for v in values), background_value=background_value)
    return labels.encode(array, "label map").astype(np.uint8 if len(values) < 256 else np.int16, copy=False)


def _difference(reference: NDArray[Any], prediction: NDArray[Any], ignored: int | None) -> NDArray[np.uint8]:
    """0 where both agree, else 1 + the index into `ERROR_COLOURS`."""
    is_wrong = reference != prediction
    if ignored is not None:
        is_wrong &= reference != ignored
    kinds = np.where(prediction == 0, 1, np.where(reference == 0, 2, 3)).astype(np.uint8)
    return kinds * is_wrong


def describe(case: GalleryCase, gallery: Gallery) -> dict[str, Any]:
    """Describe a case for the page, as JSON values.

    Raises:
        DataError: If the image cannot be read.
    """
    masks = read_masks(case, gallery.background_value, gallery.ignore_value)
    n_channels = len(case.images) if len(case.images) > 1 else read_header(case.images[0]).n_channels
    names = gallery.channels if len(gallery.channels) == n_channels else [f"channel {i}" for i in range(n_channels)]
    return {
        "case_id": case.case_id,
        "channels": list(names),
        "maps": list(masks.maps),
        "labels": [
            {
                "value": value,
                "name": gallery.label_names.get(value, f"label {value}"),
                "colour": _rgb(label_colour(gallery.label_places.get(value, value - 1))),
            }
            for value in masks.values
        ],
        "differences": [{"name": name, "colour": _rgb(colour)} for name, colour in ERROR_COLOURS.items()],
        "error": None if masks.error is None else asdict(masks.error),
        "notes": list(masks.notes),
    }


def _rgb(colour: str) -> list[int]:
    """Red, green and blue from 0 to 255 of `#RRGGBB`."""
    return list(bytes.fromhex(colour[1:]))


def image_nifti(case: GalleryCase, channel: int) -> bytes | None:
    """A channel of the image as uncompressed NIfTI; None if there is no such channel.

    Raises:
        DataError: If it cannot be read.
    """
    if len(case.images) > 1:
        return _channel(case.images[channel], 0) if channel < len(case.images) else None
    return _channel(case.images[0], channel)


def _channel(path: Path, channel: int) -> bytes | None:
    volume = read_image(path)
    if channel >= len(volume.voxels_czyx):
        return None
    voxels = volume.voxels_czyx[channel : channel + 1]
    if _INT16.min <= voxels.min() and voxels.max() <= _INT16.max and not (voxels % 1).any():
        voxels = voxels.astype(np.int16)  # half of what the browser must hold
    return nifti_bytes(voxels, volume.grid.affine_ras_mm)


def mask_nifti(case: GalleryCase, gallery: Gallery, name: str) -> bytes | None:
    """`reference`, `prediction` or `difference` as uncompressed NIfTI; None if there is none."""
    found = read_masks(case, gallery.background_value, gallery.ignore_value).maps.get(name)
    return None if found is None else nifti_bytes(found.indices_zyx[None], found.grid.affine_ras_mm)


_CORNERS_TOUCH = np.ones((3, 3, 3), bool)
_SAME_DEPTH = 1e-6  # relative; distances that are equal on paper differ by rounding


@dataclass(frozen=True)
class LargestError:
    """The largest connected piece of wrong voxels.

    Args:
        point_ras_mm: Its centre in the world: the voxel deepest inside, so that the point is wrong itself.
        volume_mm3: Its volume.
        wrong_mm3: Volume of all pieces.
        n_pieces: How many there are.
    """

    point_ras_mm: tuple[float, float, float]
    volume_mm3: float
    wrong_mm3: float
    n_pieces: int


def largest_error(wrong_zyx: NDArray[np.bool_], grid: Grid) -> LargestError | None:
    """Find the largest piece of wrong voxels and its centre.

    The thin rim of wrong voxels around a structure is often one piece with the true fault at one side of it; its
    centre of mass would lie in the middle of the structure, where nothing is wrong. So the centre is the voxel
    farthest from all that is right; of several such the one nearest to the centre of mass.

    Args:
        wrong_zyx: Where reference and prediction differ, bool (Z, Y, X). Voxels that touch at a corner are one piece.
        grid: Their place.

    Returns:
        None if nothing is wrong. Of pieces of one size the first in the order of the array.
    """
    voxel_mm3 = float(np.prod(grid.spacing_mm))
    pieces, n_pieces = label(wrong_zyx, _CORNERS_TOUCH)
    if n_pieces == 0:
        return None
    sizes_vox = np.bincount(pieces.ravel())[1:]
    number = int(sizes_vox.argmax()) + 1
    place = find_objects(pieces, number)[number - 1]
    piece = pieces[place] == number
    start_zyx = np.array([one.start for one in place])
    index_zyx = start_zyx + _deepest(piece, grid.spacing_mm)
    x_mm, y_mm, z_mm = (grid.affine_ras_mm @ [*index_zyx[::-1], 1.0])[:3].tolist()
    return LargestError(
        point_ras_mm=(x_mm, y_mm, z_mm),
        volume_mm3=float(sizes_vox[number - 1]) * voxel_mm3,
        wrong_mm3=float(sizes_vox.sum()) * voxel_mm3,
        n_pieces=n_pieces,
    )


def _deepest(piece_zyx: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[Any]:
    """Index of the voxel of a piece that is farthest from outside in mm; across a single slice there is no outside."""
    margins = [int(n > 1 or piece_zyx.size == 1) for n in piece_zyx.shape]
    padded_mm = distance_transform_edt(np.pad(piece_zyx, [(n, n) for n in margins]), sampling=spacing_mm)
    depth_mm = padded_mm[tuple(slice(n, n + size) for n, size in zip(margins, piece_zyx.shape, strict=True))]
    candidates = np.argwhere(depth_mm >= depth_mm.max() * (1 - _SAME_DEPTH))
    centre = np.argwhere(piece_zyx).mean(axis=0)
    nearest = np.linalg.norm((candidates - centre) * spacing_mm, axis=1).argmin()
    return candidates[int(nearest)]
