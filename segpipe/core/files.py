"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import codecs
import errno
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segpipe.core.errors import ResourceError, SegpipeError, SetupError, UsageError
from segpipe.core.text import size_text

_SECONDS_OF_DAY = 86_400.0
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ALREADY_THERE = {errno.ENOTEMPTY, errno.EEXIST}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
TEMPORARY_PREFIX = ".partial-"  # of files being written, or left by a killed run; never read
LOCK_NAME = ".lock"


def disk_fault(fault: OSError, path: Path) -> SegpipeError:
    """The error to show when writing `path` fails with `fault`."""
    if fault.errno in _NO_SPACE:
        return ResourceError(
            f"{path}: the disk is full ({_free_text(path)}). No partial file was left behind. "
            "Free some space and rerun the same command to resume, or choose another output folder."
        )
    if fault.errno in _NOT_ALLOWED:
        return SetupError(f"{path}: not writable ({fault.strerror}). Choose another folder or change its permissions.")
    if fault.errno in {errno.ENOTDIR, errno.EEXIST}:
        return SetupError(f"{path}: cannot be created, because a file is in the way of a folder. Choose another path.")
    if fault.errno == errno.EISDIR:
        return SetupError(f"{path}: is a folder, expected a file to write. Choose another name.")
    return SetupError(f"{path}: cannot be written ({fault.strerror or fault}). Choose another folder.")


def _free_text(path: Path) -> str:
    existing = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
    return f"{size_text(shutil.disk_usage(existing).free)} free"


def make_folder(path: Path) -> Path:
    """Make a folder and its parents, and return it.

    Raises:
        SetupError: If it cannot be made or written to.
        ResourceError: If the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise disk_fault(fault, path) from fault
    if not os.access(path, os.W_OK | os.X_OK):
        raise SetupError(f"{path}: the folder is not writable. Choose another one or change its permissions.")
    return path


def require_place(path: Path) -> None:
    """Refuse a path that cannot be written to, before the work whose result goes there.

    Raises:
        SetupError: If the folder cannot be made or written to, or the path is a folder itself.
    """
    make_folder(path.parent)
    if path.is_dir():
        raise disk_fault(IsADirectoryError(errno.EISDIR, "Is a directory"), path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` if the body succeeds, delete it if not.

    The temporary name keeps the ending (`.nii.gz`), since writers choose the format by it.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the place is not writable.
    """
    make_folder(path.parent)
    temporary = path.parent / f"{_own_prefix()}{path.name}"
    try:
        yield temporary
        temporary.replace(path)
    except OSError as fault:
        raise disk_fault(fault, path) from fault
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, as `whole_file` does for files; an existing folder at `path` is replaced.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the place is not writable.
    """
    make_folder(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=_own_prefix(), dir=path.parent))
    except OSError as fault:
        raise disk_fault(fault, path) from fault
    aside = temporary.with_name(f"{temporary.name}-old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.replace(aside)
        temporary.replace(path)
    except OSError as fault:
        if fault.errno not in _ALREADY_THERE or not path.is_dir():  # another process wrote the same meanwhile
            raise disk_fault(fault, path) from fault
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def read_text(path: Path) -> str:
    """Read text that another program wrote: UTF-8, or what its byte order mark says (Notepad and PowerShell write one).

    Line ends are kept.

    Raises:
        OSError, UnicodeDecodeError: As for `Path.read_text`.
    """
    return decode_text(path.read_bytes())


def decode_text(content: bytes, errors: str = "strict") -> str:
    """Decode UTF-8, or what the byte order mark at the beginning says; `errors` as for `bytes.decode`."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf16 else "utf-8-sig", errors)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the place is not writable.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Lock a folder; the kernel unlocks it when the process ends, in whatever way.

    Raises:
        UsageError: If another process holds it.
    """
    path = folder / LOCK_NAME
    try:
        lock = path.open("w")
    except OSError as fault:
        raise disk_fault(fault, path) from fault
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: another process is working in it. Wait for it, or stop it first.") from None
        yield


def remove_leftovers(folder: Path) -> None:
    """Delete what killed runs left in `folder`; what another process is writing stays."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if _is_being_written(leftover):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _own_prefix() -> str:
    """Name the process and its machine, so that others can tell whether it still runs."""
    return f"{TEMPORARY_PREFIX}{os.getpid()}@{socket.gethostname()}@"


def _is_being_written(leftover: Path) -> bool:
    process, _, rest = leftover.name.removeprefix(TEMPORARY_PREFIX).partition("@")
    if not process.isdigit():
        return False
    if rest.partition("@")[0] != socket.gethostname():  # on another machine: no file takes a day to write
        return time.time() - leftover.lstat().st_mtime < _SECONDS_OF_DAY
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's process
        return True
    return int(process) != os.getpid()
