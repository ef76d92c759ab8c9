"""A trained model as one file, `.segpipe.zip`: a small work folder, parts stored as they are, each with its SHA-256.

Nothing of it is ever unpickled, and nothing is written outside a private folder that is gone once the model is loaded.
The hashes find damage; they do not say who made the file.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from struct import error as StructError
from typing import IO, Literal

import yaml
from pydantic import NonNegativeInt, PositiveInt

from segpipe.core.errors import UsageError
from segpipe.core.files import disk_fault, private_folder, whole_file
from segpipe.core.probabilities import CalibrationReport
from segpipe.core.progress import show_as
from segpipe.core.records import Record, parse_json, read_values, texts_in
from segpipe.core.text import printable
from segpipe.core.work import CALIBRATION_FILE, FoldFolder, Work
from segpipe.plan.schema import Plan
from segpipe.plan.training_stats import TrainingStats
from segpipe.predict.folds import SELECTED_MODEL_FILE, SELECTION, SelectedModel
from segpipe.predict.postprocess import POSTPROCESSING_FILE, Postprocessing

MANIFEST = "manifest.json"
CARD = "README.md"
_MAX_TEXT_BYTES = 1 << 20  # of a part that is text
_CHUNK_BYTES = 1 << 20
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # zip knows no earlier one; the same model packed twice gives the same bytes
_FILE_MODE = (stat.S_IFREG | 0o644) << 16
_IS_ENCRYPTED = 0x1
_FOLD = FoldFolder(Path())
_WEIGHTS = _FOLD.weights.name
_FOLD_FILES = "|".join(re.escape(path.name) for path in (_FOLD.weights, _FOLD.plan, _FOLD.trained_on))
_RUN_PART = re.compile(
    rf"runs/\w[\w-]{{0,99}}/(?:{re.escape(POSTPROCESSING_FILE)}|{re.escape(CALIBRATION_FILE)}|fold_(?:[0-9]{{1,9}}|all)/(?:{_FOLD_FILES}))"
)
_OTHER_PARTS = (MANIFEST, CARD, f"{SELECTION}/{SELECTED_MODEL_FILE}", f"{SELECTION}/{POSTPROCESSING_FILE}")
_RECORDS: dict[str, type[Record]] = {
    _FOLD.plan.name: Plan,
    _FOLD.trained_on.name: TrainingStats,
    POSTPROCESSING_FILE: Postprocessing,
    CALIBRATION_FILE: CalibrationReport,
    SELECTED_MODEL_FILE: SelectedModel,
}
# What the readers raise on a file that is cut off or was made to break them; RecursionError is a RuntimeError.
_BROKEN = (zipfile.BadZipFile, EOFError, RuntimeError, StructError, ValueError, OverflowError, yaml.YAMLError)


class Part(Record):
    """One file of a package."""

    sha256: str
    size_bytes: NonNegativeInt


class PackedScore(Record):
    """A mean over the cross-validation's cases with its 95 % interval over patients; None if undefined."""

    configuration: str
    label: str
    metric: str
    unit: str
    mean: float | None
    low: float | None
    high: float | None
    n_patients: NonNegativeInt
    note: str


class ModelFacts(Record):
    """Facts that a package states about its model.

    Args:
        segpipe: Version that packed it.
        dataset, fingerprint: Name and digest of what it was trained on.
        channels: Of an image, in order.
        labels: Names of the structures.
        folds: By configuration.
        n_training_cases: Of the fold with most; None if not noted.
        licence: Terms under which it may be used; None if unknown.
        scores: Out-of-fold, before postprocessing; empty if the folds were not scored.
    """

    segpipe: str
    dataset: str
    fingerprint: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    folds: dict[str, tuple[str, ...]]
    n_training_cases: PositiveInt | None
    licence: str | None
    scores: tuple[PackedScore, ...]


class Manifest(Record):
    """manifest.json: version of the format, what the model is, and every other part by its path."""

    segpipe_model: Literal[1] = 1
    model: ModelFacts
    parts: dict[str, Part]


def write_package(path: Path, facts: ModelFacts, parts: Mapping[str, bytes | Path]) -> Manifest:
    """Write a model's parts and their manifest as one file, whole or not at all; the same parts give the same bytes.

    Args:
        path: Where.
        facts: What the model is.
        parts: By path inside; a `Path` is copied.

    Raises:
        ValueError: If a part has a path that would not be read.
        ResourceError, SetupError: If it cannot be written.
    """
    if wrong := [name for name in parts if not _is_known(name) or name == MANIFEST]:
        raise ValueError(f"no part of a package: {wrong[0]}")
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        known = {name: _add(archive, name, parts[name]) for name in sorted(parts)}
        manifest = Manifest(model=facts, parts=known)
        _add(archive, MANIFEST, manifest.to_json().encode())
    return manifest


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> Part:
    info = zipfile.ZipInfo(name, _FIRST_DAY)
    info.create_system, info.external_attr = 3, _FILE_MODE  # Unix, wherever it is packed
    info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
    source: IO[bytes] = BytesIO(content) if isinstance(content, bytes) else content.open("rb")
    with source, archive.open(info, "w") as target:
        return _copy(source, target)


def _copy(source: IO[bytes], target: IO[bytes]) -> Part:
    digest, size_bytes = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        size_bytes += len(chunk)
        target.write(chunk)
    return Part(sha256=digest.hexdigest(), size_bytes=size_bytes)


@contextmanager
def open_model(model: Path) -> Iterator[Path]:
    """A model's folder: `model` itself, or a private one with what a package holds, gone when the body ends.

    Raises:
        UsageError: If the file is no package, or a part is missing, damaged or not what it should be.
        ResourceError, SetupError: If there is no room for temporary files.
    """
    if not model.is_file():
        yield model
        return
    with private_folder() as parent:
        folder = parent / model.name
        with show_as(folder, model):
            _unpack(model, folder)
            yield folder


def read_manifest(model: Path) -> Manifest:
    """Read the manifest of a package: its parts are listed, and none of them is read.

    Raises:
        UsageError: If it is no package, or its parts are not those of its manifest.
    """
    with _naming_model(model), zipfile.ZipFile(model) as archive:
        return _manifest(archive, model)


def _unpack(model: Path, folder: Path) -> None:
    """Write what prediction reads of a package, each part compared with its hash."""
    with _naming_model(model), zipfile.ZipFile(model) as archive:
        manifest = _manifest(archive, model)
        for name, part in manifest.parts.items():
            target = folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                file = target.open("xb")
            except OSError as fault:
                raise disk_fault(fault, target) from fault
            with file:
                _extract(archive, name, part, file, model)
            _require_record(target)
        Work(folder).package_list.write_text(manifest.to_json(), encoding="utf-8")


@contextmanager
def _naming_model(model: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, *_BROKEN) as fault:
        text = " ".join(str(fault).split()) or type(fault).__name__
        raise UsageError(
            f"{model}: cannot be read as a model of `segpipe pack` ({text[:200]}). Get the file again."
        ) from None


def _require_record(part: Path) -> None:
    """Refuse a text that is not the record it should be, before anything else reads it."""
    kind = _RECORDS.get(part.name)
    if kind is None:
        return
    for text in texts_in(read_values(part, UsageError)):
        _require_printable(text, str(part))
    kind.load(part)


def _require_printable(text: str, where: str) -> None:
    """Refuse what would do something to a terminal."""
    if printable(text) != text:
        raise UsageError(
            f"{where}: {printable(text)[:80]!r} holds control characters, expected text. Do not use this file."
        )


def _extract(archive: zipfile.ZipFile, name: str, part: Part, file: IO[bytes], model: Path) -> None:
    try:
        with archive.open(name) as source:
            found = _copy(source, file)
    except OSError as fault:
        raise disk_fault(fault, Path(file.name)) from fault
    except _BROKEN as fault:
        raise UsageError(f"{model}: {name} is damaged ({fault}). Get the file again.") from None
    if found != part:
        raise UsageError(
            f"{model}: {name} is damaged or was edited: SHA-256 {found.sha256[:12]}…, the manifest says "
            f"{part.sha256[:12]}…. Get the file again, or pack the model again: `segpipe pack`."
        )


def _manifest(archive: zipfile.ZipFile, model: Path) -> Manifest:
    """The manifest, after every entry was looked at."""
    entries = _entries(archive, model)
    if MANIFEST not in entries:
        raise UsageError(f"{model}: holds no {MANIFEST}, so it is no model of `segpipe pack`.")
    values = parse_json(archive.read(MANIFEST).decode())
    for text in texts_in(values):
        _require_printable(text, f"{model}: {MANIFEST}")
    if not isinstance(values, dict):
        raise UsageError(f"{model}: {MANIFEST} holds no keys and values. Get the file again.")
    manifest = Manifest.parse(values, f"{model}: {MANIFEST}", UsageError)
    listed, found = set(manifest.parts), set(entries) - {MANIFEST}
    if listed != found:
        missing, extra = sorted(listed - found), sorted(found - listed)
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} is not in its {MANIFEST}"
        raise UsageError(f"{model}: {what}. Get the file again, or pack the model again: `segpipe pack`.")
    return manifest


def _entries(archive: zipfile.ZipFile, model: Path) -> dict[str, zipfile.ZipInfo]:
    """Entries by path, none of which could do harm."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        fault = _fault_of(info)
        if info.filename.casefold() in entries:
            fault = "stands twice (upper and lower case count as one)"
        if fault:
            raise UsageError(
                f"{model}: {info.orig_filename!r} {fault}; expected what `segpipe pack` writes. Do not use this file."
            )
        entries[info.filename.casefold()] = info
    n_bytes, declared = model.stat().st_size, sum(info.file_size for info in entries.values())
    if declared > n_bytes:
        raise UsageError(f"{model}: {n_bytes} bytes that claim to hold {declared}. Do not use this file.")
    return {info.filename: info for info in entries.values()}


def _fault_of(info: zipfile.ZipInfo) -> str:
    """Why an entry is refused; empty if it is not. The list of known paths leaves no way out of the folder."""
    if info.filename != info.orig_filename or not _is_known(info.filename):
        return "is no part of a model"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is no plain file"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "is compressed"
    if info.flag_bits & _IS_ENCRYPTED:
        return "is encrypted"
    if not info.filename.endswith(_WEIGHTS) and info.file_size > _MAX_TEXT_BYTES:
        return f"has {info.file_size} bytes, {_MAX_TEXT_BYTES} at most"
    return ""


def _is_known(name: str) -> bool:
    return name in _OTHER_PARTS or _RUN_PART.fullmatch(name) is not None
