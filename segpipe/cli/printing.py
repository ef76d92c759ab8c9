"""Print results on stdout, and faults as one message with an exit code; of an internal error where its traceback is."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from segpipe._version import __version__
from segpipe.core.errors import ResourceError, SegpipeError, SetupError, UsageError, is_out_of_memory
from segpipe.core.text import escape_control, printable

if TYPE_CHECKING:
    from segpipe.core.foreseen import Foreseen


def echo(text: object, *, err: bool = False) -> None:
    """Print a result, or with `err` a remark: names come from files of others, so nothing acts on the terminal."""
    click.echo(printable(str(text)), err=err)


def print_json(value: Any) -> None:
    """Print the machine-readable result of a command, alone on stdout."""
    click.echo(escape_control(json.dumps(value, ensure_ascii=False), as_json=True))


def print_estimate(found: Foreseen, *, as_json: bool) -> None:
    """Print what a dry run found."""
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        echo(found.text())


_HEADLINES = {2: "Error", 3: "Data error", 4: "Setup error", 5: "Memory or disk error", 75: "Interrupted"}
_CTRL_C, _BROKEN_PIPE = 130, 141  # as shells count signals: 128 + SIGINT, 128 + SIGPIPE
_NOT_THERE = {
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "is a folder, expected a file",
    errno.ENOTDIR: "is a file, expected a folder",
}


def tell(fault: BaseException, *, as_json: bool) -> int:
    """Show a fault on stderr, with `as_json` also as JSON on stdout; return its exit code.

    Args:
        fault: A SegpipeError, an error of click, Ctrl-C, or what the system refused (memory, a file).
        as_json: Whether the command was to print JSON.
    """
    if isinstance(fault, BrokenPipeError):  # whoever read the output has enough of it, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    if isinstance(fault, click.Abort | KeyboardInterrupt):  # click turns Ctrl-C inside a command into Abort
        name, message, code = "Interrupted", "Stopped. Rerun the same command to resume.", _CTRL_C
        click.echo(message, err=True)
    elif isinstance(fault, click.ClickException):
        name, message, code = "UsageError", fault.format_message(), fault.exit_code
        fault.show()
    else:
        known = _as_segpipe_error(fault)
        name, message, code = type(known).__name__, str(known), known.exit_code
        click.echo(printable(f"{_HEADLINES.get(code, 'Error')}: {message}"), err=True)
    if as_json:
        click.echo(json.dumps({"error": name, "message": message, "exit_code": code}))
    return code


def _as_segpipe_error(fault: BaseException) -> SegpipeError:
    if isinstance(fault, SegpipeError):
        return fault
    if is_out_of_memory(fault):
        detail = f" ({_short(fault)})" if str(fault) else ""
        return ResourceError(f"ran out of memory{detail}. Use fewer workers (-j) or a smaller patch and batch.")
    assert isinstance(fault, OSError)
    if fault.filename is None:
        return SetupError(f"the system refused a file ({fault.strerror or fault}). Check disk and network folders.")
    if fault.errno in _NOT_THERE:
        return UsageError(f"{fault.filename}: {_NOT_THERE[fault.errno]}. Check the path.")
    if isinstance(fault, PermissionError):
        return SetupError(f"{fault.filename}: permission denied. Change its permissions, or choose another place.")
    from segpipe.core.files import disk_fault  # late: it imports more than help needs

    return disk_fault(fault, Path(fault.filename))


def log_and_tell(kind: type[BaseException], fault: BaseException, trace: TracebackType | None) -> None:
    """The `sys.excepthook` of the command line: the traceback goes into a file, one line to the screen.

    Where no folder can be written the traceback is shown, since otherwise it would be lost.
    """
    if issubclass(kind, KeyboardInterrupt):
        return
    text = "".join(traceback.format_exception(kind, fault, trace))
    setting = f"segpipe {__version__}, Python {platform.python_version()}, {platform.platform()}"
    path = _log(f"{setting}\narguments: {sys.argv[1:]}\n{text}")
    if path is None:
        click.echo(text, err=True)
    where = f"The traceback is in {path}" if path else "The traceback is above"
    click.echo(
        f"Internal error of segpipe ({kind.__name__}: {_short(fault)}). {where}; please report it with that text "
        "(it names your folders). --debug shows it here.",
        err=True,
    )


def _short(fault: BaseException) -> str:
    first = printable(next(iter(str(fault).splitlines()), ""))
    return first if len(first) <= 200 else f"{first[:197]}..."


def _log(text: str) -> Path | None:
    """Write the text to the user's logs, else to temporary files; return its path, None if neither can be written."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser())
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (state / "segpipe", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return None
