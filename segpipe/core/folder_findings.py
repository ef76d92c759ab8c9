"""Whether a folder's file system does what runs rely on: renaming, locks, names, space."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from segpipe.core.errors import SegpipeError
from segpipe.core.files import TEMPORARY_PREFIX, disk_fault, write_text
from segpipe.core.findings import Finding, finding

_FEW_BYTES = 10 * 2**30  # the prepared cases of a middling dataset
_NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p", "afs", "fuse.sshfs", "fuse.s3")


def folder_findings(folder: Path, mounts: Path = Path("/proc/mounts")) -> list[Finding]:
    """Look at a folder by writing small files into it, which are removed again.

    Args:
        folder: Where results are to lie; it, or the nearest folder above it that exists, is tried.
        mounts: The system's table of file systems.
    """
    folder = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    about = f"folder {folder}"
    try:
        probe = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder))
    except OSError as fault:
        return [finding(about, f"not writable ({fault.strerror})", fault="Choose another folder for results.")]
    try:
        return [_space(about, folder), _renaming(probe), _locks(probe), _cases(probe), _kind(folder, mounts)]
    except OSError as fault:
        return [finding(about, "small files cannot be written", fault=str(disk_fault(fault, folder)))]
    except SegpipeError as fault:
        return [finding(about, "small files cannot be written", fault=str(fault))]
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _space(about: str, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    few = "Little for a dataset of 3D images; `segpipe prepare WORK --dry-run` says how much is needed."
    return finding(about, f"writable, {free / 2**30:.1f} GiB free", warning=few if free < _FEW_BYTES else "")


def _renaming(probe: Path) -> Finding:
    """A reader keeps the old file while a new one takes its name."""
    write_text(probe / "file", "old")
    with (probe / "file").open(encoding="utf-8") as reader:
        write_text(probe / "file", "new")
        is_whole = (reader.read(), (probe / "file").read_text(encoding="utf-8")) == ("old", "new")
    return finding(
        "renaming",
        "a file is replaced at once" if is_whole else "a file that is read changes while another takes its name",
        fault="" if is_whole else "Results could be half-written when a run is killed. Choose a local disk.",
    )


def _locks(probe: Path) -> Finding:
    with (probe / "lock").open("w") as first, (probe / "lock").open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            return finding("locks", f"not possible ({fault.strerror})", fault="Runs need them. Choose a local disk.")
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return finding("locks", "hold")
    return finding("locks", "do not hold", fault="Two runs in one folder would spoil it. Choose a local disk.")


def _cases(probe: Path) -> Finding:
    (probe / "case").touch()
    if not (probe / "CASE").exists():
        return finding("names", "capital and small letters differ")
    return finding("names", "capital and small letters are one", warning="Cases `a` and `A` would share their files.")


def _kind(folder: Path, mounts: Path) -> Finding:
    kind = file_system(folder, mounts)
    if not kind.startswith(_NETWORK):
        return finding("file system", kind)
    slow = "Over a network training may wait for files; keep WORK on a local disk and copy it afterwards."
    return finding("file system", kind, warning=slow)


def file_system(folder: Path, mounts: Path) -> str:
    """Kind of the file system that holds a folder, e.g. `ext4`; `unknown` where the system does not say."""
    if not mounts.is_file():
        return "unknown"
    lines = [line.split() for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    real = os.path.realpath(folder)
    kinds = {  # the last of two on one place hides the first
        place: fields[2]
        for fields in lines
        if (place := fields[1].replace("\\040", " ")) == "/" or real == place or real.startswith(place + "/")
    }
    return kinds[max(kinds, key=len)] if kinds else "unknown"
