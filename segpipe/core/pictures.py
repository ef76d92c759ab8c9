"""Read pictures (PNG, TIFF, JPEG, BMP) to convert them: they have no voxel size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import DataError
from segpipe.core.header import reading_fault

_FORMATS = ("PNG", "TIFF", "JPEG", "BMP")
_LOSSY = ("JPEG",)
_GREY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")
_BITS_TAG, _DESCRIPTION_TAG, _ORIENTATION_TAG = 258, 270, 274  # of TIFF; the last of EXIF too
_IMAGEJ_AXIS = re.compile(r"^(images|channels|frames)=(\d+)", re.MULTILINE)
Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class PicturePages:
    """The pixels of a picture file.

    Args:
        pixels_zyxb: (pages, rows, columns, bands), as stored; one band, or red, green and blue.
        palette: Colour (0 to 255) of each index that occurs, if the only band holds indices of a palette.
        kind: Format and type, for people.
        is_lossy: True for a format that changes values when it is written.
    """

    pixels_zyxb: NDArray[Any]
    palette: dict[int, Colour] = field(default_factory=dict)
    kind: str = ""
    is_lossy: bool = False


def read_picture(path: Path) -> PicturePages:
    """Read every page of a picture.

    Raises:
        DataError: If it cannot be read, is transparent, turned by its EXIF tag, stored in other colours than RGB, has
            more than 8 bits a colour, or pages that differ in size or type.
    """
    from PIL import Image

    with _picture_faults(path), Image.open(path, formats=_FORMATS) as picture:
        _require_plain(path, picture)
        n_pages = getattr(picture, "n_frames", 1)
        pages = []
        for number in range(n_pages):
            picture.seek(number)
            pages.append(_page(path, picture))
        palette = _palette(picture, pages) if picture.mode == "P" else {}
        form = str(picture.format)
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        sizes = " and ".join(sorted({f"{page.shape[1]} × {page.shape[0]}" for page in pages}))
        raise DataError(f"{path}: pages of {sizes} pixels, expected equal ones. Keep the pages of the stack alone.")
    bands = "colour" if pages[0].shape[2] == 3 else "palette" if palette else "grey"
    kind = f"{form}, {bands}, {pages[0].dtype.itemsize * 8} bit"
    return PicturePages(np.stack(pages), palette, kind, form in _LOSSY)


def without_bands(pixels_zyxb: NDArray[Any]) -> NDArray[Any] | None:
    """Pixels (Z, Y, X) of pictures whose bands are equal, as of grey ones stored in colour; None if they differ."""
    first = pixels_zyxb[..., 0]
    return first if all((first == pixels_zyxb[..., band]).all() for band in range(pixels_zyxb.shape[3])) else None


def _require_plain(path: Path, picture: Any) -> None:
    """Refuse what would be read in another way than it is shown elsewhere."""
    orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    if orientation != 1:
        raise DataError(
            f"{path}: turned by its EXIF or TIFF tag (orientation {orientation}), so programs disagree about its rows "
            "and columns. Apply the orientation, e.g. with `mogrify -auto-orient`, and remove the tag."
        )
    if picture.format == "TIFF":
        description = str(picture.tag_v2.get(_DESCRIPTION_TAG, ""))
        axes = {name: int(n) for name, n in _IMAGEJ_AXIS.findall(description)} if "ImageJ" in description else {}
        n_volumes = axes.get("channels", 1) * axes.get("frames", 1)
        if n_volumes > 1 or axes.get("images", 1) not in (1, getattr(picture, "n_frames", 1)):
            raise DataError(
                f"{path}: an ImageJ stack of several channels or times, or of pages that are not listed ({axes}). "
                "Save one TIFF file for each channel and time."
            )


def _page(path: Path, picture: Any) -> NDArray[Any]:
    """(rows, columns, bands) of the page that is open."""
    mode, bits = picture.mode, _bits(path, picture)
    if mode in ("RGB", "RGBA", "LA") and bits > 8:
        raise DataError(
            f"{path}: {bits} bits a colour, which are not read. Store 8 bits, or each colour as a grey file."
        )
    if mode == "RGB" and "transparency" in picture.info:
        mode, picture = "RGBA", picture.convert("RGBA")
    if mode in ("LA", "RGBA"):
        pixels = np.asarray(picture)
        if (pixels[..., -1] != 255).any():
            raise DataError(f"{path}: has transparent pixels, expected none. Save it without an alpha channel.")
        return pixels[..., :-1]
    if mode == "RGB":
        return np.asarray(picture)
    if mode == "P" or mode in _GREY_MODES:
        pixels = np.asarray(picture)
        pixels = pixels.astype(np.uint8) if mode == "1" else pixels.astype(pixels.dtype.newbyteorder("="))
        if picture.format == "PNG" and mode == "L" and bits in (2, 4):  # Pillow spreads them over 0 to 255
            pixels = pixels // (255 // (2**bits - 1))
        return pixels[..., None]
    raise DataError(f"{path}: colours stored as {mode}, expected grey values, a palette or RGB. Convert it.")


def _bits(path: Path, picture: Any) -> int:
    """Bits of each band in the file, which Pillow cuts down to 8 for colours."""
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(_BITS_TAG, (1,)))
    if picture.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # in the header chunk, which is the first
    return 8


def _palette(picture: Any, pages: list[NDArray[Any]]) -> dict[int, Colour]:
    colours = np.reshape(picture.getpalette("RGB"), (-1, 3)).tolist()
    used = sorted({int(value) for page in pages for value in np.unique(page)})
    return {value: (*colours[value],) if value < len(colours) else (0, 0, 0) for value in used}


@contextmanager
def _picture_faults(path: Path) -> Iterator[None]:
    """Turn every error of Pillow on a broken file into a DataError that names the file."""
    from PIL import Image

    try:
        yield
    except Image.DecompressionBombError as fault:
        raise DataError(f"{path}: more pixels than a picture may have ({fault}). Cut it into tiles.") from None
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError) as fault:
        raise reading_fault(path, fault) from None
