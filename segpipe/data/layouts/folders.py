"""Two folders, images and labels, paired by file name; no description is needed."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.errors import DataError
from segpipe.core.volume import read_header
from segpipe.data.layouts.scan import DatasetFiles, image_files, list_folder, pair_files

IMAGE_FOLDERS = ("imagestr", "images", "image", "imgs")  # compared in lower case; the first that exists counts
LABEL_FOLDERS = ("labelstr", "labels", "label", "masks", "mask", "segmentations")


def subfolder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder with the first of these names, whatever its case; None if there is none.

    Raises:
        DataError: If the folder cannot be listed.
    """
    by_name = {path.name.lower(): path for path in list_folder(folder) if path.is_dir()}
    return next((by_name[name] for name in names if name in by_name), None)


def read_folders(path: Path) -> DatasetFiles | None:
    """Read a folder with the subfolders images and labels; None if one is missing.

    Raises:
        DataError: If a folder cannot be listed.
    """
    if not path.is_dir():
        return None
    labels = subfolder(path, LABEL_FOLDERS)
    images = subfolder(path, IMAGE_FOLDERS) or _only_other(path, labels)
    if images is None or labels is None:
        return None
    cases, n_channels, faults = pair_files(image_files(images), image_files(labels), None)
    if n_channels == 1 and cases:
        n_channels = _fourth_axis(cases[0].images[0])
    only = "image" if images.name.lower() in IMAGE_FOLDERS else images.name  # a folder CT is normalised as CT
    names = (only,) if n_channels == 1 else tuple(f"channel_{index}" for index in range(n_channels))
    return DatasetFiles(path.name, path, names, None, tuple(cases), tuple(faults))


def _only_other(folder: Path, labels: Path | None) -> Path | None:
    """Find the only folder of images beside the label maps, of any name (`CT`); None if there is none, or several."""
    others = [path for path in list_folder(folder) if path.is_dir() and path != labels and image_files(path)]
    return others[0] if labels is not None and len(others) == 1 else None


def _fourth_axis(path: Path) -> int:
    """Count the channels of a file; 1 if it cannot be read, which is reported when all files are read."""
    try:
        return read_header(path).n_channels
    except DataError:
        return 1
