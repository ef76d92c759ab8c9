"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import codecs
import errno
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from segpipe.core.errors import ResourceError, SegpipeError, SetupError, UsageError
from segpipe.core.text import size_text

_SECONDS_OF_DAY = 86_400.0
_IS_POSIX = hasattr(os, "fork")  # Windows opens no folder to sync it, and there os.kill(pid, 0) is Ctrl-C for pid
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ALREADY_THERE = {errno.ENOTEMPTY, errno.EEXIST}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
TEMPORARY_PREFIX = ".partial-"  # of files being written, or left by a killed run; never read
_PRIVATE_PREFIX = "segpipe-"  # of folders among the system's temporary files
_ASIDE = "-old"  # ends the name of a folder that another one is about to replace
LOCK_NAME = ".lock"
_cleaned: set[Path] = set()  # folders from which this process has removed what killed ones left
_cleaning = Lock()


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


def resolve_links(path: Path) -> Path:
    """Follow the links of a path, absolute or not; links in a circle, which no file is behind, end where they begin."""
    return Path(os.path.realpath(path))


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
def whole_file(path: Path, *, is_synced: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` if the body succeeds, delete it if not.

    The temporary name keeps the ending (`.nii.gz`), since writers choose the format by it. What killed processes left
    in the folder is removed first.

    Args:
        path: The file.
        is_synced: Whether it survives a power cut once the body has ended. That takes some milliseconds: not for
            pictures and the like, which nobody misses.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the place is not writable.
    """
    make_folder(path.parent)
    _remove_leftovers_once(path.parent)
    temporary = path.parent / f"{_own_name()}{path.name}"
    try:
        yield temporary
        if is_synced:
            _sync_file(temporary)
        temporary.replace(path)
        if is_synced:
            _sync_folder(path.parent)
    except OSError as fault:
        raise disk_fault(fault, path) from fault
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, as `whole_file` does for files; an existing folder at `path` is replaced.

    A process that is killed between the two renames leaves the old folder beside the new one, both under temporary
    names; whoever removes leftovers puts the old one back. Files are not synced: what is kept in folders has checksums
    or can be made again.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the place is not writable.
    """
    make_folder(path.parent)
    _remove_leftovers_once(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f"{_own_name()}{path.name}@", dir=path.parent))
    except OSError as fault:
        raise disk_fault(fault, path) from fault
    aside = temporary.with_name(f"{temporary.name}{_ASIDE}")
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
        if aside.exists() and not path.exists():
            aside.replace(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def private_folder() -> Iterator[Path]:
    """Give a folder among the system's temporary files, gone when the body ends; those of killed processes are removed.

    Raises:
        ResourceError, SetupError: If there is no room for it.
    """
    home = Path(tempfile.gettempdir())
    _remove_leftovers_once(home, _PRIVATE_PREFIX)
    try:
        made = tempfile.TemporaryDirectory(prefix=_own_name(_PRIVATE_PREFIX), ignore_cleanup_errors=True)
    except OSError as fault:
        raise disk_fault(fault, home) from fault
    with made as folder:
        yield Path(folder)


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut; file systems that cannot do so are left alone."""
    if not _IS_POSIX:
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


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


def append_synced(path: Path, content: bytes) -> None:
    """Add to the end of a file by one write that survives a power cut.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the file is not writable.
    """
    try:
        with path.open("ab", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
    except OSError as fault:
        raise disk_fault(fault, path) from fault


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Lock a folder; the system unlocks it when the process ends, in whatever way.

    Raises:
        UsageError: If another process holds it.
    """
    from filelock import FileLock, Timeout  # late: it takes as long as everything else that `segpipe -h` imports

    path = folder / LOCK_NAME
    lock = FileLock(path, blocking=False)
    try:
        make_folder(folder)  # where that fails, filelock would say that another process holds it
        lock.acquire()
    except Timeout:
        raise UsageError(f"{folder}: another process is working in it. Wait for it, or stop it first.") from None
    except OSError as fault:
        raise disk_fault(fault, path) from fault
    try:
        yield
    finally:
        lock.release()


def remove_leftovers(folder: Path, prefix: str = TEMPORARY_PREFIX) -> None:
    """Delete what killed runs left in `folder`; what another process is writing stays.

    A folder that was about to be replaced takes its name again, if the new one has not taken it yet.
    """
    for leftover in folder.glob(f"{prefix}*"):
        if _is_being_written(leftover, prefix):
            continue
        name = leftover.name.removesuffix(_ASIDE).split("@", 2)[-1].rpartition("@")[0]
        if leftover.name.endswith(_ASIDE) and name and not (folder / name).exists():
            leftover.replace(folder / name)
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(OSError):  # somebody else's, or gone meanwhile
                leftover.unlink()


def _remove_leftovers_once(folder: Path, prefix: str = TEMPORARY_PREFIX) -> None:
    """Remove leftovers when this process first writes into a folder: it may hold many files, and looking takes time."""
    with _cleaning:
        if folder not in _cleaned:
            remove_leftovers(folder, prefix)
            _cleaned.add(folder)


def _own_name(prefix: str = TEMPORARY_PREFIX) -> str:
    """Name the process and its machine, so that others can tell whether it still runs."""
    return f"{prefix}{os.getpid()}@{socket.gethostname()}@"


def _is_being_written(leftover: Path, prefix: str) -> bool:
    process, _, rest = leftover.name.removeprefix(prefix).partition("@")
    if not process.isdigit():
        return prefix != TEMPORARY_PREFIX  # among the system's files: another program's
    if not _IS_POSIX or rest.partition("@")[0] != socket.gethostname():
        try:  # no file takes a day to write
            return time.time() - leftover.lstat().st_mtime < _SECONDS_OF_DAY
        except FileNotFoundError:
            return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's process
        return True
    # in a container every process may have the same number
    return int(process) != os.getpid() or leftover.parent in _cleaned
