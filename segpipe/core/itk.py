"""Files that SimpleITK reads and writes: NRRD, MetaImage, DICOM series. Called by core/volume.py alone.

A DICOM series is given by its folder. Arrays are (C, Z, Y, X), ITK's world is LPS+.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError, GeometryError, SeveralVolumesError, package_needed
from segpipe.core.files import whole_file
from segpipe.core.grid import Grid
from segpipe.core.header import ITK_ENDINGS, MAX_GAP_VOX, Header, ending_of, grid_of, require_exact_size
from segpipe.core.text import count

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MARK, _MARK_AT = b"DICM", 128  # in every DICOM file that follows the standard's part 10
_SERIES, _DESCRIPTION, _POSITION = "0020|000e", "0008|103e", "0020|0032"
_CLASS, _FRAME_POINTER = "0008|0016", "0028|0009"
_VOLUME_TAGS = {  # by which the volumes of one series differ that has several at every position
    "EchoTime": "0018|0081",
    "InversionTime": "0018|0082",
    "DiffusionBValue": "0018|9087",
    "TemporalPositionIdentifier": "0020|0100",
    "TriggerTime": "0018|1060",
    "AcquisitionNumber": "0020|0012",
    "ImageType": "0008|0008",
}
_CLASS_TAG = b"\x02\x00\x02\x00UI"  # MediaStorageSOPClassUID, in the first bytes of every file
_CLASS_WITHIN = 1 << 10
_MOST_HEADER_BYTES = 1 << 20  # of NRRD and MetaImage: text, then the voxels or the end
_CHUNK_BYTES = 1 << 20
_LENGTH_BYTES = 4
_DATA_FILE = re.compile(r"(?:data ?file *:|ElementDataFile *=) *(.+)", re.IGNORECASE)
_NO_SCAN = tuple(  # classes of what clinics store beside a series: no image, or one made from it
    f"1.2.840.10008.5.1.4.1.1.{number}"
    for number in ("88.", "66", "104.", "11.", "481.2", "481.3", "481.4", "481.5", "481.8", "9.")
)
_ENHANCED = tuple(f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2.1", "2.2", "4.1", "4.4", "128.1", "130"))


def is_dicom_file(path: Path) -> bool:
    """True for a DICOM file that may be part of a scan: not for an index (DICOMDIR), a report or a segmentation."""
    if not path.is_file() or path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            begin = file.read(_CLASS_WITHIN)
    except OSError:  # no permission: reported when it is read
        return path.suffix.lower() == ".dcm"
    is_marked = begin[_MARK_AT : _MARK_AT + len(_MARK)] == _MARK
    return not _is_no_scan(begin) if is_marked else path.suffix.lower() == ".dcm"


def has_dicom_mark(path: Path) -> bool:
    """True for a file that says it is DICOM, whatever it holds: a slice, a report, a segmentation, an index."""
    try:
        with path.open("rb") as file:
            return file.read(_MARK_AT + len(_MARK))[_MARK_AT:] == _MARK
    except OSError:
        return False


def _is_no_scan(begin: bytes) -> bool:
    """True if a DICOM file is a report, a segmentation, a structure set, a dose or the like, which is left out."""
    place = begin.find(_CLASS_TAG)
    if place < 0:
        return False
    start = place + len(_CLASS_TAG) + 2
    length = int.from_bytes(begin[start - 2 : start], "little")
    return begin[start : start + length].decode("ascii", "replace").startswith(_NO_SCAN)


def _simple_itk(path: Path) -> Any:
    """SimpleITK, imported only where a file needs it: NIfTI does not.

    Raises:
        SetupError: If it is not installed.
    """
    with package_needed("SimpleITK", f"{path}: this format"):
        import SimpleITK
    return SimpleITK


def read_header(path: Path) -> Header:
    """Read the header of a file, or of the series in a folder.

    Raises:
        DataError: If it is in colour, has more axes than three, or the folder does not hold one series.
        GeometryError: If the affine is unusable or slices are missing.
        RuntimeError: If SimpleITK cannot read it.
    """
    return _series_header(path) if path.is_dir() else _image_header(path)


def read_voxels(header: Header) -> NDArray[Any]:
    """(C, Z, Y, X) of the stored type, rescaled where the file says so.

    Raises:
        RuntimeError: If SimpleITK cannot read it.
    """
    sitk = _simple_itk(header.path)

    if header.path.is_dir():
        slices = [
            sitk.GetArrayFromImage(sitk.ReadImage(str(one.header.path), imageIO="GDCMImageIO"))
            for one in _slices(header.path)
        ]
        return np.concatenate(slices)[None]
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(header.path)))
    _require_exact_voxels(header.path, array.nbytes, array.shape)
    array = array[None] if header.n_channels == 1 else np.moveaxis(array, -1, 0)
    return array.reshape(header.n_channels, *header.grid.shape_zyx)


def write_mask(
    path: Path,
    mask_zyx: NDArray[np.integer[Any]],
    grid: Grid,
    n_axes: int = 3,
    before_naming: Callable[[], None] = lambda: None,
) -> None:
    """Write NRRD or MetaImage; a `.mhd` holds its voxels itself, as the format allows.

    With `n_axes` 2, the only slice is written as an image of two axes.

    Raises:
        ResourceError, SetupError: If it cannot be written.
    """
    sitk = _simple_itk(path)

    affine = _LPS @ grid.affine_ras_mm
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(mask_zyx[0] if n_axes == 2 else mask_zyx)
    image.SetSpacing(spacing[:n_axes].tolist())
    image.SetOrigin(affine[:n_axes, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing)[:n_axes, :n_axes].ravel().tolist())
    with whole_file(path) as temporary:
        written = temporary.with_suffix(".mha" if ending_of(path) == ".mhd" else ending_of(path))
        sitk.WriteImage(image, str(written), useCompression=True)
        written.replace(temporary)
        before_naming()


def _image_header(path: Path) -> Header:
    _require_own_voxels(path)
    sitk = _simple_itk(path)

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    return _header_of(path, reader)


def _require_own_voxels(path: Path) -> None:
    """Refuse a NRRD or MetaImage header that has voxels read from files outside its folder, which may be any file.

    Raises:
        DataError: If it does.
    """
    lines, _ = _text_header(path)
    for number, line in enumerate(lines):
        found = _DATA_FILE.fullmatch(line.strip())
        if not found:
            continue
        is_list = found[1].upper().startswith("LIST")
        for name in lines[number + 1 :] if is_list else [found[1]]:
            first, *others = re.split(r"[/\\]", name.strip())
            if others and (first == "" or first.endswith(":") or ".." in (first, *others)):
                raise DataError(
                    f"{path}: takes its voxels from {name.strip()!r}, outside its folder; expected a file beside it. "
                    "Write the image as one file, e.g. with SimpleITK."
                )
        return


def _require_exact_voxels(path: Path, n_bytes: int, shape: tuple[int, ...]) -> None:
    """Refuse a NRRD or MetaImage that holds more voxels than its header says: ITK reads the first of them.

    Raises:
        DataError: If it does.
    """
    lines, n_header = _text_header(path)
    said = {name.strip().lower(): value.strip().lower() for name, value in map(_pair, lines)}
    is_alone = "data file" not in said and "datafile" not in said and said.get("elementdatafile", "local") == "local"
    if not is_alone or not lines:
        return
    with path.open("rb") as file:
        if said.get("encoding") in ("gzip", "gz"):  # whose end says how long the content is, modulo 2³²
            file.seek(-_LENGTH_BYTES, os.SEEK_END)
            n_found, n_bytes = int.from_bytes(file.read(), "little"), n_bytes % 2 ** (8 * _LENGTH_BYTES)
        elif said.get("compresseddata") == "true":
            file.seek(n_header)
            content = zlib.decompressobj()
            n_found = 0
            while n_found <= n_bytes and (chunk := file.read(_CHUNK_BYTES)):
                n_found += len(content.decompress(chunk, n_bytes + 1 - n_found))
        elif said.get("encoding", "raw") == "raw":
            n_found = path.stat().st_size - n_header
        else:
            return
    require_exact_size(path, n_found, n_bytes, shape)


def _text_header(path: Path) -> tuple[list[str], int]:
    """Lines of the text before the voxels of a NRRD or MetaImage file, and its bytes; none of other files.

    Raises:
        DataError: If it is longer than any that a program writes.
    """
    if ending_of(path) not in ITK_ENDINGS:
        return [], 0
    with path.open("rb") as file:
        begin = file.read(_MOST_HEADER_BYTES)
    if begin.startswith(b"NRRD"):
        found = re.search(rb"\r?\n\r?\n", begin)
    else:
        found = re.search(rb"^ *ElementDataFile *=(?! *LIST)[^\n]*\n", begin, re.IGNORECASE | re.MULTILINE)
    if found is None and len(begin) == _MOST_HEADER_BYTES:
        raise DataError(f"{path}: its header does not end within {_MOST_HEADER_BYTES} bytes. Write the image again.")
    end = found.end() if found else len(begin)
    return begin[:end].decode("latin-1").splitlines(), end


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=" if "=" in line and ":=" not in line else ":")
    return name, value


def _header_of(path: Path, reader: Any) -> Header:
    sitk = _simple_itk(path)

    reader.ReadImageInformation()
    n_axes = reader.GetDimension()
    if n_axes not in (2, 3):
        raise DataError(f"{path}: {n_axes} axes, expected a 2D or 3D image.")
    direction = np.eye(3)
    direction[:n_axes, :n_axes] = np.reshape(reader.GetDirection(), (n_axes, n_axes))
    spacing = np.array([*reader.GetSpacing(), 1.0][:3])
    origin = np.array([*reader.GetOrigin(), 0.0][:3])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    x, y, z = [*reader.GetSize(), 1][:3]
    if z > 1 and reader.HasMetaDataKey(_CLASS) and not _places_frames(reader):
        raise GeometryError(
            f"{path}: {z} frames without positions, expected enhanced DICOM or one file for each slice. Export the "
            "original series."
        )
    dtype = np.dtype(np.float32 if "float" in sitk.GetPixelIDValueAsString(reader.GetPixelIDValue()) else np.int32)
    grid = grid_of(path, (x, y, z), _LPS @ affine)
    return Header(path, grid, reader.GetNumberOfComponents(), None, True, dtype, n_axes=n_axes)


def _places_frames(reader: Any) -> bool:
    """True if a DICOM file says where its frames are; of others, ITK would invent the distance."""
    pointer = reader.GetMetaData(_FRAME_POINTER) if reader.HasMetaDataKey(_FRAME_POINTER) else ""
    return "5200" in pointer or reader.GetMetaData(_CLASS).strip("\0 ").startswith(_ENHANCED)


@dataclass(frozen=True, eq=False)
class _Slice:
    """One file of a series: its header, the series it belongs to, and what else its header says (empty if nothing)."""

    header: Header
    series: str
    description: str
    position: str
    volume: dict[str, str]

    @property
    def affine_lps_mm(self) -> NDArray[np.float64]:
        return _LPS @ self.header.grid.affine_ras_mm


def _series_header(folder: Path) -> Header:
    slices = _slices(folder)
    first, affine = slices[0].header, slices[0].header.grid.affine_ras_mm.copy()
    z, y, x = first.grid.shape_zyx
    if len(slices) > 1:  # the step is the distance of their positions: SliceThickness is something else
        places = np.array([one.header.grid.affine_ras_mm[:3, 3] for one in slices])
        affine[:3, 2] = (places[-1] - places[0]) / (len(slices) - 1)
        z = len(slices)
    return Header(folder, grid_of(folder, (x, y, z), affine), 1, None, True, first.dtype)


def _slices(folder: Path) -> tuple[_Slice, ...]:
    """The files of the only series of a folder, in the order of their positions; read again only if they change.

    Raises:
        DataError: If there is no series, more than one, or slices do not belong together.
        GeometryError: If slices are missing, or two have the same position.
    """
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    stats = ((path.name, path.stat()) for path in files)
    return _read_slices(folder, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats), _wanted_series)


_wanted_series = ""  # part of a description, or the end of a UID; of this process


@contextmanager
def series_choice(text: str) -> Iterator[None]:
    """Within the block, this process reads the series whose description holds a text, or whose UID ends in it.

    It matters only to folders that hold several series; with an empty text these are refused.
    """
    global _wanted_series
    before, _wanted_series = _wanted_series, text
    try:
        yield
    finally:
        _wanted_series = before


def chosen_series(folder: Path) -> str:
    """UID of the series of a folder that `series_choice` asks for; empty if it asks for none.

    Raises:
        DataError: If there is no such series, or several.
    """
    return _slices(folder)[0].series if _wanted_series else ""


def _one_series(folder: Path, slices: list[_Slice], wanted: str) -> list[_Slice]:
    """The slices of the only series, or of the one that is wanted.

    Raises:
        DataError: If there are several, and none or more than one is wanted.
    """
    names = {one.series: one.description for one in slices}
    if len(names) == 1:
        return slices
    fitting = [
        uid for uid, name in names.items() if wanted and (wanted.casefold() in name.casefold() or uid.endswith(wanted))
    ]
    if len(fitting) != 1:
        counts = Counter(one.series for one in slices)
        rows = [f"{count(n, 'file'):>10}  {names[uid] or '(no description)'}  {uid}" for uid, n in counts.items()]
        chosen = f", and {len(fitting)} of them fit --series {wanted}" if wanted else ""
        raise SeveralVolumesError(
            "\n  ".join(
                [
                    f"{folder}: {len(names)} DICOM series, expected one{chosen}. Choose one with --series: a part "
                    "of its description, or the end of its UID. Or give each its own folder.",
                    *rows,
                ]
            )
        )
    return [one for one in slices if one.series == fitting[0]]


@lru_cache(4)  # header, voxels and the mask's geometry are asked for one after the other, of a case and the next
def _read_slices(folder: Path, files: tuple[tuple[str, int, int], ...], wanted: str) -> tuple[_Slice, ...]:
    slices = [_slice(path) for name, *_ in files if is_dicom_file(path := folder / name)]
    if not slices:
        raise DataError(f"{folder}: a folder without DICOM files, expected those of one series. Check the path.")
    slices = _one_series(folder, slices, wanted)
    if len(slices) > 1 and (n_unplaced := sum(not one.position for one in slices)):
        raise GeometryError(
            f"{folder}: {n_unplaced} of {count(len(slices), 'slice')} without a position (ImagePositionPatient, "
            "0020,0032), as in secondary captures; expected one for each. Export the original series. If there is none "
            "and the distance of the slices is known, write them as NIfTI with it."
        )
    first = slices[0]
    shape, axes = first.header.grid.shape_zyx, first.affine_lps_mm[:3, :3]
    for one in slices[1:]:
        if one.header.grid.shape_zyx != shape or shape[0] != 1 or abs(one.affine_lps_mm[:3, :3] - axes).max() > 1e-3:
            raise DataError(
                f"{folder}: {one.header.path.name} is not parallel to {first.header.path.name}, or has another size; "
                "expected slices of one volume. Move files away that are not part of it."
            )
    normal = axes[:, 2] / np.linalg.norm(axes[:, 2])
    heights_mm = np.array([one.affine_lps_mm[:3, 3] @ normal for one in slices])
    order = np.argsort(heights_mm, kind="stable")
    _require_one_volume(folder, slices, heights_mm)
    _require_even(folder, heights_mm[order])
    return tuple(slices[i] for i in order)


def _require_one_volume(folder: Path, slices: list[_Slice], heights_mm: NDArray[np.float64]) -> None:
    """Refuse a series with several volumes, such as echoes or phases, and say how they differ."""
    _, n_at = np.unique(np.round(heights_mm, 3), return_counts=True)
    if n_at.min() < 2:
        return
    texts = {name: sorted({one.volume[name] for one in slices}, key=_as_number) for name in _VOLUME_TAGS}
    differing = [f"{name} {', '.join(values)}" for name, values in texts.items() if 1 < len(values) <= n_at.max()]
    times = "twice" if n_at.min() == n_at.max() == 2 else f"{n_at.min()} to {n_at.max()} times"
    times = f"{n_at.min()} times" if n_at.min() == n_at.max() > 2 else times
    raise SeveralVolumesError(
        f"{folder}: every place occurs {times}: {'; '.join(differing) or 'no tag tells the volumes apart'}; expected "
        "one volume. Move the files of each volume into a folder of its own."
    )


def _as_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return 0.0, text


def _require_even(folder: Path, heights_mm: NDArray[np.float64]) -> None:
    steps_mm = np.diff(heights_mm)
    if not steps_mm.size:
        return
    step_mm = float(np.median(steps_mm))
    worst = int(np.argmax(abs(steps_mm - step_mm)))
    if step_mm <= 0 or abs(steps_mm[worst] - step_mm) > MAX_GAP_VOX * step_mm:
        raise GeometryError(
            f"{folder}: slices {worst} and {worst + 1} (counted from 0 along the stack) are {steps_mm[worst]:.4g} mm "
            f"apart, the others {step_mm:.4g} mm; expected even steps. Add missing slices, remove duplicates."
        )


def _slice(path: Path) -> _Slice:
    """Read one file's header.

    Raises:
        DataError: If it is not a grey-level image.
    """
    sitk = _simple_itk(path)

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        header = _header_of(path, reader)
    except RuntimeError:
        raise DataError(
            f"{path}: cannot be read as an image, expected a slice of the series. Move it away if it is something "
            "else (a report, a structure set); otherwise export it again."
        ) from None
    if header.n_channels != 1:
        raise DataError(f"{path}: holds colour (RGB), expected one number per voxel. Give the original series.")
    keys = (_SERIES, _DESCRIPTION, _POSITION, *_VOLUME_TAGS.values())
    texts = {key: reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else "" for key in keys}
    volume = {name: texts[key] for name, key in _VOLUME_TAGS.items()}
    return _Slice(header, texts[_SERIES], texts[_DESCRIPTION], texts[_POSITION], volume)
